"""Initialisations that start from the weights, the inputs or the gradients of a layer."""

import copy
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import torch
from peft import (
    EvaConfig,
    LoraConfig,
    LoraGAConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    initialize_lora_eva_weights,
)
from peft.tuners.lora import LoraLayer, corda, eva, loraga
from peft.tuners.lora.config import CordaConfig
from peft.utils import loftq_utils
from peft.utils.incremental_pca import IncrementalPCA
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from .toys import Toy, compact, describe, fill, numbers, save, train

FOLDER = Path("inits")


@dataclass
class InitCase:
    """One layer, its base changed or not by a new adapter."""

    name: str
    layer: Callable[[], nn.Module]
    inputs: int
    seed: int
    lora: dict
    batches: int = 0
    dtype: torch.dtype = torch.float32
    # The initial adapter, a trained one, and that one converted to plain LoRA.
    converts: bool = False
    note: str | None = None
    extra: dict = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return FOLDER / self.name

    def make(self) -> None:
        self.folder.mkdir(parents=True)
        base = Toy(self.layer()).eval()
        fill(base.named_parameters(), self.seed, 1.0)
        base = base.to(self.dtype)
        save(base.state_dict(), self.folder / "base.safetensors")
        self.base = base
        record = {"module": describe(base.layer), "config": dict(self.lora)}
        if self.note:
            record["note"] = self.note
        given = {"x": numbers(self.seed + 50, 3, self.inputs)}
        # One row of several positions each, as CorDA takes them; magnitudes differ by direction.
        spread = torch.linspace(0.3, 2.0, self.inputs)
        for index in range(self.batches):
            rows = numbers(self.seed + 60 + index, 1, 20, self.inputs)
            given[f"batches.{index}"] = rows * spread
            given[f"targets.{index}"] = numbers(self.seed + 80 + index, 1, 20, self.outputs)
        save(given, self.folder / "input.safetensors")
        self.given = given

        model, found = self.adapted()
        layer = model.base_model.model.layer
        A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        record["scaling"] = layer.scaling["default"]
        found |= {
            "A": A,
            "B": B,
            "product": layer.scaling["default"] * (B.float() @ A.float()),
            "layer.weight": layer.get_base_layer().weight,
        }
        with torch.no_grad():
            try:
                found["output.base"] = self.base(x=given["x"].to(self.dtype))
                found["output.active"] = model(x=given["x"].to(self.dtype))
            except RuntimeError as error:
                record["forward_error"] = str(error)
        if self.lora.get("init_lora_weights", "").lower() == "olora":
            found |= self.right_olora(layer.scaling["default"], A.shape[0])
        save(found, self.folder / "expected.safetensors")
        if self.converts:
            self.convert(model, record)
        (self.folder / "case.json").write_text(compact(record))

    @property
    def outputs(self) -> int:
        layer = self.base.layer
        return layer.nf if isinstance(layer, Conv1D) else layer.out_features

    def config(self) -> LoraConfig:
        options = copy.deepcopy(self.lora)
        kinds = {
            "corda_config": CordaConfig,
            "eva_config": EvaConfig,
            "lora_ga_config": LoraGAConfig,
        }
        for name, kind in kinds.items():
            if name in options:
                options[name] = kind(**options[name])
        return LoraConfig(target_modules=["layer"], **options)

    def adapted(self) -> tuple[PeftModel, dict[str, torch.Tensor]]:
        """The base with a new adapter, and what was found on the way."""
        base, config, found = copy.deepcopy(self.base), self.config(), {}
        torch.manual_seed(self.seed)
        pairs = [(self.given[f"batches.{i}"], self.given[f"targets.{i}"]) for i in range(self.batches)]
        if config.init_lora_weights == "corda":

            def run() -> None:
                for x, _ in pairs:
                    base(x=x)

            config.corda_config.prune_temporary_fields = False
            corda.preprocess_corda(base, config, run_model=run)
            found["covariance"] = base.layer.covariance_matrix
        if config.init_lora_weights == "lora_ga":

            def step() -> None:
                for x, target in pairs:
                    (base(x=x) - target).pow(2).mean().backward()

            loraga.preprocess_loraga(base, config, step)
            found["gradient"] = base.layer._peft_loraga_grad.clone()
        model = get_peft_model(base, config).eval()
        return model, found

    def right_olora(self, scaling: float, rank: int) -> dict[str, torch.Tensor]:
        """On weights stored as [in, out], the decomposition of the transpose."""
        if not isinstance(self.base.layer, Conv1D):
            return {}
        Q, R = torch.linalg.qr(self.base.layer.weight.detach().T)
        product = scaling * Q[:, :rank] @ R[:rank]
        return {
            "right.product": product,
            "right.layer.weight": self.base.layer.weight.detach() - product.T,
        }

    def convert(self, model: PeftModel, record: dict) -> None:
        # Ten steps from the initial adapter, which a copy of the model takes.
        student = copy.deepcopy(model)
        target = numbers(self.seed + 70, 3, self.outputs)
        save(self.given | {"target": target}, self.folder / "input.safetensors")
        trained = [p for _, p in student.named_parameters() if p.requires_grad]
        record["losses"] = train(trained, lambda: student(x=self.given["x"]), target)
        init = self.lora["init_lora_weights"]
        config = model.peft_config["default"]
        # As peft's guide has it: the initial adapter says that its initialisation is plain.
        config.init_lora_weights = True
        model.save_pretrained(self.folder / "initial")
        config.init_lora_weights = init
        with torch.no_grad():
            trainable = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
            for index, (_, parameter) in enumerate(trainable):
                parameter.add_(numbers(self.seed + 90 + index, *parameter.shape, scale=0.1))
            trained = model(x=self.given["x"])
        model.save_pretrained(self.folder / "trained")
        model.save_pretrained(
            self.folder / "converted",
            path_initial_model_for_weight_conversion=str(self.folder / "initial"),
        )
        converted = PeftModel.from_pretrained(
            copy.deepcopy(self.base), str(self.folder / "converted")
        ).eval()
        with torch.no_grad():
            output = converted(x=self.given["x"])
        torch.testing.assert_close(output, trained, rtol=1e-4, atol=1e-5)
        record["converted_scaling"] = converted.base_model.model.layer.scaling["default"]
        merged = converted.merge_and_unload().layer.weight
        save(
            {"output.trained": trained, "output.converted": output, "weight.merged": merged},
            self.folder / "conversion.safetensors",
        )
        for name in ("initial", "trained", "converted"):
            (self.folder / name / "README.md").unlink()


