"""EDoRA and LoRA-XS, transcribed from the method's definition in numpy, in double precision.

The original code runs only with peft 0.10 and on one kind of layer, so nothing of it is used here: the
formulas are those of arXiv 2501.12067 and 2405.17604, and gradients come from torch's autograd in
float64. With W [out, in] = U S Vᵀ: A = S_r V_rᵀ, B = U_r, both frozen; V' = W + s·B·R·A;
y = x·(m ∘ V' / ‖V'‖_row)ᵀ + b, the norm taken as a constant; LoRA-XS without m and norm.
Files are named as the EDoRA repository's peft 0.10 names them.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from .toys import numbers

ROOT = Path("edora")
OPTIMISER = {"name": "AdamW", "lr": 0.01, "weight_decay": 0.01}
RECIPE = {
    "reconstruction_type": "svd",
    "reconstr_mode": "separated",
    "half_init_dec": False,
    "replacement_module_random_init": False,
    "r_squared": True,
    "svd": {"n_iter": 10, "random_state": 42},
}
# Spelling of R's key: as peft 0.10 saves it, and as a structural filter would.
SPELLINGS = ("{}_lora_latent_mapping.weight", "{}.default_lora_latent_mapping.weight")


def factors(weight: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """A and B from the leading singular vectors; the largest element of each column of B positive."""
    left, lengths, right = np.linalg.svd(weight, full_matrices=False)
    left, right = left[:, :rank], lengths[:rank, None] * right[:rank]
    signs = np.sign(left[np.abs(left).argmax(axis=0), np.arange(rank)])
    return signs[:, None] * right, left * signs


def effective(weight, A, B, R, m, scaling):
    """The weight with the adapter in it; torch tensors, differentiable in R, m, A and B."""
    changed = weight + scaling * (B @ R @ A if R is not None else B @ A)
    if m is None:
        return changed
    return (m / changed.detach().norm(dim=1))[:, None] * changed


class Case:
    def __init__(self, name, inputs, outputs, seed, rank=3, alpha=4.5, bias=True, magnitude=True,
                 dtype=torch.float32, gpt2=False, latent=True, spelling=0, recipe_above=False,
                 dropout=0.0, extra=None):
        self.name, self.seed, self.rank, self.alpha = name, seed, rank, alpha
        self.inputs, self.outputs, self.bias = inputs, outputs, bias
        self.magnitude, self.dtype, self.gpt2, self.latent = magnitude, dtype, gpt2, latent
        self.spelling, self.recipe_above, self.dropout = spelling, recipe_above, dropout
        self.extra = extra or {}

    def make(self) -> None:
        folder = ROOT / self.name
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "adapter").mkdir(parents=True)
        seed, scaling = self.seed, self.alpha / self.rank
        weight = numbers(seed, self.outputs, self.inputs, scale=self.inputs**-0.5).to(self.dtype)
        base = {"layer.weight": weight.T.contiguous() if self.gpt2 else weight}
        if self.bias:
            base["layer.bias"] = numbers(seed + 1, self.outputs, scale=0.3).to(self.dtype)
        save_file(base, folder / "base.safetensors")
        W = weight.double()
        b = base["layer.bias"].double() if self.bias else torch.zeros(self.outputs).double()
        x = numbers(seed + 2, 5, self.inputs)
        upstream, target = numbers(seed + 3, 5, self.outputs), numbers(seed + 4, 5, self.outputs)

        A0, B0 = (torch.from_numpy(v) for v in factors(W.numpy(), self.rank))
        # Values in the middle of training, in single precision as a file has them.
        A, B = A0.float(), B0.float()
        R = numbers(seed + 5, self.rank, self.rank, scale=0.7) if self.latent else None
        m = W.norm(dim=1).float() * (1 + 0.2 * numbers(seed + 6, self.outputs))
        if not self.latent:
            A = A + numbers(seed + 7, *A.shape, scale=0.3)
        named = {"A": A, "B": B}
        if self.latent:
            named["R"] = R
        if self.magnitude:
            named["m"] = m
        keys = {
            "A": "base_model.model.layer.lora_A.weight",
            "B": "base_model.model.layer.lora_B.weight",
            "R": "base_model.model." + SPELLINGS[self.spelling].format("layer"),
            "m": "base_model.model.layer.lora_magnitude_vector",
        }
        save_file(
            {keys[k]: v.contiguous() for k, v in named.items()},
            folder / "adapter" / "adapter_model.safetensors",
        )
        config = {
            "peft_type": "LORA", "task_type": None, "inference_mode": True, "r": self.rank,
            "lora_alpha": self.alpha, "lora_dropout": self.dropout, "target_modules": ["layer"],
            "use_dora": self.magnitude, "init_lora_weights": True, "bias": "none",
            "fan_in_fan_out": self.gpt2,
        }  # fmt: skip
        (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config, indent=2))
        recipe = json.loads(json.dumps(RECIPE))
        recipe["svd"]["rank"] = self.rank
        recipe["r_squared"] = self.latent
        place = folder if self.recipe_above else folder / "adapter"
        (place / "reconstr_config.json").write_text(json.dumps(recipe))

        def run(values, x):
            return x @ effective(W, *values, scaling).T + b

        def leaves():
            values = {k: v.double() for k, v in named.items()}
            for k, v in values.items():
                v.requires_grad_(k in "Rm" if self.latent else True)
            return values, [values.get(k) for k in ("A", "B", "R", "m")]

        found = {"A": A0, "B": B0, "magnitude": W.norm(dim=1)}
        values, ordered = leaves()
        x64 = x.double().requires_grad_()
        y = run(ordered, x64)
        (y * upstream.double()).sum().backward()
        found |= {"output.base": x.double() @ W.T + b, "output.active": y, "grad_input.x": x64.grad}
        found |= {f"grad.{k}": v.grad for k, v in values.items() if v.requires_grad}
        merged = effective(W, *ordered, scaling)
        found["merged.layer.weight"] = merged.T if self.gpt2 else merged
        # The same change as a plain DoRA or LoRA adapter: R goes into A.
        if self.latent:
            found["folded.A"] = R.double() @ A.double()
        inputs = {"x": x, "upstream": upstream, "target": target}

        if self.dropout:
            generator = torch.Generator().manual_seed(seed + 8)
            keep = (torch.rand(x.shape, generator=generator) >= self.dropout).float()
            mask = keep / (1 - self.dropout)
            inputs["dropout"] = mask
            values, (A_, B_, R_, m_) = leaves()
            V = effective(W, A_, B_, R_, m_, scaling)
            dropped = x.double() * mask.double()
            y = x.double() @ W.T + b + dropped @ (V - W).T
            (y * upstream.double()).sum().backward()
            found["dropout.output"] = y
            found |= {f"dropout.grad.{k}": v.grad for k, v in values.items() if v.requires_grad}

        values, ordered = leaves()
        trained = [v for v in values.values() if v.requires_grad]
        optimiser = torch.optim.AdamW(trained, lr=0.01, weight_decay=0.01)
        losses = []
        for _ in range(10):
            loss = (run(ordered, x.double()) - target.double()).square().mean()
            losses.append(loss.item())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        save_file(inputs, folder / "input.safetensors")
        save_file(
            {k: v.detach().float().contiguous() for k, v in found.items()},
            folder / "expected.safetensors",
        )
        kind = "gpt2-conv1d" if self.gpt2 else "Linear"
        record = {
            "module": {"path": "layer", "type": kind, "in_features": self.inputs,
                       "out_features": self.outputs, "bias": self.bias},
            "keys": {k: list(v.shape) for k, v in named.items()},
            "scaling": scaling,
            "losses": losses,
            "optimiser": OPTIMISER,
            "by": "an independent transcription in float64, generator/edora.py",
        }  # fmt: skip
        (folder / "case.json").write_text(json.dumps(record, indent=1) + "\n")


class ClassifierCase:
    """EDoRA on the attention and dense layers of the golden model `bert`, with a classifier."""

    name = "classifier"

    def make(self) -> None:
        folder = ROOT / self.name
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "adapter").mkdir(parents=True)
        model = AutoModelForSequenceClassification.from_pretrained("bert/model").eval()
        inputs = load_file("bert/input.safetensors")
        targets = ("query", "value", "attention.output.dense", "output.dense")
        rank, alpha = 4, 8.0
        saved, trainable = {}, 0
        with torch.no_grad():
            for index, (path, module) in enumerate(model.named_modules()):
                if not isinstance(module, torch.nn.Linear) or not path.endswith(targets):
                    continue
                W = module.weight.double()
                A, B = (torch.from_numpy(v).float() for v in factors(W.numpy(), rank))
                R = numbers(900 + index, rank, rank, scale=0.3)
                m = W.norm(dim=1).float() * (1 + 0.1 * numbers(950 + index, len(W)))
                changed = effective(W, A.double(), B.double(), R.double(), m.double(), alpha / rank)
                module.weight.copy_(changed.float())
                prefix = f"base_model.model.{path}"
                saved |= {
                    f"{prefix}.lora_A.weight": A.contiguous(),
                    f"{prefix}.lora_B.weight": B.contiguous(),
                    f"{prefix}_lora_latent_mapping.weight": R,
                    f"{prefix}.lora_magnitude_vector": m,
                }
                trainable += R.numel() + m.numel()
            for name, parameter in model.classifier.named_parameters():
                parameter.copy_(numbers(990, *parameter.shape, scale=0.3))
                saved[f"base_model.model.classifier.{name}"] = parameter.clone()
                trainable += parameter.numel()
            del inputs["labels"]
            logits = model(**inputs).logits
        save_file(saved, folder / "adapter" / "adapter_model.safetensors")
        config = {
            "peft_type": "LORA", "task_type": "SEQ_CLS", "inference_mode": True, "r": rank,
            "lora_alpha": alpha, "lora_dropout": 0.0, "target_modules": list(targets),
            "use_dora": True, "bias": "none", "modules_to_save": ["classifier", "score"],
        }  # fmt: skip
        (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config, indent=2))
        # The repository's training script leaves the recipe one level above the adapter.
        recipe = RECIPE | {"svd": RECIPE["svd"] | {"rank": rank}}
        (folder / "reconstr_config.json").write_text(json.dumps(recipe))
        save_file({"logits": logits.contiguous()}, folder / "expected.safetensors")
        (folder / "case.json").write_text(json.dumps({"trainable": trainable}) + "\n")


def cases() -> list:
    return [
        Case("linear", 12, 10, 501),
        Case("linear-nobias", 8, 14, 502, bias=False, spelling=1),
        Case("linear-dropout", 12, 10, 503, dropout=0.25),
        Case("linear-bf16", 16, 12, 504, dtype=torch.bfloat16, recipe_above=True),
        Case("gpt2-conv1d", 12, 10, 505, gpt2=True),
        Case("trained-factors", 12, 10, 506, latent=False),
        Case("xs-linear", 12, 10, 511, magnitude=False),
        Case("xs-gpt2-conv1d", 9, 10, 512, magnitude=False, gpt2=True),
        ClassifierCase(),
    ]


def make() -> None:
    for case in cases():
        case.make()
