"""The forms that adapter and model files come in, over one tiny model."""

import collections
import json
import os
import pickle
import shutil
import warnings
import zipfile
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from .fields import randomise
from .toys import compact, numbers, save

FOLDER = Path("files")
SEED = 2001
LORA = dict(
    task_type="CAUSAL_LM",
    r=3,
    lora_alpha=5,
    target_modules=["q_proj", "v_proj", "down_proj"],
)


def new_model() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(SEED)
    model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    randomise(model, SEED)
    return model


def base(name: str = "model") -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(FOLDER / name, dtype=torch.float32).eval()


INPUT = torch.tensor([[5, 17, 30, 2, 9], [39, 3, 3, 11, 28]])


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=INPUT).logits


def adapter(seed: int, name: str = "default", **options) -> PeftModel:
    torch.manual_seed(seed)
    model = get_peft_model(base(), LoraConfig(**LORA | options), adapter_name=name).eval()
    randomise(model, seed)
    return model


def loaded(folder: Path, name: str = "default") -> torch.Tensor:
    return logits(PeftModel.from_pretrained(base(), str(folder), adapter_name=name).eval())


def tidy(folder: Path) -> None:
    """Without the card, which is in `card` once."""
    for card in folder.rglob("README.md"):
        card.unlink()


# -- Adapters


def make_adapters(found: dict[str, torch.Tensor], record: dict) -> None:
    def note(name: str, folder: str, about: str, adapter_name: str = "default") -> None:
        found[f"logits.{name}"] = loaded(FOLDER / folder, adapter_name)
        record[name] = {"folder": folder, "about": about}

    model = adapter(SEED + 1)
    model.save_pretrained(FOLDER / "card")
    shutil.copytree(FOLDER / "card", FOLDER / "plain")
    tidy(FOLDER / "plain")
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        (FOLDER / "card" / file).unlink()
    note("plain", "plain", "as peft saves it")

    model.save_pretrained(FOLDER / "bin", safe_serialization=False)
    tidy(FOLDER / "bin")
    note("bin", "bin", "the same tensors as adapter_model.bin")

    for kind in ("bfloat16", "float16"):
        folder = FOLDER / kind
        shutil.copytree(FOLDER / "plain", folder)
        tensors = load_file(folder / "adapter_model.safetensors")
        short = {key: value.to(getattr(torch, kind)) for key, value in tensors.items()}
        save_file(short, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        note(kind, kind, f"the same in {kind}; widened to f32 on loading")
    shutil.copytree(FOLDER / "bin", FOLDER / "bin-bfloat16")
    tensors = torch.load(FOLDER / "bin" / "adapter_model.bin", weights_only=True)
    short = {key: value.to(torch.bfloat16) for key, value in tensors.items()}
    torch.save(short, FOLDER / "bin-bfloat16" / "adapter_model.bin")
    note("bin-bfloat16", "bin-bfloat16", "bfloat16 tensors in adapter_model.bin")

    # Each saved by itself, so that peft loses none of its keys.
    for index, name in enumerate(("mlp", "0", "lora_A", "weight", "model", "self_attn")):
        adapter(SEED + 10 + index, name).save_pretrained(FOLDER / "named")
        tidy(FOLDER / "named")
        note(f"named-{name}", f"named/{name}", "in the subfolder of its name", name)

    model = adapter(SEED + 30, "default")
    torch.manual_seed(1)
    model.add_adapter("other", LoraConfig(**LORA | dict(r=2, target_modules=["o_proj"])))
    model.set_adapter("other")
    randomise(model, SEED + 31)
    model.save_pretrained(FOLDER / "several")
    tidy(FOLDER / "several")
    note("several", "several", "the default adapter in the folder itself")
    note("several-other", "several/other", "another one below it", "other")

    # What older versions wrote: fewer keys, some unknown today, target_modules in any order.
    shutil.copytree(FOLDER / "plain", FOLDER / "old")
    settings = {
        "base_model_name_or_path": "somewhere/else",
        "bias": "none",
        "enable_lora": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": 5,
        "lora_dropout": 0.05,
        "merge_weights": False,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": 3,
        "target_modules": ["v_proj", "down_proj", "q_proj"],
        "task_type": "CAUSAL_LM",
    }
    text = json.dumps(settings, indent=2)
    (FOLDER / "old" / "adapter_config.json").write_text(text)
    note("old", "old", "a configuration of an old version, with keys of its own")


def make_seq2seq() -> None:
    """An adapter of an encoder-decoder: files alone, for its settings and keys."""
    torch.manual_seed(SEED + 40)
    sizes = dict(vocab_size=20, d_model=8, d_kv=4, d_ff=12, num_layers=1, num_heads=2)
    model = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0))
    model = get_peft_model(
        model, LoraConfig(task_type="SEQ_2_SEQ_LM", r=2, lora_alpha=6, lora_dropout=0.1)
    )
    randomise(model, SEED + 40)
    model.save_pretrained(FOLDER / "seq2seq")
    tidy(FOLDER / "seq2seq")


