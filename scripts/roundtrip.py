#!/usr/bin/env python3
"""Live round trip between this package's `peft` tool and Python's peft, on real models.

For all-MiniLM-L6-v2 (a classifier with 77 labels) and stories260k (a causal language model):
adapters made by peft give the same logits, losses and gradients in the tool; ten steps of
`peft train` give torch's losses; the adapter that the tool saves loads in peft and gives the same
logits. So does what `peft combine` makes of two adapters (roundtrip_combine.py). Also the models
themselves, against the reference.json beside them. Then every setting of
LoRA that the tool takes, one by one on the goldens' models (roundtrip_fields.py): peft's adapter in
the tool, active and merged, and the tool's in peft; what the tool refuses must be refused by name,
and is shown so. Then every initialisation (roundtrip_inits.py), every task type
(roundtrip_tasks.py), and EDoRA and LoRA-XS adapters of the tool that `peft convert` turns into what
peft can load (roundtrip_methods.py). With `--layer-runner`, every layer type by itself
(roundtrip_layers.py).

    python scripts/roundtrip.py --peft-binary .build/release/peft --data ../shared/data

Needs the versions in Tests/Goldens/requirements.txt. Prints a table; the exit status is 1 when any
row fails.
"""

import argparse
import csv
import json
import os
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import roundtrip_methods  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from peft import (  # noqa: E402
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402
from transformers import AutoModel, AutoModelForCausalLM  # noqa: E402
from transformers import AutoModelForSequenceClassification  # noqa: E402

import roundtrip_combine  # noqa: E402
import roundtrip_fields  # noqa: E402
import roundtrip_inits  # noqa: E402
import roundtrip_layers  # noqa: E402
import roundtrip_tasks  # noqa: E402
from roundtrip_support import (  # noqa: E402
    Report,
    Tool,
    check_keys,
    check_loading,
    guarded,
    relative,
    visible,
    worst,
)

LOGITS, GRADIENTS, LOSSES = 1e-5, 1e-4, 1e-4  # relative to the largest value of the reference
STEPS, BATCH = 10, 4
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.01
LABELS = 77


@dataclass
class Subject:
    """A model of the data folder and how peft and the tool are to treat it."""

    name: str
    path: Path
    task: str
    model_class: type
    # First and second adapter: a SEQ_CLS adapter brings its classifier, and as peft refuses two of
    # them together, the second one is made without.
    first: dict
    second: dict
    # Overrides of config.json that switch dropout off for training.
    model_config: dict

    @property
    def is_classifier(self) -> bool:
        return self.task == "SEQ_CLS"

    @property
    def method(self) -> str:
        """The first adapter's, as the tool calls it."""
        return "dora" if self.first.get("use_dora") else "lora"

    def base(self, path: Path | None = None):
        # A head that the folder lacks is random, but always the same.
        torch.manual_seed(77)
        extra = {"num_labels": LABELS} if self.is_classifier else {}
        return self.model_class.from_pretrained(path or self.path, **extra).eval()

    def load(self, *adapters: Path, path: Path | None = None) -> PeftModel:
        """The base with adapters, all of them active."""
        model = PeftModel.from_pretrained(
            self.base(path), str(adapters[0]), adapter_name=adapters[0].name, is_trainable=True
        )
        for adapter in adapters[1:]:
            # `load_adapter` of a classifier model would add a second classifier.
            config = LoraConfig.from_pretrained(str(adapter))
            PeftModel.add_adapter(model, adapter.name, config)
            weights = load_file(adapter / "adapter_model.safetensors")
            set_peft_model_state_dict(model, weights, adapter_name=adapter.name)
        if len(adapters) > 1:
            model.base_model.set_adapter([adapter.name for adapter in adapters])
        return model.eval()


def subjects(data: Path) -> list[Subject]:
    projections = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    found = [
        Subject(
            name="minilm",
            path=data / "minilm-l6-v2",
            task="SEQ_CLS",
            model_class=AutoModelForSequenceClassification,
            first=dict(
                task_type="SEQ_CLS",
                r=8,
                lora_alpha=16,
                target_modules=["query", "key", "value", "dense"],
            ),
            second=dict(
                task_type="FEATURE_EXTRACTION",
                r=4,
                lora_alpha=6,
                use_rslora=True,
                rank_pattern={"layer.2.attention.self.query": 6},
                target_modules=["query", "value", "intermediate.dense"],
            ),
            model_config={"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
        ),
        Subject(
            name="stories260k",
            path=data / "stories260k",
            task="CAUSAL_LM",
            model_class=AutoModelForCausalLM,
            first=dict(
                task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=projections
            ),
            second=dict(
                task_type="CAUSAL_LM",
                r=4,
                lora_alpha=6,
                use_rslora=True,
                alpha_pattern={r"layers\.0\..*": 3},
                target_modules=["q_proj", "v_proj", "up_proj"],
            ),
            model_config={"attention_dropout": 0.0},
        ),
    ]
    # The second adapter stays LoRA: with two of DoRA, peft's output depends on their order.
    return found + [
        replace(one, name=f"{one.name}-dora", first={**one.first, "use_dora": True})
        for one in found
    ]


# -- Inputs


def sentences(data: Path, count: int) -> list[tuple[str, int]]:
    """Customers' questions of banking77 with the numbers of their intents, spread over the file."""
    names = json.loads((data / "banking77" / "categories.json").read_text())
    with open(data / "banking77" / "test.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    step = len(rows) // count
    return [(row["text"], names.index(row["category"])) for row in rows[::step][:count]]


def examples(subject: Subject, data: Path, count: int) -> list[dict]:
    """Rows of `tokens` data: input_ids with a label or with labels."""
    tokenizer = Tokenizer.from_file(str(subject.path / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    rows = []
    for text, label in sentences(data, count):
        ids = tokenizer.encode(text).ids[:96]
        # A few tokens without a label, as a prompt would be.
        extra = {"label": label} if subject.is_classifier else {"labels": [-100] * 3 + ids[3:]}
        rows.append({"input_ids": ids, **extra})
    return rows


def padded(rows: list[dict]) -> dict[str, torch.Tensor]:
    """One right-padded batch."""
    width = max(len(row["input_ids"]) for row in rows)

    def stack(key: str, padding: int) -> torch.Tensor:
        return torch.tensor([row[key] + [padding] * (width - len(row[key])) for row in rows])

    ids = stack("input_ids", 0)
    mask = torch.tensor([[int(i < len(row["input_ids"])) for i in range(width)] for row in rows])
    if "label" in rows[0]:
        labels = torch.tensor([row["label"] for row in rows])
    else:
        labels = stack("labels", -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


# -- Adapters


def make_adapter(subject: Subject, settings: dict, folder: Path, seed: int) -> Path:
    """An adapter of peft with random A, B and classifier, which changes the output clearly."""
    model = get_peft_model(subject.base(), LoraConfig(**settings))
    torch.manual_seed(seed)  # the base seeds too
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            if "magnitude" in name:
                parameter.mul_(1 + 0.2 * torch.randn_like(parameter))
            elif "lora_A" in name:
                parameter.normal_(std=parameter.shape[1] ** -0.5)
            elif "lora_B" in name:
                parameter.normal_(std=0.05)
            else:
                parameter.normal_(std=0.1)
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder


def make_adapters(subject: Subject, tool: Tool) -> tuple[Path, Path]:
    folder = tool.folder / subject.name
    return (
        make_adapter(subject, subject.first, folder / "first", seed=1),
        make_adapter(subject, subject.second, folder / "second", seed=2),
    )


# -- Checks


def check_hidden_states(data: Path, tool: Tool, report: Report) -> None:
    """MiniLM against transformers and against its reference.json."""
    path = data / "minilm-l6-v2"
    items = json.loads((path / "reference.json").read_text())["items"]
    inputs = padded([{"input_ids": item["ids"], "label": 0} for item in items])
    del inputs["labels"]
    output = tool.forward(path, inputs, "--task", "FEATURE_EXTRACTION")["last_hidden_state"]
    with torch.no_grad():
        reference = AutoModel.from_pretrained(path).eval()(**inputs).last_hidden_state
    mask = inputs["attention_mask"].bool()
    error = (output - reference)[mask].abs().max().item()
    report.add("minilm", "hidden states, transformers (absolute)", error, 1e-5)

    first = torch.tensor([item["cls_hidden_first8"] for item in items])
    error = (output[:, 0, :8] - first).abs().max().item()
    report.add("minilm", "hidden states, reference.json (absolute)", error, 1e-5)
    weights = mask.unsqueeze(-1).float()
    means = (output * weights).sum(1) / weights.sum(1)
    embeddings = torch.tensor([item["embedding"] for item in items])
    found = torch.nn.functional.normalize(means, dim=1)
    error = (found - embeddings).abs().max().item()
    report.add("minilm", "embeddings, reference.json (absolute)", error, 1e-5)


def check_stories(data: Path, tool: Tool, report: Report) -> None:
    """stories260k against its reference.json: logits, likelihood and the greedy continuation."""
    path = data / "stories260k"
    reference = json.loads((path / "reference.json").read_text())
    ids = torch.tensor([reference["forward"]["ids"]])
    output = tool.forward(path, {"input_ids": ids, "labels": ids.clone()})
    for position, key in ((0, "logits_first"), (-1, "logits_last")):
        expected = torch.tensor(reference["forward"][key])
        error = (output["logits"][0, position] - expected).abs().max().item()
        report.add("stories260k", f"{key}, reference.json (absolute)", error, 1e-4)
    error = abs(output["loss"].item() - reference["forward"]["mean_nll"])
    report.add("stories260k", "mean loss, reference.json (absolute)", error, 1e-4)

    greedy = reference["greedy"]["ids"]
    prompt = len(next(e for e in reference["encode"] if e["text"] == "Once upon a time")["ids"])
    logits = tool.forward(path, {"input_ids": torch.tensor([greedy[:-1]])})["logits"][0]
    right = int((logits[prompt - 1 :].argmax(-1) == torch.tensor(greedy[prompt:])).sum())
    wanted = len(greedy) - prompt
    report.add_fact("stories260k", "greedy tokens, forward", f"{right}/{wanted}", right == wanted)

    arguments = ["--prompt", "Once upon a time", "--max-new-tokens", wanted, "--temperature", 0]
    text = tool.run("generate", "--model", path, *arguments)
    same = reference["greedy"]["text"].removeprefix("Once upon a time") in text
    report.add_fact("stories260k", "greedy text, generate", "same" if same else "differs", same)


def check_modes(subject: Subject, adapters, data: Path, tool: Tool, report: Report) -> None:
    """Logits and losses with adapters that peft made."""
    first, second = adapters
    inputs = padded(examples(subject, data, 8))
    one = ["--task", subject.task, "--adapter", f"{first}=first"]
    two = [*one, "--adapter", f"{second}=second", "--active", "first,second"]

    def compare(check: str, model, output: dict) -> None:
        with torch.no_grad():
            reference = model(**inputs)
        error = relative(visible(output["logits"], inputs), visible(reference.logits, inputs))
        report.add(subject.name, f"logits, {check}", error, LOGITS)
        report.add(
            subject.name, f"loss, {check}", relative(output["loss"], reference.loss), LOGITS
        )

    forward = lambda *options: tool.forward(subject.path, inputs, *options)  # noqa: E731
    compare("active", subject.load(first), forward(*one))
    compare("merged", subject.load(first).merge_and_unload(), forward(*one, "--merge"))
    compare("two active", subject.load(first, second), forward(*two))
    merged = subject.load(first, second).merge_and_unload(adapter_names=["first", "second"])
    compare("two merged", merged, forward(*two, "--merge"))

    # MiniLM's folder has no classifier, so with the adapter off there would be nothing to compare:
    # the base is saved with one.
    base = subject.path
    if subject.is_classifier:
        base = tool.folder / subject.name / "base"
        subject.base().save_pretrained(base)
        model = subject.load(first, path=base)
        compare("active, saved base", model, tool.forward(base, inputs, *one))
    model = subject.load(first, path=base)
    with model.disable_adapter():
        compare("disabled", model, tool.forward(base, inputs, *one, "--active", ""))


def check_gradients(subject: Subject, adapter: Path, data, tool: Tool, report: Report) -> None:
    inputs = padded(examples(subject, data, 8))
    options = ["--task", subject.task, "--adapter", f"{adapter}={adapter.name}"]
    _, found = tool.forward(subject.path, inputs, *options, gradients=True)
    model = subject.load(adapter)
    model(**inputs).loss.backward()
    state = {key: torch.zeros(0) for key in model.state_dict()}
    state |= {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    reference = get_peft_model_state_dict(
        model, state_dict=state, adapter_name=adapter.name, save_embedding_layers=False
    )
    check_keys(subject.name, "gradients", set(found), set(reference), report)
    errors = {key: relative(found[key], reference[key]) for key in reference if key in found}
    what = f"gradients of {len(errors)} tensors, the worst"
    report.add(subject.name, what, worst(errors.values()), GRADIENTS)


def check_combinations(subject: Subject, adapters, data, tool: Tool, report: Report) -> None:
    def make(settings: dict, name: str, seed: int) -> Path:
        return make_adapter(subject, settings, tool.folder / subject.name / name, seed)

    inputs = padded(examples(subject, data, 8))
    roundtrip_combine.check(subject, adapters, make, inputs, tool, report)


def check_training(subject: Subject, start: Path, data: Path, tool: Tool, report: Report) -> None:
    """Ten steps of AdamW from the same adapter, on the same batches, in the same order."""
    rows = examples(subject, data, STEPS * BATCH)
    folder = tool.folder / subject.name
    train_file = folder / "train.jsonl"
    train_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = folder / "trained"
    run = {
        "model": str(subject.path),
        "task_type": subject.task,
        "model_config": subject.model_config,
        "train_file": str(train_file),
        "data_format": "tokens",
        "method": subject.method,
        "init_adapter": str(start),
        "output_dir": str(output),
        "num_train_epochs": 1,
        "max_steps": STEPS,
        "per_device_train_batch_size": BATCH,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        # torch's AdamW decays every tensor, a classifier's bias included.
        "parameter_groups": [{"pattern": ".", "weight_decay": WEIGHT_DECAY}],
        "max_grad_norm": 0,
        "shuffle": False,
        "seed": 0,
        "eval_strategy": "no",
        "save_strategy": "no",
        "logging_steps": 1,
    }
    if subject.is_classifier:
        run["labels"] = [f"LABEL_{i}" for i in range(LABELS)]
    config = folder / "run.yaml"
    config.write_text(json.dumps(run, indent=2))  # JSON is YAML
    tool.run("train", "--config", config)

    model = subject.load(start)  # evaluation mode: no dropout here either
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    expected = []
    for step in range(STEPS):
        loss = model(**padded(rows[step * BATCH : (step + 1) * BATCH])).loss
        loss.backward()
        expected.append(loss.item())
        optimiser.step()
        optimiser.zero_grad()

    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    report.add_fact(
        subject.name, "steps in metrics.jsonl", f"{len(losses)}/{STEPS}", len(losses) == STEPS
    )
    errors = [abs(a - b) / abs(b) for a, b in zip(losses, expected)]
    report.add(subject.name, "losses of ten steps", worst(errors), LOSSES)
    check_saved(subject, data, tool, report, output, model)


def check_saved(subject, data, tool: Tool, report: Report, saved: Path, trained) -> None:
    """The adapter that the tool saved, in peft."""
    config = LoraConfig.from_pretrained(str(saved))
    expected = LoraConfig(**subject.first)
    fields = ["r", "lora_alpha", "target_modules", "use_rslora", "use_dora"]
    fields += ["peft_type", "task_type"]
    same = all(getattr(config, field) == getattr(expected, field) for field in fields)
    report.add_fact(subject.name, "saved configuration", "same" if same else "differs", same)

    check_loading(subject, "the saved adapter", saved, report)

    inputs = padded(examples(subject, data, 8))
    with torch.no_grad():
        reference = subject.load(saved)(**inputs).logits
        torch_trained = trained(**inputs).logits
    found = tool.forward(
        subject.path, inputs, "--task", subject.task, "--adapter", f"{saved}=saved"
    )["logits"]
    reference, torch_trained, found = (
        visible(logits, inputs) for logits in (reference, torch_trained, found)
    )
    report.add(subject.name, "logits, saved adapter", relative(found, reference), LOGITS)
    # AdamW moves an element with a tiny gradient as far as any other, so rounding shows here more
    # than in the losses.
    error = relative(found, torch_trained)
    report.add(subject.name, "logits, after torch's own training", error, 1e-3)


# -- All of it


def check_subject(subject: Subject, data: Path, tool: Tool, report: Report) -> None:
    first, second = adapters = make_adapters(subject, tool)
    part = lambda what, body: guarded(report, subject.name, what, body)  # noqa: E731
    if subject.method == "lora":
        reference = check_hidden_states if subject.is_classifier else check_stories
        part("the model itself", lambda: reference(data, tool, report))
    part("active and merged", lambda: check_modes(subject, adapters, data, tool, report))
    part("gradients", lambda: check_gradients(subject, first, data, tool, report))
    part("training", lambda: check_training(subject, first, data, tool, report))
    if subject.method == "lora":
        part("combine", lambda: check_combinations(subject, adapters, data, tool, report))


def check_methods(subject: Subject, data: Path, tool: Tool, report: Report) -> None:
    if subject.method == "lora":
        roundtrip_methods.check(subject, examples(subject, data, 8), tool, report)
    elif not subject.is_classifier:
        halved = {**subject.first, "lora_alpha": 8}
        pair = [
            make_adapter(subject, halved, tool.folder / f"order-{seed}", seed) for seed in (1, 2)
        ]
        inputs = roundtrip_methods.padded(examples(subject, data, 8))
        roundtrip_methods.check_order(subject, pair, inputs, tool, report)


def check_inits(subject: Subject, data: Path, tool: Tool, report: Report) -> None:
    if subject.method == "lora":
        rows = examples(subject, data, 12)
        roundtrip_inits.check(subject, rows, padded(rows[:8]), tool, report)


def check_fields(wanted: str, tool: Tool, report: Report) -> None:
    for case in roundtrip_fields.cases():
        if wanted in case.name:
            roundtrip_fields.check(case, tool, report)
    part = lambda what, body: guarded(report, "llama", what, body)  # noqa: E731
    part("refused settings", lambda: roundtrip_fields.check_refused(tool, report))
    part("a mixed batch: --rows", lambda: roundtrip_fields.check_rows(tool, report))


def check_all(options, data: Path, tool: Tool, report: Report) -> None:
    """Every part that is wanted; one that fails does not keep the others from being tried."""
    wanted = options.models.split(",")

    def part(model: str, what: str, check, *arguments) -> None:
        guarded(report, model, what, lambda: check(*arguments, tool, report))

    for subject in subjects(data):
        if subject.name in wanted:
            part(subject.name, "making adapters", check_subject, subject, data)
    if "methods" in wanted:
        for subject in subjects(data):
            part(subject.name, "methods", check_methods, subject, data)
    if "inits" in wanted:
        for subject in subjects(data):
            part(subject.name, "initialisations", check_inits, subject, data)
    if "fields" in wanted:
        part("goldens", "fields", check_fields, options.fields)
    if "tasks" in wanted:
        part("goldens", "tasks", roundtrip_tasks.check)
    if options.layer_runner:
        runner = options.layer_runner.resolve()
        part("goldens", "layers", roundtrip_layers.check_layers, runner)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peft-binary", type=Path, required=True)
    parser.add_argument("--layer-runner", type=Path, help="the binary of that name: single layers")
    parser.add_argument("--data", type=Path, default=os.environ.get("PEFT_TEST_DATA"))
    names = "minilm,stories260k,minilm-dora,stories260k-dora,methods,inits,fields,tasks"
    parser.add_argument("--models", default=names, help="comma-separated")
    parser.add_argument("--fields", default="", help="only settings with this in their name")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="leave what is made in a new folder in this one")
    options = parser.parse_args()
    if options.data is None:
        parser.error("--data is needed (or PEFT_TEST_DATA)")
    if not options.peft_binary.is_file():
        parser.error(f"no such binary: {options.peft_binary}")

    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    report = Report()
    try:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            if options.keep:
                # A new one each time: nothing of an earlier run can stand in for what failed.
                options.keep.mkdir(parents=True, exist_ok=True)
                folder = Path(tempfile.mkdtemp(prefix="run-", dir=options.keep))
                print(f"working in {folder}", file=sys.stderr)
            tool = Tool(options.peft_binary.resolve(), folder.resolve(), options.threads)
            check_all(options, options.data.resolve(), tool, report)
    finally:
        report.print()
    if not report.rows:
        sys.exit("nothing was checked")
    if report.failures:
        sys.exit(f"{report.failures} of {len(report.rows)} checks failed")


if __name__ == "__main__":
    main()
