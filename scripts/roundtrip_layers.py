"""Live round trip of single layers: every layer type, with LoRA and with DoRA.

The cases are those of Tests/Goldens. For each, `layer-runner` loads peft's adapter, saves it again,
trains it for ten steps and makes an adapter of its own; peft, in this process, must load all three
without a missing or unexpected key and compute the same outputs, and torch's training must have
the same losses. Where peft is wrong (the case says how), the formula replaces its outputs.
"""

import json
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file

from roundtrip_support import GOLDENS, guarded, relative, worst

sys.dont_write_bytecode = True
sys.path.insert(0, str(GOLDENS))

from generator import dora, layers  # noqa: E402
from generator.toys import Case, Formula, Toy, train  # noqa: E402

OUTPUTS, LOSSES = 1e-5, 1e-4
# A weight that merging rounds to 16 bits.
ROUNDED = 1e-2


class LiveCase:
    """A case with what the runner made of it."""

    def __init__(self, case: Case, runner: Path, folder: Path):
        self.case = case
        self.name = f"{case.root}/{case.name}"
        case.root = str(GOLDENS / case.root)
        self.folder = folder / self.name
        self.folder.mkdir(parents=True)
        command = [str(runner), str(case.folder), str(self.folder)]
        done = subprocess.run(command, capture_output=True, text=True)
        self.failure = done.stdout + done.stderr if done.returncode else None
        case.record = json.loads((case.folder / "case.json").read_text())
        case.base = Toy(case.layer()).eval().to(case.base_dtype)
        case.base.load_state_dict(load_file(case.folder / "base.safetensors"))
        tensors = load_file(case.folder / "input.safetensors")
        self.target = tensors["target"]
        extra = ("target", "upstream", "dropout")
        self.inputs = {key: value for key, value in tensors.items() if key not in extra}

    def load(self, adapter: str):
        """The base in float32 with an adapter of the runner's; and how many keys did not fit."""
        config = LoraConfig.from_pretrained(str(self.folder / adapter))
        config.inference_mode = False
        model = get_peft_model(self.case.exact_base(), config).eval()
        weights = load_file(self.folder / adapter / "adapter_model.safetensors")
        wrong = set(weights) ^ set(get_peft_model_state_dict(model, save_embedding_layers=False))
        result = set_peft_model_state_dict(model, weights)
        # peft counts the base's own tensors as missing.
        missing = [key for key in result.missing_keys if ".default" in key]
        return model, len(missing) + len(result.unexpected_keys) + len(wrong)

    def formula(self, adapter: str) -> Formula:
        return self.case.formula(load_file(self.folder / adapter / "adapter_model.safetensors"))

    def expected(self, adapter: str, model) -> torch.Tensor:
        with torch.no_grad():
            if self.case.wrong:
                return self.formula(adapter).output(self.inputs)
            return model(**self.inputs)

    def losses(self) -> list[float]:
        """Torch's, from the adapter that the runner loaded and saved."""
        if self.case.wrong:
            formula = self.formula("saved")
            parameters = formula.parameters()
            return train(parameters, lambda: formula.output(self.inputs), self.target)
        model, _ = self.load("saved")
        parameters = [p for p in model.parameters() if p.requires_grad]
        return train(parameters, lambda: model(**self.inputs), self.target)

    def check(self, report) -> None:
        if self.failure is not None:
            print(f"{self.name}: {self.failure}", file=sys.stderr)
            report.add_fact(self.name, "the runner ended with an error", "", False)
            return
        outputs = load_file(self.folder / "outputs.safetensors")
        with torch.no_grad():
            base = self.case.exact_base()(**self.inputs)
        report.add(self.name, "output without an adapter", relative(outputs["base"], base), OUTPUTS)
        for adapter in ("saved", "fresh", "trained"):
            model, count = self.load(adapter)
            report.add_fact(self.name, f"keys, {adapter}", f"{count} wrong", count == 0)
            error = relative(outputs[adapter], self.expected(adapter, model))
            report.add(self.name, f"output, {adapter}", error, OUTPUTS)
        if "merged" in outputs:
            is_exact = self.case.base_dtype == torch.float32
            model, _ = self.load("saved")
            if not self.case.wrong:
                model = model.merge_and_unload(safe_merge=True)
            error = relative(outputs["merged"], self.expected("saved", model))
            report.add(self.name, "output, merged", error, OUTPUTS if is_exact else ROUNDED)
        found = json.loads((self.folder / "losses.json").read_text())
        errors = [abs(a - b) / abs(b) for a, b in zip(found, self.losses(), strict=True)]
        report.add(self.name, "losses of ten steps", worst(errors), LOSSES)


def check_case(case: Case, runner: Path, folder: Path, report) -> None:
    LiveCase(case, runner, folder).check(report)


def check_layers(runner: Path, tool, report) -> None:
    """Adds the rows of all cases to the report."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in [*layers.cases(), *dora.cases()]:
            name = f"{case.root}/{case.name}"
            one = partial(check_case, case, runner, tool.folder / "layers", report)
            guarded(report, name, "the case", one)