# -- Pickles


class Call:
    """Pickles as a call of something that a reader must not call."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def make_pickles() -> None:
    folder = FOLDER / "pickles"
    folder.mkdir()
    contents: dict[str, torch.Tensor] = {}
    record: dict[str, dict] = {}

    def keep(name: str, state: dict, about: str, **options) -> None:
        torch.save(state, folder / f"{name}.bin", **options)
        record[name] = {"about": about, "readable": True, "keys": list(state)}
        for key, value in state.items():
            if isinstance(value, torch.Tensor):
                contents[f"{name}.{key}"] = value

    matrix = numbers(1, 4, 6)
    keep("plain", {"a": matrix, "b": numbers(2, 3)}, "two tensors")
    ordered = collections.OrderedDict([("z", numbers(3, 2, 2)), ("a", numbers(4, 1))])
    ordered._metadata = collections.OrderedDict([("", {"version": 1})])
    keep("ordered", ordered, "an OrderedDict with an attribute, as state_dict() gives it")
    keep(
        "parameters",
        {"a": nn.Parameter(matrix.clone()), "b": nn.Parameter(numbers(5, 3), requires_grad=False)},
        "parameters instead of tensors",
    )
    keep(
        "views",
        {
            "transposed": matrix.T,
            "rows": matrix[1:3],
            "columns": matrix[:, 2:5],
            "steps": matrix[::2, ::3],
            "expanded": numbers(6, 1, 3).expand(4, 3),
        },
        "views of one storage: strides and offsets",
    )
    keep(
        "kinds",
        {
            "f64": numbers(7, 3).double(),
            "f32": numbers(7, 3),
            "f16": numbers(7, 3).half(),
            "bf16": numbers(7, 3).bfloat16(),
            "i64": torch.tensor([1, -2, 2**40]),
            "i32": torch.tensor([1, -2], dtype=torch.int32),
            "i16": torch.tensor([1, -2], dtype=torch.int16),
            "i8": torch.tensor([1, -2], dtype=torch.int8),
            "u8": torch.tensor([1, 254], dtype=torch.uint8),
            "bool": torch.tensor([True, False]),
        },
        "every common type of number",
    )
    keep(
        "shapes",
        {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4), "deep": numbers(8, 1, 2, 1, 3)},
        "no dimension, no element, many dimensions",
    )
    long = {f"key.{i}": numbers(100 + i, 2) for i in range(300)}
    keep("many", long, "three hundred keys: long opcodes for memo and count")
    contents = {k: v for k, v in contents.items() if not k.startswith("many.key.") or "key.29" in k}
    for protocol in (3, 4, 5):
        keep(
            f"protocol-{protocol}",
            {"a": matrix},
            f"pickle protocol {protocol} (torch writes 2)",
            pickle_protocol=protocol,
        )
    keep(
        "extras",
        {"a": matrix, "step": 7, "rate": 0.5, "name": "x", "list": [1, 2.5, None, True]},
        "values that are no tensors",
    )
    nested = {"model": {"a": matrix}, "step": 3}
    torch.save(nested, folder / "nested.bin")
    record["nested"] = {
        "about": "a dictionary in a dictionary, tensors at model.a",
        "readable": True,
        "keys": ["model", "step"],
    }
    contents["nested.model.a"] = matrix

    def refuse(name: str, about: str) -> None:
        record[name] = {"about": about, "readable": False}

    torch.save({"a": Call(os.getcwd)}, folder / "call.bin")
    refuse("call", "calls os.getcwd: must be refused before anything is called")
    torch.save({"a": Call(eval, "1 + 1")}, folder / "eval.bin")
    refuse("eval", "calls builtins.eval")
    torch.save(nn.Linear(2, 2), folder / "module.bin")
    refuse("module", "a whole module instead of tensors")
    torch.save({"a": matrix}, folder / "legacy.bin", _use_new_zipfile_serialization=False)
    refuse("legacy", "torch's format before 1.6, no zip; may be read, must not be misread")
    (folder / "bare.bin").write_bytes(pickle.dumps({"a": 1}, protocol=2))
    refuse("bare", "a pickle without a zip around it")
    whole = (folder / "plain.bin").read_bytes()
    (folder / "cut.bin").write_bytes(whole[: len(whole) // 2])
    refuse("cut", "the first half of plain.bin")
    (folder / "empty.bin").write_bytes(b"")
    refuse("empty", "no bytes at all")

    def rewritten(name: str, change) -> None:
        """plain.bin with the contents of its members changed."""
        with zipfile.ZipFile(folder / "plain.bin") as old:
            members = {info.filename: old.read(info) for info in old.infolist()}
        with zipfile.ZipFile(folder / f"{name}.bin", "w") as new:
            for member, content in change(members).items():
                info = zipfile.ZipInfo(member, (1980, 1, 1, 0, 0, 0))
                new.writestr(info, content)

    data = "plain/data/0"
    rewritten("short-storage", lambda old: old | {data: old[data][:-4]})
    refuse("short-storage", "a storage four bytes shorter than its tensor needs")
    rewritten("no-storage", lambda old: {k: v for k, v in old.items() if k != data})
    refuse("no-storage", "a storage that is not in the zip")
    rewritten("no-pickle", lambda old: {k: v for k, v in old.items() if "data.pkl" not in k})
    refuse("no-pickle", "a zip without data.pkl")
    rewritten("cut-pickle", lambda old: old | {"plain/data.pkl": old["plain/data.pkl"][:60]})
    refuse("cut-pickle", "data.pkl ends in the middle")

    def big_endian(old: dict[str, bytes]) -> dict[str, bytes]:
        return old | {"plain/byteorder": b"big"}

    rewritten("big-endian", big_endian)
    refuse("big-endian", "says that its numbers are big-endian")

    # A size times a stride beyond the storage, and beyond 64 bits.
    for name, size in (("beyond", 5), ("overflow", 2**62)):

        def resized(old, size=size):
            text = old["plain/data.pkl"]
            # The first tensor's size (4, 6) is written as BININT1 4, BININT1 6, TUPLE2.
            small = b"K\x04K\x06\x86"
            assert text.count(small) == 1
            number = b"K\x05" if size == 5 else b"\x8a\x08" + size.to_bytes(8, "little")
            return old | {"plain/data.pkl": text.replace(small, number + b"K\x06\x86")}

        rewritten(name, resized)
        refuse(name, "a size that its storage does not hold")

    save(contents, FOLDER / "pickles.safetensors")
    (FOLDER / "pickles.json").write_text(compact(record))


# -- Bases


def make_bases(found: dict[str, torch.Tensor], record: dict) -> None:
    new_model().save_pretrained(FOLDER / "model")
    base().save_pretrained(FOLDER / "sharded", max_shard_size="6KB")
    found["logits.base"] = logits(base())
    found["logits.sharded"] = logits(base("sharded"))
    assert torch.equal(found["logits.base"], found["logits.sharded"])
    shards = sorted(path.name for path in (FOLDER / "sharded").glob("*.safetensors"))
    record["sharded"] = {"folder": "sharded", "shards": shards, "about": "the model in shards"}
    # The same with pickled weights, as older repositories have them.
    (FOLDER / "pickled").mkdir()
    shutil.copy(FOLDER / "model" / "config.json", FOLDER / "pickled")
    state = {k: v.clone().to(torch.bfloat16) for k, v in base().state_dict().items()}
    torch.save(state, FOLDER / "pickled" / "pytorch_model.bin")
    short = base()
    short.load_state_dict(state)
    found["logits.pickled"] = logits(short)
    record["pickled"] = {"folder": "pickled", "about": "bfloat16 weights in pytorch_model.bin"}


def make() -> None:
    if FOLDER.exists():
        shutil.rmtree(FOLDER)
    FOLDER.mkdir()
    found: dict[str, torch.Tensor] = {"input_ids": INPUT}
    record: dict = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make_bases(found, record)
        make_adapters(found, record)
        make_seq2seq()
        make_pickles()
    save(found, FOLDER / "expected.safetensors")
    (FOLDER / "cases.json").write_text(compact(record))
