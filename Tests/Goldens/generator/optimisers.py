"""AdamW trajectories and learning-rate schedules."""

import json
from pathlib import Path

import numpy as np
import torch
import transformers

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
            "constant": lambda o: transformers.get_constant_schedule_with_warmup(o, warmup),
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


def make() -> None:
    folder = Path("optimisers")
    folder.mkdir(exist_ok=True)
    (folder / "adamw.json").write_text(json.dumps(adamw_runs()) + "\n")
    record = {"schedules": schedule_rows(), "warmup": warmup_rows()}
    (folder / "schedules.json").write_text(json.dumps(record) + "\n")
