#!/usr/bin/env python3
"""Writes the expected ids and texts of the tokenizer tests, as the `tokenizers` library has them.

    python3 make_tokenizer_goldens.py DATA [NAME...]

DATA is the folder with the published tokenizers (the tests' PEFT_TEST_DATA). For each of them, and for
small ones trained here on the corpus itself, NAME.json holds:

* `encode`: for each text of corpus.py the ids with special tokens, and the same decoded with
  (`text`) and without (`skipped`) the special tokens;
* `plain`: the ids without special tokens where they are not just the others without them;
* `pairs`: for some texts and the next the ids and type ids;
* `decode`: seeded random ids and their text, which is not valid UTF-8 before it is repaired.

The small tokenizers are in small/NAME.json; training is not reproducible, so it happens only where that
file is missing. `settings.json` holds truncation and padding.
Made with tokenizers 0.23.3.
"""

import json
import os
import random
import sys

from tokenizers import (
    AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers,
)  # fmt: skip

from corpus import CORPUS

HERE = os.path.dirname(os.path.abspath(__file__))
PUBLISHED = {
    "minilm": "minilm-l6-v2/tokenizer.json",
    "stories260k": "stories260k/tokenizer.json",
    "gpt2": "tokenizers/gpt2/tokenizer.json",
    "roberta": "tokenizers/roberta-base/tokenizer.json",
    "qwen2.5": "tokenizers/qwen2.5/tokenizer.json",
}

CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPACES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def cl100k(digits):
    return CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + r"| ?[^\s\p{L}\p{N}]+[\r\n]*" + SPACES


def o200k(end, digits):
    word = r"[^\r\n\p{L}\p{N}]?"
    return (f"{word}{UPPER}*{LOWER}+{end}|{word}{UPPER}+{LOWER}*{end}|{digits}"
            + r"| ?[^\s\p{L}\p{N}]+[\r\n/]*" + SPACES)  # fmt: skip


PATTERNS = {
    "llama3": cl100k(r"\p{N}{1,3}"),
    "qwen3.5": CONTRACTION
    + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*" + SPACES,
    "o200k": o200k(CONTRACTION + "?", r"\p{N}{1,3}"),
    "tekken": o200k("", r"\p{N}"),
}


def train(tokenizer, trainer):
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def byte_level(pattern, behavior="isolated", invert=False, ignore_merges=False, prefix=False):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), behavior, invert),
        pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=["<s>", "</s>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    return train(tokenizer, trainer)


def sentencepiece(**kinds):
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    for kind, component in kinds.items():
        setattr(tokenizer, kind, component)
    trainer = trainers.BpeTrainer(
        vocab_size=450, special_tokens=["<unk>", "<s>", "</s>"] + byte_tokens, show_progress=False,
        limit_alphabet=60,
    )  # fmt: skip
    train(tokenizer, trainer)
    # The bytes must be in the vocabulary, but not be matched in text.
    data = json.loads(tokenizer.to_str())
    data["added_tokens"] = [t for t in data["added_tokens"] if not t["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(data))


def small_tokenizers():
    result = {}
    for name, pattern in PATTERNS.items():
        result[name] = byte_level(pattern)
    llama3 = byte_level(PATTERNS["llama3"], "removed", True, ignore_merges=True, prefix=True)
    llama3.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 0)]),
    ])  # fmt: skip
    result["llama3"] = llama3

    bert = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=30))
    bert.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=True)
    bert.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    bert.decoder = decoders.WordPiece(cleanup=False)
    train(bert, trainers.WordPieceTrainer(
        vocab_size=500, special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False))  # fmt: skip
    bert.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    # Every way in which an added token can match.
    bert.add_tokens([
        AddedToken("<left>", lstrip=True), AddedToken("<right>", rstrip=True),
        AddedToken("<both>", lstrip=True, rstrip=True), AddedToken("word", single_word=True),
        AddedToken("caf\u00e9", normalized=True), AddedToken("na\u00efve", normalized=False),
        AddedToken("<both>more"), AddedToken(" dog"),
    ])  # fmt: skip
    result["bert-added"] = bert

    result["metaspace"] = sentencepiece(
        pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="first", split=False),
        decoder=decoders.Sequence([
            decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]),
    )  # fmt: skip
    result["metaspace-words"] = sentencepiece(
        pre_tokenizer=pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]),
        decoder=decoders.Metaspace(),
    )  # fmt: skip
    result["gemma"] = sentencepiece(
        normalizer=normalizers.Replace(" ", "\u2581"),
        pre_tokenizer=pre_tokenizers.Split(" ", "merged_with_previous"),
        decoder=decoders.Sequence(
            [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]),
    )  # fmt: skip

    words = Tokenizer(models.BPE(unk_token="<unk>"))
    words.normalizer = normalizers.Sequence([
        normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase(), normalizers.NFC(),
        normalizers.Strip(), normalizers.Prepend("_"),
    ])  # fmt: skip
    words.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.Punctuation("merged_with_previous"),
        pre_tokenizers.Split("a", "merged_with_next"), pre_tokenizers.Split("e", "removed"),
    ])  # fmt: skip
    train(words, trainers.BpeTrainer(
        vocab_size=300, limit_alphabet=80, special_tokens=["<unk>"], show_progress=False))  # fmt: skip
    result["words"] = words
    runs = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    runs.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(), pre_tokenizers.Punctuation("contiguous"),
        pre_tokenizers.Split("o", "contiguous", invert=True),
    ])  # fmt: skip
    train(runs, trainers.BpeTrainer(
        vocab_size=300, limit_alphabet=80, special_tokens=["<unk>"], show_progress=False))  # fmt: skip
    result["runs"] = runs
    return result


