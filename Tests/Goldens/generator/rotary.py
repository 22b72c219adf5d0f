"""Tables of rotary position embeddings, as transformers computes them."""

import json
from pathlib import Path

import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

POSITIONS = [0, 1, 2, 7, 100, 4095]

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}

# Width of a head, and rope_parameters.
CASES = [
    (8, {"rope_type": "default", "rope_theta": 10000.0}),
    (64, {"rope_type": "default", "rope_theta": 1000000.0}),
    (10, {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}),
    (64, LLAMA3),
]


def case(head_dim: int, parameters: dict) -> dict:
    config = LlamaConfig(
        hidden_size=2 * head_dim,
        num_attention_heads=2,
        head_dim=head_dim,
        max_position_embeddings=8192,
        rope_parameters=dict(parameters),
    )
    table = LlamaRotaryEmbedding(config)
    cosines, sines = table(torch.zeros(1), torch.tensor([POSITIONS]))
    half = head_dim // 2
    return {
        "head_dim": head_dim,
        "rope_parameters": parameters,
        "positions": POSITIONS,
        # The second half of each row repeats the first.
        "cosines": cosines[0, :, :half].flatten().tolist(),
        "sines": sines[0, :, :half].flatten().tolist(),
    }


def make() -> None:
    Path("rotary.json").write_text(json.dumps([case(*c) for c in CASES], indent=1) + "\n")
