"""The peer of qwen2_step.py: LoRA training steps of a randomly initialised Qwen2 in transformers
and peft. Started by qwen2_step.py, which measures its memory; prints one JSON object."""

import argparse
import json
import time
from pathlib import Path

import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path, required=True, help="folder with config.json")
    parser.add_argument("--lora", required=True, help="settings as JSON")
    parser.add_argument("--data", type=Path, required=True, help="`tokens` JSONL, a step a line")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--recompute", action="store_true")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    config = AutoConfig.from_pretrained(options.config)
    base = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, options.precision))
    model = get_peft_model(base, LoraConfig(**json.loads(options.lora)))
    if options.recompute:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=options.rate, weight_decay=0.0)

    seconds, losses = [], []
    for line in options.data.read_text().splitlines():
        ids = torch.tensor([json.loads(line)["input_ids"]])
        start = time.perf_counter()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"step_seconds": seconds, "losses": losses}))


if __name__ == "__main__":
    main()
