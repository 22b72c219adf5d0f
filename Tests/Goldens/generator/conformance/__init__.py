"""The conformance cases of the reference, with what peft does in each."""

import json
from pathlib import Path

from ..toys import save
from . import files, initialisation, layer_types, lifecycle, models, targeting  # noqa: F401
from .recorder import CASES, Run, States, plain, workplace


def order(entry) -> tuple[int, str]:
    number = entry[0].rstrip("abcdefgh")
    return int(number), entry[0][len(number) :]


def compact_case(entry: dict) -> str:
    head = {key: value for key, value in entry.items() if key != "steps"}
    lines = ",\n".join("    " + json.dumps(step) for step in entry["steps"])
    return "  " + json.dumps(head)[:-1] + ', "steps": [\n' + lines + "\n  ]}"


def make() -> None:
    states = States()
    listed = []
    for identifier, about, star, function in sorted(CASES, key=order):
        with workplace():
            run = Run(states)
            function(run)
        head = {"id": identifier, "about": about, "star": star}
        listed.append(head | {"steps": run.steps})
    described = {name: models.description(name) for name in models.MAKERS}
    shown = ",\n".join(f"  {json.dumps(k)}: {json.dumps(plain(v))}" for k, v in described.items())
    trees = ",\n".join(f"  {json.dumps(name)}: {text}" for text, name in states.trees.items())
    text = ",\n".join(compact_case(entry) for entry in listed)
    content = f'{{\n "models": {{\n{shown}\n }},\n "trees": {{\n{trees}\n }},\n "cases": [\n{text}\n ]\n}}\n'
    Path("conformance.json").write_text(content)
    tensors = {
        f"{name}.{key}": value
        for name in models.MAKERS
        for key, value in models.make(name).state_dict().items()
    }
    tensors |= {f"{name}.input": value() for name, value in models.INPUTS.items()}
    save(tensors | states.tensors, Path("conformance.safetensors"))