ADDED_TEXTS = [
    "a <left> b <right> c <both> d", "a<left>b<right>c<both>d", "  <both>   <left>  <right>\n",
    "word words sword word, word_ \u00e9word word\u0301 (word)", "caf\u00e9 cafe\u0301 CAF\u00c9",
    "na\u00efve nai\u0308ve", "<both>more <both>mor", "my dog  dogs hotdog", "<left>", "<right> ",
    "<both><both>  <both>", "<right>  dog",
]  # fmt: skip


def golden(name, tokenizer):
    tokenizer.no_padding()
    tokenizer.no_truncation()
    texts = CORPUS + (ADDED_TEXTS if name == "bert-added" else [])
    encode, plain, pairs = [], [], []
    for place, text in enumerate(texts):
        ids = tokenizer.encode(text).ids
        encode.append({
            "ids": ids, "text": tokenizer.decode(ids, skip_special_tokens=False),
            "skipped": tokenizer.decode(ids, skip_special_tokens=True),
        })  # fmt: skip
        if place % 10 == 3:
            plain.append({"at": place, "ids": tokenizer.encode(text, add_special_tokens=False).ids})
            pair = tokenizer.encode(text, texts[place + 1])
            bare = tokenizer.encode(text, texts[place + 1], add_special_tokens=False)
            pairs.append({
                "at": place, "ids": pair.ids, "types": pair.type_ids,
                "special": pair.special_tokens_mask, "bareTypes": bare.type_ids,
            })  # fmt: skip
    choose = random.Random(name)
    decode = []
    for place in range(24):
        size = tokenizer.get_vocab_size()
        # Low ids are single bytes in many vocabularies: half of the lists are made of those.
        ids = [choose.randrange(min(size, 300) if place % 2 else size) for _ in range(30)]
        text = tokenizer.decode(ids, skip_special_tokens=False)
        decode.append({"ids": ids, "text": text})
    return {"encode": encode, "plain": plain, "pairs": pairs, "decode": decode}


def settings(data):
    """Truncation and padding, on MiniLM's tokenizer."""
    texts = [CORPUS[4], CORPUS[12], CORPUS[3], CORPUS[2]]
    tokenizer = Tokenizer.from_file(os.path.join(data, PUBLISHED["minilm"]))
    result = []
    for strategy in ["longest_first", "only_first", "only_second"]:
        for direction in ["right", "left"]:
            for length in [6, 7, 12, 20, 64]:
                tokenizer.no_padding()
                tokenizer.enable_truncation(length, strategy=strategy, direction=direction)
                case = {"strategy": strategy, "side": direction, "maxLength": length, "pairs": []}
                for first in texts:
                    for second in texts:
                        try:
                            encoding = tokenizer.encode(first, second)
                        except Exception:
                            continue  # the text to be cut is too short
                        case["pairs"].append({
                            "texts": [first, second], "ids": encoding.ids, "types": encoding.type_ids,
                        })  # fmt: skip
                result.append(case)
    padded = []
    tokenizer.no_truncation()
    for side in ["right", "left"]:
        for length, multiple in [(None, None), (None, 8), (10, None), (10, 8), (40, None)]:
            tokenizer.enable_padding(
                direction=side, pad_id=7, pad_type_id=3, pad_token="[PAD]", length=length,
                pad_to_multiple_of=multiple)  # fmt: skip
            encodings = tokenizer.encode_batch(texts)
            padded.append({
                "side": side, "length": length, "multiple": multiple,
                "ids": [e.ids for e in encodings], "types": [e.type_ids for e in encodings],
                "attention": [e.attention_mask for e in encodings],
                "special": [e.special_tokens_mask for e in encodings],
            })  # fmt: skip
    return {"texts": texts, "truncation": result, "padding": padded}


def write(path, value):
    # One record a line: differences can be read.
    with open(os.path.join(HERE, path), "w", encoding="utf-8") as file:
        if isinstance(value, list):
            lines = [json.dumps(item, ensure_ascii=True) for item in value]
            file.write("[\n" + ",\n".join(lines) + "\n]\n")
            return
        parts = []
        for key, items in value.items():
            lines = [json.dumps(item, ensure_ascii=True, separators=(",", ":")) for item in items]
            parts.append(json.dumps(key) + ":[\n" + ",\n".join(lines) + "]")
        file.write("{" + ",\n".join(parts) + "}\n")


def main():
    data, names = sys.argv[1], sys.argv[2:]
    write("corpus.json", CORPUS)
    write("added-texts.json", ADDED_TEXTS)
    os.makedirs(os.path.join(HERE, "small"), exist_ok=True)
    for name, tokenizer in small_tokenizers().items():
        if not names or name in names:
            path = os.path.join(HERE, "small", f"{name}.json")
            if not os.path.exists(path):
                with open(path, "w", encoding="utf-8") as file:
                    file.write(tokenizer.to_str())
            write(f"{name}.json", golden(name, Tokenizer.from_file(path)))
    for name, path in PUBLISHED.items():
        if not names or name in names:
            tokenizer = Tokenizer.from_file(os.path.join(data, path))
            write(f"{name}.json", golden(name, tokenizer))
    if not names or "settings" in names:
        write("settings.json", settings(data))


main()
