"""LoRA on parameters that no Linear holds: the stacked weights of experts."""

import torch
import torch.nn.functional as F
from peft import PeftModel
from peft.tuners.lora import ParamWrapper
from torch import nn

from .layers import vectors
from .toys import Case, Formula

EXPERTS, HIDDEN, INNER = 3, 6, 4


class Experts(nn.Module):
    """Gated experts whose weights are stacked: [experts, out, in], or with `is_transposed`
    [experts, in, out]. `gate_up_proj` holds the gate's rows, then the others."""

    def __init__(self, is_transposed: bool):
        super().__init__()
        self.is_transposed = is_transposed
        up, down = (EXPERTS, 2 * INNER, HIDDEN), (EXPERTS, HIDDEN, INNER)
        if is_transposed:
            up, down = ((e, i, o) for e, o, i in (up, down))
        self.gate_up_proj = nn.Parameter(torch.empty(up))
        self.down_proj = nn.Parameter(torch.empty(down))

    def forward(self, x: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        up, down = self.gate_up_proj, self.down_proj
        if self.is_transposed:
            up, down = up.transpose(1, 2), down.transpose(1, 2)
        gate, other = torch.einsum("...i,eoi->...eo", x, up).chunk(2, dim=-1)
        outputs = torch.einsum("...ei,eoi->...eo", F.silu(gate) * other, down)
        return (shares[..., None] * outputs).sum(-2)


class Block(nn.Module):
    """All experts, weighted by the softmax of a linear router. `mix` is a weight without a module
    of its own."""

    def __init__(self, is_transposed: bool = False):
        super().__init__()
        self.router = nn.Linear(HIDDEN, EXPERTS, bias=False)
        self.experts = Experts(is_transposed)
        self.plain = Plain()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.plain(self.experts(x, self.router(x).softmax(-1)))


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.empty(5, HIDDEN))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.kernel.T


class ExpertsFormula(Formula):
    """Names of adapter tensors follow the nesting of peft's wrappers: the parameter that the module
    declares last is outermost, and each before it is one `base_layer` further in."""

    def __init__(self, layer, adapter, scaling):
        super().__init__(layer, adapter, scaling)
        self.owners: dict[str, str] = {}
        for module, holder in layer.named_modules():
            if module in scaling:
                self.owners[module] = module
            names = [f"{module}.{name}" for name, _ in holder.named_parameters(recurse=False)]
            targeted = [name for name in names if name in scaling]
            for depth, name in enumerate(reversed(targeted)):
                self.owners[name] = module + ".base_layer" * depth

    def weights(self) -> dict[str, torch.Tensor]:
        found = {}
        for name, owner in self.owners.items():
            A, B = (self.named[f"{owner}.lora_{side}.weight"] for side in "AB")
            is_module = name in dict(self.layer.named_modules())
            weight = self.layer.get_parameter(f"{name}.weight" if is_module else name).detach()
            if weight.dim() == 3:
                # A's rows go by expert, then rank; B's columns by rank, then expert.
                A = A.reshape(EXPERTS, -1, A.shape[1])
                B = B.reshape(B.shape[0], -1, EXPERTS)
                change = torch.einsum("ore,eri->eoi", B, A)
                change = change.transpose(1, 2) if self.layer.experts.is_transposed else change
            else:
                change = B @ A
            key = f"{name}.weight" if is_module else name
            found[key] = weight + self.scaling[name] * change
        return found


class ExpertsCase(Case):
    def scaling(self, model: PeftModel) -> dict[str, float]:
        found = {}
        for name, module in model.base_model.model.layer.named_modules():
            if isinstance(module, ParamWrapper):
                owner = name.replace(".base_layer", "")
                found[f"{owner}.{module.parameter_name}"] = module.scaling["default"]
            elif hasattr(module, "lora_A"):
                found[name] = module.scaling["default"]
        return found

    def formula(self, adapter) -> Formula:
        return ExpertsFormula(self.exact_base().layer, adapter, self.record["scaling"])

    def description(self, layer: nn.Module) -> dict:
        return {
            "path": "layer",
            "type": "Experts",
            "experts": EXPERTS,
            "hidden": HIDDEN,
            "inner": INNER,
            "is_transposed": layer.experts.is_transposed,
            "forward": "p = softmax(x router.weight^T); g, u = halves of x gate_up^T; y = sum over e "
            "of p_e (silu(g_e) u_e) down_e^T; output = y plain.kernel^T",
        }


def cases() -> list[Case]:
    both = ["experts.gate_up_proj", "experts.down_proj"]

    def case(name: str, seed: int, transposed: bool = False, **lora) -> ExpertsCase:
        options = dict(target_modules=None) | lora
        return ExpertsCase(
            f"experts-{name}",
            lambda: Block(transposed),
            vectors(2, 3, HIDDEN),
            seed,
            lora=options,
            root="fields",
        )

    return [
        case("one", 901, target_parameters=["experts.down_proj"]),
        case("both", 902, target_parameters=both),
        case("transposed", 903, True, target_parameters=both),
        # Without the module's name, and in the other order: the same nesting.
        case("suffix", 904, target_parameters=["gate_up_proj", "down_proj"], use_rslora=True),
        case("flat", 905, target_parameters=["plain.kernel"]),
        case(
            "router",
            906,
            target_modules=["router"],
            target_parameters=[*both, "kernel"],
            rank_pattern={"experts.down_proj": 2, "router": 3},
            alpha_pattern={"gate_up_proj": 9},
        ),
    ]


def make() -> None:
    for case in cases():
        case.make()
