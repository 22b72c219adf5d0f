"""Tables of which modules a LoRA configuration reaches, decided by peft."""

import json
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import _ExcludedModule, check_target_module_exists
from peft.utils.other import get_pattern_key
from transformers import BertForSequenceClassification, LlamaForCausalLM

from .models import bert_config, llama_config

NO_ATTENTION = r"encoder\.layer\.\d+\.(?!attention).*dense"
FIRST_Q = ["layers.0.self_attn.q_proj"]

# key, target_modules, exclude_modules, layers_to_transform, layers_pattern, modules_to_save
ROWS = [
    # Lists match a whole name or the end of one after a dot.
    ("q_proj", ["q_proj"], None, None, None, None),
    ("model.layers.0.self_attn.q_proj", ["q_proj"], None, None, None, None),
    ("model.layers.0.self_attn.xq_proj", ["q_proj"], None, None, None, None),
    ("model.layers.0.self_attn.q_proj.inner", ["q_proj"], None, None, None, None),
    ("model.layers.0.self_attn.q_proj", ["self_attn.q_proj"], None, None, None, None),
    ("model.layers.0.self_attn.q_proj", ["attn.q_proj"], None, None, None, None),
    ("model.layers.0.self_attn.q_proj", ["k_proj", "v_proj"], None, None, None, None),
    ("model.layers.0.self_attn.q_proj", ["k_proj", "q_proj"], None, None, None, None),
    ("model.layers.0.self_attn.q_proj", ["Q_PROJ"], None, None, None, None),
    ("model.layers.0.self_attn.q_proj", [".*q_proj"], None, None, None, None),
    ("model.layers.0.self_attn.q_proj", [], None, None, None, None),
    ("", ["q_proj"], None, None, None, None),
    ("", [""], None, None, None, None),
    ("a.", [""], None, None, None, None),
    # A string is a regular expression for the whole name.
    ("model.layers.0.self_attn.q_proj", "q_proj", None, None, None, None),
    ("q_proj", "q_proj", None, None, None, None),
    ("model.layers.0.self_attn.q_proj", r".*q_proj", None, None, None, None),
    ("model.layers.0.self_attn.q_proj", r".*\.(q|v)_proj$", None, None, None, None),
    ("model.layers.0.self_attn.k_proj", r".*\.(q|v)_proj$", None, None, None, None),
    ("model.layers.10.mlp.up_proj", r"model\.layers\.1\..*", None, None, None, None),
    ("model.layers.1.mlp.up_proj", r"model\.layers\.1\..*", None, None, None, None),
    ("model.layers.1.mlp.up_proj", r".*\.layers\.[0-3]\.mlp\.\w+", None, None, None, None),
    ("model.layers.7.mlp.up_proj", r".*\.layers\.[0-3]\.mlp\.\w+", None, None, None, None),
    ("encoder.layer.3.output.dense", NO_ATTENTION, None, None, None, None),
    ("encoder.layer.3.attention.output.dense", NO_ATTENTION, None, None, None, None),
    # Exclusion comes first, as a list or an expression.
    ("model.layers.0.self_attn.q_proj", ["q_proj"], ["q_proj"], None, None, None),
    ("model.layers.0.self_attn.q_proj", ["q_proj"], FIRST_Q, None, None, None),
    ("model.layers.1.self_attn.q_proj", ["q_proj"], FIRST_Q, None, None, None),
    ("model.layers.10.self_attn.q_proj", ["q_proj"], ["0.self_attn.q_proj"], None, None, None),
    ("model.layers.1.self_attn.q_proj", ["q_proj"], r".*\.1\..*", None, None, None),
    ("model.layers.1.self_attn.q_proj", ["q_proj"], r"layers\.1", None, None, None),
    ("model.layers.1.self_attn.q_proj", ["q_proj"], [], None, None, None),
    # Modules saved in full, and what is in them, are never adapted.
    ("classifier", ["classifier"], None, None, None, ["classifier", "score"]),
    ("classifier.dense", ["dense"], None, None, None, ["classifier", "score"]),
    ("model.classifier.dense", r".*dense", None, None, None, ["classifier", "score"]),
    ("preclassifier.dense", ["dense"], None, None, None, ["classifier", "score"]),
    ("bert.pooler.dense", ["dense"], None, None, None, ["classifier", "score"]),
    # Layer numbers.
    ("model.layers.1.self_attn.q_proj", ["q_proj"], None, [1], None, None),
    ("model.layers.1.self_attn.q_proj", ["q_proj"], None, 1, None, None),
    ("model.layers.1.self_attn.q_proj", ["q_proj"], None, [0, 2], None, None),
    ("model.layers.0.self_attn.q_proj", ["q_proj"], None, 0, None, None),
    ("model.layers.0.self_attn.q_proj", ["q_proj"], None, [0], None, None),
    ("model.layers.3.self_attn.q_proj", ["q_proj"], None, [], None, None),
    ("model.layers.10.self_attn.q_proj", ["q_proj"], None, [1], None, None),
    ("model.layers.001.self_attn.q_proj", ["q_proj"], None, [1], None, None),
    ("layers.1.self_attn.q_proj", ["q_proj"], None, [1], None, None),
    ("model.self_attn.q_proj", ["q_proj"], None, [1], None, None),
    ("lm_head", ["lm_head"], None, [1], None, None),
    ("model.layers.1.mlp.experts.3.up_proj", ["up_proj"], None, [1], None, None),
    ("model.layers.1.mlp.experts.3.up_proj", ["up_proj"], None, [3], None, None),
    ("model.layers.2.self_attn.q_proj", ["model.layers.2.self_attn.q_proj"], None, [1], None, None),
    ("bert.encoder.layer.2.output.dense", ["dense"], None, [2], None, None),
    ("bert.pooler.dense", ["dense"], None, [2], None, None),
    # Layer numbers after a given name.
    ("model.layers.1.self_attn.q_proj", ["q_proj"], None, [1], "layers", None),
    ("model.layers.1.self_attn.q_proj", ["q_proj"], None, [1], ["layers"], None),
    ("model.layers.1.self_attn.q_proj", ["q_proj"], None, [1], "h", None),
    ("model.layers.1.self_attn.q_proj", ["q_proj"], None, [1], ["h", "layers"], None),
    ("model.layers.1.self_attn.q_proj", ["q_proj"], None, [0], ["h", "layers"], None),
    ("model.layers.1.self_attn.q_proj", ["q_proj"], None, [1], "", None),
    ("model.layers.1.self_attn.q_proj", ["q_proj"], None, [1], [], None),
    ("layers.1.self_attn.q_proj", ["q_proj"], None, [1], "layers", None),
    ("xlayers.1.self_attn.q_proj", ["q_proj"], None, [1], "layers", None),
    ("model.xlayers.1.self_attn.q_proj", ["q_proj"], None, [1], "layers", None),
    ("model.layers.1.mlp.experts.3.up_proj", ["up_proj"], None, [3], "experts", None),
    ("model.layers.1.mlp.experts.3.up_proj", ["up_proj"], None, [1], "layers", None),
    ("model.blocks.4.h.1.fc", ["fc"], None, [1], r"(?:h|layers)", None),
]

