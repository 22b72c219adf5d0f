"""AdamW trajectories and learning-rate schedules."""

import json
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import transformers
from peft.optimizers import create_lorafa_optimizer, create_loraplus_optimizer, lorafa
from safetensors.torch import load_file

from . import fields, models

STEPS = 12


def adamw_runs() -> dict:
    """AdamW of torch on two small tensors with given gradients, parameters after every step."""
    settings = [
        dict(lr=1e-2, betas=[0.9, 0.999], eps=1e-8, weight_decay=0.0),
        dict(lr=1e-2, betas=[0.9, 0.999], eps=1e-8, weight_decay=0.01),
        dict(lr=3e-3, betas=[0.8, 0.95], eps=1e-4, weight_decay=0.1),
        dict(lr=1e-2, betas=[0.9, 0.999], eps=1e-8, weight_decay=0.0, max_grad_norm=1.0),
    ]
    generator = np.random.default_rng(5)
    starts = [generator.standard_normal(size).astype(np.float32) for size in (7, 4)]
    gradients = [
        [(0.7 * generator.standard_normal(s.size)).astype(np.float32) for s in starts]
        for _ in range(STEPS)
    ]
    gradients[3] = [np.zeros_like(g) for g in gradients[3]]
    gradients[6] = [np.float32(1e-4) * g for g in gradients[6]]

    runs = []
    for setting in settings:
        options = {key: value for key, value in setting.items() if key != "max_grad_norm"}
        options["betas"] = tuple(options["betas"])
        parameters = [torch.nn.Parameter(torch.from_numpy(s.copy())) for s in starts]
        optimiser = torch.optim.AdamW(parameters, **options)
        after, norms = [], []
        for step in range(STEPS):
            for parameter, gradient in zip(parameters, gradients[step]):
                parameter.grad = torch.from_numpy(gradient.copy())
            norms.append(torch.nn.utils.get_total_norm([p.grad for p in parameters]).item())
            if "max_grad_norm" in setting:
                torch.nn.utils.clip_grad_norm_(parameters, setting["max_grad_norm"])
            optimiser.step()
            after.append([p.detach().tolist() for p in parameters])
        runs.append({"settings": setting, "grad_norms": norms, "after": after})
    return {
        "start": [s.tolist() for s in starts],
        "gradients": [[g.tolist() for g in step] for step in gradients],
        "runs": runs,
    }


def schedule_rows() -> list[dict]:
    """The learning rate that each step uses, from the schedulers of transformers."""

    def values(make, steps: int) -> list[float]:
        optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
        scheduler = make(optimiser)
        rates = []
        for _ in range(steps):
            rates.append(optimiser.param_groups[0]["lr"])
            optimiser.step()
            scheduler.step()
        return rates

    rows = []
    for warmup, total in [(0, 10), (3, 10), (10, 10), (1, 1), (6, 25), (4, 2)]:
        makers = {
            "linear": lambda o: transformers.get_linear_schedule_with_warmup(o, warmup, total),
            "cosine": lambda o: transformers.get_cosine_schedule_with_warmup(o, warmup, total),
            "constant": lambda o: transformers.get_constant_schedule(o),
            "constant_with_warmup": lambda o: transformers.get_constant_schedule_with_warmup(
                o, warmup
            ),
        }
        for name, make in makers.items():
            rows.append(
                {
                    "lr_scheduler_type": name,
                    "learning_rate": 1e-3,
                    "warmup_steps": warmup,
                    "total_steps": total,
                    # Two steps past the end show what happens there.
                    "rates": values(make, total + 2),
                }
            )
    return rows


def warmup_rows() -> list[dict]:
    """Steps of warm-up for a ratio: `TrainingArguments.get_warmup_steps`."""
    rows = []
    for total in (1, 10, 17, 313, 3130):
        for ratio in (0.0, 0.03, 0.06, 0.1, 0.5):
            arguments = transformers.TrainingArguments(
                output_dir="unused", warmup_steps=ratio, use_cpu=True, report_to=[]
            )
            steps = arguments.get_warmup_steps(total)
            rows.append({"warmup_ratio": ratio, "total_steps": total, "warmup_steps": steps})
    return rows


