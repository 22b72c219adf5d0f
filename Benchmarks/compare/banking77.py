#!/usr/bin/env python3
"""Fine-tunes MiniLM on banking77 with Python's peft (f32) and with `peft train`, and compares
time, accuracy and peak memory. The two take turns, in one run. See README.md.

With --paired, `peft train` begins with the adapter that peft has drawn and takes the examples in its
order, so that the accuracies differ by the masks of the base model's dropout and by rounding alone."""

import argparse
import csv
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import measure

HERE = Path(__file__).resolve().parent


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peft-binary", type=Path, default=Path(".build/release/peft"))
    parser.add_argument("--data", type=Path, default=os.environ.get("PEFT_TEST_DATA"))
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated")
    parser.add_argument("--sides", default="peft,swift", help="peft, swift or both")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=int, default=0, help="only so many rows, for a quick look")
    parser.add_argument("--set", action="append", default=[], help="key=value for `peft train`")
    parser.add_argument("--paired", action="store_true", help="peft's initial adapter and order")
    parser.add_argument("--json", type=Path, help="write the measurements here too")
    options = parser.parse_args()
    options.sides = options.sides.split(",")
    options.seeds = [int(seed) for seed in options.seeds.split(",")]
    if options.data is None:
        parser.error("--data is needed (or PEFT_TEST_DATA)")
    options.data = options.data.resolve()
    if not set(options.sides) <= {"peft", "swift"}:
        parser.error(f"--sides {','.join(options.sides)}: expected peft, swift or both")
    if options.paired and (options.epochs != 1 or set(options.sides) != {"peft", "swift"}):
        parser.error("--paired is for both sides and one epoch, whose order it takes over")
    if "swift" in options.sides and not options.peft_binary.is_file():
        parser.error(f"no such binary: {options.peft_binary}")
    return options


def select_rows(source: Path, target: Path, choose: Callable[[list], list]) -> Path:
    """A CSV file with those rows of another that `choose` returns, in its order."""
    with open(source, newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    with open(target, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([head, *choose(rows)])
    return target


def shortened(source: Path, target: Path, limit: int) -> Path:
    """So many rows, spread over a CSV file that is sorted by intent; 0: the file as it is."""
    if limit == 0:
        return source
    return select_rows(source, target, lambda rows: rows[:: max(1, len(rows) // limit)][:limit])


def run_peft(options, files: dict[str, Path], seed: int, start: Path) -> dict:
    command = [sys.executable, HERE / "peft_banking77.py"]
    command += ["--model", files["model"], "--train", files["train"], "--test", files["test"]]
    command += ["--labels", files["labels"], "--epochs", options.epochs, "--seed", seed]
    if options.paired:
        command += ["--start", start]
    used = measure.run([*command, "--threads", options.threads], options.threads)
    result = measure.last_json(used.output)
    return measured(used, result["train_seconds"], result["accuracy"])


def run_swift(options, files: dict[str, Path], seed: int, start: Path, folder: Path) -> dict:
    output = folder / f"swift-{seed}"
    adapter = {
        "method": "lora",
        "lora": {
            "r": 8,
            "lora_alpha": 16,
            "lora_dropout": 0.0,
            "target_modules": ["query", "key", "value", "dense"],
        },
    }
    train = files["train"]
    if options.paired:
        adapter = {"init_adapter": str(start), "shuffle": False}
        order = json.loads((start / "order.json").read_text())
        train = select_rows(train, folder / "ordered.csv", lambda rows: [rows[i] for i in order])
    settings = {
        "model": str(files["model"]),
        "task_type": "SEQ_CLS",
        "precision": "float32",
        "train_file": str(train),
        "validation_file": str(files["test"]),
        "data_format": "classification",
        "text_column": "text",
        "label_column": "category",
        "labels": str(files["labels"]),
        "max_length": 128,
        **adapter,
        "output_dir": str(output / "adapter"),
        "num_train_epochs": options.epochs,
        "per_device_train_batch_size": 32,
        "per_device_eval_batch_size": 64,
        "learning_rate": 0.001,
        "lr_scheduler_type": "linear",
        "warmup_ratio": 0.06,
        "weight_decay": 0.0,
        "max_grad_norm": 0,
        "seed": seed,
        "eval_strategy": "epoch",
        "save_strategy": "no",
        "logging_steps": 1,
        "num_threads": options.threads,
        **measure.overrides(options.set),
    }
    used = measure.train(options.peft_binary.resolve(), settings, output, options.threads)
    lines = measure.metrics(output / "adapter")
    accuracies = [line["eval_accuracy"] for line in lines if "eval_accuracy" in line]
    return measured(used, sum(measure.step_seconds(lines)), accuracies[-1])


def measured(used: measure.Measurement, train_seconds: float, accuracy: float) -> dict:
    return {
        "train_seconds": train_seconds,
        "wall_seconds": used.wall_seconds,
        "accuracy": accuracy,
        "peak_bytes": used.peak_bytes,
    }


def cells(name: str, seed: str, result: dict) -> list[str]:
    return [
        name,
        seed,
        f"{result['train_seconds']:.1f}",
        f"{result['wall_seconds']:.1f}",
        f"{result['accuracy']:.4f}",
        f"{result['peak_bytes'] / 1e6:.0f}",
    ]


def main() -> None:
    options = parse()
    results: dict[str, list[dict]] = {side: [] for side in options.sides}
    head = ["side", "seed", "training s", "process s", "test accuracy", "peak MB"]
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source = options.data / "banking77"
        files = {
            "model": options.data / "minilm-l6-v2",
            "labels": source / "categories.json",
            "train": shortened(source / "train.csv", folder / "train.csv", options.limit),
            "test": shortened(source / "test.csv", folder / "test.csv", options.limit),
        }
        for turn, seed in enumerate(options.seeds):
            start = folder / f"start-{seed}"
            # Turns change, so that neither side always runs on the warmer machine.
            sides = options.sides if turn % 2 == 0 else options.sides[::-1]
            for side in ["peft", "swift"] if options.paired else sides:
                if side == "peft":
                    result = run_peft(options, files, seed, start)
                else:
                    result = run_swift(options, files, seed, start, folder)
                results[side].append({"seed": seed, **result})
                rows.append(cells(side, str(seed), result))
                print(f"{side}, seed {seed}: {result}", file=sys.stderr, flush=True)

    means = {
        side: {key: statistics.fmean(r[key] for r in runs) for key in runs[0] if key != "seed"}
        for side, runs in results.items()
    }
    rows += [cells(side, "mean", mean) for side, mean in means.items()]
    measure.print_table(head, rows)
    if len(means) == 2:
        peft, swift = means["peft"], means["swift"]
        print(
            f"\ntraining {peft['train_seconds'] / swift['train_seconds']:.2f} times as fast, "
            f"whole process {peft['wall_seconds'] / swift['wall_seconds']:.2f} times; "
            f"accuracy {100 * (swift['accuracy'] - peft['accuracy']):+.2f} points; "
            f"{swift['peak_bytes'] / peft['peak_bytes']:.2f} of the peak memory"
        )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
