"""One layer in a wrapper, adapted by peft: the goldens of every layer type stand on this."""

import copy
import json
import math
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from .models import LEARNING_RATE, STEPS, WEIGHT_DECAY, gradients_by_key

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Toy(nn.Module):
    """A model with one layer in it, called `layer`."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, **inputs) -> torch.Tensor:
        return call(self.layer, inputs)


def call(layer: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the layer makes of a case's inputs."""
    if "x" in inputs:
        return layer(inputs["x"])
    # Attention: a mask of 0 hides a position; `attention_bias` is added to the scores.
    mask, bias = inputs.get("mask"), inputs.get("attention_bias")
    output, _ = layer(
        inputs["query"],
        inputs["key"],
        inputs["value"],
        key_padding_mask=None if mask is None else mask == 0,
        attn_mask=bias,
        need_weights=False,
    )
    return output


def numbers(seed: int, *shape: int, scale: float = 1.0) -> torch.Tensor:
    """Normal float32 numbers that do not depend on torch's generator."""
    values = np.random.default_rng(seed).standard_normal(shape) * scale
    return torch.from_numpy(values.astype(np.float32))


def fill(tensors, seed: int, scale: float) -> None:
    """Fills named tensors by their names and shapes, so that outputs stay around 1."""
    with torch.no_grad():
        for index, (name, tensor) in enumerate(tensors):
            shape = tuple(tensor.shape)
            inputs = math.prod(shape[1:]) if tensor.dim() > 1 else 1
            factor = 0.3 if name.endswith("bias") else scale / math.sqrt(inputs)
            if "lora_embedding_A" in name or "layer.weight" in name and "embed" in name:
                factor = scale
            tensor.copy_(numbers(seed + index, *shape, scale=factor))


def describe(layer: nn.Module) -> dict:
    """The layer's kind and settings, for a reader that has no torch."""
    kind = type(layer).__name__
    entry = {"path": "layer", "type": kind}
    if isinstance(layer, nn.MultiheadAttention):
        names = ("embed_dim", "num_heads", "batch_first")
        entry |= {name: getattr(layer, name) for name in names}
        return entry | {"bias": layer.in_proj_bias is not None}
    if isinstance(layer, CONVOLUTIONS):
        names = (
            "in_channels",
            "out_channels",
            "kernel_size",
            "stride",
            "padding",
            "dilation",
            "groups",
            "padding_mode",
        )
        entry |= {name: getattr(layer, name) for name in names}
        return entry | {"bias": layer.bias is not None}
    if isinstance(layer, nn.Embedding):
        entry |= {
            "type": "Embedding",
            "num_embeddings": layer.num_embeddings,
            "embedding_dim": layer.embedding_dim,
            "padding_idx": layer.padding_idx,
        }
        if hasattr(layer, "embed_scale"):
            entry["embed_scale"] = float(layer.embed_scale)
        return entry
    if isinstance(layer, Conv1D):
        return entry | {"in_features": layer.nx, "out_features": layer.nf, "bias": True}
    names = ("in_features", "out_features")
    return entry | {name: getattr(layer, name) for name in names} | {"bias": layer.bias is not None}


class FixedMask(nn.Module):
    """Dropout whose draw is given: zeros, and 1/(1-p) elsewhere."""

    def __init__(self, mask: torch.Tensor):
        super().__init__()
        self.mask = mask

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.mask


# -- The change of a weight, by formula


