"""Weighted combinations of adapters, of every type that peft has."""

import copy
import shutil
import warnings
from pathlib import Path
from unittest import mock

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils import merge_utils
from safetensors.torch import load_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from .toys import compact, effective, fill, numbers, save

FOLDER = Path("combine")
SEED = 501
LAYERS = {
    "linear": lambda: nn.Linear(9, 7),
    "gpt2": lambda: Conv1D(7, 9),
    "embed": lambda: nn.Embedding(11, 6),
    "conv": lambda: nn.Conv2d(4, 6, 3, padding=1),
    "pointwise": lambda: nn.Conv2d(7, 8, 1),
    # peft cannot decompose the change of these two.
    "line": lambda: nn.Conv1d(4, 6, 3),
    "volume": lambda: nn.Conv3d(3, 5, (1, 2, 2)),
}
MAIN = ["linear", "gpt2", "embed", "conv", "pointwise"]
RANKS = {"linear": 3, "conv": 6}

# name -> configuration
ADAPTERS = {
    "a": dict(r=4, lora_alpha=6),
    "b": dict(r=4, lora_alpha=4),
    "c": dict(r=4, lora_alpha=8, alpha_pattern={"conv": 3}),
    "small": dict(r=2, lora_alpha=3),
    "pattern": dict(r=4, lora_alpha=6, rank_pattern=RANKS),
    "pattern2": dict(r=4, lora_alpha=5, rank_pattern=RANKS),
    "rslora": dict(r=4, lora_alpha=6, use_rslora=True),
    "rslora2": dict(r=4, lora_alpha=3, use_rslora=True),
    "part": dict(r=4, lora_alpha=6, target_modules=["linear", "embed"]),
    "expression": dict(r=4, lora_alpha=6, target_modules="linear|conv"),
    "expression2": dict(r=4, lora_alpha=2, target_modules=r"\w*ed|linear"),
    "dora": dict(r=4, lora_alpha=6, use_dora=True, target_modules=["linear"]),
    "dora2": dict(r=4, lora_alpha=4, use_dora=True, target_modules=["linear"]),
    "lines": dict(r=4, lora_alpha=6, target_modules=["line"]),
    "lines2": dict(r=4, lora_alpha=4, target_modules=["line"]),
    "volumes": dict(r=4, lora_alpha=6, target_modules=["volume"]),
    "volumes2": dict(r=4, lora_alpha=4, target_modules=["volume"]),
}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        for name, make in LAYERS.items():
            setattr(self, name, make())


def case(name: str, adapters: str, weights: list[float], combination_type: str, **options) -> dict:
    return {
        "name": name,
        "adapters": adapters.split(),
        "weights": weights,
        "combination_type": combination_type,
    } | options


TWO, THREE = [0.7, 0.4], [1.0, -0.5, 0.3]
FREQUENCY = {"majority_sign_method": "frequency"}


