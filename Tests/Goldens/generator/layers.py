"""Every layer type that LoRA adapts, alone in a model."""

import torch
from torch import nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding
from transformers.pytorch_utils import Conv1D

from .toys import Case, numbers


def vectors(*shape: int):
    return lambda seed: {"x": numbers(seed, *shape)}


def tokens(vocabulary: int, *shape: int):
    """Ids in order of first use, the last two of each row 1: a padding token occurs."""

    def make(seed: int) -> dict[str, torch.Tensor]:
        count = torch.arange(shape[0] * shape[1]).reshape(shape)
        ids = (count * 5 + 2) % vocabulary
        ids[:, -2:] = 1
        return {"x": ids}

    return make


def attention(seed: int) -> dict[str, torch.Tensor]:
    """Self-attention over two rows, the second of which has two positions of padding."""
    x = numbers(seed, 2, 5, 8)
    mask = torch.ones(2, 5, dtype=torch.int64)
    mask[1, 3:] = 0
    return {"query": x, "key": x.clone(), "value": x.clone(), "mask": mask}


def cross_attention(seed: int) -> dict[str, torch.Tensor]:
    """Positions first, three queries, four keys, a bias on the scores."""
    return {
        "query": numbers(seed, 3, 2, 8),
        "key": numbers(seed + 1, 4, 2, 8),
        "value": numbers(seed + 2, 4, 2, 8),
        "attention_bias": numbers(seed + 3, 3, 4),
    }


DILATION = (
    "A does not get the base's dilation: {}. Right: the output of the merged weight, for which "
    "peft's own merge is correct."
)
PADDING = (
    "A pads with zeros whatever the base's padding mode, so the active output differs from the "
    "merged one. Right: the output of the merged weight."
)
KERNEL = "Forward is right; merging fails, because a kernel of 1x1xk is taken for a 2-D 1x1."
TWICE = (
    "out_proj gets its change twice, active and merged (the gradient goes through one of them). "
    "Right: once."
)


def cases() -> list[Case]:
    return [
        Case("linear", lambda: nn.Linear(7, 10), vectors(2, 3, 7), 301),
        Case("linear-nobias", lambda: nn.Linear(7, 10, bias=False), vectors(3, 7), 302),
        Case(
            "linear-lora-bias",
            lambda: nn.Linear(7, 10),
            vectors(3, 7),
            303,
            lora=dict(lora_bias=True),
        ),
        Case(
            "linear-dropout",
            lambda: nn.Linear(7, 10),
            vectors(3, 7),
            304,
            lora=dict(lora_dropout=0.25),
            has_dropout_draw=True,
        ),
        Case(
            "linear-bf16",
            lambda: nn.Linear(16, 12),
            lambda seed: {"x": numbers(seed, 3, 16).bfloat16().float()},
            305,
            base_dtype=torch.bfloat16,
        ),
        # A rank above both sizes.
        Case("linear-wide", lambda: nn.Linear(5, 3), vectors(4, 5), 306, lora=dict(r=9)),
        Case("gpt2-conv1d", lambda: Conv1D(10, 7), vectors(2, 3, 7), 311),
        Case(
            "gpt2-conv1d-lora-bias",
            lambda: Conv1D(10, 7),
            vectors(3, 7),
            312,
            lora=dict(lora_bias=True, fan_in_fan_out=True),
        ),
        Case("embedding", lambda: nn.Embedding(11, 6), tokens(11, 2, 5), 321),
        Case(
            "embedding-padding",
            lambda: nn.Embedding(11, 6, padding_idx=1),
            tokens(11, 2, 5),
            322,
        ),
        Case(
            "embedding-scaled",
            lambda: Gemma3TextScaledWordEmbedding(11, 6, padding_idx=0, embed_scale=6**0.5),
            tokens(11, 2, 5),
            323,
        ),
        Case(
            "conv1d",
            lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1),
            vectors(2, 4, 9),
            331,
        ),
        Case("conv1d-1", lambda: nn.Conv1d(4, 6, 1, bias=False), vectors(2, 4, 5), 332),
        Case(
            "conv1d-groups",
            lambda: nn.Conv1d(4, 6, 3, padding=1, groups=2),
            vectors(2, 4, 7),
            333,
        ),
        Case(
            "conv1d-dilated",
            lambda: nn.Conv1d(4, 6, 3, padding=2, dilation=2),
            vectors(2, 4, 7),
            334,
            wrong=DILATION.format("the sizes do not fit and forward fails"),
        ),
        Case(
            "conv1d-dilated-same",
            lambda: nn.Conv1d(4, 6, 3, padding="same", dilation=2),
            vectors(2, 4, 7),
            335,
            wrong=DILATION.format("the sizes fit and the active output is silently wrong"),
        ),
        Case("conv2d-1x1", lambda: nn.Conv2d(4, 6, 1), vectors(2, 4, 3, 4), 341),
        Case(
            "conv2d-1x1-stride",
            lambda: nn.Conv2d(4, 6, 1, stride=2, bias=False),
            vectors(2, 4, 5, 4),
            342,
        ),
        Case("conv2d-3x3", lambda: nn.Conv2d(4, 6, 3, padding=1), vectors(2, 4, 5, 4), 343),
        Case(
            "conv2d-3x5",
            lambda: nn.Conv2d(4, 6, (3, 5), stride=(1, 2), padding=(1, 2), bias=False),
            vectors(2, 4, 5, 6),
            344,
        ),
        Case(
            "conv2d-patch",
            lambda: nn.Conv2d(3, 8, 4, stride=4),
            vectors(2, 3, 8, 8),
            345,
        ),
        Case(
            "conv2d-lora-bias",
            lambda: nn.Conv2d(4, 6, 3),
            vectors(2, 4, 5, 4),
            346,
            lora=dict(lora_bias=True),
        ),
        Case(
            "conv2d-dropout",
            lambda: nn.Conv2d(4, 6, 3),
            vectors(2, 4, 5, 4),
            347,
            lora=dict(lora_dropout=0.25),
            has_dropout_draw=True,
        ),
        Case(
            "conv2d-groups",
            lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
            vectors(2, 4, 5, 5),
            348,
        ),
        Case(
            "conv2d-depthwise",
            lambda: nn.Conv2d(4, 8, 3, padding=1, groups=4),
            vectors(2, 4, 4, 5),
            349,
            lora=dict(r=8, lora_alpha=12),
        ),
        Case(
            "conv2d-reflect",
            lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
            vectors(2, 4, 4, 5),
            350,
            wrong=PADDING,
        ),
        Case(
            "conv3d",
            lambda: nn.Conv3d(3, 5, (2, 3, 3), stride=(1, 2, 1), padding=(0, 1, 1)),
            vectors(2, 3, 3, 4, 5),
            361,
        ),
        Case(
            "conv3d-1x1x3",
            lambda: nn.Conv3d(3, 5, (1, 1, 3), padding=(0, 0, 1)),
            vectors(2, 3, 2, 3, 4),
            362,
            wrong=KERNEL,
        ),
        Case("conv3d-1x1x1", lambda: nn.Conv3d(3, 5, 1), vectors(2, 3, 2, 3, 2), 363, wrong=KERNEL),
        Case(
            "attention",
            lambda: nn.MultiheadAttention(8, 2, batch_first=True),
            attention,
            371,
            wrong=TWICE,
        ),
        Case(
            "attention-cross",
            lambda: nn.MultiheadAttention(8, 4, bias=False),
            cross_attention,
            372,
            lora=dict(use_rslora=True),
            wrong=TWICE,
        ),
    ]


def make() -> None:
    for case in cases():
        case.make()
