"""The part of roundtrip.py about the task types, on the small models of the goldens: for each task and
architecture an adapter of peft with its head gives the same outputs, losses and gradients in the
tool, merged too; ten steps of `peft train` give torch's losses; what the tool saves has peft's keys
and gives the same outputs in peft; and what `peft merge` writes is transformers' model."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file

from roundtrip_support import GOLDENS, guarded, relative, worst

OUTPUTS, GRADIENTS, LOSSES = 1e-5, 1e-4, 1e-4
STEPS, BATCH, WIDTH = 10, 4, 12
RATE, DECAY = 1e-3, 0.01
NO_DROPOUT = {
    "bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "llama": {"attention_dropout": 0.0, "classifier_dropout": 0.0},
    "qwen2": {"attention_dropout": 0.0, "classifier_dropout": 0.0},
}
TARGETS = {
    "bert": ["query", "value", "dense"],
    "llama": ["q_proj", "v_proj", "down_proj"],
    "qwen2": ["q_proj", "v_proj", "down_proj"],
}
CLASSES = {
    "SEQ_CLS": "ForSequenceClassification",
    "TOKEN_CLS": "ForTokenClassification",
    "QUESTION_ANS": "ForQuestionAnswering",
    "CAUSAL_LM": "ForCausalLM",
}


@dataclass
class Case:
    """A task on a model, with what config.json says beyond the golden's."""

    model: str
    task: str
    config: dict = field(default_factory=dict)

    @property
    def problem(self) -> str:
        return self.config.get("problem_type", "")

    @property
    def labels(self) -> int:
        return self.config.get("num_labels", 2)

    @property
    def name(self) -> str:
        kinds = {"multi_label_classification": ", several labels", "regression": ", numbers"}
        return self.task + kinds.get(self.problem, "")

    @property
    def model_class(self) -> type:
        family = {"bert": "Bert", "llama": "Llama", "qwen2": "Qwen2"}[self.model]
        return getattr(transformers, family + CLASSES[self.task])


def cases() -> list[Case]:
    multi, numbers = "multi_label_classification", "regression"
    found = []
    for model in ("bert", "llama", "qwen2"):
        common = {} if model == "bert" else {"pad_token_id": 0}
        found += [
            Case(model, "SEQ_CLS", {"num_labels": 3, **common}),
            Case(model, "SEQ_CLS", {"num_labels": 4, "problem_type": multi, **common}),
            Case(model, "SEQ_CLS", {"num_labels": 2, "problem_type": numbers, **common}),
            Case(model, "TOKEN_CLS", {"num_labels": 6}),
            Case(model, "QUESTION_ANS", {"num_labels": 2}),
        ]
        if model != "bert":
            found.append(Case(model, "CAUSAL_LM"))
    return found


# -- The models


def make_base(case: Case, folder: Path) -> Path:
    """The golden's weights, with a config.json for the task. The head is the adapter's to bring."""
    folder.mkdir(parents=True)
    source = GOLDENS / case.model / "model"
    shutil.copy(source / "model.safetensors", folder)
    config = transformers.AutoConfig.from_pretrained(source, **case.config)
    # Not all of them are fields of the configuration's class, and others are not read.
    for key, value in NO_DROPOUT[case.model].items():
        setattr(config, key, value)
    config.save_pretrained(folder)
    return folder


def base(case: Case, folder: Path):
    torch.manual_seed(77)
    # The golden's own classifier may be of another size.
    model = case.model_class.from_pretrained(folder, ignore_mismatched_sizes=True).eval()
    # LlamaForQuestionAnswering does not find the weights of a language model in its "transformer".
    own = getattr(model, model.base_model_prefix)
    state = transformers.AutoModel.from_pretrained(folder).state_dict()
    own.load_state_dict({key: state[key] for key in own.state_dict()})
    return model


def load(case: Case, folder: Path, adapter: Path) -> PeftModel:
    return PeftModel.from_pretrained(base(case, folder), str(adapter), is_trainable=True).eval()


def run(model, batch: dict):
    # Not through peft's class for the task: that of QUESTION_ANS drops token_type_ids.
    return (model.get_base_model() if isinstance(model, PeftModel) else model)(**batch)


def outputs(result) -> dict[str, torch.Tensor]:
    names = ("logits", "start_logits", "end_logits")
    return {name: result[name].detach() for name in names if name in result}


