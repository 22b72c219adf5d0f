"""DoRA on every layer type that has it."""

import copy

import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from .layers import DILATION, tokens, vectors
from .toys import CONVOLUTIONS, Case, Formula, dense, effective, numbers, row_norms

GROUPS = (
    "The norm is taken of a product of B and A that ignores the groups. Right: m initially the norm "
    "of the dense weight W + s·B·A of each output channel, B going by its groups; the saved adapter "
    "is the same for both. Where sizes do not fit, adapting fails."
)
PADDING = (
    "A pads with zeros whatever the base's padding mode. Right: the output of the merged weight."
)
BF16 = dict(base_dtype=torch.bfloat16)


class DoraCase(Case):
    def config(self) -> LoraConfig:
        self.lora = {"use_dora": True} | self.lora
        return super().config()

    def fill_adapter(self, model: PeftModel) -> None:
        """Random A and B, and the magnitude that peft gives them, changed by a fifth or so."""
        layer = model.base_model.model.layer
        magnitude = layer.lora_magnitude_vector["default"]
        self.magnitudes = {"magnitude.fresh": magnitude.weight.clone()}
        super().fill_adapter(model)
        self.initialise(model)
        self.magnitudes["magnitude.init"] = magnitude.weight.detach().clone()
        with torch.no_grad():
            noise = numbers(self.seed + 30, *magnitude.weight.shape)
            magnitude.weight.mul_(1 + 0.2 * noise)

    @staticmethod
    def initialise(model: PeftModel) -> None:
        """The magnitude of the A and B that are there now, as peft computes it."""
        layer = model.base_model.model.layer
        embedding = isinstance(layer.get_base_layer(), nn.Embedding)
        A = layer.lora_embedding_A if embedding else layer.lora_A
        B = layer.lora_embedding_B if embedding else layer.lora_B
        layer.lora_magnitude_vector["default"].update_layer(
            base_layer=layer.get_base_layer(),
            lora_A=A["default"] if embedding else A["default"].weight,
            lora_B=B["default"] if embedding else B["default"].weight,
            scaling=layer.scaling["default"],
        )

    def extra(self, inputs) -> None:
        self.found |= self.magnitudes
        adapter = load_file(self.folder / "adapter" / "adapter_model.safetensors")
        names = {key.removeprefix("base_model.model.layer."): v for key, v in adapter.items()}
        names = {key: value for key, value in names.items() if "lora_magnitude" not in key}
        base = self.exact_base().layer
        carrier = base
        if isinstance(base, CONVOLUTIONS) and base.groups > 1:
            carrier = copy.copy(base)
            carrier._parameters = dense(base)._parameters
        exact = row_norms(carrier, effective(carrier, names, self.record["scaling"]))
        fresh = row_norms(carrier, carrier.weight.detach())
        if self.base_dtype != torch.float32:
            self.found |= {"exact.magnitude.init": exact, "exact.magnitude.fresh": fresh}
        elif self.wrong:
            self.found |= {"right.magnitude.init": exact, "right.magnitude.fresh": fresh}
        else:
            torch.testing.assert_close(self.found["magnitude.init"], exact)
            torch.testing.assert_close(self.found["magnitude.fresh"], fresh)


class PairCase(DoraCase):
    """Two DoRA adapters active together."""

    def make_adapter(self) -> None:
        super().make_adapter()
        first = self.seed
        self.seed = first + 1000
        model = self.adapt()
        self.fill_adapter(model)
        folder = self.folder / "adapter_b"
        model.save_pretrained(folder, save_embedding_layers=False)
        (folder / "README.md").unlink()
        self.seed = first

    def extra(self, inputs) -> None:
        def both(order: list[str]) -> PeftModel:
            model = self.load()
            model.load_adapter(str(self.folder / "adapter_b"), "b", is_trainable=True)
            model.base_model.set_adapter(order)
            return model.eval()

        base = self.base.layer
        change = torch.zeros_like(base.weight)
        for name in ("adapter", "adapter_b"):
            tensors = load_file(self.folder / name / "adapter_model.safetensors")
            names = {key.removeprefix("base_model.model.layer."): v for key, v in tensors.items()}
            change += effective(base, names, self.record["scaling"]) - base.weight.detach()
        right = copy.deepcopy(self.base)
        with torch.no_grad():
            right.layer.weight += change
            self.found["right.output.two"] = right(**inputs)
            self.found["right.merged.two"] = right.layer.weight
            for order in (["default", "b"], ["b", "default"]):
                name = "two" if order[0] == "default" else "two_reversed"
                self.found[f"output.{name}"] = both(order)(**inputs)
                merged = both(order).merge_and_unload(adapter_names=order)
                self.found[f"merged.{name}"] = merged.layer.weight
        self.record["wrong_two"] = (
            "Each adapter scales what the one before it made, so the order matters. "
            "Right: both change the base, and the changes add."
        )