def cases() -> list[InitCase]:
    tall, wide = (lambda: nn.Linear(8, 13)), (lambda: nn.Linear(13, 8))
    gpt2, square = (lambda: Conv1D(13, 8)), (lambda: Conv1D(9, 9))
    listed = []

    def add(name: str, layer, inputs: int, **options) -> None:
        listed.append(InitCase(name, layer, inputs, 1000 + 100 * len(listed), **options))

    for init in ("pissa", "olora"):
        lora = dict(init_lora_weights=init, r=4, lora_alpha=6)
        add(f"{init}-tall", tall, 8, lora=lora, converts=True)
        add(f"{init}-wide", wide, 13, lora=lora, converts=True)
        add(
            f"{init}-rslora",
            wide,
            13,
            lora=lora | dict(use_rslora=True, r=3),
            converts=True,
        )
        add(f"{init}-bf16", wide, 13, lora=lora, dtype=torch.bfloat16)
    lora = dict(init_lora_weights="pissa", r=4, lora_alpha=6)
    add("pissa-gpt2", gpt2, 8, lora=lora, converts=True)
    note = "The base is decomposed as it lies, [in, out]: the sizes do not fit. Right: transposed."
    add("olora-gpt2", gpt2, 8, lora=dict(init_lora_weights="olora", r=4, lora_alpha=6), note=note)
    note = "The base is decomposed as it lies, [in, out]: silently wrong. Right: transposed."
    add("olora-square", square, 9, lora=dict(init_lora_weights="olora", r=4), note=note)
    note = (
        "Randomised: A and B are near the leading singular vectors only, but the base and the "
        "adapter together are the base as it was."
    )
    add(
        "pissa-niter",
        wide,
        13,
        lora=dict(init_lora_weights="pissa_niter_8", r=4, lora_alpha=6),
        note=note,
    )
    note = (
        "Random; B·A is zero, A and B are not. Q: from the QR of a random r by r matrix; A is "
        "random [in, r/2] times the odd rows of Q, transposed, over 10, B random [out, r/2] times "
        "the even rows of Q, over 10."
    )
    add("orthogonal", wide, 13, lora=dict(init_lora_weights="orthogonal", r=6), note=note)

    for method in ("ipm", "kpm"):
        lora = dict(
            init_lora_weights="corda",
            r=4,
            lora_alpha=6,
            corda_config=dict(corda_method=method),
        )
        add(f"corda-{method}", wide, 13, lora=lora, batches=3, converts=True)
        add(f"corda-{method}-gpt2", gpt2, 8, lora=lora, batches=3, converts=True)
    signs = "The signs of A's rows and of B's columns are free, independently of each other."
    for direction in ("ArB2r", "ArBr", "A2rBr"):
        for scale in ("stable", "weight_svd", "gd_scale", "unit"):
            if direction != "ArB2r" and scale not in ("stable", "unit"):
                continue
            settings = dict(direction=direction, scale=scale, stable_gamma=16)
            lora = dict(init_lora_weights="lora_ga", r=3, lora_alpha=6, lora_ga_config=settings)
            name = f"lora-ga-{direction}-{scale.replace('_', '-')}"
            add(name, wide, 13, lora=lora, batches=3, converts=True, note=signs)
    lora = dict(lora_ga_config=dict(direction="ArB2r", scale="stable"))
    lora |= dict(init_lora_weights="lora_ga", r=3, lora_alpha=6)
    add("lora-ga-gpt2", gpt2, 8, lora=lora, batches=3, converts=True, note=signs)
    return listed


