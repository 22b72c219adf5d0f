#!/usr/bin/env python3
"""Writes Sources/Tokenizers/Unicode/UnicodeClassTable.swift.

    scripts/generate-unicode-classes.py            # write the table
    scripts/generate-unicode-classes.py --check    # fail if the committed table differs

The Unicode version is pinned, so that the table does not depend on whose machine writes it. Python
3.14 has that version in its standard library; for an older Python install the same data with
`pip install unicodedata2==16.0.0`. With neither, the script stops and says so.
"""

import os
import sys

import unicodedata

VERSION = "16.0.0"
if unicodedata.unidata_version != VERSION:
    try:
        import unicodedata2 as unicodedata
    except ImportError:
        pass
if unicodedata.unidata_version != VERSION:
    sys.exit(
        f"Unicode {VERSION} is needed, this Python has {unicodedata.unidata_version}: "
        f"use Python 3.14, or pip install unicodedata2=={VERSION}"
    )

TARGET = os.path.join(
    os.path.dirname(os.path.abspath(__file__)),
    "../Sources/Tokenizers/Unicode/UnicodeClassTable.swift",
)
BLOCK = 128  # scalars per block of the second stage
TABLE_END = 0x20000  # planes 0 and 1; the rest are a few long ranges
FIRST = 0x30  # the character that stands for 0

WHITESPACE = {
    *range(0x09, 0x0E), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B),
    0x2028, 0x2029, 0x202F, 0x205F, 0x3000,
}  # fmt: skip

# Other_Alphabetic outside of the categories L, M and Nl.
OTHER_ALPHABETIC = {
    *range(0x24B6, 0x24EA), *range(0x1F130, 0x1F14A), *range(0x1F150, 0x1F16A),
    *range(0x1F170, 0x1F18A),
}  # fmt: skip


def ranges(text):
    result = set()
    for item in text.split():
        first, _, last = item.partition("-")
        result |= set(range(int(first, 16), int(last or first, 16) + 1))
    return result


# The published fast tokenizers of the BERT family classify with data of Unicode 8, whatever the
# version of everything around them. What has changed category or was assigned since, found by
# running the `tokenizers` 0.23 normalizer and pre-tokenizer over every scalar.
BERT_NOT_MARK = ranges(
    "7FD 897-8E1 9FE AFA-AFF B55 C04-C3C D00 D3B-D3C D81 EBA ECE 180F-1886 1ABF-1ACE 1DF6-1DFB"
    " A82C A8C5 A8FF A9BD 10D24-10F85 11070-11074 110C2 111C9 111CF 1123E-11241 1133B"
    " 113BB-1145E 1182F-1612F 16F4F 16FE4 1CF00-1CF46 1E000-1E5EF 1E944-1E94A"
)
BERT_MARK = ranges("1734 1171E")
BERT_NOT_PUNCTUATION = ranges(
    "61D 9FD-A76 C77-C84 1B4E-1B4F 1B7D-1B7F 2E43-2E5D 10D6E-10F89 113D4-1145D 11660-116B9"
    " 1183B-11FFF 12FF1-12FF2 16D6D-16FE2 1E5FF-1E95F"
)
BERT_PUNCTUATION = ranges("166D 111C9")
BERT_NOT_CONTROL = ranges("890-8E2 110CD-1343F")

# The same for the normalizer StripAccents, which has data of Unicode 9.
NOT_ACCENT = ranges(
    "7FD 897-8D3 9FE AFA-AFF B55 C04-C3C CF3-D00 D3B-D3C D81 EBA ECE 1715 180F 1ABF-1ACE 1CF7"
    " 1DF6-1DFA A82C A8FF 10D24-10F85 11070-11074 110C2 11145-11146 111C9 111CE-111CF 11241 1133B"
    " 113B8-113E2 1145E 1182C-11A99 11D31-1612F 16F4F 16F7F-16F87 16FE4-16FF1 1CF00-1CF46"
    " 1E08F-1E5EF"
)
ACCENT = ranges("1CF2 1CF3")


def second_in_composition():
    """The scalars that may compose with what stands before them (NFC_Quick_Check=Maybe)."""
    result = {*range(0x1161, 0x1176), *range(0x11A8, 0x11C3)}  # Hangul vowels and final consonants
    for code in range(0x110000):
        decomposition = unicodedata.decomposition(chr(code))
        if not decomposition or decomposition.startswith("<"):
            continue
        parts = [int(part, 16) for part in decomposition.split()]
        if len(parts) == 2 and unicodedata.normalize("NFC", chr(code)) == chr(code):
            result.add(parts[1])
    return result


MAYBE = second_in_composition()
FLAGS = [
    "whitespace", "word", "composed", "decomposed", "accent", "bertMark", "bertPunctuation",
    "bertControl",
]  # fmt: skip
CATEGORIES = ["Lu", "Ll", "Lt", "Lm", "Lo", "M", "N", "P", "other"]


