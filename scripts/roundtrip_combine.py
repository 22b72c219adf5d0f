"""The live round trip of `peft combine`: see roundtrip.py, which runs it.

For every type of combination: what the tool writes loads in peft without a missing or unexpected
key and gives the same output there as here. Sums are compared with peft's model that has both
adapters active, the compatibility mode with peft's add_weighted_adapter, and a sum of DoRA adapters
with the sum of their changes, made by merging each by itself.
"""

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file

from roundtrip_support import Report, Tool, relative, visible

OUTPUT = 1e-5
KINDS = ["linear", "cat", "svd", "ties", "dare_linear", "dare_ties", "magnitude_prune"]
KINDS += ["ties_svd", "dare_linear_svd", "dare_ties_svd", "magnitude_prune_svd"]
WEIGHTS = (0.7, -0.4)
DENSITY = 0.5


class CombineCheck:
    """The rows of one model."""

    def __init__(self, subject, inputs: dict, tool: Tool, report: Report) -> None:
        self.subject, self.inputs, self.tool, self.report = subject, inputs, tool, report
        self.folder = tool.folder / subject.name
        self.problems: list[str] = []

    def combine(self, name: str, kind: str, adapters: dict[Path, float], *options) -> Path:
        output = self.folder / f"combined-{name}"
        arguments = ["--type", kind, "--output", output, "--overwrite", *options]
        for adapter, weight in adapters.items():
            arguments += ["--adapter", f"{adapter}={weight}"]
        if kind not in ("linear", "cat", "svd"):
            arguments += ["--density", DENSITY]
        self.tool.run("combine", *arguments)
        return output

    def here(self, adapter: Path) -> torch.Tensor:
        options = ["--task", self.subject.task, "--adapter", adapter]
        output = self.tool.forward(self.subject.path, self.inputs, *options)
        return visible(output["logits"], self.inputs)

    def logits(self, model) -> torch.Tensor:
        with torch.no_grad():
            return visible(model(**self.inputs).logits, self.inputs)

    def there(self, adapter: Path) -> torch.Tensor:
        """The output of peft with the folder; keys that do not fit are noted."""
        model = get_peft_model(self.subject.base(), LoraConfig.from_pretrained(str(adapter)))
        weights = load_file(adapter / "adapter_model.safetensors")
        result = set_peft_model_state_dict(model, weights)
        # peft counts the base's own tensors as missing; what concerns it are the adapter's.
        self.problems += [key for key in result.missing_keys if ".default." in key]
        self.problems += result.unexpected_keys
        return self.logits(model.eval())

    def add(self, check: str, found: torch.Tensor, reference: torch.Tensor) -> None:
        self.report.add(self.subject.name, f"combine, {check}", relative(found, reference), OUTPUT)

    def check_kinds(self, first: Path, other: Path) -> None:
        for kind in KINDS:
            made = self.combine(kind, kind, dict(zip((first, other), WEIGHTS)))
            self.add(f"{kind} in peft", self.here(made), self.there(made))

    def check_sums(self, first: Path, second: Path) -> None:
        both = self.logits(self.subject.load(first, second))
        for kind, *options in (["linear"], ["cat"], ["svd", "--svd-rank", 16]):
            made = self.combine(f"sum-{kind}", kind, {first: 1, second: 1}, *options)
            self.add(f"{kind}, two active in peft", self.there(made), both)

    def check_compatibility(self, first: Path, other: Path) -> None:
        for kind in KINDS:
            if "dare" in kind:  # random
                continue
            model = self.subject.load(first, other)
            names = [first.name, other.name]
            model.add_weighted_adapter(names, list(WEIGHTS), "new", kind, density=DENSITY)
            model.set_adapter("new")
            weights = dict(zip((first, other), WEIGHTS))
            made = self.combine(f"peft-{kind}", kind, weights, "--compatibility", "peft")
            self.add(f"{kind}, add_weighted_adapter", self.here(made), self.logits(model))

    def make_dora(self, name: str, seed: int) -> Path:
        torch.manual_seed(seed)
        config = LoraConfig(**dict(self.subject.first, use_dora=True))
        model = get_peft_model(self.subject.base(), config)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "lora_A" in key:
                    parameter.normal_(std=parameter.shape[1] ** -0.5)
                elif "lora_B" in key:
                    parameter.normal_(std=0.05)
                elif "lora_magnitude" in key:
                    parameter.mul_(torch.empty_like(parameter).uniform_(0.8, 1.2))
        model.save_pretrained(self.folder / name, save_embedding_layers=False)
        return self.folder / name

    def check_dora(self) -> None:
        adapters = {self.make_dora("dora-a", 3): 0.7, self.make_dora("dora-b", 4): 0.5}
        model = self.subject.base()
        state = {key: value.clone() for key, value in model.state_dict().items()}
        total = {key: value.clone() for key, value in state.items()}
        for adapter, weight in adapters.items():
            merged = self.subject.load(adapter).merge_and_unload().state_dict()
            for key, value in state.items():
                total[key] += weight * (merged[key] - value)
        model.load_state_dict(total)
        made = self.combine("dora", "cat", adapters, "--base", self.subject.path)
        self.add("DoRA, changes added in torch", self.there(made), self.logits(model))

    def finish(self) -> None:
        text = f"{len(self.problems)} missing or unexpected"
        self.report.add_fact(
            self.subject.name, "keys of combined adapters", text, not self.problems
        )


def check(subject, adapters, make_adapter, inputs: dict, tool: Tool, report: Report) -> None:
    """All rows of one model.

    `make_adapter(settings, name, seed)` makes an adapter like `adapters`, which are the first and the
    second of roundtrip.py. The types that go element by element need adapters of one rank.
    """
    rows = CombineCheck(subject, inputs, tool, report)
    first, second = adapters
    settings = dict(subject.first, task_type=subject.second["task_type"])
    other = make_adapter(settings, "other", 5)
    rows.check_kinds(first, other)
    rows.check_sums(first, second)
    if not subject.is_classifier:
        # peft's mode takes the classifier from the base, which the folders do not hold.
        rows.check_compatibility(first, other)
        rows.check_dora()
    rows.finish()
