#!/usr/bin/env python3
"""LoRA, DoRA, EDoRA and LoRA-XS on banking77 with MiniLM: test accuracy, trainable parameters, time
and adapter size at each rank, for the best of some learning rates and several seeds.

The first seed tries every learning rate; the other seeds run at the best of these. Every run adds one line
to the file of results, and a run that has one is not repeated: stop and go on as you like, or run parts
with --only. With --report a table (Markdown) and a plot (SVG) are made of what is there. See README.md.
"""

import argparse
import concurrent.futures
import csv
import json
import math
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import measure

RANDOM = {"reconstruct_config": {"replacement_module_random_init": True}}
# Name, method of `peft train`, its own settings, learning rates.
VARIANTS = [
    ("LoRA", "lora", {}, (1e-3, 2e-3, 4e-3)),
    ("DoRA", "dora", {}, (1e-3, 2e-3, 4e-3)),
    ("EDoRA, SVD", "edora", {}, (3e-3, 1e-2, 3e-2)),
    ("EDoRA, random", "edora", RANDOM, (3e-3, 1e-2, 3e-2)),
    ("LoRA-XS", "lora-xs", {}, (3e-3, 1e-2, 3e-2)),
]
BATCH = 32
TARGETS = ["query", "key", "value", "dense"]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peft-binary", type=Path, default=Path(".build/release/peft"))
    parser.add_argument("--data", type=Path, default=os.environ.get("PEFT_TEST_DATA"))
    parser.add_argument("--results", type=Path, default=Path("methods-study.jsonl"))
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--ranks", default="8,16", help="comma-separated")
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated")
    parser.add_argument("--only", default="", help="variants, separated by ';'")
    parser.add_argument("--minutes", type=float, default=0, help="stop after so many; 0: never")
    parser.add_argument("--limit", type=int, default=0, help="steps of a run, for a quick look")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="of each run")
    parser.add_argument("--report", type=Path, help="folder for table and plot; runs nothing")
    options = parser.parse_args()
    if options.data is None and options.report is None:
        parser.error("--data is needed (or PEFT_TEST_DATA)")
    options.ranks = [int(rank) for rank in options.ranks.split(",")]
    options.seeds = [int(seed) for seed in options.seeds.split(",")]
    return options


def first_runs(options):
    """Every rate at the first seed; what is done first says something by itself: the middle rates."""
    for rank in options.ranks:
        for place in (1, 0, 2):
            for name, method, settings, rates in VARIANTS:
                if not options.only or name in options.only.split(";"):
                    yield name, method, settings, rank, rates[place], options.seeds[0]


def other_runs(options):
    """The best rate at the other seeds, of those whose rates have all been tried."""
    rates = chosen_rates(options)
    for seed in options.seeds[1:]:
        for rank in options.ranks:
            for name, method, settings, _ in VARIANTS:
                if (name, rank) in rates and (not options.only or name in options.only.split(";")):
                    yield name, method, settings, rank, rates[name, rank], seed


LOCK = threading.Lock()
KEY = ("name", "rank", "rate", "seed", "epochs", "limit")


def read(options) -> list[dict]:
    """The finished runs; a line that an interruption cut short counts as none."""
    found = []
    if options.results.is_file():
        for line in options.results.read_text().splitlines():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                print(f"{options.results}: a line is cut short and is left out", file=sys.stderr)
    return found


