#!/usr/bin/env python3
"""Training steps and decoding of LoRA, DoRA, EDoRA and LoRA-XS with random weights of the shape of
Qwen2-0.5B, and of MiniLM on batches like banking77's: here in one process, where the methods take
turns; and LoRA and DoRA in Python's peft beside it. See README.md."""

import argparse
import json
import statistics
import sys
from pathlib import Path

import measure

HERE = Path(__file__).resolve().parent
INSPECT = HERE.parents[1] / "Tests" / "Goldens" / "inspect"
SHAPES = {
    "qwen2": (INSPECT / "qwen2-0.5b-instruct", "causal", 128),
    "minilm": (INSPECT / "minilm-seq-cls", "classify", 416),
}
PRECISIONS = ("float32", "bfloat16")
METHODS = ("lora", "dora", "edora", "lora-xs")
KINDS = {
    "training_step_seconds": "training step",
    "forward_seconds": "forward",
    "decode_token_seconds": "decoded token",
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    binary = HERE.parent / ".build" / "release" / "methods-bench"
    parser.add_argument("--binary", type=Path, default=binary)
    parser.add_argument("--shapes", default="qwen2:float32,qwen2:bfloat16,minilm:float32")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--sides", default="peft,swift", help="peft, swift or both")
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--decode", type=int, default=16, help="tokens to decode")
    parser.add_argument("--peft-rounds", type=int, default=3)
    parser.add_argument("--init", action="store_true", help="time initialisations instead")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the measurements here too")
    options = parser.parse_args()
    options.sides = options.sides.split(",")
    if not set(options.sides) <= {"peft", "swift"}:
        parser.error(f"--sides {','.join(options.sides)}: expected peft, swift or both")
    shapes = [tuple(entry.split(":")) for entry in options.shapes.split(",")]
    for shape in shapes:
        if len(shape) != 2 or shape[0] not in SHAPES or shape[1] not in PRECISIONS:
            parser.error(
                f"--shapes {':'.join(shape)}: expected one of {', '.join(SHAPES)}, a colon, one of "
                f"{', '.join(PRECISIONS)}"
            )
    options.shapes = shapes
    methods = options.methods.split(",")
    if not set(methods) <= set(METHODS):
        parser.error(f"--methods {options.methods}: expected some of {', '.join(METHODS)}")
    if "lora" not in methods and not options.init:
        parser.error(f"--methods {options.methods}: lora must be one, the others are compared with it")
    if "swift" in options.sides and not options.binary.is_file():
        parser.error(f"no such binary: {options.binary}")
    return options


def run_swift(options, shape: str, precision: str) -> dict:
    folder, task, rows = SHAPES[shape]
    command = [options.binary.resolve(), folder, "--task", task, "--precision", precision]
    command += ["--rows", rows, "--rounds", options.rounds, "--decode", options.decode]
    command += ["--methods", options.methods] + ["--init"] * options.init
    return measure.last_json(measure.run(command, options.threads).output)


def run_peft(options, shape: str, precision: str) -> dict:
    """Qwen2 only; LoRA and DoRA, which peft has."""
    config, _, rows = SHAPES[shape]
    command = [sys.executable, HERE / "peft_methods.py", "--config", config, "--rows", rows]
    command += ["--precision", precision, "--rounds", options.peft_rounds]
    command += ["--decode", options.decode, "--threads", options.threads]
    return measure.last_json(measure.run(command, options.threads).output)


def table(shape: str, side: str, result: dict) -> list[list[str]]:
    rows = []
    for key, name in KINDS.items():
        times = result.get(key)
        if not times:
            continue
        # The least: whatever else runs only ever adds. Ratios within a round, in which the methods
        # follow one another, are of times when the machine was about equally busy.
        for method, values in times.items():
            ratios = [one / other for one, other in zip(values, times["lora"])]
            rows.append([
                f"{shape}, {name}", side, method, f"{1e3 * min(values):.1f}",
                f"{1e3 * statistics.median(values):.1f}",
                f"{min(values) / min(times['lora']):.3f}", f"{statistics.median(ratios):.3f}",
            ])  # fmt: skip
    return rows


def main() -> None:
    options = parse()
    results, rows = [], []
    for shape, precision in options.shapes:
        for side in options.sides:
            if side == "peft" and (shape != "qwen2" or options.init):
                continue
            result = {"peft": run_peft, "swift": run_swift}[side](options, shape, precision)
            results.append({"shape": shape, "precision": precision, "side": side, **result})
            print(f"{shape}:{precision}, {side}: {result}", file=sys.stderr, flush=True)
    if not results:
        sys.exit("nothing was measured: peft has only the shape qwen2, and no --init")
    # First of all, as it is what cannot be had again without measuring.
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    for result in results:
        shape = f"{result['shape']} {result['precision']}"
        if options.init:
            for name, seconds in result["initialisation_seconds"].items():
                rows.append([shape, name, f"{seconds:.2f}"])
        else:
            rows += table(shape, result["side"], result)
    if options.init:
        measure.print_table(["shape", "initialisation", "s"], rows)
    else:
        head = ["what", "side", "method", "least ms", "median ms", "least/LoRA", "in a round/LoRA"]
        measure.print_table(head, rows)


if __name__ == "__main__":
    main()