# -- EVA, which spreads ranks over several layers


class Stack(nn.Module):
    """Three layers whose inputs differ, and a fourth with the input of the third."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        self.third = nn.Linear(8, 6)
        self.fourth = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x).relu()
        x = self.second(x).tanh()
        return torch.cat([self.third(x), self.fourth(x)], -1)


class ExactPCA(IncrementalPCA):
    """peft's incremental analysis with whole decompositions in the place of randomised ones."""

    def __init__(self, **options):
        super().__init__(**options)
        self.lowrank = False


EVA = {
    "eva": dict(r=2, lora_alpha=3, eva_config=dict(rho=2.0)),
    # So few ranks that a layer gets none, and is not adapted.
    "eva-drop": dict(r=1, lora_alpha=3, eva_config=dict(rho=3.0)),
    "eva-rho-1": dict(r=2, lora_alpha=3, eva_config=dict(rho=1.0)),
    "eva-whiten": dict(r=2, lora_alpha=3, eva_config=dict(rho=2.0, whiten=True)),
    "eva-fixed-scaling": dict(
        r=2, lora_alpha=3, eva_config=dict(rho=2.0, adjust_scaling_factors=False)
    ),
    "eva-pattern": dict(
        r=2, lora_alpha=3, rank_pattern={"first": 1}, eva_config=dict(rho=2.0, tau=0.9)
    ),
}
EVA_NOTE = (
    "Batches over and over until every component that a rank needs has a cosine of at least tau "
    "with the one before. Signs: the largest element of each component is positive."
)


def record_eva(model: PeftModel, found: dict, prefix: str = "") -> dict:
    config = model.peft_config["default"]
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    # B is zero.
    found |= {f"{prefix}{key}": value for key, value in state.items() if "lora_A" in key}
    return {
        "target_modules": sorted(config.target_modules),
        "rank_pattern": config.rank_pattern,
        "alpha_pattern": config.alpha_pattern,
        "scaling": {
            name.removeprefix("base_model.model."): module.scaling["default"]
            for name, module in model.named_modules()
            if isinstance(module, LoraLayer)
        },
    }


def make_eva(name: str, options: dict, index: int) -> None:
    folder = FOLDER / name
    folder.mkdir(parents=True)
    seed = 9000 + 100 * index
    base = Stack().eval()
    fill(base.named_parameters(), 9000, 2.0)
    save(base.state_dict(), folder / "base.safetensors")
    # Much the same variance in all directions at first, so that later layers get the ranks.
    spread = torch.linspace(0.9, 1.1, 8)
    batches = [numbers(seed + 60 + i, 16, 8) * spread for i in range(4)]
    given = {f"batches.{i}": batch for i, batch in enumerate(batches)}
    save(given, folder / "input.safetensors")
    record = {"config": dict(options, init_lora_weights="eva"), "note": EVA_NOTE}
    found: dict[str, torch.Tensor] = {}
    for prefix, kind in (("", IncrementalPCA), ("exact.", ExactPCA)):
        settings = copy.deepcopy(options)
        settings["eva_config"] = EvaConfig(**settings["eva_config"])
        config = LoraConfig(
            target_modules=["first", "second", "third", "fourth"],
            init_lora_weights="eva",
            **settings,
        )
        torch.manual_seed(seed)
        model = get_peft_model(copy.deepcopy(base), config).eval()
        with mock.patch.object(eva, "IncrementalPCA", kind):
            initialize_lora_eva_weights(
                model,
                dataloader=batches,
                forward_fn=lambda model, x: model(x),
                prepare_model_inputs_fn=None,
                prepare_layer_inputs_fn=None,
                show_progress_bar=False,
            )
        record[prefix.replace(".", "_") + "result"] = record_eva(model, found, prefix)
    if options["eva_config"].get("whiten"):
        record["wrong"] = (
            "Layers with equal inputs share their components, which are divided in place, once for "
            "each such layer. Right: once."
        )
        for layer in ("third", "fourth"):
            key = f"base_model.model.{layer}.lora_A.weight"
            A = found[f"exact.{key}"].double()
            # The length of a row is 1/S where it should be 1/sqrt(S).
            found[f"right.{key}"] = (A / A.norm(dim=1, keepdim=True).sqrt()).float()
    save(found, folder / "expected.safetensors")
    (folder / "case.json").write_text(compact(record))