def classes(code):
    if 0xD800 <= code < 0xE000:
        return ("other",)
    scalar = chr(code)
    category = unicodedata.category(scalar)
    combining = unicodedata.combining(scalar)
    found = [category if category[0] == "L" else category[0] if category[0] in "MNP" else "other"]
    if code in WHITESPACE:
        found.append("whitespace")
    if category[0] in "LM" or category in ("Nl", "Nd", "Pc") or code in OTHER_ALPHABETIC:
        found.append("word")
    elif code in (0x200C, 0x200D):
        found.append("word")
    if not combining and code not in MAYBE and unicodedata.normalize("NFC", scalar) == scalar:
        found.append("composed")
    if not combining and unicodedata.normalize("NFD", scalar) == scalar:
        found.append("decomposed")
    if (category[0] == "M" and code not in NOT_ACCENT) or code in ACCENT:
        found.append("accent")
    if (category == "Mn" and code not in BERT_NOT_MARK) or code in BERT_MARK:
        found.append("bertMark")
    if (
        (category[0] == "P" and code not in BERT_NOT_PUNCTUATION)
        or code in BERT_PUNCTUATION
        or scalar in "$+<=>^`|~"
    ):
        found.append("bertPunctuation")
    if category in ("Cc", "Cf", "Co") and code not in BERT_NOT_CONTROL:
        found.append("bertControl")
    return tuple(found)


def literal(name, doc, text, out):
    out.append(f"  /// {doc}")
    out.append(f'  static let {name}: StaticString = #"""')
    lines = [text[start : start + 94] for start in range(0, len(text), 94)]
    out.extend(f"    {line}\\#" for line in lines[:-1])
    out.append(f"    {lines[-1]}")
    out.append('    """#')


def generate():
    palette = []
    index = {}

    def number(code):
        found = classes(code)
        if found not in index:
            index[found] = len(palette)
            palette.append(found)
        return index[found]

    numbers = [number(code) for code in range(TABLE_END)]
    blocks, places, first_stage = [], {}, []
    for start in range(0, TABLE_END, BLOCK):
        block = tuple(numbers[start : start + BLOCK])
        if block not in places:
            places[block] = len(blocks)
            blocks.append(block)
        first_stage.append(places[block])
    rest = []
    for code in range(TABLE_END, 0x110000):
        value = number(code)
        if rest and rest[-1][2] == value:
            rest[-1][1] = code
        else:
            rest.append([code, code, value])
    assert len(palette) <= 64, len(palette)

    out = [
        "// Written by scripts/generate-unicode-classes.py; do not edit.",
        "",
        f"/// The classes of every scalar of Unicode {VERSION}, as far as tokenizers ask for them.",
        "///",
        "/// Each scalar has a number below 64 that stands for its set of classes; each class is the",
        "/// 64-bit set of numbers that belong to it. Planes 0 and 1 are a two-stage table of printable",
        f"/// characters, '{chr(FIRST)}' for 0, which needs no decoding and no initialisation at run time.",
        "enum UnicodeClassTable {",
        f"  /// Scalars per block of ``blocks``, as a shift.",
        f"  static let blockShift: UInt32 = {BLOCK.bit_length() - 1}",
        f"  /// The first scalar that ``ranges`` holds instead of the table.",
        f"  static let tableEnd: UInt32 = 0x{TABLE_END:X}",
        f"  /// The character that stands for 0.",
        f"  static let zero: UInt8 = 0x{FIRST:X}",
        "",
    ]
    for name in CATEGORIES[:-1] + FLAGS:
        mask = sum(1 << place for place, found in enumerate(palette) if name in found)
        swift = {"Lu": "upper", "Ll": "lower", "Lt": "title", "Lm": "modifier", "Lo": "otherLetter",
                 "M": "mark", "N": "number", "P": "punctuation"}.get(name, name)  # fmt: skip
        out.append(f"  static let {swift}: UInt64 = 0x{mask:X}")
    out.append("")
    text = "".join(chr(FIRST + value // 64) + chr(FIRST + value % 64) for value in first_stage)
    literal("blockNumbers", "The block of each run of scalars, two base-64 digits each.", text, out)
    out.append("")
    text = "".join(chr(FIRST + value) for block in blocks for value in block)
    literal("blocks", "The numbers of the scalars, block after block.", text, out)
    out.append("")
    out.append("  /// First scalar, last scalar and number beyond the table.")
    out.append("  static let ranges: [(first: UInt32, last: UInt32, number: UInt8)] = [")
    out.extend(f"    (0x{a:X}, 0x{b:X}, {value})," for a, b, value in rest)
    out.append("  ]")
    out.append("}")
    print(f"{len(palette)} sets of classes, {len(blocks)} blocks, {len(rest)} ranges", file=sys.stderr)
    return "\n".join(out) + "\n"


def main():
    text = generate()
    if "--check" in sys.argv[1:]:
        with open(TARGET, encoding="utf-8") as file:
            if file.read() != text:
                sys.exit(f"{TARGET} is not what this script writes")
        return
    os.makedirs(os.path.dirname(TARGET), exist_ok=True)
    with open(TARGET, "w", encoding="utf-8") as file:
        file.write(text)


main()
