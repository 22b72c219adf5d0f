"""The part of roundtrip.py about methods that peft does not have: the tool trains EDoRA and LoRA-XS,
`peft convert` writes them as DoRA and LoRA, and peft computes the same with those. Also what peft's
two active DoRA adapters do, which depends on their order where the tool's do not."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from roundtrip_support import relative, worst

LOGITS = 1e-5


def padded(rows: list[dict]) -> dict[str, torch.Tensor]:
    """Ids of one length, so that there is no padding."""
    width = min(len(row["input_ids"]) for row in rows)
    return {"input_ids": torch.tensor([row["input_ids"][:width] for row in rows])}


def train(
    subject, rows: list[dict], tool, method: str, settings: dict, name: str = "", **options
) -> Path:
    """A few steps of the tool with large rates, so that R and the magnitude move."""
    folder = tool.folder / subject.name / (name or method)
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = {
        "model": str(subject.path),
        "task_type": subject.task,
        "model_config": subject.model_config,
        "train_file": str(data),
        "data_format": "tokens",
        "method": method,
        method: settings,
        "output_dir": str(folder / "adapter"),
        "max_steps": 5,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.05,
        "seed": 0,
        "save_strategy": "no",
        **options,
    }
    if subject.is_classifier:
        run["labels"] = [f"LABEL_{i}" for i in range(77)]
    config = folder / "run.yaml"
    config.write_text(json.dumps(run, indent=2))
    tool.run("train", "--config", config)
    return folder / "adapter"


def check(subject, rows: list[dict], tool, report) -> None:
    inputs = padded(rows)
    settings = {key: subject.first[key] for key in ("r", "lora_alpha", "target_modules")}

    def forward(adapter: Path) -> torch.Tensor:
        options = ["--task", subject.task, "--adapter", f"{adapter}=a"]
        return tool.forward(subject.path, inputs, *options)["logits"]

    for method, form in (("edora", "dora"), ("lora-xs", "lora")):
        adapter = train(subject, rows, tool, method, settings)
        target = adapter.parent / form
        command = ["convert", "--model", subject.path, "--task", subject.task]
        tool.run(*command, "--adapter", adapter, "--to", form, "--output", target)
        expected = forward(adapter)
        with torch.no_grad():
            found = subject.load(target)(**inputs).logits
        report.add(subject.name, f"logits, {method} as {form} in peft", relative(found, expected), LOGITS)
        untouched = relative(subject.base()(**inputs).logits.detach(), expected)
        report.add_fact(
            subject.name, f"effect of {method}", f"{untouched:.1e}", 1e-2 < untouched < math.inf
        )


def check_order(subject, folders: list[Path], inputs: dict, tool, report) -> None:
    """Two DoRA adapters in both orders, merged or not."""
    names = [folder.name for folder in folders]
    ours, theirs = [], []
    for order in (names, names[::-1]):
        adapters = [f"{folder}={folder.name}" for folder in folders]
        options = ["--task", subject.task, "--adapter", adapters[0], "--adapter", adapters[1]]
        for merge in ([], ["--merge"]):
            options_now = [*options, "--active", ",".join(order), *merge]
            ours.append(tool.forward(subject.path, inputs, *options_now)["logits"])
        model = subject.load(*folders)
        model.base_model.set_adapter(order)
        with torch.no_grad():
            theirs.append(model(**inputs).logits)
    error = worst(relative(output, ours[0]) for output in ours[1:])
    report.add(subject.name, "two DoRA adapters, orders, merged or not", error, LOGITS)
    error = relative(theirs[1], theirs[0])
    apart = 1e-3 < error < math.inf
    report.add_fact(subject.name, "the same orders in peft", f"{error:.1e} apart", apart)