def make_eva_llama() -> None:
    """On a model, with the positions that carry a label alone, as peft chooses them by itself."""
    folder = FOLDER / "eva-llama"
    folder.mkdir(parents=True)
    every = load_file("llama/batches.safetensors")
    names = ("input_ids", "attention_mask", "labels")
    batches = [{name: every[f"{i}.{name}"] for name in names} for i in range(10)]
    record: dict = {"model": "llama", "batches": "llama/batches.safetensors", "note": EVA_NOTE}
    found: dict[str, torch.Tensor] = {}
    for prefix, kind in (("", IncrementalPCA), ("exact.", ExactPCA)):
        config = LoraConfig(
            r=2,
            lora_alpha=4,
            target_modules=["q_proj", "k_proj", "down_proj"],
            init_lora_weights="eva",
            eva_config=EvaConfig(rho=2.0, tau=0.9),
            task_type="CAUSAL_LM",
        )
        torch.manual_seed(1)
        model = get_peft_model(LlamaForCausalLM.from_pretrained("llama/model"), config).eval()
        with mock.patch.object(eva, "IncrementalPCA", kind):
            initialize_lora_eva_weights(model, dataloader=batches, show_progress_bar=False)
        record[prefix.replace(".", "_") + "result"] = record_eva(model, found, prefix)
    record["config"] = dict(
        r=2,
        lora_alpha=4,
        target_modules=["q_proj", "k_proj", "down_proj"],
        init_lora_weights="eva",
        eva_config=dict(rho=2.0, tau=0.9),
    )
    save(found, folder / "expected.safetensors")
    (folder / "case.json").write_text(compact(record))


def make_loftq() -> None:
    """LoftQ as peft has it asks for a GPU: what it says here, and its numbers where the CPU is taken for
    one. bitsandbytes' kernels for the CPU go wrong where rows are not made of whole blocks of 64."""
    folder = FOLDER / "loftq"
    folder.mkdir(parents=True)
    record: dict = {"attempts": [], "cases": []}
    for name, layer in {
        "Linear": lambda: nn.Linear(64, 64),
        "Embedding": lambda: nn.Embedding(64, 64),
        "Conv2d": lambda: nn.Conv2d(4, 4, 3),
    }.items():
        settings = {"loftq_bits": 4, "loftq_iter": 1}
        config = LoraConfig(
            target_modules=["layer"], init_lora_weights="loftq", loftq_config=settings
        )
        try:
            get_peft_model(Toy(layer()), config)
            outcome = None
        except Exception as error:  # noqa: BLE001: the text is the result
            outcome = {"type": type(error).__name__, "text": str(error)}
        record["attempts"].append({"layer": name, "loftq_config": settings, "error": outcome})
    move = torch.Tensor.to

    def stay(tensor, *places, **named):
        named = {key: "cpu" if str(value) == "cuda" else value for key, value in named.items()}
        return move(tensor, *("cpu" if str(p) == "cuda" else p for p in places), **named)

    torch.manual_seed(5)
    weight = 0.1 * torch.randn(10, 128)
    found = {"weight": weight}
    with mock.patch.object(torch.Tensor, "to", stay):
        for bits, iterations in ((4, 1), (4, 3), (8, 1), (8, 3)):
            case = {"bits": bits, "iterations": iterations, "rank": 3}
            rounded, a, b = loftq_utils.loftq_init(weight, bits, case["rank"], iterations)
            name = f"{bits}.{iterations}"
            found |= {f"{name}.rounded": rounded, f"{name}.product": b @ a}
            record["cases"].append({"name": name} | case)
    save(found, folder / "expected.safetensors")
    (folder / "case.json").write_text(compact(record))


def make() -> None:
    if FOLDER.exists():
        shutil.rmtree(FOLDER)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in cases():
            case.make()
        for index, (name, options) in enumerate(EVA.items()):
            make_eva(name, options, index)
        make_eva_llama()
        make_loftq()