def cases() -> list[dict]:
    listed = [
        case("linear", "a b", TWO, "linear"),
        case("linear-negative", "a b c", THREE, "linear"),
        case("linear-opposite", "a a", [1.0, -1.0], "linear"),
        case("linear-single", "a", [-0.5], "linear"),
        # One adapter alone is combined linearly whatever the type.
        case("svd-single", "a", [0.5], "svd"),
        case("cat", "a b", TWO, "cat"),
        case("cat-negative", "a b c", THREE, "cat"),
        case("svd", "a b", TWO, "svd"),
        case("svd-negative", "a b c", THREE, "svd"),
        case("svd-rank-2", "a b", TWO, "svd", svd_rank=2),
        case("svd-rank-6", "a b", TWO, "svd", svd_rank=6),
        case("svd-reduced", "a b", TWO, "svd", svd_full_matrices=False),
        case("svd-clamp", "a b", TWO, "svd", svd_clamp=0.9),
        # A rank above the sizes of some layers.
        case("svd-rank-8", "a b", TWO, "svd", svd_rank=8),
    ]
    for kind in ("ties", "ties_svd", "dare_ties", "dare_ties_svd"):
        name = kind.replace("_", "-")
        listed += [
            case(name, "a b c", [1.0, 0.6, 0.3], kind, density=0.5),
            case(f"{name}-frequency", "a b c", [1.0, 0.6, 0.3], kind, density=0.6, **FREQUENCY),
            case(f"{name}-negative", "a b c", THREE, kind, density=0.4),
        ]
    for kind in ("dare_linear", "dare_linear_svd", "magnitude_prune", "magnitude_prune_svd"):
        name = kind.replace("_", "-")
        listed += [
            case(name, "a b", TWO, kind, density=0.5),
            case(f"{name}-negative", "a b c", THREE, kind, density=0.3),
        ]
    listed += [
        case("ties-dense", "a b", TWO, "ties", density=1.0),
        case("ties-empty", "a b", TWO, "ties", density=0.0),
        case("magnitude-prune-empty", "a b", TWO, "magnitude_prune_svd", density=0.0),
        case("dare-empty", "a b", TWO, "dare_linear", density=0.0),
    ]
    for kind in ("cat", "svd", "ties_svd", "dare_linear_svd", "magnitude_prune_svd"):
        density = {} if kind in ("cat", "svd") else {"density": 0.5}
        name = kind.replace("_", "-")
        listed.append(case(f"ranks-{name}", "a small", TWO, kind, **density))
        listed.append(case(f"pattern-{name}", "a pattern", TWO, kind, **density))
    for kind in ("linear", "ties", "dare_linear", "dare_ties", "magnitude_prune"):
        density = {} if kind == "linear" else {"density": 0.5}
        name = kind.replace("_", "-")
        listed.append(case(f"ranks-{name}", "a small", TWO, kind, **density))
        # Equal patterns: the factors fit, but the new configuration knows nothing of them.
        listed.append(case(f"pattern-{name}", "pattern pattern2", TWO, kind, **density))
    # Maximal rank 6 in both, but not in the same modules.
    listed.append(case("pattern-unequal", "a pattern", TWO, "linear"))
    for kind in ("linear", "cat", "svd", "ties", "ties_svd", "dare_linear", "magnitude_prune"):
        density = {} if kind in ("linear", "cat", "svd") else {"density": 0.5}
        listed.append(
            case(f"rslora-{kind.replace('_', '-')}", "rslora rslora2", TWO, kind, **density)
        )
    listed.append(case("rslora-first", "rslora b", TWO, "cat"))
    listed.append(case("rslora-second", "b rslora", TWO, "cat"))
    for kind in ("linear", "cat", "svd", "ties", "dare_ties", "dare_linear_svd"):
        density = {} if kind in ("linear", "cat", "svd") else {"density": 0.5}
        listed.append(case(f"part-{kind.replace('_', '-')}", "a part", TWO, kind, **density))
    listed += [
        case("expression", "expression expression2", TWO, "cat"),
        case("expression-list", "expression a", TWO, "cat"),
        case("dora-linear", "dora dora2", TWO, "linear"),
        case("dora-cat", "dora dora2", TWO, "cat"),
        case("conv1d-linear", "lines lines2", TWO, "linear"),
        case("conv1d-cat", "lines lines2", TWO, "cat"),
        case("conv1d-svd", "lines lines2", TWO, "svd"),
        case("conv1d-ties-svd", "lines lines2", TWO, "ties_svd", density=0.5),
        case("conv3d-linear", "volumes volumes2", TWO, "linear"),
        case("conv3d-cat", "volumes volumes2", TWO, "cat"),
        case("conv3d-svd", "volumes volumes2", TWO, "svd"),
        case("unknown-type", "a b", TWO, "mean"),
        case("unknown-adapter", "a nobody", TWO, "linear"),
        case("no-density", "a b", TWO, "ties"),
        case("negative-density", "a b", TWO, "ties", density=-0.1),
        case("unknown-sign", "a b", TWO, "ties", density=0.5, majority_sign_method="mean"),
    ]
    return listed


def layers_of(model: PeftModel) -> dict[str, LoraLayer]:
    found = {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }
    return found


def factors(layer: LoraLayer, adapter: str) -> tuple[torch.Tensor, torch.Tensor] | None:
    if adapter in layer.lora_A:
        return layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    if adapter in layer.lora_embedding_A:
        return layer.lora_embedding_A[adapter], layer.lora_embedding_B[adapter]
    return None


def change(layer: LoraLayer, adapter: str) -> torch.Tensor:
    """ΔW of one adapter, DoRA's magnitude included."""
    base = layer.get_base_layer()
    A, B = factors(layer, adapter)
    names = {"lora_A.weight": A, "lora_B.weight": B}
    if adapter in layer.lora_magnitude_vector:
        names["lora_magnitude_vector"] = layer.lora_magnitude_vector[adapter].weight
    return (effective(base, names, layer.scaling[adapter]) - base.weight).detach()


def load() -> PeftModel:
    """The base with all adapters, from the files."""
    base = Model().eval()
    base.load_state_dict(load_file(FOLDER / "base.safetensors"))
    first, *rest = ADAPTERS
    model = PeftModel.from_pretrained(base, str(FOLDER / "adapters" / first), adapter_name=first)
    for name in rest:
        model.load_adapter(str(FOLDER / "adapters" / name), name)
    return model.eval()


