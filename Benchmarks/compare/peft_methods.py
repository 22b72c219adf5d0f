"""The peer of methods.py: training steps, forward passes and decoding of a randomly initialised
Qwen2 with LoRA and with DoRA in transformers and peft. Started by methods.py; prints one JSON object."""

import argparse
import json
import time
from pathlib import Path

import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path, required=True, help="folder with config.json")
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--decode", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    config = AutoConfig.from_pretrained(options.config)
    settings = dict(task_type="CAUSAL_LM", r=8, lora_alpha=32, target_modules=PROJECTIONS)
    base = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, options.precision))
    model = get_peft_model(base, LoraConfig(**settings), adapter_name="lora")
    model.add_adapter("dora", LoraConfig(use_dora=True, **settings))
    ids = (torch.arange(options.rows) * 7919 % 20000 + 1000)[None]
    training, forward, decoding = ({"lora": [], "dora": []} for _ in range(3))
    optimisers = {}

    for round in range(options.rounds + 1):
        for method in ("lora", "dora"):
            model.set_adapter(method)
            model.train()
            if method not in optimisers:
                trained = [p for p in model.parameters() if p.requires_grad]
                optimisers[method] = torch.optim.AdamW(trained, lr=1e-4)
            start = time.perf_counter()
            model(input_ids=ids, labels=ids).loss.backward()
            optimisers[method].step()
            optimisers[method].zero_grad()
            if round:
                training[method].append(time.perf_counter() - start)
            model.eval()
            with torch.no_grad():
                start = time.perf_counter()
                model.base_model.model.model(input_ids=ids)
                if round:
                    forward[method].append(time.perf_counter() - start)
                # A few tokens are enough: DoRA needs about a second for each.
                cache = model(input_ids=ids[:, :16], use_cache=True).past_key_values
                count = options.decode if method == "lora" else max(2, options.decode // 8)
                token = ids[:, :1]
                start = time.perf_counter()
                for _ in range(count):
                    result = model(input_ids=token, past_key_values=cache, use_cache=True)
                    cache, token = result.past_key_values, result.logits[:, -1:].argmax(-1)
                if round:
                    decoding[method].append((time.perf_counter() - start) / count)
    print(
        json.dumps({
            "training_step_seconds": training,
            "forward_seconds": forward,
            "decode_token_seconds": decoding,
        })  # fmt: skip
    )


if __name__ == "__main__":
    main()
