#!/usr/bin/env python3
"""Many LoRA adapters (r 8, every linear layer) on one base, in Python's peft and in swift-peft:
memory, switching, mixed batches, injection, loading. See README.md."""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import measure

HERE = Path(__file__).resolve().parent
SHAPE = HERE.parents[1] / "Tests" / "Goldens" / "inspect" / "qwen2-0.5b-instruct" / "config.json"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    binary = HERE.parent / ".build" / "release" / "adapters-bench"
    parser.add_argument("--bench", type=Path, default=binary, help="the built adapters-bench")
    parser.add_argument("--data", type=Path, default=os.environ.get("PEFT_TEST_DATA"))
    parser.add_argument("--models", default="stories260k,qwen2", help="comma-separated")
    parser.add_argument("--adapters", type=int, default=100)
    parser.add_argument("--peft-adapters", type=int, help="another number for peft, which is slow")
    parser.add_argument("--tokens", type=int, default=16, help="of each of the eight prompts")
    parser.add_argument("--seconds", type=float, default=4, help="for each kind of mixed batch")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--sides", default="peft,swift")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the measurements here too")
    options = parser.parse_args()
    options.sides = options.sides.split(",")
    if "stories260k" in options.models and options.data is None:
        parser.error("--data is needed for stories260k (or PEFT_TEST_DATA)")
    if "swift" in options.sides and not options.bench.is_file():
        parser.error(f"no such binary: {options.bench} (swift build -c release in Benchmarks)")
    return options


# What is shown: a name, how it is had from the measurements, and its form.
ROWS = [
    ("injection, ms", lambda m: m["inject_seconds"] * 1e3, "{:.1f}"),
    ("loading an adapter, ms", lambda m: m["load_seconds"] * 1e3, "{:.1f}"),
    ("switching, median, ms", lambda m: m["switch_seconds_median"] * 1e3, "{:.3f}"),
    ("switching, longest, ms", lambda m: m["switch_seconds_most"] * 1e3, "{:.3f}"),
    ("adapters", lambda m: m["adapters"], "{}"),
    ("memory with the base, MB", lambda m: m["resident_before"] / 1e6, "{:.1f}"),
    ("memory with all, MB", lambda m: m["resident_after"] / 1e6, "{:.1f}"),
    (
        "… over base + adapters, %",
        lambda m: 100
        * (m["resident_after"] / (m["resident_before"] + m["adapters"] * m["adapter_bytes"]) - 1),
        "{:+.1f}",
    ),
    (
        "an adapter over its bytes, %",
        lambda m: 100
        * (
            (m["resident_after"] - m["resident_before"]) / (m["adapters"] * m["adapter_bytes"])
            - 1
        ),
        "{:+.1f}",
    ),
    ("prompts, no adapter, ms", lambda m: m["prefill_seconds_base"] * 1e3, "{:.2f}"),
    ("prompts, one adapter, ms", lambda m: m["prefill_seconds_one"] * 1e3, "{:.2f}"),
    ("prompts, 8 adapters, ms", lambda m: m["prefill_seconds_mixed"] * 1e3, "{:.2f}"),
    (
        "… 8 adapters : one",
        lambda m: m["prefill_seconds_mixed"] / m["prefill_seconds_one"],
        "{:.2f}",
    ),
    ("a step, no adapter, ms", lambda m: m["step_seconds_base"] * 1e3, "{:.2f}"),
    ("a step, one adapter, ms", lambda m: m["step_seconds_one"] * 1e3, "{:.2f}"),
    ("a step, 8 adapters, ms", lambda m: m["step_seconds_mixed"] * 1e3, "{:.2f}"),
    ("… 8 adapters : one", lambda m: m["step_seconds_mixed"] / m["step_seconds_one"], "{:.2f}"),
]


def run(options, side: str, model: Path, is_random: bool) -> dict:
    command: list[object] = [options.bench.resolve()]
    if side == "peft":
        command = [sys.executable, HERE / "peft_adapters.py"]
    count = options.adapters
    if side == "peft" and options.peft_adapters:
        count = options.peft_adapters
    command += [model, *["--random"] * is_random, "--adapters", count]
    command += ["--tokens", options.tokens, "--seconds", options.seconds]
    command += ["--precision", options.precision]
    return measure.last_json(measure.run(command, options.threads).output)


def main() -> None:
    options = parse()
    results = {}
    with tempfile.TemporaryDirectory() as temporary:
        shape = Path(temporary) / "qwen2"
        shape.mkdir()
        (shape / "config.json").write_text(SHAPE.read_text())
        for name in options.models.split(","):
            model = shape if name == "qwen2" else options.data / name
            found = {}
            for side in options.sides:
                found[side] = run(options, side, model, name == "qwen2")
                print(f"{name}, {side}: {found[side]}", file=sys.stderr)
            results[name] = found
    columns = [(name, side) for name in results for side in results[name]]
    rows = []
    for label, value, form in ROWS:
        rows.append([label, *(form.format(value(results[n][s])) for n, s in columns)])
    measure.print_table(["", *(f"{name}, {side}" for name, side in columns)], rows)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
