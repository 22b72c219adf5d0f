"""The live round trip of single layers: see roundtrip.py, which runs it.

The tool opens whole models only, so the adapters come from the tests: with PEFT_ROUNDTRIP_FOLDER
set, they train peft's adapters of the goldens (Tests/Goldens/layers, Tests/Goldens/dora) for some
steps and leave each there, as saved, with the output. Here peft loads it. Where peft computes a
layer wrongly, which the goldens note, the output is compared with the formula's.
"""

import copy
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from roundtrip_support import GOLDENS, PACKAGE, relative

sys.path.insert(0, str(GOLDENS))

from generator import dora, layers  # noqa: E402
from generator.toys import Case, Toy  # noqa: E402

OUTPUT = 1e-5


def write_adapters(folder: Path) -> None:
    """Runs the tests that write the adapters."""
    command = ["swift", "test", "--package-path", PACKAGE, "--filter", "RoundTripTests"]
    environment = dict(os.environ, PEFT_ROUNDTRIP_FOLDER=str(folder))
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"swift test --filter RoundTripTests\n{done.stdout}{done.stderr}")


def base(case: Case) -> Toy:
    """The case's model in float32, which is what this package computes in."""
    model = Toy(case.layer()).eval()
    model.load_state_dict(load_file(GOLDENS / case.folder / "base.safetensors"))
    return model.float()


def expected(case: Case, folder: Path, inputs: dict) -> tuple[str, torch.Tensor]:
    """What peft says of the folder when it loads it, and the right output."""
    case.base = base(case)
    case.record = json.loads((GOLDENS / case.folder / "case.json").read_text())
    config = LoraConfig.from_pretrained(str(folder))
    model = get_peft_model(copy.deepcopy(case.base), config).eval()
    result = model.load_adapter(str(folder), "default", is_trainable=False)
    missing = [key for key in result.missing_keys if ".default" in key]
    problem = ""
    if missing or result.unexpected_keys:
        problem = f"missing {missing[:2]}, unexpected {result.unexpected_keys[:2]}"
    with torch.no_grad():
        if case.record.get("wrong"):
            adapter = load_file(folder / "adapter_model.safetensors")
            return problem, case.formula(adapter).output(inputs)
        return problem, model(**inputs)


def check(folder: Path, report) -> None:
    """Rows of the table for every layer of the goldens."""
    for case in [*layers.cases(), *dora.cases()]:
        own = folder / case.folder
        name = f"{case.folder}"
        if not own.is_dir():
            report.add_fact("layer", f"{name}: in peft", "not written", False)
            continue
        tensors = load_file(GOLDENS / case.folder / "input.safetensors")
        given = ("x", "query", "key", "value", "mask", "attention_bias")
        inputs = {key: tensors[key] for key in given if key in tensors}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            problem, output = expected(case, own / "adapter", inputs)
        report.add_fact("layer", f"{name}: in peft", problem or "all keys", not problem)
        found = load_file(own / "output.safetensors")["output"].reshape(output.shape)
        report.add("layer", f"{name}: output", relative(found, output), OUTPUT)
