"""Tiny seeded models with LoRA adapters, and what peft computes with them."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

STEPS = 10
LEARNING_RATE = 1e-2
WEIGHT_DECAY = 0.01


def randomise(parameters, seed: int) -> None:
    """Fills parameters so that none is trivial: norms around 1, biases around 0, matrices such
    that activations keep their size from layer to layer."""
    generator = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in parameters:
            noise = generator.standard_normal(tuple(parameter.shape))
            if name.endswith("bias"):
                noise = 0.1 * noise
            elif parameter.dim() == 1:
                noise = 1 + 0.2 * noise
            elif "embed" in name:
                noise = 0.5 * noise
            else:
                noise = noise / np.sqrt(parameter.shape[1])
            parameter.copy_(torch.from_numpy(noise.astype(np.float32)))


@dataclass
class Case:
    """One model with its adapters and inputs."""

    name: str
    model_class: type
    config: object
    seed: int
    # Adapter letter -> its configuration.
    adapters: dict[str, dict]
    # The two adapters that are active together, in this order.
    together: tuple[str, str] | None
    # Adapter that ten steps of training start from; None where there is no loss.
    trained: str | None = "a"
    lengths: tuple[int, ...] = (9, 4, 7)
    has_segments: bool = False
    num_labels: int = 0
    # Another class (and configuration) that an adapter is made on, where it is not the model's own.
    adapter_classes: dict[str, tuple[type, object]] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return Path(self.name)

    # -- Making

    def make(self) -> None:
        if self.folder.exists():
            shutil.rmtree(self.folder)
        self.folder.mkdir()
        torch.manual_seed(self.seed)
        model = self.model_class(self.config).eval()
        randomise(model.named_parameters(), self.seed)
        model.save_pretrained(self.folder / "model")
        for index, letter in enumerate(self.adapters):
            self.make_adapter(letter, self.seed + 100 * (index + 1))

        inputs = self.batch(self.lengths, self.seed + 1)
        save_file(inputs, self.folder / "input.safetensors")
        expected = self.expected(inputs)
        save_file(
            {key: value.detach().float().contiguous() for key, value in expected.items()},
            self.folder / "expected.safetensors",
        )
        if self.trained:
            self.train()

    def base(self, letter: str | None = None):
        """A fresh base model, read from the files as a user's would be."""
        model_class, config = self.adapter_classes.get(letter, (self.model_class, None))
        extra = {"config": config} if config is not None else {}
        # A head that the base does not have comes from the adapter; seeded for good measure.
        torch.manual_seed(self.seed)
        return model_class.from_pretrained(self.folder / "model", **extra).eval()

    def make_adapter(self, letter: str, seed: int) -> None:
        model = get_peft_model(self.base(letter), LoraConfig(**self.adapters[letter]))
        randomise([(n, p) for n, p in model.named_parameters() if p.requires_grad], seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:  # an effect that is clear, and smaller than the base's
                    parameter.mul_(0.6)
        target = self.folder / f"adapter_{letter}"
        model.save_pretrained(target, save_embedding_layers=False)
        (target / "README.md").unlink()

    def batch(self, lengths: tuple[int, ...], seed: int) -> dict[str, torch.Tensor]:
        """Rows of the given lengths, padded on the right with token 0."""
        generator = np.random.default_rng(seed)
        shape = (len(lengths), max(lengths))
        ids, mask, segments = (np.zeros(shape, np.int64) for _ in range(3))
        labels = np.full(shape, -100, np.int64)
        for row, length in enumerate(lengths):
            ids[row, :length] = generator.integers(1, self.config.vocab_size, length)
            mask[row, :length] = 1
            segments[row, length // 2 : length] = 1
            # The first tokens of a row are a prompt that carries no label.
            labels[row, row % 3 : length] = ids[row, row % 3 : length]
        batch = {"input_ids": ids, "attention_mask": mask}
        if self.has_segments:
            batch["token_type_ids"] = segments
        if self.num_labels:
            batch["labels"] = generator.integers(0, self.num_labels, len(lengths))
        elif self.trained:
            batch["labels"] = labels
        return {key: torch.from_numpy(value) for key, value in batch.items()}

    # -- Loading, as peft does

    def with_adapter(self, letter: str) -> PeftModel:
        name = f"adapter_{letter}"
        path = str(self.folder / name)
        return PeftModel.from_pretrained(
            self.base(letter), path, adapter_name=name, is_trainable=True
        ).eval()

    def with_two(self) -> PeftModel:
        first, second = (f"adapter_{letter}" for letter in self.together)
        model = self.with_adapter(self.together[0])
        path = self.folder / second
        # Not `load_adapter`: on a classifier it would give the second adapter a head of its own
        # whatever the second adapter's task is, and two heads cannot be active together.
        PeftModel.add_adapter(model, second, LoraConfig.from_pretrained(str(path)))
        result = set_peft_model_state_dict(
            model, load_file(path / "adapter_model.safetensors"), adapter_name=second
        )
        assert not result.unexpected_keys, result.unexpected_keys
        model.base_model.set_adapter([first, second])
        return model.eval()

    # -- Expected numbers

    def expected(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}

        def record(suffix: str, model) -> None:
            with torch.no_grad():
                output = model(**self.usable(inputs, model))
            if "logits" in output:
                found[f"logits.{suffix}"] = output.logits
            else:
                found[f"last_hidden_state.{suffix}"] = output.last_hidden_state
            if output.get("loss") is not None:
                found[f"loss.{suffix}"] = output.loss

        record("base", self.base())
        for letter in self.adapters:
            model = self.with_adapter(letter)
            record(letter, model)
            # A head that only the adapter holds leaves nothing to compare when it is off.
            if letter not in self.adapter_classes:
                with model.disable_adapter():
                    record(f"{letter}_disabled", model)
            self.record_gradients(letter, model, inputs, found)
            record(f"{letter}_merged", model.merge_and_unload())
        if self.together:
            record("two", self.with_two())
            model = self.with_two()
            names = [f"adapter_{letter}" for letter in self.together]
            record("two_merged", model.merge_and_unload(adapter_names=names))
        return found

    @staticmethod
    def usable(inputs: dict[str, torch.Tensor], model) -> dict[str, torch.Tensor]:
        """The inputs without labels, for a model that has no loss."""
        inner = model.get_base_model() if isinstance(model, PeftModel) else model
        if isinstance(inner, BertModel):
            return {key: value for key, value in inputs.items() if key != "labels"}
        return inputs

    def record_gradients(self, letter: str, model, inputs, found) -> None:
        model.zero_grad()
        loss = model(**self.usable(inputs, model)).get("loss")
        if loss is None:
            return
        loss.backward()
        prefix = "grad" if letter == "a" else f"grad_{letter}"
        for key, value in gradients_by_key(model, f"adapter_{letter}").items():
            found[f"{prefix}.{key}"] = value

    # -- Training

    def train(self) -> None:
        """Ten steps of AdamW on fixed batches, from the trained adapter; evaluation mode, so that
        no dropout disturbs it."""
        lengths = [(5, 8, 3), (6, 6, 6), (9, 2, 4), (3, 7, 7), (8, 5, 6)]
        batches = [
            self.batch(lengths[step % len(lengths)], self.seed + 1000 + step)
            for step in range(STEPS)
        ]
        save_file(
            {f"{i}.{key}": value for i, one in enumerate(batches) for key, value in one.items()},
            self.folder / "batches.safetensors",
        )
        model = self.with_adapter(self.trained)
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        losses, norms = [], []
        for batch in batches:
            loss = model(**batch).loss
            loss.backward()
            norms.append(torch.nn.utils.get_total_norm([p.grad for p in parameters]).item())
            losses.append(loss.item())
            optimiser.step()
            optimiser.zero_grad()
        record = {
            "adapter": f"adapter_{self.trained}",
            "optimiser": {
                "name": "AdamW",
                "lr": LEARNING_RATE,
                "weight_decay": WEIGHT_DECAY,
                "betas": [0.9, 0.999],
                "eps": 1e-8,
                "decayed": "every trainable tensor, biases too",
            },
            "losses": losses,
            "grad_norms": norms,
        }
        (self.folder / "losses.json").write_text(json.dumps(record, indent=1) + "\n")
        with torch.no_grad():
            trained = get_peft_model_state_dict(
                model, adapter_name=f"adapter_{self.trained}", save_embedding_layers=False
            )
        save_file(
            {key: value.detach().contiguous() for key, value in trained.items()},
            self.folder / "trained.safetensors",
        )


def gradients_by_key(model: PeftModel, adapter: str) -> dict[str, torch.Tensor]:
    """The gradient of each trainable tensor under the key that peft saves the tensor with."""
    state = {key: torch.zeros(0) for key in model.state_dict()}
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    state |= {name: parameter.grad for name, parameter in trainable.items()}
    named = get_peft_model_state_dict(
        model, state_dict=state, adapter_name=adapter, save_embedding_layers=False
    )
    assert len(named) == len(trainable), (sorted(named), sorted(trainable))
    return {key: value.detach().contiguous() for key, value in named.items()}


# -- The cases


def bert_config(**extra) -> BertConfig:
    return BertConfig(
        vocab_size=99,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=40,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        classifier_dropout=0.0,
        **extra,
    )


def llama_config(**extra) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=99,
        hidden_size=32,
        intermediate_size=56,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
        **extra,
    )


def cases() -> list[Case]:
    projections = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    return [
        Case(
            name="bert",
            model_class=BertForSequenceClassification,
            config=bert_config(num_labels=5),
            seed=11,
            has_segments=True,
            num_labels=5,
            adapters={
                "a": dict(
                    task_type="SEQ_CLS",
                    r=4,
                    lora_alpha=6,
                    use_rslora=True,
                    target_modules=["query", "key", "value", "dense"],
                ),
                "b": dict(
                    task_type="SEQ_CLS",
                    r=3,
                    lora_alpha=6,
                    lora_dropout=0.1,
                    target_modules=["query", "value", "output.dense"],
                    exclude_modules=["attention.output.dense"],
                    rank_pattern={"layer.1.attention.self.query": 5, r"output\.dense": 2},
                    alpha_pattern={"value": 3, "^bert.encoder.layer.2.output.dense": 8},
                ),
                # No head of its own, so that it can be active beside a classifier's adapter.
                "c": dict(
                    task_type="FEATURE_EXTRACTION",
                    r=2,
                    lora_alpha=5,
                    target_modules=["key", "query", "dense"],
                    layers_to_transform=[0, 2],
                ),
            },
            together=("a", "c"),
        ),
        Case(
            name="bert-base",
            model_class=BertModel,
            config=bert_config(),
            seed=12,
            has_segments=True,
            num_labels=4,
            trained="cls",
            adapters={
                "a": dict(
                    task_type="FEATURE_EXTRACTION",
                    r=4,
                    lora_alpha=8,
                    target_modules=["query", "key", "value", "dense"],
                ),
                "b": dict(
                    task_type="FEATURE_EXTRACTION",
                    r=2,
                    lora_alpha=6,
                    use_rslora=True,
                    target_modules=r"encoder\.layer\.\d+\.(attention\.self\.value|output\.dense)",
                ),
                # A classifier on a base that has none: the head is in the adapter alone, and the
                # keys have the `bert.` prefix that the base's own names lack.
                "cls": dict(
                    task_type="SEQ_CLS",
                    r=3,
                    lora_alpha=6,
                    target_modules=["query", "value", "dense"],
                ),
            },
            adapter_classes={
                "cls": (BertForSequenceClassification, bert_config(num_labels=4)),
            },
            together=("a", "b"),
        ),
        Case(
            name="llama",
            model_class=LlamaForCausalLM,
            config=llama_config(tie_word_embeddings=True),
            seed=13,
            adapters={
                "a": dict(
                    task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=projections
                ),
                "b": dict(
                    task_type="CAUSAL_LM",
                    r=3,
                    lora_alpha=4,
                    use_rslora=True,
                    rank_pattern={"layers.2.self_attn.q_proj": 6, "down_proj": 2},
                    alpha_pattern={"down_proj": 3},
                    target_modules=["q_proj", "v_proj", "down_proj"],
                ),
            },
            together=("a", "b"),
        ),
        Case(
            name="llama-bias",
            model_class=LlamaForCausalLM,
            config=llama_config(
                tie_word_embeddings=False,
                attention_bias=True,
                mlp_bias=True,
                rms_norm_eps=1e-5,
                rope_parameters={"rope_type": "default", "rope_theta": 500.0},
            ),
            seed=14,
            adapters={
                "a": dict(
                    task_type="CAUSAL_LM",
                    r=4,
                    lora_alpha=4,
                    use_rslora=True,
                    target_modules=r".*\.self_attn\.(q|k|v|o)_proj",
                ),
                "b": dict(
                    task_type="CAUSAL_LM",
                    r=2,
                    lora_alpha=4,
                    alpha_pattern={"gate_proj": 7},
                    target_modules="all-linear",
                ),
            },
            together=("b", "a"),
        ),
        Case(
            name="qwen2",
            model_class=Qwen2ForCausalLM,
            config=Qwen2Config(
                vocab_size=99,
                hidden_size=32,
                intermediate_size=56,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=64,
                tie_word_embeddings=True,
                rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
            ),
            seed=15,
            adapters={
                "a": dict(
                    task_type="CAUSAL_LM", r=4, lora_alpha=16, target_modules=projections
                ),
                "b": dict(
                    task_type="CAUSAL_LM",
                    r=2,
                    lora_alpha=6,
                    lora_dropout=0.2,
                    rank_pattern={"self_attn.q_proj": 3},
                    alpha_pattern={"layers.1.*": 3},
                    target_modules=["q_proj", "o_proj", "up_proj"],
                    layers_to_transform=1,
                    layers_pattern="layers",
                ),
            },
            together=("a", "b"),
        ),
    ]
