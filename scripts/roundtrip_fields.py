"""The part of roundtrip.py that goes through the settings of LoRA and the kinds of layers, one by
one, on small models: what peft made in the tool, and what the tool made in peft."""

from __future__ import annotations

import json
import sys
import traceback
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers import AutoModelForQuestionAnswering, AutoModelForTokenClassification

from roundtrip_support import GOLDENS, ToolFailure, relative, visible

LOGITS = 1e-5


@dataclass
class Case:
    """A setting, on a model of the goldens."""

    name: str
    settings: dict
    model: str = "llama"
    task: str = "CAUSAL_LM"
    # The setting that a refusal has to name.
    key: str | None = None
    # What peft is told when it saves.
    saving: dict = field(default_factory=dict)
    # Without random values: the initialisation itself is what is tried.
    keeps_values: bool = False
    # Whether the tool can also train it: not where the settings concern reading only.
    trains: bool = True
    # Whether peft's adapter computes the same whenever it is loaded.
    reads: bool = True

    @property
    def keyword(self) -> str:
        return self.key or next(iter(self.settings))


def cases() -> list[Case]:
    """Every field of LoraConfig that a command of the tool takes, and each kind of layer."""
    q = ["q_proj", "v_proj"]
    every = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    found = [
        # Which modules.
        Case("target_modules: default of the model type", {}, key="target_modules"),
        Case("target_modules: list", {"target_modules": every}),
        Case("target_modules: full names", {"target_modules": ["model.layers.1.mlp.up_proj"]}),
        Case("target_modules: expression", {"target_modules": r".*layers\.[02]\..*(q|down)_proj"}),
        Case("target_modules: all-linear", {"target_modules": "all-linear"}),
        Case("exclude_modules: list", {"target_modules": every, "exclude_modules": ["o_proj"]}),
        Case(
            "exclude_modules: expression",
            {"target_modules": every, "exclude_modules": r".*\.1\..*"},
        ),
        Case("layers_to_transform", {"target_modules": q, "layers_to_transform": [0, 2]}),
        Case(
            "layers_pattern",
            {"target_modules": q, "layers_to_transform": [1], "layers_pattern": ["layers"]},
        ),
        Case(
            "target_parameters",
            {"target_modules": [], "target_parameters": ["q_proj.weight", "down_proj.weight"]},
            key="target_parameters",
        ),
        Case(
            "target_parameters beside target_modules",
            {"target_modules": ["v_proj"], "target_parameters": ["layers.1.mlp.up_proj.weight"]},
            key="target_parameters",
        ),
        # peft takes it back for such layers, with a warning.
        Case("fan_in_fan_out", {"target_modules": q, "fan_in_fan_out": True}),
        # Size and scaling.
        Case("r, lora_alpha", {"target_modules": q, "r": 5, "lora_alpha": 7}),
        Case("rank_pattern", {"target_modules": q, "rank_pattern": {"q_proj": 6, "^x": 2}}),
        Case("alpha_pattern", {"target_modules": q, "alpha_pattern": {r"layers\.0\..*": 2}}),
        Case("use_rslora", {"target_modules": q, "use_rslora": True}),
        Case(
            "use_rslora with patterns",
            {
                "target_modules": q,
                "use_rslora": True,
                "rank_pattern": {"v_proj": 6},
                "alpha_pattern": {"q_proj": 2},
            },
        ),
        Case("lora_dropout", {"target_modules": q, "lora_dropout": 0.3}),
        # What else is trained.
        Case("modules_to_save", {"target_modules": q, "modules_to_save": ["gate_proj"]}),
        Case("modules_to_save: lm_head", {"target_modules": q, "modules_to_save": ["lm_head"]}),
        Case("bias: all", {"target_modules": q, "bias": "all"}, model="llama-bias", key="bias"),
        Case(
            "bias: lora_only",
            {"target_modules": q, "bias": "lora_only"},
            model="llama-bias",
            key="bias",
        ),
        Case("lora_bias", {"target_modules": q, "lora_bias": True}, "llama-bias", key="lora_bias"),
        Case(
            "trainable_token_indices",
            {"target_modules": q, "trainable_token_indices": [1, 5]},
            key="trainable_token_indices",
        ),
        Case(
            "trainable_token_indices, untied",
            {"target_modules": q, "trainable_token_indices": {"embed_tokens": [1, 5]}},
            model="llama-bias",
            key="trainable_token_indices",
        ),
        Case(
            "layer_replication",
            {"target_modules": q, "layer_replication": [[0, 2], [1, 3]]},
            key="layer_replication",
        ),
        Case("use_dora", {"target_modules": q, "use_dora": True}, key="use_dora"),
        Case(
            "ensure_weight_tying",
            {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
            key="ensure_weight_tying",
            saving={"save_embedding_layers": False},
        ),
        # Kinds of layers.
        Case(
            "Embedding",
            {"target_modules": ["embed_tokens", "q_proj"]},
            model="llama-bias",
            key="embed_tokens",
            saving={"save_embedding_layers": False},
        ),
        Case(
            "Embedding, base weights saved",
            {"target_modules": ["embed_tokens", "q_proj"]},
            model="llama-bias",
            key="embed_tokens",
            trains=False,
        ),
        Case(
            "output head",
            {"target_modules": ["lm_head"]},
            model="llama-bias",
            key="lm_head",
            saving={"save_embedding_layers": False},
        ),
        Case(
            "Linear with a bias",
            {"target_modules": every},
            model="llama-bias",
            key="target_modules",
        ),
        Case("Linear, Qwen2", {"target_modules": every}, model="qwen2", key="target_modules"),
        # Tasks.
        Case(
            "SEQ_CLS",
            {"target_modules": ["query", "dense"]},
            model="bert",
            task="SEQ_CLS",
            key="task_type",
        ),
        Case(
            "TOKEN_CLS",
            {"target_modules": ["query"]},
            model="bert",
            task="TOKEN_CLS",
            key="TOKEN_CLS",
        ),
        Case(
            "QUESTION_ANS",
            {"target_modules": ["query"]},
            model="bert",
            task="QUESTION_ANS",
            key="QUESTION_ANS",
        ),
        Case("no task", {"target_modules": q}, task="", key="task_type"),
        Case("inference_mode", {"target_modules": q, "inference_mode": True}, trains=False),
    ]
    for value in (True, False, "gaussian", "orthogonal", "pissa", "pissa_niter_4", "olora"):
        settings = {"target_modules": q, "init_lora_weights": value, "r": 4}
        text = str(value).lower() if isinstance(value, bool) else value
        case = Case(f"init_lora_weights: {text}", settings, key="init_lora_weights")
        # Here peft decomposes the base anew at each loading, with random numbers.
        found.append(replace(case, keeps_values=True, reads="niter" not in text))
    return found


CLASSES = {
    "SEQ_CLS": AutoModelForSequenceClassification,
    "TOKEN_CLS": AutoModelForTokenClassification,
    "QUESTION_ANS": AutoModelForQuestionAnswering,
}


def base(case: Case):
    # A head that the folder lacks is random, but always the same.
    torch.manual_seed(77)
    folder = GOLDENS / case.model / "model"
    kind = CLASSES.get(case.task, AutoModelForCausalLM)
    # The folder says five labels, for classifiers.
    extra = {"num_labels": 2} if case.task == "QUESTION_ANS" else {}
    return kind.from_pretrained(folder, dtype=torch.float32, **extra).eval()


def inputs(case: Case) -> dict[str, torch.Tensor]:
    tensors = load_file(GOLDENS / case.model / "input.safetensors")
    wanted = ["input_ids", "attention_mask"]
    return {key: tensors[key] for key in [*wanted, "token_type_ids"] if key in tensors}


def logits(model, batch: dict) -> torch.Tensor:
    # Not through peft's class for the task: that of QUESTION_ANS drops token_type_ids.
    model = model.get_base_model() if isinstance(model, PeftModel) else model
    with torch.no_grad():
        output = model(**batch)
    if hasattr(output, "logits"):
        return output.logits
    return torch.stack([output.start_logits, output.end_logits], -1)


def randomise(model) -> None:
    """Values that change the output clearly, for every trained tensor."""
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            if "magnitude" in name:
                parameter.mul_(1 + 0.2 * torch.rand_like(parameter))
            elif "original_module" not in name:
                parameter.normal_(std=0.2)


def make(case: Case, folder: Path) -> torch.Tensor:
    """An adapter of peft in a folder, and what it computes."""
    settings = {"r": 3, "lora_alpha": 5, **case.settings}
    if case.task:
        settings["task_type"] = case.task
    torch.manual_seed(5)
    model = get_peft_model(base(case), LoraConfig(**settings)).eval()
    if not case.keeps_values:
        # inference_mode makes nothing trainable; the values are to differ all the same.
        if settings.get("inference_mode"):
            model.set_requires_grad("default")
        randomise(model)
    model.save_pretrained(folder, **case.saving)
    return logits(PeftModel.from_pretrained(base(case), str(folder)).eval(), inputs(case))


def is_refusal(text: str, case: Case) -> bool:
    """Whether the tool said that it has not got this, by name."""
    return case.keyword in text and ("not supported" in text or "SEQ_CLS, CAUSAL_LM" in text)


def tool_logits(case: Case, tool, adapter: Path, *more: str) -> torch.Tensor:
    options = ["--task", case.task] if case.task else ["--task", "CAUSAL_LM"]
    found = tool.forward(
        GOLDENS / case.model / "model", inputs(case), *options, "--adapter", adapter, *more
    )
    if "logits" in found:
        return found["logits"]
    return torch.stack([found["start_logits"], found["end_logits"]], -1)


def train(case: Case, tool, folder: Path) -> Path:
    """Two steps of `peft train` from the settings alone."""
    folder.mkdir(parents=True, exist_ok=True)
    batch = inputs(case)
    rows = []
    for ids, mask in zip(batch["input_ids"].tolist(), batch["attention_mask"].tolist()):
        ids = ids[: sum(mask)]
        row = {"input_ids": ids}
        if case.task == "SEQ_CLS":
            row["label"] = ids[0] % 5
        elif case.task == "QUESTION_ANS":
            row |= {"start_positions": 1, "end_positions": 2}
        elif case.task == "TOKEN_CLS":
            row["labels"] = [i % 5 for i in ids]
        else:
            row["labels"] = ids
        rows.append(row)
    data = folder / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = folder / "out"
    run = {
        "model": str(GOLDENS / case.model / "model"),
        "task_type": case.task or "CAUSAL_LM",
        "train_file": str(data),
        "data_format": "tokens",
        "method": "lora",
        "lora": {"r": 3, "lora_alpha": 5, **case.settings},
        "output_dir": str(output),
        "max_steps": 2,
        "per_device_train_batch_size": 3,
        "learning_rate": 0.01,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "eval_strategy": "no",
        "save_strategy": "no",
        "shuffle": False,
        "seed": 0,
    }
    if case.task in ("SEQ_CLS", "TOKEN_CLS"):
        run["labels"] = [f"LABEL_{i}" for i in range(5)]
    config = folder / "run.yaml"
    config.write_text(json.dumps(run, indent=2))  # JSON is YAML
    tool.run("train", "--config", config)
    return output


def check_saved(case: Case, adapter: Path) -> tuple[str, torch.Tensor]:
    """What peft says of the tool's folder when it loads it, and what it computes then."""
    model = get_peft_model(base(case), LoraConfig.from_pretrained(str(adapter)))
    result = model.load_adapter(str(adapter), "default", is_trainable=False)
    # peft counts the base's own tensors as missing; what concerns it are the adapter's.
    missing = [key for key in result.missing_keys if ".default" in key]
    unexpected = list(result.unexpected_keys)
    problem = ""
    if missing or unexpected:
        problem = f"missing {missing[:2]}, unexpected {unexpected[:2]}"
    return problem, logits(model.eval(), inputs(case))


def check(case: Case, tool, report) -> None:
    folder = tool.folder / "fields" / "".join(c if c.isalnum() else "-" for c in case.name)

    def attempt(what: str, body) -> None:
        try:
            body()
        except ToolFailure as failure:
            text = str(failure)
            if is_refusal(text, case):
                report.add_fact(case.model, f"{case.name}: {what}", "refused by name", True)
            else:
                print(text, file=sys.stderr)
                report.add_fact(case.model, f"{case.name}: {what}", "error", False)
        except Exception:  # a row of the table, so that the others are tried
            traceback.print_exc()
            report.add_fact(case.model, f"{case.name}: {what}", "error in peft", False)

    def read() -> None:
        expected = visible(make(case, folder / "peft"), inputs(case))
        for what, more in (("peft's adapter", []), ("merged", ["--merge"])):
            found = visible(tool_logits(case, tool, folder / "peft", *more), inputs(case))
            report.add(case.model, f"{case.name}: {what}", relative(found, expected), LOGITS)

    def write() -> None:
        output = train(case, tool, folder)
        problem, expected = check_saved(case, output)
        report.add_fact(case.model, f"{case.name}: in peft", problem or "all keys", not problem)
        found = visible(tool_logits(case, tool, output), inputs(case))
        error = relative(found, visible(expected, inputs(case)))
        report.add(case.model, f"{case.name}: the tool's adapter", error, LOGITS)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if case.reads:
            attempt("peft's adapter", read)
        if case.trains:
            attempt("the tool's adapter", write)


# Settings of research methods that the tool has not got, at values that are not their defaults.
REFUSED = {
    "alora_invocation_tokens": [1, 2],
    "arrow_config": {"top_k": 3},
    "kasa_config": {"beta": 1e-4},
    "megatron_config": {"tensor_model_parallel_size": 2},
    "monteclora_config": {"num_samples": 4},
    "use_bdlora": {"nblocks": 2},
    "use_qalora": True,
    "velora_config": {"num_groups": 4},
}


def check_refused(tool, report) -> None:
    """Adapters with such a setting in their configuration."""
    case = Case("refused", {"target_modules": ["q_proj"]})
    folder = tool.folder / "fields" / "refused"
    make(case, folder)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    for key, value in REFUSED.items():
        path.write_text(json.dumps(config | {key: value}))
        try:
            tool_logits(case, tool, folder)
        except ToolFailure as failure:
            named = f"'{key}'" in str(failure)
            report.add_fact("llama", key, "refused by name" if named else "error", named)
        else:
            report.add_fact("llama", key, "ignored", False)


def check_rows(tool, report) -> None:
    """A mixed batch against peft's."""
    case = Case("rows", {}, model="llama")
    batch = inputs(case)
    folder = tool.folder / "fields" / "rows"
    options = []
    model = None
    for seed, name in enumerate(("first", "second")):
        config = LoraConfig(
            task_type="CAUSAL_LM", r=3 + seed, target_modules=["q_proj", "down_proj"]
        )
        if model is None:
            model = get_peft_model(base(case), config, adapter_name=name)
        else:
            model.add_adapter(name, config)
        model.set_adapter(name)
        torch.manual_seed(seed)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if f".{name}." in key:
                    parameter.normal_(std=0.2)
    model.save_pretrained(folder)
    for name in ("first", "second"):
        options += ["--adapter", f"{folder / name}={name}"]
    rows = ["second", "__base__", "first"]
    with torch.no_grad():
        expected = model.eval()(**batch, adapter_names=rows).logits
    found = tool.forward(
        GOLDENS / "llama" / "model", batch, *options, "--rows", ",".join(rows)
    )["logits"]
    error = relative(visible(found, batch), visible(expected, batch))
    report.add("llama", "a mixed batch: --rows", error, LOGITS)
