"""The fields of LoraConfig, one by one, on the tiny models of `models`."""

import json
import shutil
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from transformers import (
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    LlamaForCausalLM,
)

from . import experts
from .models import LEARNING_RATE, STEPS, WEIGHT_DECAY
from .toys import compact, numbers, save

FOLDER = Path("fields")


@contextmanager
def recorded(found: list[str]):
    """The texts of the warnings that peft gives, without those of other packages."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        if "/peft/" in warning.filename and str(warning.message) not in found:
            found.append(str(warning.message))


def scale_of(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Mean and deviation of random values for a trainable tensor, by what it is."""
    if name.endswith("bias"):
        return 0.0, 0.2
    if "norm" in name.lower() and len(shape) == 1:
        return 1.0, 0.2
    if "lora_embedding_A" in name or "trainable_tokens" in name or "embed" in name.split(".")[-3:]:
        return 0.0, 0.5
    return 0.0, 0.7 / np.sqrt(shape[-1])


def randomise(model: nn.Module, seed: int) -> None:
    trainable = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    with torch.no_grad():
        for index, (name, parameter) in enumerate(trainable):
            shape = tuple(parameter.shape)
            mean, deviation = scale_of(name, shape)
            parameter.copy_(mean + numbers(seed + index, *shape, scale=deviation))


def gradients(model: PeftModel) -> dict[str, torch.Tensor]:
    """The gradient of each trainable tensor, under the key that peft saves the tensor with."""
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    state = {key: torch.zeros(0) for key in model.state_dict()}
    state |= {name: parameter.grad for name, parameter in trainable.items()}
    named = get_peft_model_state_dict(model, state_dict=state, save_embedding_layers=False)
    # With bias="all", a head's bias is saved under two further names, that nothing reads.
    extra = ("modules_to_save.bias", "original_module.bias")
    found = {k: v for k, v in named.items() if v.numel() and not k.endswith(extra)}
    assert len(found) == len(trainable), (sorted(found), sorted(trainable))
    return found