def make_adapters() -> None:
    base = Model().eval()
    fill(base.named_parameters(), SEED, 1.0)
    save(base.state_dict(), FOLDER / "base.safetensors")
    for index, (name, options) in enumerate(ADAPTERS.items()):
        torch.manual_seed(SEED)
        options = dict(target_modules=MAIN) | options
        model = get_peft_model(copy.deepcopy(base), LoraConfig(**options))
        trainable = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        magnitudes = [p for n, p in trainable if "magnitude" in n]
        before = [p.detach().clone() for p in magnitudes]
        fill(trainable, SEED + 100 * (index + 1), 0.8)
        with torch.no_grad():
            for parameter, start in zip(magnitudes, before):
                parameter.copy_(start * (1 + 0.1 * numbers(SEED, *start.shape)))
        target = FOLDER / "adapters" / name
        model.save_pretrained(target, save_embedding_layers=False)
        (target / "README.md").unlink()


class Draws:
    """Stands in for peft's random pruning: the same, with masks from a generator that we keep."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)
        self.masks: list[torch.Tensor] = []

    def __call__(self, tensor: torch.Tensor, density: float, rescale: bool) -> torch.Tensor:
        chances = torch.full_like(tensor, density)
        mask = torch.bernoulli(chances, generator=self.generator)
        self.masks.append(mask)
        pruned = tensor * mask
        return pruned / density if rescale else pruned


def combine(model: PeftModel, entry: dict, seed: int) -> dict[str, torch.Tensor]:
    options = {key: value for key, value in entry.items() if key != "name"}
    draws = Draws(seed)
    try:
        with mock.patch.object(merge_utils, "random_pruning", draws):
            model.base_model.add_weighted_adapter(adapter_name="new", **options)
    except Exception as error:  # noqa: BLE001: what peft raises is the result
        entry["error"] = {"type": type(error).__name__, "text": str(error)}
        if "new" in model.peft_config:
            # A failure half way leaves the new adapter behind.
            entry["error"]["left_behind"] = True
            model.delete_adapter("new")
        return {}

    found: dict[str, torch.Tensor] = {}
    scalings, config = {}, model.peft_config["new"]
    draw = iter(draws.masks)
    for name, layer in layers_of(model).items():
        new = factors(layer, "new")
        if new is None:
            continue
        scalings[name] = layer.scaling["new"]
        present = [
            (index, adapter, weight)
            for index, (adapter, weight) in enumerate(zip(entry["adapters"], entry["weights"]))
            if factors(layer, adapter) is not None
        ]
        # The factors of a decomposition are right up to signs, so the delta says all, but for
        # clamping, which depends on the signs.
        is_svd = entry["combination_type"].endswith("svd") and len(entry["adapters"]) > 1
        if not is_svd or "svd_clamp" in entry:
            found[f"A.{name}"], found[f"B.{name}"] = new
        try:
            found[f"delta.{name}"] = change(layer, "new")
        except (RuntimeError, ValueError) as error:
            entry.setdefault("unusable", {})[name] = str(error)
        found[f"sum.{name}"] = sum(weight * change(layer, adapter) for _, adapter, weight in present)
        if draws.masks:
            for side in ["delta"] if is_svd else ["A", "B"]:
                for index, _, _ in present:
                    found[f"mask.{index}.{side}.{name}"] = next(draw).to(torch.uint8)
    assert next(draw, None) is None
    targets = config.target_modules
    entry["result"] = {
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "use_rslora": config.use_rslora,
        "use_dora": config.use_dora,
        "rank_pattern": config.rank_pattern,
        "alpha_pattern": config.alpha_pattern,
        "target_modules": targets if isinstance(targets, str) else sorted(targets),
        "scaling": scalings,
    }
    entry["peft_is_exact"] = all(
        f"delta.{name}" in found
        and torch.allclose(found[f"delta.{name}"], found[f"sum.{name}"], rtol=1e-4, atol=1e-5)
        for name in scalings
    )
    model.delete_adapter("new")
    return found


def make() -> None:
    if FOLDER.exists():
        shutil.rmtree(FOLDER)
    FOLDER.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make_adapters()
        model = load()
        listed = cases()
        sums: dict[str, str] = {}
        for index, entry in enumerate(listed):
            found = combine(model, entry, SEED + index)
            # Equal sums are stored once.
            key = f"{entry['adapters']} {entry['weights']}"
            if found:
                entry["sum_in"] = sums.setdefault(key, entry["name"])
            if sums.get(key) != entry["name"]:
                found = {k: v for k, v in found.items() if not k.startswith("sum.")}
            if found:
                save(found, FOLDER / f"{entry['name']}.safetensors")
    (FOLDER / "cases.json").write_text(compact(listed))