class ScaledCase(DoraCase):
    """An adapter whose scaling is changed on the model."""

    factors = (0.25, 3.0, -1.0)

    def extra(self, inputs) -> None:
        super().extra(inputs)
        self.record["scales"] = list(self.factors)
        adapter = load_file(self.folder / "adapter" / "adapter_model.safetensors")
        for index, factor in enumerate(self.factors):
            with torch.no_grad():
                model = self.load()
                model.base_model.model.layer.set_scale("default", factor)
                output = model(**inputs)
                merged = model.merge_and_unload(safe_merge=True)
                scaling = factor * self.record["scaling"]
                right = Formula(self.exact_base().layer, adapter, scaling)
                torch.testing.assert_close(output, right.output(inputs), rtol=2e-5, atol=2e-5)
                self.found[f"scaled.output.{index}"] = output
                self.found[f"scaled.merged.{index}"] = merged.layer.weight


def cases() -> list[Case]:
    def rounded(*shape: int):
        return lambda seed: {"x": numbers(seed, *shape).bfloat16().float()}

    listed = [
        DoraCase("linear", lambda: nn.Linear(7, 10), vectors(2, 3, 7), 401),
        DoraCase("linear-nobias", lambda: nn.Linear(7, 10, bias=False), vectors(3, 7), 402),
        DoraCase(
            "linear-dropout",
            lambda: nn.Linear(7, 10),
            vectors(3, 7),
            403,
            lora=dict(lora_dropout=0.25),
            has_dropout_draw=True,
        ),
        DoraCase(
            "linear-rslora",
            lambda: nn.Linear(7, 10),
            vectors(3, 7),
            404,
            lora=dict(use_rslora=True, r=3),
        ),
        DoraCase("linear-bf16", lambda: nn.Linear(16, 12), rounded(3, 16), 405, **BF16),
        DoraCase("gpt2-conv1d", lambda: Conv1D(10, 7), vectors(2, 3, 7), 411),
        DoraCase("gpt2-conv1d-bf16", lambda: Conv1D(12, 16), rounded(3, 16), 412, **BF16),
        DoraCase("embedding", lambda: nn.Embedding(11, 6), tokens(11, 2, 5), 421),
        DoraCase(
            "embedding-padding", lambda: nn.Embedding(11, 6, padding_idx=1), tokens(11, 2, 5), 422
        ),
        DoraCase("embedding-bf16", lambda: nn.Embedding(11, 8), tokens(11, 2, 5), 423, **BF16),
        DoraCase(
            "conv1d", lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1), vectors(2, 4, 9), 431
        ),
        DoraCase("conv2d-1x1", lambda: nn.Conv2d(4, 6, 1), vectors(2, 4, 3, 4), 441),
        DoraCase(
            "conv2d-3x3",
            lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1),
            vectors(2, 4, 5, 6),
            442,
        ),
        DoraCase(
            "conv2d-dropout",
            lambda: nn.Conv2d(4, 6, 3),
            vectors(2, 4, 5, 4),
            443,
            lora=dict(lora_dropout=0.25),
            has_dropout_draw=True,
        ),
        DoraCase("conv2d-bf16", lambda: nn.Conv2d(4, 6, 3), rounded(2, 4, 5, 4), 444, **BF16),
        DoraCase(
            "conv2d-groups",
            lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2),
            vectors(2, 4, 4, 5),
            445,
            wrong=GROUPS,
        ),
        DoraCase(
            "conv2d-reflect",
            lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
            vectors(2, 4, 4, 5),
            446,
            wrong=PADDING,
        ),
        DoraCase(
            "conv1d-dilated-same",
            lambda: nn.Conv1d(4, 6, 3, padding="same", dilation=2),
            vectors(2, 4, 7),
            447,
            wrong=DILATION.format("the sizes fit and the active output is silently wrong"),
        ),
        DoraCase("conv3d", lambda: nn.Conv3d(3, 5, (2, 3, 3)), vectors(2, 3, 3, 4, 5), 461),
        ScaledCase("linear-scaled", lambda: nn.Linear(7, 10), vectors(3, 7), 481),
        ScaledCase("embedding-scaled", lambda: nn.Embedding(11, 6), tokens(11, 2, 5), 482),
        ScaledCase("conv2d-scaled", lambda: nn.Conv2d(4, 6, 3), vectors(2, 4, 5, 4), 483),
        PairCase("two", lambda: nn.Linear(7, 10), vectors(3, 7), 471),
    ]
    for case in listed:
        case.root = "dora"
    return listed


def make() -> None:
    for case in cases():
        case.make()
