"""The peer of banking77.py: MiniLM with LoRA on banking77 in transformers and peft.

Started by banking77.py, which measures its memory; prints one JSON object.
"""

import argparse
import csv
import json
import math
import time
from pathlib import Path

import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

MAX_LENGTH = 128


def read_rows(path: Path, names: list[str]) -> tuple[list[str], list[int]]:
    numbers = {name: number for number, name in enumerate(names)}
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [row["text"] for row in rows], [numbers[row["category"]] for row in rows]


class Batches:
    """Texts with labels, tokenised once; batches are padded to their longest row."""

    def __init__(self, tokenizer, texts: list[str], labels: list[int]) -> None:
        self.tokenizer = tokenizer
        self.labels = torch.tensor(labels)
        encoded = tokenizer(texts, truncation=True, max_length=MAX_LENGTH)
        self.rows = [
            {key: encoded[key][i] for key in ("input_ids", "attention_mask")}
            for i in range(len(texts))
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: list[int]) -> dict[str, torch.Tensor]:
        rows = [self.rows[i] for i in indices]
        padded = self.tokenizer.pad(rows, padding="longest", return_tensors="pt")
        return {**padded, "labels": self.labels[indices]}


def accuracy(model, data: Batches, size: int) -> float:
    model.eval()
    right = 0
    with torch.no_grad():
        for start in range(0, len(data), size):
            batch = data.batch(list(range(start, min(start + size, len(data)))))
            labels = batch.pop("labels")
            right += int((model(**batch).logits.argmax(-1) == labels).sum())
    return right / len(data)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--warmup", type=float, default=0.06)
    parser.add_argument("--start", type=Path, help="folder that gets the new adapter and order.json")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    names = json.loads(options.labels.read_text())
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    train = Batches(tokenizer, *read_rows(options.train, names))
    test = Batches(tokenizer, *read_rows(options.test, names))

    base = AutoModelForSequenceClassification.from_pretrained(
        options.model, num_labels=len(names), dtype=torch.float32
    )
    adapters = LoraConfig(
        task_type="SEQ_CLS",
        r=8,
        lora_alpha=16,
        lora_dropout=0.0,
        target_modules=["query", "key", "value", "dense"],
    )
    model = get_peft_model(base, adapters)
    if options.start:
        model.save_pretrained(options.start)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=options.rate, weight_decay=0.0)
    per_epoch = -(-len(train) // options.batch)
    steps = per_epoch * options.epochs
    schedule = transformers.get_linear_schedule_with_warmup(
        optimiser, math.ceil(options.warmup * steps), steps
    )

    seconds, tokens, epochs = 0.0, 0, []
    for _ in range(options.epochs):
        model.train()
        order = torch.randperm(len(train)).tolist()
        if options.start and not epochs:
            (options.start / "order.json").write_text(json.dumps(order))
        total = 0.0
        start = time.perf_counter()
        for first in range(0, len(order), options.batch):
            batch = train.batch(order[first : first + options.batch])
            loss = model(**batch).loss
            loss.backward()
            optimiser.step()
            schedule.step()
            optimiser.zero_grad()
            total += loss.item()
            tokens += int(batch["attention_mask"].sum())
        seconds += time.perf_counter() - start
        epochs.append({"loss": total / per_epoch, "accuracy": accuracy(model, test, 64)})
    result = {
        "train_seconds": seconds,
        "tokens": tokens,
        "accuracy": epochs[-1]["accuracy"],
        "parameters": sum(p.numel() for p in parameters),
        "epochs": epochs,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
