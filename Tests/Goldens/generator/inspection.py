"""Printed module trees before and after LoRA, and peft's report of trainable parameters."""

import contextlib
import io
import json
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

# name -> (config.json in the form in which it is published, class, LoRA)
MODELS = {
    "qwen2-0.5b-instruct": (
        {
            "architectures": ["Qwen2ForCausalLM"],
            "attention_dropout": 0.0,
            "bos_token_id": 151643,
            "eos_token_id": 151645,
            "hidden_act": "silu",
            "hidden_size": 896,
            "initializer_range": 0.02,
            "intermediate_size": 4864,
            "max_position_embeddings": 32768,
            "max_window_layers": 24,
            "model_type": "qwen2",
            "num_attention_heads": 14,
            "num_hidden_layers": 24,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-06,
            "rope_theta": 1000000.0,
            "sliding_window": 32768,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "use_sliding_window": False,
            "vocab_size": 151936,
        },
        AutoModelForCausalLM,
        dict(
            task_type="CAUSAL_LM",
            r=8,
            lora_alpha=32,
            lora_dropout=0.1,
            target_modules=PROJECTIONS,
        ),
    ),
    "minilm-seq-cls": (
        {
            "architectures": ["BertModel"],
            "attention_probs_dropout_prob": 0.1,
            "hidden_act": "gelu",
            "hidden_dropout_prob": 0.1,
            "hidden_size": 384,
            "id2label": {str(i): f"LABEL_{i}" for i in range(77)},
            "initializer_range": 0.02,
            "intermediate_size": 1536,
            "label2id": {f"LABEL_{i}": i for i in range(77)},
            "layer_norm_eps": 1e-12,
            "max_position_embeddings": 512,
            "model_type": "bert",
            "num_attention_heads": 12,
            "num_hidden_layers": 6,
            "pad_token_id": 0,
            "position_embedding_type": "absolute",
            "type_vocab_size": 2,
            "vocab_size": 30522,
        },
        AutoModelForSequenceClassification,
        dict(
            task_type="SEQ_CLS",
            r=8,
            lora_alpha=16,
            target_modules=["query", "key", "value", "dense"],
        ),
    ),
    "stories260k": (
        {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "head_dim": 8,
            "hidden_act": "silu",
            "hidden_size": 64,
            "intermediate_size": 172,
            "max_position_embeddings": 512,
            "mlp_bias": False,
            "model_type": "llama",
            "num_attention_heads": 8,
            "num_hidden_layers": 5,
            "num_key_value_heads": 4,
            "rms_norm_eps": 1e-05,
            "rope_theta": 10000.0,
            "tie_word_embeddings": True,
            "torch_dtype": "float32",
            "vocab_size": 512,
        },
        AutoModelForCausalLM,
        dict(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]),
    ),
}


def make() -> None:
    for name, (config, model_class, lora) in MODELS.items():
        folder = Path("inspect") / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        (folder / "lora.json").write_text(json.dumps(lora, indent=2) + "\n")
        loaded = AutoConfig.from_pretrained(folder)
        # Shapes are all that is printed: no memory is needed for the weights.
        with torch.device("meta"):
            model = model_class.from_config(loaded, dtype=torch.float32)
            (folder / "before.txt").write_text(f"{model}\n")
            adapted = get_peft_model(model, LoraConfig(**lora))
        (folder / "after.txt").write_text(f"{adapted}\n")
        report = io.StringIO()
        with contextlib.redirect_stdout(report):
            adapted.print_trainable_parameters()
        (folder / "parameters.txt").write_text(report.getvalue())
    # DoRA has to know its weights.
    folder = Path("inspect") / "stories260k"
    (_, model_class, lora) = MODELS["stories260k"]
    model = model_class.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(use_dora=True, **lora))
    (folder / "after-dora.txt").write_text(f"{adapted}\n")
    report = io.StringIO()
    with contextlib.redirect_stdout(report):
        adapted.print_trainable_parameters()
    (folder / "parameters-dora.txt").write_text(report.getvalue())
