"""What the parts of roundtrip.py share: the table, the tool, comparison."""

import math
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from peft import (
    LoraConfig,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file, save_file

PACKAGE = Path(__file__).resolve().parents[1]
GOLDENS = PACKAGE / "Tests" / "Goldens"


class Report:
    """The rows of the table."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, str, str, bool]] = []

    def add(self, model: str, check: str, error: float, limit: float) -> None:
        self.rows.append((model, check, f"{error:.1e}", f"{limit:.0e}", error <= limit))

    def add_fact(self, model: str, check: str, found: str, holds: bool) -> None:
        self.rows.append((model, check, found, "", holds))

    def print(self) -> None:
        head = ("model", "check", "max error", "limit", "")
        rows = [(*row[:4], "ok" if row[4] else "FAILED") for row in self.rows]
        widths = [max(len(row[i]) for row in [head, *rows]) for i in range(5)]
        for row in [head, tuple("-" * width for width in widths), *rows]:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())

    @property
    def failures(self) -> int:
        return sum(not row[4] for row in self.rows)


def relative(found: torch.Tensor, reference: torch.Tensor) -> float:
    """max|found − reference| / max|reference|; infinite where shapes differ and where a number of
    either is not finite, 0 where both are zero or empty."""
    finite = bool(torch.isfinite(found).all()) and bool(torch.isfinite(reference).all())
    if found.shape != reference.shape or not finite:
        return math.inf
    if torch.equal(found, reference):
        return 0.0
    largest = reference.abs().max().item()
    return (found - reference).abs().max().item() / largest if largest else math.inf


def worst(errors: Iterable[float]) -> float:
    """The largest error; infinite where there is none, and where one is NaN, which `max` may miss."""
    found = list(errors)
    return max(found) if found and not any(map(math.isnan, found)) else math.inf


class ToolFailure(Exception):
    """The tool ended with an error."""


def guarded(report: Report, model: str, check: str, body: Callable[[], None]) -> None:
    """Does a part; an error in it is a row of the table, so that the other parts are tried."""
    try:
        body()
    except ToolFailure as failure:
        print(failure, file=sys.stderr)
        report.add_fact(model, check, "the tool ended with an error", False)
    except Exception:
        traceback.print_exc()
        report.add_fact(model, check, "error in Python", False)


class Tool:
    """The `peft` binary."""

    def __init__(self, binary: Path, folder: Path, threads: int) -> None:
        self.binary = binary
        self.folder = folder
        self.environment = dict(os.environ, OMP_NUM_THREADS=str(threads))
        self.calls = 0

    def run(self, *arguments: object) -> str:
        command = [str(self.binary), *map(str, arguments)]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        if done.returncode != 0:
            raise ToolFailure(f"{' '.join(command)}\nended with {done.returncode}\n{done.stderr}")
        return done.stdout

    def forward(self, model: Path, inputs: dict, *options: object, gradients=False):
        """What `peft forward` writes: outputs and, if asked for, gradients."""
        self.calls += 1
        source = self.folder / f"{self.calls}-in.safetensors"
        target = self.folder / f"{self.calls}-out.safetensors"
        save_file(inputs, source)
        arguments = ["forward", "--model", model, *options, "--input", source, "--output", target]
        if not gradients:
            self.run(*arguments)
            return load_file(target)
        slopes = self.folder / f"{self.calls}-gradients.safetensors"
        self.run(*arguments, "--gradients", slopes)
        return load_file(target), load_file(slopes)


def visible(output: torch.Tensor, inputs: dict) -> torch.Tensor:
    """Without the rows of padding tokens, which mean nothing."""
    return output[inputs["attention_mask"].bool()] if output.dim() == 3 else output


def check_keys(name: str, what: str, found: set[str], wanted: set[str], report: Report) -> None:
    missing, unexpected = wanted - found, found - wanted
    for label, keys in (("missing", missing), ("unexpected", unexpected)):
        if keys:
            print(f"{name}: {what}: {label}: {', '.join(sorted(keys))}", file=sys.stderr)
    text = f"{len(missing)} missing, {len(unexpected)} unexpected"
    report.add_fact(name, f"keys of {what}", text, not missing and not unexpected)


def check_loading(subject, what: str, folder: Path, report: Report) -> None:
    """Whether peft finds all tensors of an adapter's folder, and no others."""
    fresh = get_peft_model(subject.base(), LoraConfig.from_pretrained(str(folder)))
    wanted = set(get_peft_model_state_dict(fresh, save_embedding_layers=False))
    weights = load_file(folder / "adapter_model.safetensors")
    check_keys(subject.name, what, set(weights), wanted, report)
    result = set_peft_model_state_dict(fresh, weights)
    # peft counts the base's own tensors as missing; what concerns it are the adapter's.
    own = [key for key in result.missing_keys if ".default." in key]
    text = f"{len(own)} missing, {len(result.unexpected_keys)} unexpected"
    report.add_fact(
        subject.name, f"loading {what} in peft", text, not own and not result.unexpected_keys
    )