def delta(layer: nn.Module, A: torch.Tensor, B: torch.Tensor, scaling: float) -> torch.Tensor:
    """s·B·A in the layout of the layer's weight."""
    if isinstance(layer, CONVOLUTIONS):
        # B is a convolution of size 1. With groups, the result sees all input channels and is not
        # a weight of the grouped layer; see `dense`.
        rank, groups = A.shape[0] // layer.groups, layer.groups
        parts = [
            torch.einsum(
                "or,ri...->oi...",
                B.flatten(1)[g * len(B) // groups : (g + 1) * len(B) // groups],
                A[g * rank : (g + 1) * rank],
            )
            for g in range(groups)
        ]
        return scaling * torch.cat(parts)
    product = scaling * (B @ A)
    return product.T if isinstance(layer, (nn.Embedding, Conv1D)) else product


def dense(layer: nn.Module) -> nn.Module:
    """The convolution without groups that computes the same."""
    plain = copy.deepcopy(layer)
    plain.groups = 1
    weight = torch.zeros(layer.out_channels, layer.in_channels, *layer.kernel_size)
    inputs, outputs = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    for g in range(layer.groups):
        rows = slice(g * outputs, (g + 1) * outputs)
        weight[rows, g * inputs : (g + 1) * inputs] = layer.weight.detach()[rows]
    plain.weight = nn.Parameter(weight)
    return plain


def row_norms(layer: nn.Module, weight: torch.Tensor) -> torch.Tensor:
    """The norms that DoRA divides by, in the shape of its magnitude: one for each output."""
    if isinstance(layer, CONVOLUTIONS):
        axes = tuple(range(1, weight.dim()))
        return weight.pow(2).sum(axes, keepdim=True).sqrt().transpose(0, 1)
    axis = 0 if isinstance(layer, (nn.Embedding, Conv1D)) else 1
    return weight.pow(2).sum(axis).sqrt()


def effective(layer: nn.Module, adapter: dict[str, torch.Tensor], scaling: float):
    """The weight that the layer has with the adapter: W + ΔW, or m/‖W + ΔW‖ times it, whose norm
    is a constant in the gradient."""
    A = adapter.get("lora_A.weight", adapter.get("lora_embedding_A"))
    B = adapter.get("lora_B.weight", adapter.get("lora_embedding_B"))
    weight = layer.weight.detach() + delta(layer, A, B, scaling)
    magnitude = adapter.get("lora_magnitude_vector")
    if magnitude is None:
        return weight
    factor = magnitude / row_norms(layer, weight).detach()
    if isinstance(layer, CONVOLUTIONS):
        return factor.transpose(0, 1) * weight
    return factor * weight if isinstance(layer, (nn.Embedding, Conv1D)) else factor[:, None] * weight


class Formula:
    """The case computed without peft: what an adapter is defined to do, for the layers that peft
    gets wrong."""

    def __init__(self, layer: nn.Module, adapter: dict[str, torch.Tensor], scaling: float):
        grouped = isinstance(layer, CONVOLUTIONS) and layer.groups > 1
        self.layer = layer
        self.carrier = dense(layer) if grouped else copy.deepcopy(layer)
        self.scaling = scaling
        self.adapter = {key: nn.Parameter(value.clone()) for key, value in adapter.items()}
        # As in peft, the column of A for the padding token gets no gradient, while B gets one
        # from positions of padding.
        self.padding = getattr(layer, "padding_idx", None)
        if self.padding is not None:
            self.carrier.padding_idx = None

    @property
    def named(self) -> dict[str, torch.Tensor]:
        names = {key.removeprefix("base_model.model.layer."): v for key, v in self.adapter.items()}
        if self.padding is not None:
            A = names["lora_embedding_A"]
            frozen = torch.arange(A.shape[1]) == self.padding
            names["lora_embedding_A"] = torch.where(frozen, A.detach(), A)
        return names

    def weights(self) -> dict[str, torch.Tensor]:
        """The layer's changed parameters."""
        names = self.named
        if isinstance(self.layer, nn.MultiheadAttention):
            prefix = "base_layer.out_proj."
            out = {
                key.removeprefix(prefix): value
                for key, value in names.items()
                if key.startswith(prefix)
            }
            product = names["lora_B.weight"] @ names["lora_A.weight"]
            return {
                "in_proj_weight": self.layer.in_proj_weight.detach() + self.scaling * product,
                "out_proj.weight": effective(self.layer.out_proj, out, self.scaling),
            }
        # A grouped convolution's change is computed by its groups, and added to a dense weight.
        change = copy.copy(self.layer)
        change._parameters = self.carrier._parameters
        found = {"weight": effective(change, names, self.scaling)}
        if "lora_B.bias" in names:
            found["bias"] = self.layer.bias.detach() + self.scaling * names["lora_B.bias"]
        return found

    def merged(self) -> dict[str, torch.Tensor]:
        return {key: value.detach() for key, value in self.weights().items()}

    def output(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        own = {**dict(self.carrier.named_parameters()), **self.weights()}
        return torch.func.functional_call(
            Toy(self.carrier).eval(),
            {f"layer.{key}": value for key, value in own.items()},
            (),
            inputs,
        )

    def parameters(self) -> list[nn.Parameter]:
        return list(self.adapter.values())


# -- Cases


@dataclass
class Case:
    """One layer with one adapter."""

    name: str
    layer: Callable[[], nn.Module]
    inputs: Callable[[int], dict[str, torch.Tensor]]
    seed: int
    lora: dict = field(default_factory=dict)
    # What peft gets wrong here, if it does; then the numbers by formula stand beside peft's.
    wrong: str | None = None
    root: str = "layers"
    base_dtype: torch.dtype = torch.float32
    has_dropout_draw: bool = False

    @property
    def folder(self) -> Path:
        return Path(self.root) / self.name

    def make(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.write()

    def write(self) -> None:
        if self.folder.exists():
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True)
        base = Toy(self.layer()).eval()
        fill(base.named_parameters(), self.seed, 1.0)
        if isinstance(base.layer, nn.Embedding):
            with torch.no_grad():
                base.layer.weight.copy_(numbers(self.seed, *base.layer.weight.shape))
        base = base.to(self.base_dtype)
        save(base.state_dict(), self.folder / "base.safetensors")
        self.base = base
        self.record = {"module": self.description(base.layer)}

        self.make_adapter()
        inputs = self.inputs(self.seed + 50)
        with torch.no_grad():
            plain = self.exact_base()(**inputs)
        self.upstream = numbers(self.seed + 60, *plain.shape)
        self.target = numbers(self.seed + 61, *plain.shape)
        self.found: dict[str, torch.Tensor] = {}
        extra = {"upstream": self.upstream, "target": self.target}
        if self.has_dropout_draw:
            kept = np.random.default_rng(self.seed + 62).random(tuple(inputs["x"].shape))
            rate = self.lora["lora_dropout"]
            draw = torch.from_numpy((kept >= rate).astype(np.float32)) / (1 - rate)
            extra["dropout"] = draw
            self.record_dropout(inputs, draw)
        save(inputs | extra, self.folder / "input.safetensors")
        self.record_base(inputs)
        self.record_active(inputs)
        self.record_merged(inputs)
        self.record_training(inputs)
        self.record_formula(inputs)
        self.extra(inputs)
        save(self.found, self.folder / "expected.safetensors")
        (self.folder / "case.json").write_text(compact(self.record))

    def description(self, layer: nn.Module) -> dict:
        return describe(layer)

    def extra(self, inputs: dict[str, torch.Tensor]) -> None:
        """Room for a kind of case to record more."""

    # -- Models

    def exact_base(self) -> Toy:
        return copy.deepcopy(self.base).float()

    def config(self) -> LoraConfig:
        options = dict(r=4, lora_alpha=6, target_modules=["layer"]) | self.lora
        return LoraConfig(**options)

    def adapt(self) -> PeftModel:
        """The base with a new adapter."""
        torch.manual_seed(self.seed)
        return get_peft_model(copy.deepcopy(self.base), self.config()).eval()

    def fill_adapter(self, model: PeftModel) -> None:
        trainable = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        fill(trainable, self.seed + 20, 0.8)

    def make_adapter(self) -> None:
        model = self.adapt()
        self.fill_adapter(model)
        folder = self.folder / "adapter"
        model.save_pretrained(folder, save_embedding_layers=False)
        (folder / "README.md").unlink()
        (self.folder / "printed.txt").write_text(f"{model}\n")
        tensors = load_file(folder / "adapter_model.safetensors")
        self.record["keys"] = {key: list(tensors[key].shape) for key in sorted(tensors)}
        self.record["scaling"] = self.scaling(model)

    def scaling(self, model: PeftModel):
        return model.base_model.model.layer.scaling["default"]

    def load(self, exact: bool = False) -> PeftModel:
        """The base with the adapter, as peft loads it."""
        torch.manual_seed(self.seed)
        base = self.exact_base() if exact else copy.deepcopy(self.base)
        folder = str(self.folder / "adapter")
        return PeftModel.from_pretrained(base, folder, is_trainable=True).eval()

    def usable(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The inputs in the type that the base computes in."""
        return {
            key: value.to(self.base_dtype) if value.is_floating_point() else value
            for key, value in inputs.items()
        }

    # -- Numbers

    def record_base(self, inputs) -> None:
        with torch.no_grad():
            self.found["output.base"] = copy.deepcopy(self.base)(**self.usable(inputs))
            if self.base_dtype != torch.float32:
                self.found["exact.output.base"] = self.exact_base()(**inputs)

    def precisions(self) -> list[tuple[str, bool]]:
        """In the base's own type, and where that is a short one also in float32."""
        both = [("", False), ("exact.", True)]
        return both if self.base_dtype != torch.float32 else both[:1]

    def record_active(self, inputs) -> None:
        for prefix, exact in self.precisions():
            model = self.load(exact)
            given = self.differentiable(inputs if exact else self.usable(inputs))
            try:
                output = model(**given)
            except (RuntimeError, NotImplementedError) as error:
                self.record["forward_error"] = {"type": type(error).__name__, "text": str(error)}
                continue
            (output * self.upstream.to(output.dtype)).sum().backward()
            self.found[f"{prefix}output.active"] = output
            for key, value in gradients_by_key(model, "default").items():
                self.found[f"{prefix}grad.{key}"] = value
            for key, value in given.items():
                if value.grad is not None:
                    self.found[f"{prefix}grad_input.{key}"] = value.grad

    @staticmethod
    def differentiable(inputs) -> dict[str, torch.Tensor]:
        return {
            key: value.clone().requires_grad_()
            if value.is_floating_point() and key != "attention_bias"
            else value
            for key, value in inputs.items()
        }

    def record_merged(self, inputs) -> None:
        for prefix, exact in self.precisions():
            try:
                merged = self.load(exact).merge_and_unload(safe_merge=True)
            except (RuntimeError, NotImplementedError) as error:
                self.record["merge_error"] = {"type": type(error).__name__, "text": str(error)}
                return
            given = inputs if exact else self.usable(inputs)
            with torch.no_grad():
                self.found[f"{prefix}output.merged"] = merged(**given)
            before = self.base.state_dict()
            for key, value in merged.state_dict().items():
                if not torch.equal(value, before[key].to(value.dtype)):
                    self.found[f"{prefix}merged.{key}"] = value

    def record_dropout(self, inputs, draw) -> None:
        """The output in training, with a given draw of the dropout."""
        model = self.load().train()
        model.base_model.model.layer.lora_dropout["default"] = FixedMask(draw)
        output = model(**inputs)
        (output * self.upstream).sum().backward()
        self.found["dropout.output"] = output
        for key, value in gradients_by_key(model, "default").items():
            self.found[f"dropout.grad.{key}"] = value

    def record_training(self, inputs) -> None:
        for prefix, exact in self.precisions():
            model = self.load(exact)
            given = inputs if exact else self.usable(inputs)
            if "forward_error" in self.record:
                break
            parameters = [p for p in model.parameters() if p.requires_grad]
            losses = train(parameters, lambda: model(**given), self.target)
            self.record[f"{prefix.replace('.', '_')}losses"] = losses
        self.record["optimiser"] = {
            "name": "AdamW",
            "lr": LEARNING_RATE,
            "weight_decay": WEIGHT_DECAY,
            "loss": "mean of the squared differences to `target`, taken before the step",
        }

    def formula(self, adapter: dict[str, torch.Tensor]) -> Formula:
        return Formula(self.exact_base().layer, adapter, self.record["scaling"])

    def record_formula(self, inputs) -> None:
        """Where peft is right, the formula confirms it; where it is wrong, replaces it."""
        formula = self.formula(load_file(self.folder / "adapter" / "adapter_model.safetensors"))
        given = self.differentiable(inputs)
        output = formula.output(given)
        (output * self.upstream).sum().backward()
        found = {"output": output}
        found |= {f"grad.{key}": value.grad for key, value in formula.adapter.items()}
        for key, value in given.items():
            if value.grad is not None:
                found[f"grad_input.{key}"] = value.grad
        if getattr(self.base.layer, "groups", 1) == 1:
            for key, value in formula.merged().items():
                found[f"merged.layer.{key}"] = value
        losses = train(formula.parameters(), lambda: formula.output(inputs), self.target)

        if self.wrong:
            self.record["wrong"] = self.wrong
            self.record["right_losses"] = losses
            self.found |= {f"right.{key}": value for key, value in found.items()}
            return
        prefix = self.precisions()[-1][0]
        for key, value in found.items():
            name = prefix + ("output.active" if key == "output" else key)
            torch.testing.assert_close(
                self.found[name], value, rtol=2e-5, atol=2e-5, msg=lambda m: f"{self.name} {name}: {m}"
            )
        active = self.found[f"{prefix}output.active"]
        if "merge_error" not in self.record:
            merged = self.found[f"{prefix}output.merged"]
            torch.testing.assert_close(active, merged, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(
            self.record[prefix.replace(".", "_") + "losses"], losses, rtol=1e-5
        )


def compact(record, indent: int = 0) -> str:
    """JSON with a line for each key and lists of numbers on one line."""
    pad = " " * (indent + 1)
    if isinstance(record, dict) and record:
        lines = [f"{pad}{json.dumps(k)}: {compact(v, indent + 1).strip()}" for k, v in record.items()]
        return "{\n" + ",\n".join(lines) + "\n" + " " * indent + "}" + ("" if indent else "\n")
    if isinstance(record, (list, tuple)) and any(isinstance(item, (dict, list)) for item in record):
        lines = [f"{pad}{compact(item, indent + 1).strip()}" for item in record]
        return "[\n" + ",\n".join(lines) + "\n" + " " * indent + "]" + ("" if indent else "\n")
    return json.dumps(record)


def train(parameters, output, target: torch.Tensor) -> list[float]:
    """The losses of ten steps of AdamW."""
    for parameter in parameters:
        parameter.grad = None
    optimiser = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    losses = []
    for _ in range(STEPS):
        loss = (output().float() - target).pow(2).mean()
        loss.backward()
        losses.append(loss.item())
        optimiser.step()
        optimiser.zero_grad()
    return losses


def save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    save_file({key: value.detach().clone().contiguous() for key, value in tensors.items()}, path)
