"""What a text is made of: kinds of characters, and characters that do not belong."""

import re
import sys
import unicodedata
from collections.abc import Sequence
from functools import cache

import numpy as np

from measures.ngrams import to_code_points
from stages.validate.mojibake import marks_of_mojibake

# Blanks and formatting; Chinese characters; Latin letters; letters of other scripts; digits and punctuation; the rest.
BLANK, HAN, LATIN, OTHER_LETTER, MARK, SYMBOL = range(6)
_HAN_RANGES = ((0x3400, 0x4DC0), (0x4E00, 0xA000), (0xF900, 0xFB00), (0x20000, 0x33480))
_LATIN_RANGES = ((0x41, 0x5B), (0x61, 0x7B), (0xC0, 0x250), (0xFF21, 0xFF3B), (0xFF41, 0xFF5B))
_WRITTEN_SYMBOLS = "$+<=>^`|~＋＜＝＞｜～￥×÷±≤≥≠≈°℃√∞→"  # of everyday writing, formulas and code
# Replacement characters, control characters other than tab and line ends, and lone surrogates.
_BAD = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffd\ufffe\uffff\ud800-\udfff]")


def kinds_of_characters(texts: Sequence[str]) -> np.ndarray:
    """How many characters of each kind every text has: int64 of shape (texts, 6)."""
    codes, ends = to_code_points(texts)
    row = np.repeat(np.arange(len(texts)), np.diff(ends))
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
    for character in _WRITTEN_SYMBOLS:
        table[ord(character)] = MARK
    return table


# Signs by which a look at a text is worth while ------------------------------------------------------

SIGNS = {name: 1 << bit for bit, name in enumerate(("bad", "mojibake", "number", "word", "at", "opener"))}
_LONG_WORD = 8  # ASCII characters without a blank: no key, token or password is shorter


def signs(texts: Sequence[str]) -> np.ndarray:
    """Which signs every text shows, as bits of :data:`SIGNS`: uint8 of shape (texts,).

    ``bad``: what :func:`bad_character` finds; ``mojibake``: what :func:`stages.validate.mojibake.mojibake` may find;
    ``number``: a digit of any script; ``word``: a long word of ASCII; ``at``: ``@`` or ``＠``; ``opener``: ``<&{[【#``.
    """
    codes, ends = to_code_points([f"{text}\0" for text in texts])  # what closes each text keeps runs apart
    shown = _sign_table()[codes]
    ascii_ = (codes > 0x20) & (codes < 0x7F)
    for step in (1, 2, 4):
        ascii_ &= np.roll(ascii_, -step)
    shown[ascii_] |= SIGNS["word"]
    shown[ends[1:] - 1] = 0
    return np.bitwise_or.reduceat(shown, ends[:-1]) if len(texts) else np.empty(0, np.uint8)


@cache
def _sign_table() -> np.ndarray:
    table = np.zeros(sys.maxunicode + 1, dtype=np.uint8)
    marks = {"at": "@＠", "opener": "<&{[【#", "number": "".join(_digits()), "mojibake": marks_of_mojibake()}
    marks["bad"] = "".join(filter(_BAD.match, map(chr, (*range(0x20000),))))
    for name, characters in marks.items():
        table[[ord(character) for character in characters]] |= SIGNS[name]
    return table


def bad_character(text: str) -> str | None:
    """The first replacement character, control character or lone surrogate, as ``U+FFFD``."""
    found = _BAD.search(text)
    return f"U+{ord(found[0]):04X}" if found else None


# One character, several forms ------------------------------------------------------------------------


@cache
def _digits() -> dict[str, int]:
    """Decimal digits of all scripts, full-width and Arabic-Indic ones too, and their values."""
    characters = map(chr, range(0x20000))
    return {character: value for character in characters if (value := unicodedata.decimal(character, None)) is not None}


@cache
def _ascii_forms() -> tuple[re.Pattern, dict[int, str]]:
    """A pattern of what :func:`in_ascii` is worth while for, and the ASCII form of every character that has one."""
    digits = {character: str(value) for character, value in _digits().items() if character > "\x7f"}
    joints = dict.fromkeys("‐‑‒–—―−﹣－", "-") | dict.fromkeys("\xa0\u2002\u2003\u2007\u2009\u202f\u3000", " ")
    forms = {chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)} | digits | joints
    telling = re.compile(rf"[\d＠](?<![0-9])|(?<=[0-9])[{''.join(joints)}．](?=[0-9])")
    return telling, {ord(form): plain for form, plain in forms.items()}


def in_ascii(text: str) -> str:
    """The text with digits of all scripts, full-width characters, dashes and blanks as ASCII, each at its place.

    Texts without such digits, and without such characters between digits, are left alone.
    """
    telling, table = _ascii_forms()
    return text.translate(table) if telling.search(text) else text
