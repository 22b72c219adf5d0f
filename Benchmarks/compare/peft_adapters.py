"""The peer of adapters-bench: many LoRA adapters on one base in transformers and peft. Started by
adapters.py; prints one JSON object."""

import argparse
import gc
import json
import os
import tempfile
import time
from pathlib import Path

import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

ROWS = 8


def resident() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def timed(body) -> float:
    start = time.perf_counter()
    body()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--random", action="store_true")
    parser.add_argument("--adapters", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    options = parser.parse_args()

    threads = int(os.environ.get("OMP_NUM_THREADS", 2))
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    kind = getattr(torch, options.precision)
    if options.random:
        config = AutoConfig.from_pretrained(options.model)
        base = AutoModelForCausalLM.from_config(config, dtype=kind).eval()
    else:
        base = AutoModelForCausalLM.from_pretrained(options.model, dtype=kind).eval()
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=8,
        lora_alpha=16,
        target_modules="all-linear",
        init_lora_weights=False,
    )
    result = {"threads": threads}
    result["base_bytes"] = sum(p.numel() * p.element_size() for p in base.parameters())
    prompts = torch.tensor(
        [
            [3 + (row * 31 + column * 7) % 400 for column in range(options.tokens)]
            for row in range(ROWS)
        ]
    )
    with torch.no_grad():
        base(input_ids=prompts)

    times = []
    for _ in range(2):
        start = time.perf_counter()
        model = get_peft_model(base, lora, adapter_name="a0")
        times.append(time.perf_counter() - start)
        if len(times) < 2:
            base = model.unload()
    result["inject_seconds"] = min(times)
    model.eval()

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, save_embedding_layers=False)
        path = Path(folder) / "a0"
        times = []
        for _ in range(3):
            times.append(timed(lambda: model.load_adapter(str(path), "loaded")))
            model.delete_adapter("loaded")
        result["load_seconds"] = min(times)

    # The first adapter stays, so the others are what is counted.
    before = resident()
    for index in range(1, options.adapters + 1):
        model.add_adapter(f"a{index}", lora)
    result["adapters"] = options.adapters
    own = [p for name, p in model.named_parameters() if ".a1." in name]
    result["adapter_bytes"] = sum(p.numel() * 4 for p in own)
    result["resident_before"], result["resident_after"] = before, resident()

    times = []
    for round_ in range(60):
        name = f"a{round_ * 37 % options.adapters}"
        times.append(timed(lambda: model.set_adapter(name)))
    times.sort()
    for key, value in (("least", times[0]), ("median", times[30]), ("most", times[-1])):
        result[f"switch_seconds_{key}"] = value

    names = [f"a{row}" for row in range(ROWS)]
    model.set_adapter("a0")
    model.eval()

    def forward(way: str, inputs: dict, **more):
        if way == "base":
            with model.disable_adapter():
                return model(**inputs, **more)
        extra = {"adapter_names": names} if way == "mixed" else {}
        return model(**inputs, **more, **extra)

    def prefill(way: str) -> float:
        return timed(lambda: forward(way, {"input_ids": prompts}))

    def steps(way: str) -> float:
        output = forward(way, {"input_ids": prompts}, use_cache=True)
        token = output.logits[:, -1].argmax(-1, keepdim=True)
        start = time.perf_counter()
        for _ in range(6):
            inputs = {"input_ids": token, "past_key_values": output.past_key_values}
            output = forward(way, inputs, use_cache=True)
            token = output.logits[:, -1].argmax(-1, keepdim=True)
        return (time.perf_counter() - start) / 6

    with torch.no_grad():
        for kind, body in (("prefill", prefill), ("step", steps)):
            best = {way: float("inf") for way in ("base", "one", "mixed")}
            end = time.perf_counter() + options.seconds
            rounds = 0
            while time.perf_counter() < end or rounds < 2:
                for way in best:
                    best[way] = min(best[way], body(way))
                rounds += 1
            for way, value in best.items():
                result[f"{kind}_seconds_{way}"] = value
    print(json.dumps(result))


if __name__ == "__main__":
    main()
