#!/usr/bin/env python3
"""LoRA, DoRA, EDoRA and LoRA-XS on banking77 with MiniLM: test accuracy, trainable parameters, time
and adapter size at each rank, for the best of some learning rates and several seeds.

The first seed tries every learning rate; the other seeds run at the best of these. Ranks after the first
start with the first one's best rate, so that every row is there early.
Every run adds one line to the file of results, and a run that has one is not repeated: stop and go on as
you like, or run parts with --only. With --report a table and a plot (SVG) are made of what is there. See
README.md.
"""

import argparse
import concurrent.futures
import contextlib
import csv
import json
import math
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

import measure
import study_report
from study_report import Group

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
# What methods-bench measures for --times: the model's shape, and the tokens of a mean batch.
SHAPE = Path(__file__).resolve().parents[2] / "Tests" / "Goldens" / "inspect" / "minilm-seq-cls"
TOKENS = 471
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
    parser.add_argument("--times", type=Path, help="methods-bench; times a step of each and runs nothing")
    parser.add_argument("--report", type=Path, help="page that gets the table, and the plot beside it; runs nothing")
    options = parser.parse_args()
    if options.data is None and options.report is None and options.times is None:
        parser.error("--data is needed (or PEFT_TEST_DATA)")
    options.ranks = [int(rank) for rank in options.ranks.split(",")]
    options.seeds = [int(seed) for seed in options.seeds.split(",")]
    return options


def plan(options):
    """The runs in the order in which they say most, as far as what is done shows what is next."""
    variants = [v for v in VARIANTS if not options.only or v[0] in options.only.split(";")]
    first, *others = options.ranks
    rates = chosen_rates(options)
    seeds = options.seeds

    def every_rate(rank):
        # The middle rates first.
        for place in (1, 0, 2):
            for name, method, settings, tried in variants:
                yield name, method, settings, rank, tried[place], seeds[0]

    def best_rate(rank, of, wanted):
        for seed in wanted:
            for name, method, settings, _ in variants:
                if (name, of) in rates:
                    yield name, method, settings, rank, rates[name, of], seed

    yield from every_rate(first)
    yield from best_rate(first, first, seeds[1:])
    for rank in others:
        yield from best_rate(rank, first, seeds[:1])
    for rank in others:
        yield from every_rate(rank)
    for rank in others:
        yield from best_rate(rank, rank, seeds[1:])


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
    """Adds a line, on a new one whatever the file ends with; all of it or nothing."""
    data = options.results.read_bytes() if options.results.is_file() else b""
    line = json.dumps(result)
    try:
        with open(options.results, "ab") as file:
            if data and not data.endswith(b"\n"):
                file.write(b"\n")
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        with contextlib.suppress(OSError):
            os.truncate(options.results, len(data))
        sys.exit(f"{options.results}: {error.strerror}; add this line yourself, or repeat the run:\n{line}")


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


def times_file(options) -> Path:
    return options.results.with_name(options.results.stem + "-times.json")


def time_steps(options) -> None:
    """The least time of a training step for each method and rank, two threads; the methods take turns."""
    found = {}
    methods = list(dict.fromkeys(method for _, method, *_ in VARIANTS))
    for rank in options.ranks:
        command = [options.times.resolve(), SHAPE, "--task", "classify", "--rows", TOKENS]
        command += ["--rank", rank, "--rounds", 40, "--methods", ",".join(methods)]
        seconds = measure.last_json(measure.run(command, 2).output)["training_step_seconds"]
        found[rank] = {method: 1e3 * min(values) for method, values in seconds.items()}
        print(rank, found[rank], flush=True)
    times_file(options).write_text(json.dumps(found, indent=1) + "\n")


def step_milliseconds(options) -> dict[tuple[str, int], float]:
    """What `time_steps` has found."""
    if not times_file(options).is_file():
        return {}
    found = json.loads(times_file(options).read_text())
    return {
        (name, int(rank)): times[method]
        for rank, times in found.items()
        for name, method, *_ in VARIANTS
    }


def collect(options) -> list[dict]:
    return [
        row
        for row in read(options)
        if row["epochs"] == options.epochs
        and row["limit"] == options.limit
        and row["rank"] in options.ranks
    ]


def row_order(key: tuple[str, int]) -> tuple[int, int]:
    """Where a method at a rank stands in a table."""
    name, rank = key
    return rank, [name for name, *_ in VARIANTS].index(name)


def tried_rates(options) -> dict[tuple[str, int], dict[float, float]]:
    """The accuracy at each rate with the first seed."""
    found: dict[tuple[str, int], dict[float, float]] = {}
    for row in collect(options):
        if row["seed"] == options.seeds[0]:
            found.setdefault((row["name"], row["rank"]), {})[row["rate"]] = row["accuracy"]
    return {key: found[key] for key in sorted(found, key=row_order)}