# Pattern keys in the order of the dictionary, and a module name.
PATTERN_ROWS = [
    (["q_proj"], "model.layers.0.self_attn.q_proj"),
    (["k_proj"], "model.layers.0.self_attn.q_proj"),
    (["q_proj"], "model.layers.0.self_attn.xq_proj"),
    (["q_proj"], "q_proj"),
    (["layers.0.self_attn.q_proj"], "model.layers.0.self_attn.q_proj"),
    (["layers.0.self_attn.q_proj"], "model.layers.10.self_attn.q_proj"),
    (["self_attn"], "model.layers.0.self_attn.q_proj"),
    (["self_attn.*"], "model.layers.0.self_attn.q_proj"),
    ([r"layers\.[01]\..*"], "model.layers.1.mlp.up_proj"),
    ([r"layers\.[01]\..*"], "model.layers.2.mlp.up_proj"),
    (["q_proj", "layers.0.self_attn.q_proj"], "model.layers.0.self_attn.q_proj"),
    (["layers.0.self_attn.q_proj", "q_proj"], "model.layers.0.self_attn.q_proj"),
    (["layers.0.self_attn.q_proj", "q_proj"], "model.layers.1.self_attn.q_proj"),
    (["^q_proj"], "model.layers.0.self_attn.q_proj"),
    (["^q_proj"], "q_proj"),
    (["^model.layers.0.self_attn.q_proj"], "model.layers.0.self_attn.q_proj"),
    (["q|v"], "model.v"),
    (["q|v"], "model.qx"),
    (["(q|v)_proj"], "model.layers.0.self_attn.v_proj"),
    (["foo"], "foo"),
    (["foo"], "module.foo"),
    (["module.foo"], "module.module.foo"),
    (["^module.foo"], "module.module.foo"),
    (["moduleXfoo", "module.foo"], "moduleXfoo"),
    ([], "foo"),
]


def row(key, target, exclude, layers, pattern, saved) -> dict:
    # The rule reads a configuration's attributes only, so combinations that LoraConfig itself
    # refuses (a pattern without layers) do not occur in the table.
    config = LoraConfig(
        target_modules=target,
        exclude_modules=exclude,
        layers_to_transform=layers,
        layers_pattern=pattern,
        modules_to_save=saved,
    )
    result = check_target_module_exists(config, key)
    return {
        "key": key,
        "target_modules": target,
        "exclude_modules": exclude,
        "layers_to_transform": layers,
        "layers_pattern": pattern,
        "modules_to_save": saved,
        "expected": bool(result),
        "excluded": isinstance(result, _ExcludedModule),
    }


def reached(model, **options) -> list[str]:
    """Every module that peft adapts, as names without the wrapper's prefix."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = get_peft_model(model, LoraConfig(**options))
    return sorted(adapted.targeted_module_names)


def model_rows() -> list[dict]:
    def bert():
        return BertForSequenceClassification(bert_config(num_labels=5))

    def llama(tied):
        return LlamaForCausalLM(llama_config(tie_word_embeddings=tied))

    rows = []
    with torch.device("meta"):
        for name, make in {
            "bert": bert,
            "llama": lambda: llama(True),
            "llama-bias": lambda: llama(False),
        }.items():
            task = "SEQ_CLS" if name == "bert" else "CAUSAL_LM"
            for target in ("all-linear", None):
                names = reached(make(), task_type=task, target_modules=target)
                rows.append(
                    {"model": name, "task_type": task, "target_modules": target, "expected": names}
                )
    return rows


def make() -> None:
    record = {
        "targets": [row(*fields) for fields in ROWS],
        "patterns": [
            {
                "keys": keys,
                "module": module,
                "expected": get_pattern_key(keys, module),
                "matched": get_pattern_key(keys, module) in keys,
            }
            for keys, module in PATTERN_ROWS
        ],
        "models": model_rows(),
    }
    # A row a line: readable, and small changes show as such.
    sections = [
        f" {json.dumps(name)}: [\n"
        + ",\n".join("  " + json.dumps(entry) for entry in entries)
        + "\n ]"
        for name, entries in record.items()
    ]
    Path("targets.json").write_text("{\n" + ",\n".join(sections) + "\n}\n")