def write(options, result: dict) -> None:
    """Adds a line, on a new one whatever the file ends with."""
    data = options.results.read_bytes() if options.results.is_file() else b""
    with LOCK, open(options.results, "ab") as file:
        if data and not data.endswith(b"\n"):
            file.write(b"\n")
        file.write(json.dumps(result).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def run(options, name, method, settings, rank, rate, seed) -> dict:
    source = options.data / "banking77"
    adapter = {"r": rank, "lora_alpha": 2 * rank, "target_modules": TARGETS, **settings}
    if method in ("edora", "lora-xs"):
        recipe = dict(adapter.get("reconstruct_config", {}), svd={"random_state": 42 + seed})
        adapter["reconstruct_config"] = recipe
    with open(source / "train.csv", newline="") as file:
        examples = sum(1 for _ in csv.DictReader(file))
    steps = options.limit or options.epochs * math.ceil(examples / BATCH)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        configuration = {
            "model": str(options.data / "minilm-l6-v2"),
            "task_type": "SEQ_CLS",
            "train_file": str(source / "train.csv"),
            "validation_file": str(source / "test.csv"),
            "data_format": "classification",
            "text_column": "text",
            "label_column": "category",
            "labels": str(source / "categories.json"),
            "max_length": 128,
            "method": method,
            method: adapter,
            "output_dir": str(folder / "adapter"),
            "num_train_epochs": options.epochs,
            "per_device_train_batch_size": BATCH,
            "per_device_eval_batch_size": 64,
            "learning_rate": rate,
            "lr_scheduler_type": "linear",
            "warmup_ratio": 0.06,
            "weight_decay": 0.0,
            "max_grad_norm": 0,
            "seed": seed,
            "eval_strategy": "steps",
            "eval_steps": steps,
            "save_strategy": "no",
            "logging_steps": 10,
            "num_threads": options.threads,
        }
        if options.limit:
            configuration["max_steps"] = options.limit
        used = measure.train(options.peft_binary.resolve(), configuration, folder, options.threads)
        lines = measure.metrics(folder / "adapter")
        accuracies = [line["eval_accuracy"] for line in lines if "eval_accuracy" in line]
        weights = folder / "adapter" / "adapter_model.safetensors"
        shapes = header(weights)
        size = weights.stat().st_size
    frozen = ("lora_A", "lora_B") if method in ("edora", "lora-xs") else ()
    counts = {key: math.prod(shape) for key, shape in shapes.items()}
    head = sum(n for key, n in counts.items() if "classifier" in key)
    trained = sum(n for key, n in counts.items() if not any(part in key for part in frozen))
    return {
        "name": name, "rank": rank, "rate": rate, "seed": seed, "epochs": options.epochs,
        "limit": options.limit,
        "threads": options.threads, "jobs": options.jobs, "accuracy": accuracies[-1],
        "train_seconds": sum(measure.step_seconds(lines)), "wall_seconds": used.wall_seconds,
        "trained": trained - head, "head": head, "stored": sum(counts.values()), "bytes": size,
    }  # fmt: skip


def header(path: Path) -> dict[str, list[int]]:
    """Shapes of the tensors of a safetensors file."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        entries = json.loads(file.read(size))
    return {key: value["shape"] for key, value in entries.items() if key != "__metadata__"}


def collect(options) -> list[dict]:
    return [
        row
        for row in read(options)
        if row["epochs"] == options.epochs
        and row["limit"] == options.limit
        and row["rank"] in options.ranks
    ]


def chosen_rates(options) -> dict[tuple[str, int], float]:
    """The rate of the best accuracy at the first seed, where every rate has been tried."""
    found: dict[tuple[str, int], dict[float, float]] = {}
    for row in collect(options):
        if row["seed"] == options.seeds[0]:
            found.setdefault((row["name"], row["rank"]), {})[row["rate"]] = row["accuracy"]
    wanted = {name: set(rates) for name, *_, rates in VARIANTS}
    return {
        key: max(rates, key=rates.get)
        for key, rates in found.items()
        if wanted[key[0]] <= rates.keys()
    }


def best(options) -> dict[tuple[str, int], list[dict]]:
    """The runs of each variant and rank at its best rate; of the rates tried so far where some are
    missing."""
    groups: dict[tuple[str, int], list[dict]] = {}
    for row in collect(options):
        groups.setdefault((row["name"], row["rank"]), []).append(row)
    rates = chosen_rates(options)
    order = [name for name, *_ in VARIANTS]
    result = {}
    for key, rows in sorted(groups.items(), key=lambda g: (g[0][1], order.index(g[0][0]))):
        rate = rates.get(key) or max(rows, key=lambda row: row["accuracy"])["rate"]
        result[key] = [row for row in rows if row["rate"] == rate]
    return result


def write_report(options) -> None:
    rows = collect(options)
    if not rows:
        sys.exit(f"no results of {options.epochs} epochs in {options.results}")
    chosen = best(options)
    options.report.mkdir(parents=True, exist_ok=True)
    head = ["rank", "method", "rate", "seeds", "test accuracy", "trained", "training s", "file MB"]
    lines = ["| " + " | ".join(head) + " |", "| --- | --- |" + " ---: |" * (len(head) - 2)]
    for (name, rank), group in chosen.items():
        values = [100 * run["accuracy"] for run in group]
        spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        cells = [
            str(rank),
            name,
            f"{group[0]['rate']:g}",
            str(len(group)),
            f"{statistics.fmean(values):.2f}{spread}",
            f"{group[0]['trained']:,}",
            f"{statistics.fmean(run['train_seconds'] for run in group):.0f}",
            f"{group[0]['bytes'] / 1e6:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    tried = sum(len(rates) for *_, rates in VARIANTS)
    wanted = len(options.ranks) * (tried + len(VARIANTS) * (len(options.seeds) - 1))
    if len(rows) < wanted:
        lines.append(f"\n{len(rows)} of {wanted} runs are done.")
    (options.report / "methods.md").write_text("\n".join(lines) + "\n")
    (options.report / "methods.svg").write_text(plot(chosen))
    print("\n".join(lines))


def plot(chosen: dict[tuple[str, int], list[dict]]) -> str:
    """Accuracy against trained parameters, on a logarithmic axis; a point for each seed, a ring for the
    mean."""
    width, height, left, right, top, bottom = 720, 420, 64, 190, 24, 52
    colours = ["#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e"]
    counts = [group[0]["trained"] for group in chosen.values()]
    values = [100 * run["accuracy"] for group in chosen.values() for run in group]
    low, high = math.floor(math.log10(min(counts))), math.ceil(math.log10(max(counts)))
    high = max(high, low + 1)
    floor, ceiling = math.floor(min(values) * 2) / 2, math.ceil(max(values) * 2) / 2
    ceiling = max(ceiling, floor + 0.5)

    def x(count: float) -> float:
        return left + (math.log10(count) - low) / (high - low) * (width - left - right)

    def y(value: float) -> float:
        return top + (ceiling - value) / (ceiling - floor) * (height - top - bottom)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for power in range(low, high + 1):
        at = x(10**power)
        parts.append(
            f'<line x1="{at:.1f}" y1="{top}" x2="{at:.1f}" y2="{height - bottom}" stroke="#ddd"/>'
            f'<text x="{at:.1f}" y="{height - bottom + 18}" text-anchor="middle">{10**power:,}</text>'
        )
    steps = max(1, round((ceiling - floor) / 6 * 2)) / 2
    value = floor
    while value <= ceiling + 1e-9:
        parts.append(
            f'<line x1="{left}" y1="{y(value):.1f}" x2="{width - right}" y2="{y(value):.1f}" '
            f'stroke="#ddd"/><text x="{left - 8}" y="{y(value) + 4:.1f}" '
            f'text-anchor="end">{value:.1f}</text>'
        )
        value += steps
    parts.append(
        f'<text x="{(left + width - right) / 2}" y="{height - 10}" text-anchor="middle">'
        "trained parameters without the head</text>"
        f'<text transform="translate(16 {(top + height - bottom) / 2}) rotate(-90)" '
        'text-anchor="middle">test accuracy, %</text>'
    )
    names = [name for name, *_ in VARIANTS]
    for (name, rank), group in chosen.items():
        colour = colours[names.index(name)]
        at = x(group[0]["trained"])
        mean = statistics.fmean(100 * run["accuracy"] for run in group)
        for run in group:
            parts.append(
                f'<circle cx="{at:.1f}" cy="{y(100 * run["accuracy"]):.1f}" r="2.5" '
                f'fill="{colour}"/>'
            )
        parts.append(
            f'<circle cx="{at:.1f}" cy="{y(mean):.1f}" r="6" fill="none" stroke="{colour}" '
            f'stroke-width="2"/><text x="{at + 9:.1f}" y="{y(mean) - 7:.1f}" fill="{colour}">'
            f"r {rank}</text>"
        )
    for place, name in enumerate(names):
        parts.append(
            f'<circle cx="{width - right + 24}" cy="{top + 12 + 20 * place}" r="5" '
            f'fill="{colours[place]}"/><text x="{width - right + 36}" '
            f'y="{top + 16 + 20 * place}">{name}</text>'
        )
    return "\n".join(parts) + "\n</svg>\n"


def main() -> None:
    options = parse()
    if options.report:
        write_report(options)
        return
    options.data = options.data.resolve()
    options.results.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()

    def one(wanted) -> None:
        if options.minutes and time.monotonic() - start > 60 * options.minutes:
            return
        name, method, settings, rank, rate, seed = wanted
        result = run(options, name, method, settings, rank, rate, seed)
        write(options, result)
        print(
            f"{name}, r {rank}, rate {rate:g}, seed {seed}: {100 * result['accuracy']:.2f} % in "
            f"{result['train_seconds']:.0f} s", flush=True,
        )  # fmt: skip

    for part in (first_runs, other_runs):
        done = {tuple(row[key] for key in KEY) for row in read(options)}
        wanted = [
            (name, method, settings, rank, rate, seed)
            for name, method, settings, rank, rate, seed in part(options)
            if (name, rank, rate, seed, options.epochs, options.limit) not in done
        ]
        with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(one, wanted))
    if options.minutes and time.monotonic() - start > 60 * options.minutes:
        print("time is up; run again to go on")


if __name__ == "__main__":
    main()
