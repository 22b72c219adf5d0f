"""The part of roundtrip.py about initialisations: adapters of the tool that begin in each way, saved after
some training and converted to plain LoRA, in peft; and such adapters of peft in the tool."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from roundtrip_methods import train
from roundtrip_support import Report, Tool, check_loading, guarded, relative, visible

LOGITS = 1e-5

# peft cannot run LoftQ on this kind of machine. EVA wants more rows of each layer's input than
# components, which a classifier's pooler does not have.
INITIALISATIONS = {
    "random": dict(init_lora_weights=False),
    "gaussian": dict(init_lora_weights="gaussian"),
    "orthogonal": dict(init_lora_weights="orthogonal"),
    "pissa": dict(init_lora_weights="pissa"),
    "pissa_niter_4": dict(init_lora_weights="pissa_niter_4"),
    "olora": dict(init_lora_weights="olora"),
    "corda": dict(init_lora_weights="corda", corda_config={}),
    "corda-kpm": dict(init_lora_weights="corda", corda_config={"corda_method": "kpm"}),
    "lora_ga": dict(init_lora_weights="lora_ga", lora_ga_config={}),
    "eva": dict(init_lora_weights="eva", eva_config={}),
}


def check(subject, rows: list[dict], inputs: dict, tool: Tool, report: Report) -> None:
    plain = {key: value for key, value in subject.first.items() if key != "task_type"}

    def check_one(name: str, settings: dict) -> None:
        saved = train(
            subject,
            rows,
            tool,
            "lora",
            plain | settings,
            name=f"init-{name}",
            max_steps=3,
            learning_rate=1e-3,
            initialization_batches=3,
        )
        check_in_peft(subject, f"{name}, trained here", saved, inputs, tool, report)
        if name in ("pissa", "olora"):
            converted = saved.with_name("plain")
            options = ["--task", subject.task, "--adapter", saved, "--to", "lora"]
            tool.run("convert", "--model", subject.path, *options, "--output", converted)
            what = f"{name}, converted here"
            check_in_peft(subject, what, converted, inputs, tool, report)
            check_of_peft(subject, name, settings, inputs, tool, report)

    for name, settings in INITIALISATIONS.items():
        if name != "eva" or not subject.is_classifier:
            guarded(report, subject.name, name, lambda: check_one(name, settings))


def check_in_peft(subject, what: str, folder: Path, inputs, tool: Tool, report: Report) -> None:
    check_loading(subject, what, folder, report)
    check_logits(subject, what, subject.load(folder), folder, inputs, tool, report)


def check_logits(subject, what: str, model, folder: Path, inputs, tool, report: Report) -> None:
    """The tool's logits with an adapter beside those of a model of peft."""
    with torch.no_grad():
        reference = visible(model(**inputs).logits, inputs)
    options = ["--task", subject.task, "--adapter", f"{folder}=saved"]
    found = visible(tool.forward(subject.path, inputs, *options)["logits"], inputs)
    report.add(subject.name, f"logits, {what}", relative(found, reference), LOGITS)


def exact(subject, model, name: str):
    """A model of peft in float64, with the initial change taken off the base in float64 too. In float32
    a decomposition's product is off by about 1e-6 of the weight, in each library by another amount."""
    result, base = copy.deepcopy(model).double(), subject.base().double()
    for path, layer in result.base_model.model.named_modules():
        if "default" not in getattr(layer, "lora_A", {}):
            continue
        weight, rank = base.get_submodule(path).weight.data, layer.r["default"]
        if name == "olora":
            q, r = torch.linalg.qr(weight)
            change = layer.scaling["default"] * q[:, :rank] @ r[:rank]
        else:
            u, s, v = torch.linalg.svd(weight, full_matrices=False)
            change = u[:, :rank] * s[:rank] @ v[:rank]
        layer.base_layer.weight.data = weight - change
    return result


def check_of_peft(subject, name: str, settings: dict, inputs, tool: Tool, report: Report) -> None:
    """What peft saves of such an adapter, and what it converts it to."""
    folder = tool.folder / subject.name / f"of-peft-{name}"
    torch.manual_seed(3)
    model = get_peft_model(subject.base(), LoraConfig(**subject.first, **settings)).eval()
    config = model.peft_config["default"]
    # As peft's guide has it: the initial adapter says that it began as any other.
    config.init_lora_weights = True
    model.save_pretrained(folder / "initial", save_embedding_layers=False)
    config.init_lora_weights = settings["init_lora_weights"]
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(0.02 * torch.randn_like(parameter))
    model.save_pretrained(folder / "trained", save_embedding_layers=False)
    model.save_pretrained(
        folder / "converted",
        save_embedding_layers=False,
        path_initial_model_for_weight_conversion=str(folder / "initial"),
    )
    reference = exact(subject, model, name)
    with torch.no_grad():
        own = visible(model(**inputs).logits.double(), inputs)
        difference = relative(own, visible(reference(**inputs).logits, inputs))
    report.add_fact(subject.name, f"{name}, trained by peft: peft", f"{difference:.1e}", True)
    check_logits(
        subject, f"{name}, trained by peft", reference, folder / "trained", inputs, tool, report
    )
    # A conversion has peft's decomposition in it, so it equals peft's model. Of heads
    # it keeps nothing, unlike ours.
    if not subject.is_classifier:
        what = f"{name}, converted by peft"
        check_logits(subject, what, model, folder / "converted", inputs, tool, report)
