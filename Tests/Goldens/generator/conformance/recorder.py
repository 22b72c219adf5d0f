"""Runs calls on peft and writes down what came of them."""

import dataclasses
import json
import os
import shutil
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from peft.peft_model import get_layer_status, get_model_status
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from peft.utils.other import ModulesToSaveWrapper
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BertForSequenceClassification, LlamaForCausalLM

from ..toys import numbers
from . import models

WORK = Path("conformance-work")
CASES: list[tuple[str, str, bool, Callable]] = []


def case(identifier: str, about: str, star: bool = False):
    """Registers a conformance case; the number before a letter is the reference's."""

    def register(function):
        CASES.append((identifier, about, star, function))
        return function

    return register


def plain(value):
    """A value as JSON has it; float32 with the nine digits that tell it apart."""
    if isinstance(value, torch.Tensor):
        if value.is_floating_point():
            return plain(value.detach().double().tolist())
        return value.tolist()
    if isinstance(value, bool) or value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, float):
        return float(f"{value:.9g}")
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(plain(one) for one in value)
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if dataclasses.is_dataclass(value):
        return plain(dataclasses.asdict(value))
    return str(value)


class States:
    """Tensors that cases refer to by name, each stored once."""

    def __init__(self):
        self.tensors: dict[str, torch.Tensor] = {}
        self.names: dict[bytes, str] = {}
        self.trees: dict[str, str] = {}

    def tree(self, description: dict) -> str:
        """The name of a tree of modules, each listed once."""
        return self.trees.setdefault(json.dumps(plain(description)), f"tree{len(self.trees)}")

    def add(self, state: dict[str, torch.Tensor]) -> str:
        content = b"".join(k.encode() + v.float().numpy().tobytes() for k, v in state.items())
        if content not in self.names:
            self.names[content] = name = f"state{len(self.names)}"
            for key, value in state.items():
                self.tensors[f"{name}.{key}"] = value.detach().clone().contiguous()
        return self.names[content]


