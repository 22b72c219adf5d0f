"""Small models for the conformance cases, described so that a reader can build them without torch."""

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from ..toys import describe, fill, numbers


class MLP(nn.Module):
    def __init__(self, bias: bool = True):
        super().__init__()
        self.lin0 = nn.Linear(10, 8, bias=bias)
        self.lin1 = nn.Linear(8, 2, bias=bias)

    def forward(self, x):
        return self.lin1(self.lin0(x.to(self.lin0.weight.dtype)).relu())


class DeepBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin0 = nn.Linear(8, 8)
        self.lin1 = nn.Linear(8, 8)

    def forward(self, x):
        return self.lin1(self.lin0(x).relu())


class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([DeepBlock() for _ in range(3)])
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x)


class Embedded(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(11, 5)
        self.conv1d = Conv1D(4, 5)
        self.lin0 = nn.Linear(4, 2)

    def forward(self, x):
        return self.lin0(self.conv1d(self.emb(x)).relu())


class Convolved(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv2d = nn.Conv2d(2, 6, 3)
        self.pointwise = nn.Conv2d(6, 4, 1)
        self.lin0 = nn.Linear(4, 2)

    def forward(self, x):
        return self.lin0(self.pointwise(self.conv2d(x).relu()).mean((2, 3)))


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1d = nn.Conv1d(2, 6, 3)
        self.lin0 = nn.Linear(6, 2)

    def forward(self, x):
        return self.lin0(self.conv1d(x).relu().mean(2))


class Grouped(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv2d = nn.Conv2d(4, 8, 3, groups=4)

    def forward(self, x):
        return self.conv2d(x)


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.mha = nn.MultiheadAttention(8, 2, batch_first=True)
        self.lin0 = nn.Linear(8, 2)

    def forward(self, x):
        return self.lin0(self.mha(x, x, x, need_weights=False)[0])


class SeparateAttention(nn.Module):
    """Queries, keys and values of different sizes, so no packed projection."""

    def __init__(self):
        super().__init__()
        self.mha = nn.MultiheadAttention(8, 2, kdim=6, vdim=4)


class Normed(nn.Module):
    """A norm and a convolution's worth of things that LoRA adapts or not."""

    def __init__(self):
        super().__init__()
        self.lin0 = nn.Linear(10, 8)
        self.norm = nn.LayerNorm(8)
        self.lin1 = nn.Linear(8, 2)

    def forward(self, x):
        return self.lin1(self.norm(self.lin0(x)))


class Headed(nn.Module):
    """An MLP with heads of several names."""

    def __init__(self):
        super().__init__()
        self.lin0 = nn.Linear(10, 8)
        self.mlp = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        self.my_score = nn.Linear(8, 3)
        self.score = nn.Linear(8, 2)

    def forward(self, x):
        x = self.mlp(self.lin0(x).relu())
        return torch.cat([self.score(x), self.my_score(x)], -1)


class Named(nn.Module):
    """Module names that contain what peft puts into keys."""

    def __init__(self):
        super().__init__()
        names = ["default", "other", "lora_linear", "weight", "bias", "linear_weight"]
        self.names = names
        for name in names:
            setattr(self, f"my_{name}" if name in ("weight", "bias") else name, nn.Linear(6, 6))
        self.wrapped = nn.ModuleDict({"weight": nn.Linear(6, 6), "default": nn.Linear(6, 6)})

    def forward(self, x):
        for name in self.names:
            layer = getattr(self, f"my_{name}" if name in ("weight", "bias") else name)
            x = x + layer(x).relu()
        return x + self.wrapped["weight"](x) + self.wrapped["default"](x)


FORWARDS = {
    "mlp": "lin1(relu(lin0(x)))",
    "mlp_nobias": "lin1(relu(lin0(x)))",
    "deep": "for each of layers.0, .1, .2: x = x + lin1(relu(lin0(x))); head(x)",
    "embedded": "lin0(relu(conv1d(emb(x))))",
    "convolved": "lin0(mean over height and width of pointwise(relu(conv2d(x))))",
    "line": "lin0(mean over positions of relu(conv1d(x)))",
    "grouped": "conv2d(x)",
    "attending": "lin0(mha(x, x, x))",
    "separate_attention": None,
    "normed": "lin1(norm(lin0(x)))",
    "headed": "x = mlp.2(relu(mlp.0(relu(lin0(x))))); score(x), then my_score(x), side by side",
    "named": "for default, other, lora_linear, my_weight, my_bias, linear_weight: "
    "x = x + relu(layer(x)); x + wrapped.weight(x) + wrapped.default(x)",
}
MAKERS = {
    "mlp": MLP,
    "mlp_nobias": lambda: MLP(bias=False),
    "deep": Deep,
    "embedded": Embedded,
    "convolved": Convolved,
    "line": Line,
    "grouped": Grouped,
    "attending": Attending,
    "separate_attention": SeparateAttention,
    "normed": Normed,
    "headed": Headed,
    "named": Named,
}
INPUTS = {
    "mlp": lambda: numbers(1, 3, 10),
    "mlp_nobias": lambda: numbers(1, 3, 10),
    "deep": lambda: numbers(2, 3, 8),
    "embedded": lambda: torch.tensor([[1, 10, 3], [0, 0, 7], [5, 2, 9]]),
    "convolved": lambda: numbers(3, 3, 2, 5, 4),
    "line": lambda: numbers(4, 3, 2, 6),
    "grouped": lambda: numbers(5, 2, 4, 4, 4),
    "attending": lambda: numbers(6, 3, 4, 8),
    "normed": lambda: numbers(7, 3, 10),
    "headed": lambda: numbers(8, 3, 10),
    "named": lambda: numbers(9, 3, 6),
}


def make(name: str) -> nn.Module:
    model = MAKERS[name]().eval()
    fill(model.named_parameters(), 7000 + 100 * list(MAKERS).index(name), 1.0)
    return model


def description(name: str) -> dict:
    model = make(name)
    modules = {}
    for path, module in model.named_modules():
        kinds = (
            nn.Linear,
            Conv1D,
            nn.Embedding,
            nn.Conv1d,
            nn.Conv2d,
            nn.MultiheadAttention,
        )
        inside = any(path.startswith(f"{known}.") for known in modules)
        if isinstance(module, kinds) and not inside:
            modules[path] = {k: v for k, v in describe(module).items() if k != "path"}
        elif isinstance(module, nn.LayerNorm):
            modules[path] = {"type": "LayerNorm", "size": module.normalized_shape[0]}
    return {"modules": modules, "forward": FORWARDS[name]}


class Branch(nn.Module):
    def forward(self, x):
        return x


KINDS = {
    "Linear": lambda: nn.Linear(2, 2),
    "Conv1D": lambda: Conv1D(2, 2),
    "Embedding": lambda: nn.Embedding(3, 2),
    "Conv2d": lambda: nn.Conv2d(2, 2, 1),
    "LayerNorm": lambda: nn.LayerNorm(2),
    "LSTM": lambda: nn.LSTM(2, 2),
    "Bilinear": lambda: nn.Bilinear(2, 2, 2),
    "ModuleDict": nn.ModuleDict,
}


def tree(modules: dict[str, str], model_type: str | None = None) -> nn.Module:
    """A model that has just these modules, sizes of 2: for what is decided by names."""
    root = Branch()
    for path, kind in modules.items():
        *parents, last = path.split(".")
        parent = root
        for name in parents:
            if not hasattr(parent, name):
                parent.add_module(name, Branch())
            parent = getattr(parent, name)
        module = KINDS[kind]()
        if hasattr(parent, last):
            for name, child in getattr(parent, last).named_children():
                module.add_module(name, child)
        parent.add_module(last, module)
    if model_type is not None:
        root.config = Settings(model_type)
    return root


class Settings:
    """What peft asks of a model's configuration."""

    def __init__(self, model_type: str):
        self.model_type = model_type
        self.tie_word_embeddings = False

    def to_dict(self) -> dict:
        return dict(self.__dict__)

    def get(self, name, default=None):
        return self.__dict__.get(name, default)
