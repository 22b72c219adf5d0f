"""loralib's MergedLinear: LoRA on some of the parts of a fused projection."""

import shutil
from pathlib import Path

import loralib
import torch
from torch import nn

from .models import LEARNING_RATE, WEIGHT_DECAY
from .toys import compact, fill, numbers, save, train

CASES = {
    # Queries and values of a fused projection, as loralib's GPT-2 has it.
    "gpt2": dict(inputs=7, outputs=12, r=2, lora_alpha=5, enable_lora=[True, False, True], fan_in_fan_out=True),
    "linear": dict(inputs=5, outputs=8, r=3, lora_alpha=6, enable_lora=[False, True]),
    "all": dict(inputs=6, outputs=9, r=2, lora_alpha=2, enable_lora=[True, True, True], bias=False),
}


class Toy(nn.Module):
    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def make_case(name: str, inputs: int, outputs: int, seed: int, **options) -> None:
    folder = Path("fused") / name
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)

    def fresh() -> Toy:
        model = Toy(loralib.MergedLinear(inputs, outputs, **options))
        fill(model.named_parameters(), seed, 1.0)
        # In training mode weights are apart, in evaluation they are merged; there is no dropout.
        return model.train()

    model = fresh()
    base = {key: value for key, value in model.state_dict().items() if "lora_" not in key}
    save(base, folder / "base.safetensors")
    save(loralib.lora_state_dict(model), folder / "lora.safetensors")
    x = numbers(seed + 50, 2, 3, inputs)
    with torch.no_grad():
        plain = model(x)
        plain -= model.layer.lora_dropout(x) @ delta(model).T
    upstream, target = numbers(seed + 60, *plain.shape), numbers(seed + 61, *plain.shape)
    save({"x": x, "upstream": upstream, "target": target}, folder / "input.safetensors")
    given = x.clone().requires_grad_()
    output = model(given)
    (output * upstream).sum().backward()
    found = {"output.base": plain, "output.active": output, "grad_input.x": given.grad}
    factors = {"lora_A": model.layer.lora_A, "lora_B": model.layer.lora_B}
    found |= {f"grad.layer.{key}": value.grad for key, value in factors.items()}
    losses = train(list(factors.values()), lambda: model(x), target)
    merged = fresh().eval()
    found |= {"merged.layer.weight": merged.layer.weight, "output.merged": merged(x)}
    save(found, folder / "expected.safetensors")
    kind = "gpt2-conv1d" if options.get("fan_in_fan_out") else "linear"
    record = {
        "module": {
            "path": "layer",
            "type": "Conv1D" if kind == "gpt2-conv1d" else "Linear",
            "in_features": inputs,
            "out_features": outputs,
            "bias": options.get("bias", True),
        },
        "r": options["r"],
        "lora_alpha": options["lora_alpha"],
        "enable_lora": options["enable_lora"],
        "losses": losses,
        "optimiser": {"name": "AdamW", "lr": LEARNING_RATE, "weight_decay": WEIGHT_DECAY},
    }
    (folder / "case.json").write_text(compact(record))


def delta(model: Toy) -> torch.Tensor:
    """ΔW, [outputs, inputs]."""
    change = model.layer.merge_AB() * model.layer.scaling
    return change.T if model.layer.fan_in_fan_out else change


def make() -> None:
    for index, (name, options) in enumerate(CASES.items()):
        make_case(name, seed=401 + 10 * index, **options)
