#!/usr/bin/env python3
"""LoRA training steps of the shape of Qwen2-0.5B with random weights, in Python's peft and in
`peft train`: tokens a second and peak memory, in one run. See README.md."""

import argparse
import json
import random
import statistics
import sys
import tempfile
from pathlib import Path

import measure

HERE = Path(__file__).resolve().parent
SHAPE = HERE.parents[1] / "Tests" / "Goldens" / "inspect" / "qwen2-0.5b-instruct" / "config.json"
RATE = 1e-4
LORA = {
    "r": 8,
    "lora_alpha": 32,
    "lora_dropout": 0.0,
    "target_modules": [
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    ],
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peft-binary", type=Path, default=Path(".build/release/peft"))
    parser.add_argument("--config", type=Path, default=SHAPE, help="config.json of the model")
    parser.add_argument("--lengths", default="128,512", help="comma-separated")
    parser.add_argument("--precisions", default="float32,bfloat16", help="comma-separated")
    parser.add_argument("--steps", type=int, default=6, help="the first one does not count")
    parser.add_argument("--turns", type=int, default=1, help="runs of each side, by turns")
    parser.add_argument("--sides", default="peft,swift", help="peft, swift or both")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--recompute", action="store_true", help="gradient checkpointing, both")
    parser.add_argument("--set", action="append", default=[], help="key=value for `peft train`")
    parser.add_argument("--json", type=Path, help="write the measurements here too")
    options = parser.parse_args()
    options.sides = options.sides.split(",")
    if not set(options.sides) <= {"peft", "swift"}:
        parser.error(f"--sides {','.join(options.sides)}: expected peft, swift or both")
    if options.steps < 2:
        parser.error("--steps: at least 2, as the first one does not count")
    if options.turns < 1:
        parser.error("--turns: at least 1")
    if "swift" in options.sides and not options.peft_binary.is_file():
        parser.error(f"no such binary: {options.peft_binary}")
    return options


def write_data(path: Path, vocabulary: int, length: int, steps: int) -> Path:
    """Random ids, another row for each step."""
    generator = random.Random(length)
    with open(path, "w", encoding="utf-8") as file:
        for _ in range(steps):
            ids = [generator.randrange(vocabulary) for _ in range(length)]
            file.write(json.dumps({"input_ids": ids, "labels": ids}) + "\n")
    return path


def run_peft(options, model: Path, data: Path, precision: str):
    command = [sys.executable, HERE / "peft_qwen2_step.py", "--config", model]
    command += ["--lora", json.dumps({"task_type": "CAUSAL_LM", **LORA}), "--data", data]
    command += ["--precision", precision, "--rate", RATE, "--threads", options.threads]
    used = measure.run(command + ["--recompute"] * options.recompute, options.threads)
    return used, measure.last_json(used.output)["step_seconds"]


def run_swift(options, model: Path, data: Path, precision: str, output: Path):
    settings = {
        "model": str(model),
        "random_weights": True,
        "task_type": "CAUSAL_LM",
        "precision": precision,
        "train_file": str(data),
        "data_format": "tokens",
        "method": "lora",
        "lora": LORA,
        "output_dir": str(output / "adapter"),
        "max_steps": options.steps,
        "per_device_train_batch_size": 1,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "max_grad_norm": 0,
        "seed": 0,
        "shuffle": False,
        "eval_strategy": "no",
        "save_strategy": "no",
        "logging_steps": 1,
        "gradient_checkpointing": options.recompute,
        "num_threads": options.threads,
        **measure.overrides(options.set),
    }
    used = measure.train(options.peft_binary.resolve(), settings, output, options.threads)
    return used, measure.step_seconds(measure.metrics(output / "adapter"))


def measure_shape(options, model: Path, folder: Path, precision: str, length: int) -> dict:
    """Both sides by turns: a machine that slows down for minutes then meets both."""
    vocabulary = json.loads((model / "config.json").read_text())["vocab_size"]
    data = write_data(folder / f"{length}.jsonl", vocabulary, length, options.steps)
    runs: dict[str, list] = {side: [] for side in options.sides}
    for turn in range(options.turns):
        for side in options.sides:
            if side == "peft":
                used, seconds = run_peft(options, model, data, precision)
            else:
                output = folder / f"swift-{precision}-{length}-{turn}"
                used, seconds = run_swift(options, model, data, precision, output)
            if len(seconds) != options.steps:
                sys.exit(f"{side}: {len(seconds)} steps, expected {options.steps}")
            print(f"{side}, {precision}, 1x{length}: {seconds}", file=sys.stderr, flush=True)
            runs[side].append((used, seconds))
    row = {"precision": precision, "length": length}
    for side, measured in runs.items():
        counted = [second for _, seconds in measured for second in seconds[1:]]
        row[side] = {
            "step_seconds": [seconds for _, seconds in measured],
            "tokens_per_second": length / statistics.median(counted),
            "best_tokens_per_second": length / min(counted),
            "peak_bytes": max(used.peak_bytes for used, _ in measured),
        }
    return row


COLUMNS = {  # heading: (key, divisor, format)
    "tokens/s": ("tokens_per_second", 1, ".1f"),
    "best": ("best_tokens_per_second", 1, ".1f"),
    "peak GB": ("peak_bytes", 1e9, ".2f"),
}


def main() -> None:
    options = parse()
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = folder / "model"
        model.mkdir()
        (model / "config.json").write_text(options.config.read_text())
        for precision in options.precisions.split(","):
            for length in map(int, options.lengths.split(",")):
                results.append(measure_shape(options, model, folder, precision, length))

    both = len(options.sides) == 2
    head = ["shape"]
    for name in COLUMNS:
        head += [f"{side} {name}" for side in options.sides] + ["ratio"] * both
    rows = []
    for row in results:
        cells = [f"{row['precision']}, 1x{row['length']}"]
        for key, divisor, form in COLUMNS.values():
            cells += [format(row[side][key] / divisor, form) for side in options.sides]
            if both:
                cells.append(f"{row['swift'][key] / row['peft'][key]:.2f}")
        rows.append(cells)
    measure.print_table(head, rows)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