@dataclass
class FieldCase:
    name: str
    model: str
    lora: dict
    seed: int
    # Passed to save_pretrained; peft's own default decides otherwise.
    save_embedding_layers: bool | str = "auto"
    # What peft gets wrong once merged, where it does.
    wrong: str | None = None
    # What peft's wrapper for the task gets wrong; then the model is called without it.
    wrong_forward: str | None = None
    # A case keeps the values that the initialisation gave.
    keeps_values: bool = False
    model_class: type | None = None

    @property
    def folder(self) -> Path:
        return FOLDER / self.name

    def base(self) -> nn.Module:
        torch.manual_seed(self.seed)
        kinds = {"bert": BertForSequenceClassification}
        kind = self.model_class or kinds.get(self.model, LlamaForCausalLM)
        labels = {"num_labels": 2} if kind is BertForQuestionAnswering else {}
        return kind.from_pretrained(f"{self.model}/model", **labels).eval()

    def config(self) -> LoraConfig:
        task = "SEQ_CLS" if self.model == "bert" else "CAUSAL_LM"
        # Through JSON, so that no list of ours is changed by peft.
        options = json.loads(json.dumps(self.lora))
        return LoraConfig(**dict(task_type=task, r=3, lora_alpha=5) | options)

    def load(self, trainable: bool = True) -> PeftModel:
        path = str(self.folder / "adapter")
        return PeftModel.from_pretrained(self.base(), path, is_trainable=trainable).eval()

    def batch(self, prefix: str | None) -> dict[str, torch.Tensor]:
        folder = Path(self.model)
        if prefix is None:
            tensors = load_file(folder / "input.safetensors")
        else:
            every = load_file(folder / "batches.safetensors")
            start = f"{prefix}."
            tensors = {k.removeprefix(start): v for k, v in every.items() if k.startswith(start)}
        return self.relabelled(tensors)

    def relabelled(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Labels of the task, from the batch's own numbers."""
        if self.model_class is BertForTokenClassification:
            labels = torch.where(batch["attention_mask"] == 1, batch["input_ids"] % 5, -100)
            return batch | {"labels": labels}
        if self.model_class is BertForQuestionAnswering:
            lengths = batch["attention_mask"].sum(1)
            batch = {key: value for key, value in batch.items() if key != "labels"}
            return batch | {"start_positions": lengths // 3, "end_positions": lengths - 1}
        return batch

    # -- Making

    def make(self) -> None:
        if self.folder.exists():
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True)
        record: dict = {"model": self.model, "config": self.lora}
        if self.model_class:
            record["task_model"] = self.model_class.__name__
        told: dict[str, list[str]] = {"create": [], "save": [], "load": [], "merge": []}

        with recorded(told["create"]):
            model = get_peft_model(self.base(), self.config()).eval()
        if not self.keeps_values:
            randomise(model, self.seed)
        counts = model.get_nb_trainable_parameters()
        record["trainable_parameters"], record["all_parameters"] = counts
        record["targets"] = sorted(model.targeted_module_names)
        with recorded(told["save"]):
            model.save_pretrained(
                self.folder / "adapter", save_embedding_layers=self.save_embedding_layers
            )
        (self.folder / "adapter" / "README.md").unlink()
        tensors = load_file(self.folder / "adapter" / "adapter_model.safetensors")
        record["keys"] = {key: list(tensors[key].shape) for key in sorted(tensors)}

        found = self.numbers(record, told)
        record["losses"] = self.losses()
        if self.wrong == TWICE:
            record["right_losses"] = self.losses(tied=True)
        record["warnings"] = {key: texts for key, texts in told.items() if texts}
        if self.wrong:
            record["wrong"] = self.wrong
        save(found, self.folder / "expected.safetensors")
        (self.folder / "case.json").write_text(compact(record))

    @staticmethod
    def logits(output) -> dict[str, torch.Tensor]:
        """Of the first row, which has no padding; the loss speaks for the others."""
        if "logits" in output:
            return {"logits": output.logits[:1]}
        return {"start_logits": output.start_logits[:1], "end_logits": output.end_logits[:1]}

    def numbers(self, record: dict, told: dict) -> dict[str, torch.Tensor]:
        inputs = self.batch(None)
        with recorded(told["load"]):
            model = self.load()
        found = {}
        if self.wrong_forward:
            record["wrong_forward"] = self.wrong_forward
            with torch.no_grad():
                peft = self.logits(model(**inputs))
            found |= {f"{key}.peft_active": value for key, value in peft.items()}
        output = self.run(model, inputs)
        output.loss.backward()
        active = self.logits(output)
        found |= {f"{key}.active": value for key, value in active.items()}
        found["loss.active"] = output.loss
        record["grad_norms"] = {
            key: value.norm().item() for key, value in sorted(gradients(model).items())
        }
        with torch.no_grad():
            plain = self.logits(self.base()(**inputs))
            with model.disable_adapter():
                disabled = self.logits(self.run(model, inputs))
            merged_model = self.load(False)
            with recorded(told["merge"]):
                merged_model = merged_model.merge_and_unload()
            merged = self.logits(merged_model(**inputs))
        # What is equal is said, not stored.
        record["disabled_is_base"] = self.close(disabled, plain)
        if not record["disabled_is_base"]:
            found |= {f"{key}.disabled": value for key, value in disabled.items()}
        record["merged_is_active"] = self.close(merged, active)
        if not record["merged_is_active"]:
            assert self.wrong, f"{self.name}: merged differs"
            found |= {f"{key}.peft_merged": value for key, value in merged.items()}
        return found

    def run(self, model: PeftModel, inputs: dict[str, torch.Tensor]):
        return (model.get_base_model() if self.wrong_forward else model)(**inputs)

    @staticmethod
    def close(one: dict, other: dict) -> bool:
        return all(torch.allclose(one[key], other[key], rtol=1e-4, atol=2e-5) for key in one)

    def losses(self, tied: bool = False) -> list[float]:
        """Ten steps of AdamW. `tied`: the adapter of a head shares its memory with the embedding's
        and gets its gradient added there, instead of steps of its own."""
        model = self.load()
        parameters = [p for p in model.parameters() if p.requires_grad]
        if tied:
            embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
            pairs = [
                (embedding.lora_embedding_A["default"], head.lora_B["default"].weight),
                (embedding.lora_embedding_B["default"], head.lora_A["default"].weight),
            ]
            for one, other in pairs:
                assert one.data_ptr() == other.data_ptr()
            parameters = [p for p in parameters if all(p is not other for _, other in pairs)]
        optimiser = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        losses = []
        for step in range(STEPS):
            loss = self.run(model, self.batch(str(step))).loss
            loss.backward()
            losses.append(loss.item())
            if tied:
                for one, other in pairs:
                    one.grad += other.grad.T
            optimiser.step()
            model.zero_grad()
        return losses


TIED = (
    "Base weights of the two ends are one tensor, so merging changes both. Right: the merged model "
    "gives the active output, its ends untied where they have become different."
)
TWICE = (
    "Both ends have the same change, and merging adds it twice to the one tensor. Right: the merged "
    "model gives the active output. The tied factors are two parameters over the same memory, which "
    "an optimiser steps twice (`losses`). Right: one parameter with the sum of both gradients "
    "(`right_losses`)."
)
REPLICATED = (
    "Copies of a layer share their weights, so merging adds the changes of all of them. "
    "Right: the merged model gives the active output, its copies independent."
)
MLP = ["gate_proj", "up_proj", "down_proj"]


def cases() -> list[FieldCase]:
    Q, QV = ["q_proj"], ["q_proj", "v_proj"]
    listed: list[FieldCase] = []

    def add(name: str, model: str, lora: dict, **options) -> None:
        listed.append(FieldCase(name, model, lora, 600 + 10 * len(listed), **options))

    # Bias
    add("bias-all", "llama-bias", dict(target_modules=["q_proj", "down_proj"], bias="all"))
    add("bias-lora-only", "llama-bias", dict(target_modules=QV, bias="lora_only"))
    add("bias-all-bert", "bert", dict(target_modules=["query", "value"], bias="all"))
    add("bias-lora-only-bert", "bert", dict(target_modules=["query"], bias="lora_only"))
    add("lora-bias", "llama-bias", dict(target_modules=["q_proj", "up_proj"], lora_bias=True))
    # Modules saved in full
    add("save-norms", "llama", dict(target_modules=Q, modules_to_save=["norm"]))
    add("save-one-norm", "llama", dict(target_modules=Q, modules_to_save=["model.norm"]))
    add(
        "save-mlp",
        "llama",
        dict(target_modules=[*Q, *MLP], modules_to_save=["layers.1.mlp"]),
    )
    add("save-head", "llama-bias", dict(target_modules=Q, modules_to_save=["lm_head"]))
    add("save-embedding", "llama-bias", dict(target_modules=Q, modules_to_save=["embed_tokens"]))
    add(
        "save-tied-embedding",
        "llama",
        dict(target_modules=Q, modules_to_save=["embed_tokens"]),
    )
    add(
        "save-tied-embedding-tying",
        "llama",
        dict(target_modules=Q, modules_to_save=["embed_tokens"], ensure_weight_tying=True),
    )
    add(
        "save-pooler-bert",
        "bert",
        dict(target_modules=["query"], modules_to_save=["pooler", "LayerNorm"]),
    )
    # Single tokens
    add("tokens-list", "llama-bias", dict(target_modules=Q, trainable_token_indices=[3, 17, 98]))
    add("tokens-tied", "llama", dict(target_modules=Q, trainable_token_indices=[5, 0, 41]))
    add(
        "tokens-dictionary",
        "llama-bias",
        dict(target_modules=Q, trainable_token_indices={"embed_tokens": [3, 17], "lm_head": [9]}),
    )
    add(
        "tokens-tying",
        "llama",
        dict(
            target_modules=Q,
            trainable_token_indices={"embed_tokens": [3, 17], "lm_head": [3, 17]},
            ensure_weight_tying=True,
        ),
    )
    add(
        "tokens-bert",
        "bert",
        dict(target_modules=["query"], trainable_token_indices=[7, 8, 60]),
    )
    add(
        "tokens-positions-bert",
        "bert",
        dict(
            target_modules=["query"],
            trainable_token_indices={"word_embeddings": [7, 60], "position_embeddings": [0, 2]},
        ),
    )
    # Embeddings and heads as targets
    add("target-embedding", "llama-bias", dict(target_modules=["embed_tokens", *Q]))
    add(
        "target-embedding-unsaved",
        "llama-bias",
        dict(target_modules=["embed_tokens", *Q]),
        save_embedding_layers=False,
    )
    # By another name than exactly embed_tokens, nothing of the base is saved.
    add("target-embedding-path", "llama-bias", dict(target_modules=["model.embed_tokens", *Q]))
    add(
        "target-embedding-expression",
        "llama-bias",
        dict(target_modules=r".*(embed_tokens|q_proj)"),
    )
    add("target-head", "llama-bias", dict(target_modules=["lm_head", *Q]))
    add("target-embedding-tied", "llama", dict(target_modules=["embed_tokens", *Q]), wrong=TIED)
    add("target-head-tied", "llama", dict(target_modules=["lm_head", *Q]), wrong=TIED)
    add(
        "target-both-tying",
        "llama",
        dict(target_modules=["embed_tokens", "lm_head", *Q], ensure_weight_tying=True),
        wrong=TWICE,
    )
    add("target-embedding-bert", "bert", dict(target_modules=["word_embeddings", "query"]))
    # Ranks, alphas and layers
    patterns = dict(
        rank_pattern={"layers.1.self_attn.q_proj": 5, "down_proj": 2},
        alpha_pattern={r"layers\.\d.self_attn.v_proj": 2, "^model.layers.2.mlp.down_proj": 7},
    )
    everywhere = [*QV, "down_proj"]
    add("patterns-rslora", "llama", dict(target_modules=everywhere, use_rslora=True) | patterns)
    add("patterns", "llama", dict(target_modules=everywhere) | patterns)
    add(
        "layers",
        "llama",
        dict(target_modules=QV, layers_to_transform=[0, 2], layers_pattern="layers"),
    )
    add("layers-one", "llama", dict(target_modules=QV, layers_to_transform=1))
    add(
        "layers-pattern-bert",
        "bert",
        dict(
            target_modules=["query", "dense"],
            layers_to_transform=[1],
            layers_pattern=["blocks", "layer"],
        ),
    )
    add(
        "exclude-list",
        "llama",
        dict(
            target_modules="all-linear",
            exclude_modules=["layers.0.mlp.up_proj", "k_proj", "o_proj"],
        ),
    )
    add(
        "exclude-expression",
        "llama",
        dict(target_modules="all-linear", exclude_modules=r".*\.(0|2)\..*|.*mlp.*"),
    )
    add("default-targets", "llama", dict())
    add("replication", "llama", dict(layer_replication=[[0, 2], [1, 3]]), wrong=REPLICATED)
    # Initialisations whose values are random: the adapter has them as they were drawn.
    add("init-true", "llama", dict(target_modules=Q), keeps_values=True)
    add(
        "init-gaussian",
        "llama",
        dict(target_modules=Q, init_lora_weights="gaussian"),
        keeps_values=True,
    )
    add("init-false", "llama", dict(target_modules=Q, init_lora_weights=False), keeps_values=True)
    add(
        "init-orthogonal",
        "llama",
        dict(target_modules=Q, r=4, init_lora_weights="orthogonal"),
        keeps_values=True,
    )
    # Tasks
    add(
        "token-classification",
        "bert",
        dict(task_type="TOKEN_CLS", target_modules=["query", "value"]),
        model_class=BertForTokenClassification,
    )
    add(
        "question-answering",
        "bert",
        dict(task_type="QUESTION_ANS", target_modules=["query", "value"]),
        model_class=BertForQuestionAnswering,
        wrong_forward="peft's model for the task does not pass token_type_ids (and position_ids) "
        "on. Right: the model itself, with the adapter in it.",
    )
    return listed


def make() -> None:
    if FOLDER.exists():
        shutil.rmtree(FOLDER)
    for case in [*cases(), *experts.cases()]:
        case.make()
