"""Characters of a text: counts by kind, prefilters for the text checks, and invalid characters."""

import re
import sys
import unicodedata
from collections.abc import Sequence
from functools import cache

import numpy as np

from measures.ngrams import to_code_points
from stages.validate.mojibake import mojibake_characters

# White space and formatting; Chinese characters; Latin letters; letters of other scripts; digits and punctuation; rest.
BLANK, HAN, LATIN, OTHER_LETTER, MARK, SYMBOL = range(6)
_HAN_RANGES = ((0x3400, 0x4DC0), (0x4E00, 0xA000), (0xF900, 0xFB00), (0x20000, 0x33480))
_LATIN_RANGES = ((0x41, 0x5B), (0x61, 0x7B), (0xC0, 0x250), (0xFF21, 0xFF3B), (0xFF41, 0xFF5B))
_COMMON_SYMBOLS = "$+<=>^`|~＋＜＝＞｜～￥×÷±≤≥≠≈°℃√∞→"  # of everyday writing, formulas and code; counted as MARK
# Replacement characters, control characters other than tab and line ends, and lone surrogates.
_BAD = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffd\ufffe\uffff\ud800-\udfff]")


def count_character_kinds(texts: Sequence[str]) -> np.ndarray:
    """Return how many characters of each kind every text has: int64 of shape (texts, 6)."""
    codes, offsets = to_code_points(texts)
    row = np.repeat(np.arange(len(texts)), np.diff(offsets))
    kinds = _kind_table()[codes]
    return np.bincount(row * 6 + kinds, minlength=6 * len(texts)).reshape(len(texts), 6)


@cache
def _kind_table() -> np.ndarray:
    table = np.full(sys.maxunicode + 1, SYMBOL, dtype=np.uint8)
    for code in range(0x20000):
        category = unicodedata.category(chr(code))
        if category[0] in "LM":
            table[code] = OTHER_LETTER
        elif category[0] in "NP":
            table[code] = MARK
        elif category[0] == "Z" or category in ("Cc", "Cf"):
            table[code] = BLANK
    for kind, ranges in ((HAN, _HAN_RANGES), (LATIN, _LATIN_RANGES)):
        for start, stop in ranges:
            table[start:stop] = kind
    for character in _COMMON_SYMBOLS:
        table[ord(character)] = MARK
    return table


# Prefilters ----------------------------------------------------------------------------------------

FLAGS = {name: 1 << bit for bit, name in enumerate(("bad", "mojibake", "number", "word", "at", "opener"))}


def detect_flags(texts: Sequence[str]) -> np.ndarray:
    """Return which text checks can match in every text, from its characters alone; most texts skip most checks.

    ``bad``: :func:`find_bad_character`; ``mojibake``: :func:`stages.validate.mojibake.find_mojibake`; ``number``: a
    digit of any script; ``word``: eight ASCII characters without white space; ``at``: ``@`` or ``＠``; ``opener``: one
    of ``<&{[【#``.

    Returns:
        Bits of :data:`FLAGS`: uint8 of shape (texts,).
    """
    codes, offsets = to_code_points([f"{text}\0" for text in texts])  # the terminator separates words of two texts
    flags = _flag_table()[codes]
    is_ascii = (codes > 0x20) & (codes < 0x7F)
    for step in (1, 2, 4):  # then true where eight ASCII characters begin; keys and passwords are at least as long
        is_ascii &= np.roll(is_ascii, -step)
    flags[is_ascii] |= FLAGS["word"]
    flags[offsets[1:] - 1] = 0
    return np.bitwise_or.reduceat(flags, offsets[:-1]) if len(texts) else np.empty(0, np.uint8)


@cache
def _flag_table() -> np.ndarray:
    """Return the flags of every code point: uint8 of shape (code points,)."""
    table = np.zeros(sys.maxunicode + 1, dtype=np.uint8)
    characters_by_flag = {
        "at": "@＠",
        "opener": "<&{[【#",
        "number": "".join(_digit_values()),
        "mojibake": mojibake_characters(),
        "bad": "".join(filter(_BAD.match, map(chr, range(0x20000)))),
    }
    for name, characters in characters_by_flag.items():
        table[[ord(character) for character in characters]] |= FLAGS[name]
    return table


def find_bad_character(text: str) -> str | None:
    """Return the first replacement character, control character or lone surrogate, written as ``U+FFFD``."""
    match = _BAD.search(text)
    return f"U+{ord(match[0]):04X}" if match else None


# ASCII forms ---------------------------------------------------------------------------------------


@cache
def _digit_values() -> dict[str, int]:
    """Return the decimal digits of all scripts, such as full-width and Arabic-Indic ones, with their values."""
    characters = map(chr, range(0x20000))
    return {character: value for character in characters if (value := unicodedata.decimal(character, None)) is not None}


@cache
def _ascii_forms() -> tuple[re.Pattern, dict[int, str]]:
    """Return a pattern of texts that :func:`to_ascii` changes, and the translation table."""
    digits = {character: str(value) for character, value in _digit_values().items() if character > "\x7f"}
    separators = dict.fromkeys("‐‑‒–—―−﹣－", "-") | dict.fromkeys("\xa0\u2002\u2003\u2007\u2009\u202f\u3000", " ")
    forms = {chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)} | digits | separators
    trigger = re.compile(rf"[\d＠](?<![0-9])|(?<=[0-9])[{''.join(separators)}．](?=[0-9])")
    return trigger, {ord(form): plain for form, plain in forms.items()}


def to_ascii(text: str) -> str:
    """Replace digits of all scripts, full-width characters, dashes and spaces by ASCII, one character for one.

    A text is unchanged if it has neither such digits, nor ``＠``, nor such a separator between two digits.
    """
    trigger, table = _ascii_forms()
    return text.translate(table) if trigger.search(text) else text