def chosen_rates(options) -> dict[tuple[str, int], float]:
    """The rate of the best accuracy with the first seed, where every rate has been tried."""
    wanted = {name: set(rates) for name, *_, rates in VARIANTS}
    return {
        key: max(rates, key=rates.get)
        for key, rates in tried_rates(options).items()
        if wanted[key[0]] <= rates.keys()
    }


def best(options) -> dict[tuple[str, int], list[dict]]:
    """The runs of each variant and rank at its best rate; of the rates tried so far where some are
    missing."""
    groups: dict[tuple[str, int], list[dict]] = {}
    for row in collect(options):
        groups.setdefault((row["name"], row["rank"]), []).append(row)
    rates = chosen_rates(options)
    result = {}
    for key in sorted(groups, key=row_order):
        rows = groups[key]
        rate = rates.get(key) or rates.get((key[0], options.ranks[0]))
        rate = rate or max(rows, key=lambda row: row["accuracy"])["rate"]
        result[key] = [row for row in rows if row["rate"] == rate]
    return {key: rows for key, rows in result.items() if rows}


class Workers:
    """Threads that take the next run of the plan until none is left, or until one of them fails."""

    def __init__(self, options) -> None:
        self.options = options
        self.start = time.monotonic()
        self.changed = threading.Condition()
        self.running: set[tuple] = set()
        self.stopped = False

    def run(self) -> None:
        with concurrent.futures.ThreadPoolExecutor(self.options.jobs) as pool:
            try:
                concurrent.futures.wait([pool.submit(self.work) for _ in range(self.options.jobs)])
            except BaseException:  # a signal, which only this thread gets
                measure.children.end()
                self.stop("stopped; run again to go on")
                raise
        if self.stopped:
            sys.exit(1)
        if self.time_is_up():
            print("time is up; run again to go on")

    def time_is_up(self) -> bool:
        minutes = self.options.minutes
        return bool(minutes) and time.monotonic() - self.start > 60 * minutes

    def next(self):
        """The first run that is neither done nor under way; waits for those under way where only they
        can show what is next."""
        while not self.stopped and not self.time_is_up():
            done = {tuple(row[key] for key in KEY) for row in read(self.options)}
            for wanted in plan(self.options):
                key = self.key(wanted)
                if key not in done and key not in self.running:
                    return wanted
            if not self.running:
                break
            self.changed.wait()
        return None

    def key(self, wanted) -> tuple:
        name, _, _, rank, rate, seed = wanted
        return name, rank, rate, seed, self.options.epochs, self.options.limit

    def work(self) -> None:
        try:
            while (wanted := self.take()) is not None:
                self.finish(wanted, run(self.options, *wanted))
        except SystemExit as failure:  # a run that failed: what it wrote says why
            self.stop(failure)
        except BaseException:
            self.stop(traceback.format_exc())

    def take(self):
        with self.changed:
            wanted = self.next()
            if wanted is not None:
                self.running.add(self.key(wanted))
        return wanted

    def finish(self, wanted, result: dict) -> None:
        with self.changed:
            write(self.options, result)
            self.running.remove(self.key(wanted))
            self.changed.notify_all()
        name, _, _, rank, rate, seed = wanted
        print(
            f"{name}, r {rank}, rate {rate:g}, seed {seed}: {100 * result['accuracy']:.2f} % in "
            f"{result['train_seconds']:.0f} s", flush=True,
        )  # fmt: skip

    def stop(self, why: object) -> None:
        """No further run is begun; those under way may end and are kept. The first reason is told."""
        with self.changed:
            first, self.stopped = not self.stopped, True
            self.changed.notify_all()
        if first:
            print(f"{why}\nno further run is begun", file=sys.stderr, flush=True)


def end(number: int, _) -> None:
    sys.exit(128 + number)


def main() -> None:
    options = parse()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, end)
    try:
        start(options)
    finally:
        measure.children.end()


def start(options) -> None:
    if options.report:
        chosen = best(options)
        if not chosen:
            sys.exit(f"no results of {options.epochs} epochs in {options.results}")
        compared, milliseconds = chosen_rates(options), step_milliseconds(options)
        groups = [
            Group(*key, rows, key in compared, milliseconds.get(key))
            for key, rows in chosen.items()
        ]
        study_report.write(options.report, groups, tried_rates(options))
        return
    if options.times:
        time_steps(options)
        return
    options.data = options.data.resolve()
    options.results.parent.mkdir(parents=True, exist_ok=True)
    Workers(options).run()


if __name__ == "__main__":
    main()