def make_adapter(case: Case, folder: Path, target: Path) -> Path:
    torch.manual_seed(1)
    config = LoraConfig(
        task_type=case.task, r=4, lora_alpha=6, target_modules=TARGETS[case.model]
    )
    model = get_peft_model(base(case, folder), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)
    model.save_pretrained(target, save_embedding_layers=False)
    return target


# -- The data


def rows(case: Case, count: int) -> list[dict]:
    """Records of token ids, all of one length, with labels that follow from the ids."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(5, 40, (count, WIDTH), generator=generator).tolist()
    found = []
    for own in ids:
        if case.task == "TOKEN_CLS":
            answer = {"labels": [-100] + [i % case.labels for i in own[1:]]}
        elif case.task == "QUESTION_ANS":
            start = own[0] % 6
            answer = {"start_positions": start, "end_positions": start + own[1] % 5}
        elif case.task == "CAUSAL_LM":
            answer = {"labels": [-100] * 3 + own[3:]}
        elif case.problem == "multi_label_classification":
            answer = {"label": [i for i in range(case.labels) if own[i] % 2]}
        elif case.problem == "regression":
            answer = {"label": [own[i] / 20 - 1 for i in range(case.labels)]}
        else:
            answer = {"label": own[0] % case.labels}
        found.append({"input_ids": own, **answer})
    return found


def batch(case: Case, records: list[dict]) -> dict[str, torch.Tensor]:
    """As a model of transformers takes it."""
    found = {"input_ids": torch.tensor([row["input_ids"] for row in records])}
    if case.task == "QUESTION_ANS":
        for key in ("start_positions", "end_positions"):
            found[key] = torch.tensor([row[key] for row in records])
    elif "labels" in records[0]:
        found["labels"] = torch.tensor([row["labels"] for row in records])
    elif case.problem == "multi_label_classification":
        found["labels"] = torch.zeros(len(records), case.labels)
        for place, row in enumerate(records):
            found["labels"][place, row["label"]] = 1
    else:
        found["labels"] = torch.tensor([row["label"] for row in records])
    return found


# -- Checks


class Check:
    """One case: its folders, its rows in the table."""

    def __init__(self, case: Case, tool, report) -> None:
        self.case, self.tool, self.report = case, tool, report
        name = "".join(c if c.isalnum() else "-" for c in case.name)
        self.folder = tool.folder / "tasks" / case.model / name
        self.base = make_base(case, self.folder / "base")
        self.adapter = make_adapter(case, self.base, self.folder / "peft")
        self.inputs = batch(case, rows(case, 3))

    def add(self, what: str, error: float, limit: float) -> None:
        self.report.add(self.case.model, f"{self.case.name}: {what}", error, limit)

    def add_fact(self, what: str, found: str, holds: bool) -> None:
        self.report.add_fact(self.case.model, f"{self.case.name}: {what}", found, holds)

    def compare(self, what: str, found: dict, model) -> None:
        with torch.no_grad():
            reference = run(model, self.inputs)
        wanted = outputs(reference) | {"loss": reference.loss}
        errors = [relative(found[name], wanted[name]) for name in wanted if name in found]
        self.add(what, worst(errors) if set(found) == set(wanted) else float("inf"), OUTPUTS)

    def forward(self, adapter: Path, *options: object, **more):
        return self.tool.forward(self.base, self.inputs, "--adapter", adapter, *options, **more)

    def check_reading(self) -> None:
        """What peft made, in the tool; and merged, in transformers."""
        found, slopes = self.forward(self.adapter, gradients=True)
        model = load(self.case, self.base, self.adapter)
        self.compare("peft's adapter", found, model)
        run(model, self.inputs).loss.backward()
        state = {key: torch.zeros(0) for key in model.state_dict()}
        state |= {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        wanted = get_peft_model_state_dict(model, state_dict=state, save_embedding_layers=False)
        # The softmax over tokens does not depend on this bias: its gradient is only rounding.
        wanted.pop("base_model.model.qa_outputs.bias", None)
        slopes.pop("base_model.model.qa_outputs.bias", None)
        errors = [relative(slopes[key], wanted[key]) for key in wanted if key in slopes]
        same = set(slopes) == set(wanted)
        self.add("gradients", worst(errors) if same else float("inf"), GRADIENTS)
        self.compare("merged", self.forward(self.adapter, "--merge"), model.merge_and_unload())
        merged = self.folder / "merged"
        command = ["merge", "--model", self.base, "--adapter", self.adapter, "--output", merged]
        self.tool.run(*command)
        written = self.case.model_class.from_pretrained(merged).eval()
        self.compare("peft merge, in transformers", self.tool_outputs(merged), written)
        with torch.no_grad():
            before = outputs(run(load(self.case, self.base, self.adapter), self.inputs))
            after = outputs(run(written, self.inputs))
        self.add("the merged model", worst(relative(after[n], before[n]) for n in before), OUTPUTS)

    def tool_outputs(self, model: Path) -> dict:
        return self.tool.forward(model, self.inputs, "--task", self.case.task)

    def train(self, name: str, **settings) -> Path:
        records = rows(self.case, STEPS * BATCH)
        data = self.folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in records))
        run_settings = {
            "model": str(self.base),
            "task_type": self.case.task,
            "train_file": str(data),
            "data_format": "tokens",
            "output_dir": str(self.folder / name),
            "max_steps": STEPS,
            "per_device_train_batch_size": BATCH,
            "learning_rate": RATE,
            "lr_scheduler_type": "constant",
            # torch's AdamW decays every tensor, a classifier's bias included.
            "parameter_groups": [{"pattern": ".", "weight_decay": DECAY}],
            "max_grad_norm": 0,
            "shuffle": False,
            "eval_strategy": "no",
            "save_strategy": "no",
            **settings,
        }
        if self.case.task == "SEQ_CLS" and self.case.problem:
            run_settings["problem_type"] = self.case.problem
        if self.case.task in ("SEQ_CLS", "TOKEN_CLS") and self.case.problem != "regression":
            run_settings["labels"] = [f"LABEL_{i}" for i in range(self.case.labels)]
        config = self.folder / f"{name}.yaml"
        config.write_text(json.dumps(run_settings, indent=2))  # JSON is YAML
        self.tool.run("train", "--quiet", "--config", config)
        return self.folder / name

    def check_training(self) -> None:
        """Ten steps from peft's adapter, and what they leave."""
        saved = self.train("trained", method="lora", init_adapter=str(self.adapter))
        model = load(self.case, self.base, self.adapter)
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(parameters, lr=RATE, weight_decay=DECAY)
        records = rows(self.case, STEPS * BATCH)
        expected = []
        for step in range(STEPS):
            own = records[step * BATCH : (step + 1) * BATCH]
            loss = run(model, batch(self.case, own)).loss
            loss.backward()
            expected.append(loss.item())
            optimiser.step()
            optimiser.zero_grad()
        lines = map(json.loads, (saved / "metrics.jsonl").read_text().splitlines())
        losses = [line["loss"] for line in lines if "loss" in line]
        errors = [abs(a - b) / abs(b) for a, b in zip(losses, expected)]
        same = len(losses) == STEPS
        self.add("losses of ten steps", worst(errors) if same else float("inf"), LOSSES)
        self.check_saved("trained by the tool", saved)

    def check_saved(self, what: str, saved: Path) -> None:
        """Keys and outputs of the tool's folder in peft."""
        fresh = get_peft_model(base(self.case, self.base), LoraConfig.from_pretrained(str(saved)))
        wanted = set(get_peft_model_state_dict(fresh, save_embedding_layers=False))
        found = set(load_file(saved / "adapter_model.safetensors"))
        text = f"{len(wanted - found)} missing, {len(found - wanted)} unexpected"
        self.add_fact(f"{what}, keys", text, wanted == found)
        self.compare(f"{what}, in peft", self.forward(saved), load(self.case, self.base, saved))

    def check_beginning(self) -> None:
        """A new adapter with a new head."""
        settings = {"r": 4, "lora_alpha": 6, "target_modules": TARGETS[self.case.model]}
        self.check_saved("new", self.train("new", method="lora", lora=settings))


def check(tool, report) -> None:
    def part(name: str, body) -> None:
        guarded(report, case.model, f"{case.name}: {name}", body)

    def check_case() -> None:
        own = Check(case, tool, report)
        part("reading", own.check_reading)
        part("training", own.check_training)
        part("beginning", own.check_beginning)

    for case in cases():
        part("making the model", check_case)
