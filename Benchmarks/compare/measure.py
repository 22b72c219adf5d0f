"""Runs a program and measures it; a table.

Standard library only, on purpose: Linux counts the memory of the process that starts a program
into the program's peak until it is executed, so the starting process has to stay small. Whatever
needs torch is a program of its own.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Measurement:
    """What a finished program used."""

    output: str
    wall_seconds: float
    processor_seconds: float
    peak_bytes: int


class Children:
    """The programs under way, so that none outlives the script."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.running: set[int] = set()
        self.ended = False

    def start(self, words: list[str], **options) -> subprocess.Popen:
        with self.lock:
            if self.ended:
                sys.exit("no further programs are started")
            child = subprocess.Popen(words, **options)
            self.running.add(child.pid)
        return child

    def wait(self, child: subprocess.Popen):
        """What the program used. Its number stays its own until it is no longer among those under way."""
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        with self.lock:
            _, status, usage = os.wait4(child.pid, 0)
            self.running.discard(child.pid)
        # Already waited for: keeps Popen from waiting again.
        child.returncode = os.waitstatus_to_exitcode(status)
        return usage

    def end(self) -> None:
        """Kills the programs under way, and starts none any more."""
        with self.lock:
            self.ended = True
            for number in self.running:
                os.kill(number, signal.SIGKILL)


children = Children()


def run(command: list[object], threads: int) -> Measurement:
    """Runs a program to its end with a number of threads; SystemExit with what it wrote if it fails."""
    words = [str(word) for word in command]
    environment = dict(
        os.environ,
        OMP_NUM_THREADS=str(threads),
        MKL_NUM_THREADS=str(threads),
        TOKENIZERS_PARALLELISM="false",
        HF_HUB_OFFLINE="1",
    )
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        child = children.start(words, stdout=out, stderr=errors, env=environment)
        usage = children.wait(child)
        wall = time.perf_counter() - start
        out.seek(0)
        errors.seek(0)
        text = out.read().decode(errors="replace")
        if child.returncode != 0:
            complaint = errors.read().decode(errors="replace")
            sys.exit(f"{' '.join(words)}\nended with {child.returncode}\n{text}{complaint}")
    # ru_maxrss is in kibibytes on Linux.
    processor = usage.ru_utime + usage.ru_stime
    return Measurement(text, wall, processor, usage.ru_maxrss * 1024)


def last_json(text: str) -> dict:
    """The last line of a program's output that is a JSON object."""
    for line in reversed(text.splitlines()):
        if line.startswith("{"):
            return json.loads(line)
    sys.exit(f"no result in:\n{text}")


def metrics(folder: Path) -> list[dict]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def step_seconds(lines: list[dict]) -> list[float]:
    """How long each training step took, from its tokens and its rate."""
    return [line["tokens"] / line["tokens_per_second"] for line in lines if "loss" in line]


def train(binary: Path, settings: dict, folder: Path, threads: int) -> Measurement:
    """`peft train` with the settings; the configuration is written into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "run.yaml"
    config.write_text(json.dumps(settings, indent=2))  # JSON is YAML
    return run([binary, "train", "--config", config], threads)


def overrides(pairs: list[str]) -> dict:
    """`key=value` from the command line; a value is JSON where it reads as such."""
    found = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator:
            sys.exit(f"--set {pair}: expected key=value")
        try:
            found[key] = json.loads(value)
        except json.JSONDecodeError:
            found[key] = value
    return found


def print_table(head: list[str], rows: list[list[str]]) -> None:
    """A Markdown table, numbers on the right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for index, row in enumerate([head, None, *rows]):
        if row is None:
            print("| " + " | ".join("-" * width for width in widths) + " |")
            continue
        cells = [
            cell.ljust(width) if column == 0 or index == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths))
        ]
        print("| " + " | ".join(cells) + " |")
    sys.stdout.flush()
