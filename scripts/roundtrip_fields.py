"""The fields of LoraConfig for roundtrip.py: for each, the same checks as for the first adapter."""

from dataclasses import replace

# Settings beside the task; where a field has several forms, each of them.
FOR_ALL = {
    "use_rslora": {"use_rslora": True},
    "lora_dropout": {"lora_dropout": 0.0},
    "target_modules all-linear": {"target_modules": "all-linear"},
    "target_modules default": {"target_modules": None},
    "init_lora_weights False": {"init_lora_weights": False},
    "init_lora_weights gaussian": {"init_lora_weights": "gaussian"},
}
FOR_LANGUAGE_MODEL = FOR_ALL | {
    "target_modules regex": {"target_modules": r".*\.(q_proj|up_proj)"},
    "exclude_modules list": {"exclude_modules": ["layers.0.self_attn.q_proj"]},
    "exclude_modules regex": {"exclude_modules": r".*layers\.[12]\..*"},
    "layers_to_transform": {"layers_to_transform": [0, 2]},
    "layers_to_transform, one": {"layers_to_transform": 1},
    "layers_pattern": {"layers_to_transform": [1], "layers_pattern": "layers"},
    "rank_pattern": {"rank_pattern": {"q_proj": 5, r"layers\.1\.mlp\..*": 1}},
    "alpha_pattern": {"alpha_pattern": {"^model.layers.0.self_attn.v_proj": 3}},
    "modules_to_save": {"modules_to_save": ["norm"]},
    "trainable_token_indices list": {"trainable_token_indices": [7, 300, 301]},
    "trainable_token_indices names": {"trainable_token_indices": {"embed_tokens": [5, 8]}},
    "layer_replication": {"layer_replication": [[0, 3], [1, 5]]},
    "ensure_weight_tying": {
        "modules_to_save": ["embed_tokens"],
        "ensure_weight_tying": True,
    },
    "target_parameters": {"target_parameters": ["mlp.down_proj.weight"]},
}
FOR_CLASSIFIER = FOR_ALL | {
    "bias all": {"bias": "all"},
    "bias lora_only": {"bias": "lora_only"},
    "lora_bias": {"lora_bias": True},
    "modules_to_save": {"modules_to_save": ["pooler"]},
}


def variants(subject):
    """The subject once for each field."""
    fields = FOR_CLASSIFIER if subject.is_classifier else FOR_LANGUAGE_MODEL
    targets = ["query", "dense"] if subject.is_classifier else ["q_proj", "v_proj", "up_proj"]
    for field, settings in fields.items():
        own = {"task_type": subject.task, "r": 4, "lora_alpha": 6, "target_modules": targets}
        yield replace(subject, name=f"{subject.name}, {field}", first=own | settings)