# -- LoRA+ and LoRA-FA


def lora_sources() -> dict:
    """Adapters with a loss: a function that loads one, its batches, its name."""
    sources = {}
    for case in models.cases():
        if case.name in ("bert", "llama", "llama-bias", "qwen2"):
            for letter in ("a", "b"):
                sources[f"{case.name}/adapter_{letter}"] = (
                    lambda case=case, letter=letter: case.with_adapter(letter),
                    case.name,
                    f"adapter_{letter}",
                )
    for case in fields.cases():
        if case.name in ("target-embedding-unsaved", "save-pooler-bert", "save-one-norm"):
            sources[f"fields/{case.name}/adapter"] = (case.load, case.model, "default")
    return sources


def key_of(name: str, adapter: str) -> str:
    """The key under which peft saves a parameter."""
    return name.replace(f"modules_to_save.{adapter}.", "").replace(f".{adapter}", "")


def ten_steps(model, folder: str, optimiser) -> dict:
    """Losses before each step over the model's batches, and gradient norms."""
    every = load_file(f"{folder}/batches.safetensors")
    losses, norms = [], []
    for step in range(models.STEPS):
        start = f"{step}."
        batch = {k.removeprefix(start): v for k, v in every.items() if k.startswith(start)}
        loss = model(**batch).loss
        loss.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norms.append(torch.nn.utils.get_total_norm(gradients).item())
        losses.append(loss.item())
        optimiser.step()
        model.zero_grad()
    return {"losses": losses, "grad_norms": norms}


def loraplus_rows() -> list[dict]:
    """Groups and ten losses of `create_loraplus_optimizer` over torch's AdamW."""
    settings = [
        dict(lr=2e-3, loraplus_lr_ratio=4.0),
        dict(lr=1e-3, loraplus_lr_ratio=16.0, loraplus_weight_decay=0.1, loraplus_lr_embedding=3e-3),
    ]
    rows = []
    for source, (load, folder, adapter) in lora_sources().items():
        if source.endswith("adapter_b"):
            continue
        for setting in settings:
            model = load()
            optimiser = create_loraplus_optimizer(model, torch.optim.AdamW, **setting)
            names = {id(p): key_of(n, adapter) for n, p in model.named_parameters()}
            groups = [
                {
                    "lr": group["lr"],
                    "weight_decay": group["weight_decay"],
                    "keys": [names[id(p)] for p in group["params"]],
                }
                for group in optimiser.param_groups
            ]
            rows.append(
                {"adapter": source, "model": folder, "settings": setting, "groups": groups}
                | ten_steps(model, folder, optimiser)
            )
    return rows


def lorafa_rows() -> list[dict]:
    """Ten losses of `create_lorafa_optimizer`: in float32, and as peft rounds to bf16 where the
    machine can."""
    settings = [dict(lr=5e-3), dict(lr=1e-2, weight_decay=0.1)]
    rows = []
    for source, (load, folder, adapter) in lora_sources().items():
        if source.startswith("fields/"):
            continue
        for setting in settings:
            row = {"adapter": source, "model": folder, "settings": setting}
            for exact in (True, False):
                model = load()
                config = model.peft_config[adapter]
                optimiser = create_lorafa_optimizer(model, config.r, config.lora_alpha, **setting)
                with mock.patch.object(lorafa, "is_bf16_available", lambda: not exact):
                    found = ten_steps(model, folder, optimiser)
                if exact:
                    trainable, total = model.get_nb_trainable_parameters()
                    row |= found | {"trainable_parameters": trainable}
                else:
                    row["bf16_losses"] = found["losses"]
            rows.append(row)
    return rows


def make() -> None:
    folder = Path("optimisers")
    folder.mkdir(exist_ok=True)
    (folder / "adamw.json").write_text(json.dumps(adamw_runs()) + "\n")
    record = {"schedules": schedule_rows(), "warmup": warmup_rows()}
    (folder / "schedules.json").write_text(json.dumps(record) + "\n")
    record = {"loraplus": loraplus_rows(), "lorafa": lorafa_rows()}
    (folder / "lora.json").write_text(json.dumps(record, indent=1) + "\n")