class Run:
    """One case: each method makes a call, and records it with its outcome."""

    def __init__(self, states: States):
        self.states = states
        self.steps: list[dict] = []
        self.base: nn.Module | None = None
        self.model: nn.Module | None = None
        self.kind = ""
        self.inputs = None

    def step(self, do: str, action: Callable, **arguments):
        entry = {"do": do} | {key: plain(value) for key, value in arguments.items()}
        value = None
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                value = action()
            except Exception as error:  # noqa: BLE001: what peft raises is the outcome
                kinds = [one.__name__ for one in type(error).__mro__]
                kinds = kinds[: kinds.index("Exception")]
                # Python's KeyError prints its key in quotes.
                entry["error"] = {"type": kinds[0], "text": str(error)}
                if len(kinds) > 1:
                    entry["error"]["also"] = kinds[1:]
        told = []
        for one in caught:
            if "/peft/" in one.filename and str(one.message) not in told:
                told.append(str(one.message))
        if told:
            entry["warnings"] = told
        if value is not None:
            entry["value"] = plain(value)
        self.steps.append(entry)
        return value

    def right(self, text: str) -> None:
        """What would be right, where the last step shows peft wrong."""
        self.steps[-1]["right"] = text

    # -- Models

    def use(self, name: str, dtype: str | None = None) -> None:
        """A fresh base: a small model, or one of the goldens."""

        def action():
            self.kind = name
            if name in models.MAKERS:
                self.base = models.make(name)
                self.inputs = models.INPUTS.get(name, lambda: None)()
            else:
                classes = {"bert": BertForSequenceClassification}
                self.base = classes.get(name, LlamaForCausalLM).from_pretrained(f"{name}/model")
                self.base.eval()
                self.inputs = load_file(f"{name}/input.safetensors")
            if dtype:
                self.base = self.base.to(getattr(torch, dtype))
            self.model = None

        extra = {"dtype": dtype} if dtype else {}
        self.step("model", action, model=name, **extra)

    def tree(self, modules: dict[str, str] | list[str], model_type: str | None = None) -> None:
        if isinstance(modules, list):
            modules = dict.fromkeys(modules, "Linear")

        def action():
            self.kind = "tree"
            self.base, self.model = models.tree(modules, model_type), None

        extra = {"model_type": model_type} if model_type else {}
        self.step("tree", action, tree=self.states.tree({"modules": modules} | extra))

    def custom(self, name: str, model: nn.Module, modules: dict[str, str], **extra) -> None:
        """A model of transformers, of which only names and kinds matter."""

        def action():
            self.kind, self.base, self.model = name, model, None

        about = {"like": name, "modules": modules} | extra
        self.step("tree", action, tree=self.states.tree(about))

    @property
    def current(self) -> nn.Module:
        return self.model if self.model is not None else self.base

    # -- Configurations and adapters

    @staticmethod
    def config_of(options: dict) -> LoraConfig:
        return LoraConfig(**json.loads(json.dumps(options)))

    def config(self, **options):
        def action():
            made = self.config_of(options)
            return {key: getattr(made, key) for key in options}

        return self.step("config", action, config=options)

    def wrap(self, adapter: str = "default", autocast: bool | None = None, **options) -> None:
        def action():
            torch.manual_seed(0)
            extra = {} if autocast is None else {"autocast_adapter_dtype": autocast}
            config = self.config_of(options)
            self.model = get_peft_model(self.base, config, adapter_name=adapter, **extra).eval()

        extra = {} if autocast is None else {"autocast_adapter_dtype": autocast}
        self.step("wrap", action, adapter=adapter, config=options, **extra)

    def inject(self, adapter: str = "default", keys: list[str] | None = None, **options) -> None:
        def action():
            torch.manual_seed(0)
            state = None if keys is None else {key: torch.zeros(1) for key in keys}
            config = self.config_of(options)
            self.model = inject_adapter_in_model(config, self.current, adapter, state_dict=state)

        extra = {} if keys is None else {"keys": keys}
        self.step("inject", action, adapter=adapter, config=options, **extra)

    def add(self, adapter: str, **options) -> None:
        def action():
            torch.manual_seed(1)
            self.model.add_adapter(adapter, self.config_of(options))
            self.model.eval()

        self.step("add", action, adapter=adapter, config=options)

    def delete(self, adapter: str) -> None:
        self.step("delete", lambda: self.model.delete_adapter(adapter), adapter=adapter)

    def activate(self, *adapters: str, inference: bool = False) -> None:
        def action():
            extra = {"inference_mode": True} if inference else {}
            if len(adapters) == 1:
                self.model.set_adapter(adapters[0], **extra)
            else:
                self.model.base_model.set_adapter(list(adapters), **extra)

        extra = {"inference_mode": True} if inference else {}
        self.step("activate", action, adapters=list(adapters), **extra)

    def requires_grad(self, adapters, value: bool = True) -> None:
        self.step(
            "set_requires_grad",
            lambda: self.model.set_requires_grad(adapters, value),
            adapters=adapters,
            requires_grad=value,
        )

    def fill(
        self,
        adapter: str = "default",
        seed: int = 0,
        scale: float = 0.5,
        poison: float | None = None,
        around: bool = False,
    ) -> None:
        """Gives the adapter's saved tensors known values, or with `around` values near the ones
        they have; `poison` puts one number into the last of them."""

        def action():
            # Given a state, peft does not comment on it.
            old = get_peft_model_state_dict(
                self.model,
                state_dict=self.model.state_dict(),
                adapter_name=adapter,
                save_embedding_layers=False,
            )
            new = {}
            for index, (key, value) in enumerate(sorted(old.items())):
                shape = tuple(value.shape)
                noise = numbers(9000 + 50 * seed + index, *shape, scale=scale)
                # A magnitude stays near what it was.
                new[key] = value.float() * (1 + 0.2 * noise) if "magnitude" in key else noise
                if around:
                    new[key] = value.float() + 0.1 * noise
            if poison is not None:
                last = sorted(new)[-1]
                new[last].view(-1)[0] = poison
            self.steps_state = self.states.add(new)
            copies = {key: value.clone() for key, value in new.items()}
            set_peft_model_state_dict(self.model, copies, adapter_name=adapter)

        self.step("set", action, adapter=adapter)
        self.steps[-1]["state"] = self.steps_state

    # -- Outputs

    def output(self, **extra) -> torch.Tensor:
        model = self.current
        with torch.no_grad():
            if isinstance(self.inputs, dict):
                inputs = {k: v for k, v in self.inputs.items() if k != "labels"}
                # The last position of the shortest row: no padding, tokens before it.
                return model(**inputs, **extra).logits[:, 3, :4].float()
            return model(self.inputs, **extra).float()

    def forward(self, rows: list[str] | None = None, training: bool = False, **arguments) -> None:
        def action():
            model = self.current
            model.train(training)
            try:
                return self.output(**({} if rows is None else {"adapter_names": rows}))
            finally:
                model.eval()

        extra = {} if rows is None else {"rows": rows}
        if training:
            extra["training"] = True
        return self.step("forward", action, **extra, **arguments)

    def forward_disabled(self, rows: list[str] | None = None):
        def action():
            with self.model.disable_adapter():
                return self.output(**({} if rows is None else {"adapter_names": rows}))

        extra = {} if rows is None else {"rows": rows}
        return self.step("forward_disabled", action, **extra)

    def same(self, one: int = -1, other: int = -2, tolerance: float = 1e-5) -> None:
        """Notes whether two of the outputs so far agree."""
        outputs = [i for i, step in enumerate(self.steps) if step["do"].startswith("forward")]
        pair = [outputs[one], outputs[other]]
        values = [self.steps[index].get("value") for index in pair]
        agree = None
        if None not in values:
            arrays = [np.asarray(value, dtype=float) for value in values]
            agree = bool(np.allclose(*arrays, rtol=tolerance, atol=tolerance))
        self.steps.append({"do": "compare", "steps": pair, "value": agree})

    # -- Merging

    def merge(self, adapters=None, safe: bool = False) -> None:
        self.step(
            "merge",
            lambda: self.model.merge_adapter(adapter_names=adapters, safe_merge=safe),
            adapters=adapters,
            safe=safe,
        )

    def unmerge(self) -> None:
        self.step("unmerge", lambda: self.model.unmerge_adapter())

    def unload(self, merge: bool, adapters=None, safe: bool = False) -> None:
        def action():
            if merge:
                unloaded = self.model.merge_and_unload(adapter_names=adapters, safe_merge=safe)
            else:
                unloaded = self.model.unload()
            self.base, self.model = unloaded, None

        extra = {"adapters": adapters, "safe": safe} if merge else {}
        self.step("merge_and_unload" if merge else "unload", action, **extra)

    def combine(self, adapters, weights, name, **options) -> None:
        self.step(
            "combine",
            lambda: self.model.add_weighted_adapter(adapters, weights, name, **options),
            adapters=adapters,
            weights=weights,
            adapter=name,
            **options,
        )

    # -- What can be seen

    def tuner_layers(self) -> dict[str, BaseTunerLayer]:
        return {
            name.removeprefix("base_model.model."): module
            for name, module in self.current.named_modules()
            if isinstance(module, BaseTunerLayer)
        }

    def see(self, what: str, action: Callable, **arguments):
        return self.step(what, action, **arguments)

    def adapters(self):
        def action():
            active = self.model.active_adapters
            return {"all": list(self.model.peft_config), "active": active}

        return self.see("adapters", action)

    def targets(self, adapter: str = "default"):
        return self.see(
            "targets",
            lambda: sorted(
                name
                for name, layer in self.tuner_layers().items()
                if adapter in layer.lora_A or adapter in layer.lora_embedding_A
            ),
            adapter=adapter,
        )

    def ranks(self, adapter: str = "default"):
        return self.see(
            "ranks",
            lambda: {
                name: {
                    "r": layer.r[adapter],
                    "alpha": layer.lora_alpha[adapter],
                    "scaling": layer.scaling[adapter],
                }
                for name, layer in self.tuner_layers().items()
                if adapter in layer.r
            },
            adapter=adapter,
        )

    def trainable(self):
        """Names of all parameters with a gradient, as torch has them."""
        return self.see(
            "trainable",
            lambda: sorted(name for name, p in self.current.named_parameters() if p.requires_grad),
        )

    def keys(self, adapter: str = "default", **options):
        def action():
            state = get_peft_model_state_dict(self.model, adapter_name=adapter, **options)
            return {key: list(value.shape) for key, value in sorted(state.items())}

        return self.see("keys", action, adapter=adapter, **options)

    def dtypes(self):
        def action():
            kinds = {}
            for name, parameter in self.current.named_parameters():
                kinds[name] = str(parameter.dtype).removeprefix("torch.")
            return kinds

        return self.see("dtypes", action)

    def heads(self):
        """Modules that are saved in full, with the adapters that have a copy."""
        return self.see(
            "saved_modules",
            lambda: {
                name.removeprefix("base_model.model."): {
                    "adapters": list(module.modules_to_save),
                    "active": module.active_adapters,
                }
                for name, module in self.current.named_modules()
                if isinstance(module, ModulesToSaveWrapper)
            },
        )

    def status(self):
        def action():
            layers = []
            for layer in get_layer_status(self.current):
                entry = plain(layer)
                entry.pop("devices")
                entry.pop("quantization_backend", None)
                layers.append(entry)
            whole = plain(get_model_status(self.current))
            whole.pop("devices")
            whole.pop("quantization_backends", None)
            return {"model": whole, "layers": layers}

        return self.see("status", action)

    def field(self, name: str, adapter: str = "default"):
        return self.see(
            "field",
            lambda: getattr(self.model.peft_config[adapter], name),
            adapter=adapter,
            name=name,
        )

    def weights(self, *names: str):
        """Checksums of base weights: sum and sum of squares, in f64."""

        def action():
            found = {}
            for name in names:
                parameter = self.current.get_parameter(name).detach().double()
                found[name] = [parameter.sum().item(), parameter.pow(2).sum().item()]
            return found

        return self.see("weights", action, names=list(names))

    # -- Files

    def save(self, folder: str, **options) -> None:
        def action():
            self.model.save_pretrained(str(WORK / folder), **self.located(options))
            found = {}
            for path in sorted((WORK / folder).rglob("*")):
                if path.is_file():
                    name = str(path.relative_to(WORK / folder))
                    found[name] = self.summary(path)
            return found

        self.step("save", action, folder=folder, **options)

    @staticmethod
    def located(options: dict) -> dict:
        name = "path_initial_model_for_weight_conversion"
        return options | ({name: str(WORK / options[name])} if name in options else {})

    @staticmethod
    def summary(path: Path):
        if path.suffix == ".safetensors":
            tensors = load_file(path)
            return {key: list(value.shape) for key, value in sorted(tensors.items())}
        if path.name == "adapter_config.json":
            settings = json.loads(path.read_text())
            shown = ("r", "lora_alpha", "init_lora_weights", "inference_mode", "modules_to_save")
            shown += ("rank_pattern", "alpha_pattern", "use_rslora", "target_modules", "peft_type")
            found = {key: settings[key] for key in shown}
            if isinstance(found["target_modules"], list):
                found["target_modules"].sort()
            return found
        return "present"

    def load(self, folder: str, adapter: str = "default", trainable: bool = False, **options):
        """A new wrapper around the base, from a folder."""

        def action():
            self.model = PeftModel.from_pretrained(
                self.base,
                str(WORK / folder),
                adapter_name=adapter,
                is_trainable=trainable,
                **options,
            ).eval()

        self.step("load", action, folder=folder, adapter=adapter, trainable=trainable, **options)

    def load_more(self, folder: str, adapter: str, trainable: bool = False, **options):
        def action():
            result = self.model.load_adapter(
                str(WORK / folder), adapter, is_trainable=trainable, **options
            )
            return {"missing": result.missing_keys, "unexpected": result.unexpected_keys}

        self.step(
            "load_more", action, folder=folder, adapter=adapter, trainable=trainable, **options
        )

    def edit(self, folder: str, drop=(), rename=None, add=None, config=None, reshape=None) -> None:
        """Changes a saved adapter: takes tensors out, renames them by text, adds zeros, or
        changes settings."""

        def action():
            path = WORK / folder / "adapter_model.safetensors"
            tensors = load_file(path)
            kept = {k: v for k, v in tensors.items() if not any(part in k for part in drop)}
            for old, new in (rename or {}).items():
                kept = {key.replace(old, new): value for key, value in kept.items()}
            for key, shape in (add or {}).items():
                kept[key] = torch.zeros(shape)
            for key, shape in (reshape or {}).items():
                kept[key] = torch.zeros(shape)
            save_file(kept, path)
            if config:
                file = WORK / folder / "adapter_config.json"
                settings = json.loads(file.read_text())
                for name, value in config.items():
                    if value == "__absent__":
                        settings.pop(name, None)
                    else:
                        settings[name] = value
                file.write_text(json.dumps(settings))

        arguments = {
            "drop": list(drop),
            "rename": rename,
            "add": add,
            "reshape": reshape,
            "config": config,
        }
        arguments = {key: value for key, value in arguments.items() if value}
        self.step("edit", action, folder=folder, **arguments)

    def hotswap(self, folder: str, adapter: str = "default") -> None:
        self.step(
            "hotswap",
            lambda: hotswap_adapter(self.model, str(WORK / folder), adapter_name=adapter),
            folder=folder,
            adapter=adapter,
        )

    def prepare_hotswap(self, rank: int) -> None:
        self.step(
            "prepare_hotswap",
            lambda: prepare_model_for_compiled_hotswap(self.model, target_rank=rank),
            target_rank=rank,
        )


@contextmanager
def workplace():
    """A folder for what cases save, gone afterwards."""
    shutil.rmtree(WORK, ignore_errors=True)
    os.makedirs(WORK)
    try:
        yield
    finally:
        shutil.rmtree(WORK, ignore_errors=True)
