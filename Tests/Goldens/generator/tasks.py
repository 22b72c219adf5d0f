"""Heads and losses of the task types, on the tiny models of `models`."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    LlamaForQuestionAnswering,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    Qwen2ForQuestionAnswering,
    Qwen2ForSequenceClassification,
    Qwen2ForTokenClassification,
)

from .fields import randomise
from .models import LEARNING_RATE, STEPS, WEIGHT_DECAY

FOLDER = Path("tasks")
TARGETS = {
    "bert": ["query", "value", "dense"],
    "llama": ["q_proj", "v_proj", "down_proj"],
    "qwen2": ["q_proj", "v_proj", "down_proj"],
}


@dataclass
class TaskCase:
    name: str
    model: str
    task: str
    model_class: type
    seed: int
    # Overrides of the model's configuration.
    config: dict = field(default_factory=dict)
    rate: float = LEARNING_RATE
    # Padding on the left instead of the right.
    left: bool = False

    @property
    def folder(self) -> Path:
        return FOLDER / self.name

    @property
    def labels(self) -> int:
        return self.config.get("num_labels", 2)

    def base(self):
        torch.manual_seed(self.seed)
        path = f"{self.model}/model"
        # The model's own classifier has five labels.
        model = self.model_class.from_pretrained(
            path, ignore_mismatched_sizes=True, **self.config
        ).eval()
        # LlamaForQuestionAnswering calls its base "transformer", under which no checkpoint of a
        # language model has it.
        own = getattr(model, model.base_model_prefix)
        state = AutoModel.from_pretrained(path).state_dict()
        own.load_state_dict({key: state[key] for key in own.state_dict()})
        return model

    # -- Inputs

    def batch(self, prefix: str | None) -> dict[str, torch.Tensor]:
        if prefix is None:
            tensors = load_file(f"{self.model}/input.safetensors")
        else:
            every = load_file(f"{self.model}/batches.safetensors")
            start = f"{prefix}."
            tensors = {k.removeprefix(start): v for k, v in every.items() if k.startswith(start)}
        tensors.pop("labels")
        if self.left:
            tensors = {key: value.flip(1).contiguous() for key, value in tensors.items()}
        return tensors | self.answers(tensors)

    def answers(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Labels of the task, from the batch's own numbers."""
        ids, mask = batch["input_ids"], batch["attention_mask"]
        sums = (ids * mask).sum(1)
        problem = self.config.get("problem_type")
        if self.task == "TOKEN_CLS":
            return {"labels": torch.where(mask == 1, ids % self.labels, -100)}
        if self.task == "QUESTION_ANS":
            lengths = mask.sum(1)
            return {"start_positions": lengths // 3, "end_positions": lengths - 1}
        if problem == "multi_label_classification":
            bits = [(sums >> place) & 1 for place in range(self.labels)]
            return {"labels": torch.stack(bits, 1).float()}
        if problem == "regression":
            means = sums / mask.sum(1) / 50 - 1
            columns = [means * (place + 1) - 0.5 * place for place in range(self.labels)]
            return {"labels": torch.stack(columns, 1).float()}
        return {"labels": sums % self.labels}

    # -- Making

    def make(self) -> None:
        self.folder.mkdir(parents=True)
        options = dict(r=3, lora_alpha=5, target_modules=list(TARGETS[self.model]))
        model = get_peft_model(self.base(), LoraConfig(task_type=self.task, **options))
        randomise(model, self.seed)
        model.save_pretrained(self.folder / "adapter", save_embedding_layers=False)
        (self.folder / "adapter" / "README.md").unlink()

        inputs = self.batch(None)
        save_file(inputs, self.folder / "input.safetensors")
        batches = {
            f"{step}.{key}": value
            for step in range(STEPS)
            for key, value in self.batch(str(step)).items()
        }
        save_file(batches, self.folder / "batches.safetensors")
        expected = self.expected(inputs)
        save_file(
            {key: value.detach().float().contiguous() for key, value in expected.items()},
            self.folder / "expected.safetensors",
        )
        trainable, total = model.get_nb_trainable_parameters()
        record = {
            "model": self.model,
            "task": self.task,
            "task_model": self.model_class.__name__,
            "peft_model": type(model).__name__,
            "config": self.config,
            "modules_to_save": model.peft_config["default"].modules_to_save,
            "trainable_parameters": trainable,
            "all_parameters": total,
            "optimiser": {"lr": self.rate, "weight_decay": WEIGHT_DECAY},
            "losses": self.losses(),
        }
        (self.folder / "case.json").write_text(json.dumps(record, indent=1) + "\n")

    def load(self) -> PeftModel:
        path = str(self.folder / "adapter")
        return PeftModel.from_pretrained(self.base(), path, is_trainable=True).eval()

    @staticmethod
    def run(model, batch):
        # Not through peft's class for the task: that of QUESTION_ANS drops token_type_ids.
        return (model.get_base_model() if isinstance(model, PeftModel) else model)(**batch)

    def expected(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        model = self.load()
        output = self.run(model, inputs)
        output.loss.backward()
        names = [name for name in ("logits", "start_logits", "end_logits") if name in output]
        found = {f"{name}.active": output[name] for name in names}
        found["loss.active"] = output.loss
        trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        state = {key: torch.zeros(0) for key in model.state_dict()}
        state |= {name: parameter.grad for name, parameter in trainable.items()}
        named = get_peft_model_state_dict(model, state_dict=state, save_embedding_layers=False)
        assert len(named) == len(trainable)
        found |= {f"grad.{key}": value for key, value in named.items()}
        with torch.no_grad():
            merged = self.run(model.merge_and_unload(), inputs)
        for name in names:
            found[f"{name}.merged"] = merged[name]
        return found

    def losses(self) -> list[float]:
        model = self.load()
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(parameters, lr=self.rate, weight_decay=WEIGHT_DECAY)
        losses = []
        for step in range(STEPS):
            loss = self.run(model, self.batch(str(step))).loss
            loss.backward()
            losses.append(loss.item())
            optimiser.step()
            optimiser.zero_grad()
        return losses


def cases() -> list[TaskCase]:
    listed: list[TaskCase] = []

    def add(name: str, model: str, task: str, model_class: type, left=False, **config) -> None:
        seed = 900 + 10 * len(listed)
        # Squared errors near zero would show the rounding of the weights, not the steps.
        rate = 1e-3 if name == "bert-regression" else LEARNING_RATE
        listed.append(TaskCase(name, model, task, model_class, seed, config, rate, left))

    multi, regression = "multi_label_classification", "regression"
    Bert, Llama, Qwen2 = (
        BertForSequenceClassification,
        LlamaForSequenceClassification,
        Qwen2ForSequenceClassification,
    )
    add("bert-multi", "bert", "SEQ_CLS", Bert, num_labels=4, problem_type=multi)
    add("bert-regression", "bert", "SEQ_CLS", Bert, num_labels=1, problem_type=regression)
    add("bert-regression-3", "bert", "SEQ_CLS", Bert, num_labels=3, problem_type=regression)
    add("bert-token", "bert", "TOKEN_CLS", BertForTokenClassification, num_labels=6)
    add("bert-question", "bert", "QUESTION_ANS", BertForQuestionAnswering, num_labels=2)
    add("llama-sequence", "llama", "SEQ_CLS", Llama, num_labels=3, pad_token_id=0)
    add("llama-sequence-left", "llama", "SEQ_CLS", Llama, True, num_labels=3, pad_token_id=0)
    add("llama-multi", "llama", "SEQ_CLS", Llama, num_labels=4, problem_type=multi, pad_token_id=0)
    add("llama-token", "llama", "TOKEN_CLS", LlamaForTokenClassification, num_labels=6)
    add("llama-question", "llama", "QUESTION_ANS", LlamaForQuestionAnswering)
    add("qwen2-sequence", "qwen2", "SEQ_CLS", Qwen2, num_labels=3, pad_token_id=0)
    add("qwen2-token", "qwen2", "TOKEN_CLS", Qwen2ForTokenClassification, num_labels=6)
    add("qwen2-question", "qwen2", "QUESTION_ANS", Qwen2ForQuestionAnswering)
    return listed


def features() -> None:
    """An adapter for hidden states that was made on a model with a head."""
    folder = FOLDER / "bert-features"
    folder.mkdir(parents=True)
    inputs = load_file("bert/input.safetensors")
    inputs.pop("labels")
    base = BertForSequenceClassification.from_pretrained("bert/model").eval()
    model = PeftModel.from_pretrained(base, "bert/adapter_c").eval()
    with torch.no_grad():
        output = model(**inputs)
        hidden = model.get_base_model().bert(**inputs).last_hidden_state
    save_file({"last_hidden_state.active": hidden}, folder / "expected.safetensors")
    record = {
        "model": "bert",
        "adapter": "bert/adapter_c",
        "peft_model": type(model).__name__,
        "peft_output": sorted(output.keys()),
    }
    (folder / "case.json").write_text(json.dumps(record, indent=1) + "\n")


def make() -> None:
    if FOLDER.exists():
        shutil.rmtree(FOLDER)
    for case in cases():
        case.make()
    features()
