"""What a text is made of: kinds of characters, characters that do not belong, mojibake."""

import re
import sys
import unicodedata
from collections.abc import Sequence
from functools import cache

import numpy as np

# Blanks and formatting; Chinese characters; Latin letters; letters of other scripts; digits and punctuation; the rest.
BLANK, HAN, LATIN, OTHER_LETTER, MARK, SYMBOL = range(6)
_HAN_RANGES = ((0x3400, 0x4DC0), (0x4E00, 0xA000), (0xF900, 0xFB00), (0x20000, 0x33480))
_LATIN_RANGES = ((0x41, 0x5B), (0x61, 0x7B), (0xC0, 0x250), (0xFF21, 0xFF3B), (0xFF41, 0xFF5B))
_WRITTEN_SYMBOLS = "$+<=>^`|~＋＜＝＞｜～￥×÷±≤≥≠≈°℃√∞→"  # of everyday writing, formulas and code
# Replacement characters, control characters other than tab and line ends, and lone surrogates.
_BAD = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffd\ufffe\uffff\ud800-\udfff]")
_LATIN_1 = re.compile("[\x80-\xff]")


def code_points(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The characters of all texts, one after another, as numbers, and where each text begins and the last ends.

    Returns:
        uint32 of shape (characters,) and int64 of shape (texts + 1,).
    """
    ends = np.cumsum([0, *map(len, texts)], dtype=np.int64)
    codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    return codes, ends


def kinds_of_characters(texts: Sequence[str]) -> np.ndarray:
    """How many characters of each kind every text has: int64 of shape (texts, 6)."""
    codes, ends = code_points(texts)
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

    ``bad`` and ``mojibake``: what :func:`bad_character` and :func:`mojibake` may find; ``number``: an ASCII
    digit; ``word``: a long word of ASCII; ``at``: ``@``; ``opener``: one of ``<&{[``.
    """
    codes, ends = code_points([f"{text}\0" for text in texts])  # what closes each text keeps runs apart
    table = _sign_table()
    shown = table[codes]
    suspect, ascii_ = shown & _SUSPECT > 0, (codes > 0x20) & (codes < 0x7F)
    shown &= ~np.uint8(_SUSPECT)
    shown[suspect & np.roll(suspect, -1) & np.roll(suspect, -2)] |= SIGNS["mojibake"]
    for step in (1, 2, 4):
        ascii_ &= np.roll(ascii_, -step)
    shown[ascii_] |= SIGNS["word"]
    shown[ends[1:] - 1] = 0
    return np.bitwise_or.reduceat(shown, ends[:-1]) if len(texts) else np.empty(0, np.uint8)


_SUSPECT = 1 << 7


@cache
def _sign_table() -> np.ndarray:
    table = np.zeros(sys.maxunicode + 1, dtype=np.uint8)
    marks = {"at": "@", "opener": "<&{[", "number": "0123456789"}
    marks["bad"] = "".join(filter(_BAD.match, map(chr, (*range(0x20000),))))
    marks["mojibake"] = "".join(map(chr, range(0x80, 0x100)))
    for name, characters in marks.items():
        table[[ord(character) for character in characters]] |= SIGNS[name]
    table[[ord(character) for character in _gbk_suspects()]] |= _SUSPECT
    return table


def bad_character(text: str) -> str | None:
    """The first replacement character, control character or lone surrogate, as ``U+FFFD``."""
    found = _BAD.search(text)
    return f"U+{ord(found[0]):04X}" if found else None


def mojibake(text: str) -> str | None:
    """The first piece that was read in the wrong encoding: UTF-8 as Latin-1 or as GBK.

    ftfy finds the first kind by what its many users reported. It leaves out the second, where all
    characters are plausible Chinese: they are mojibake if their GBK bytes are Chinese in UTF-8.
    """
    if _LATIN_1.search(text):
        from ftfy.badness import BADNESS_RE

        if found := BADNESS_RE.search(text):
            return found[0]
    return next((run for run in _suspect_run().findall(text) if _is_gbk_of_utf8(run)), None)


@cache
def _gbk_suspects() -> str:
    """Chinese characters whose GBK bytes can be those of Chinese characters in UTF-8."""
    leads, trails = range(0xE4, 0xEA), range(0x80, 0xC0)
    pairs = [(a, b) for a in (*trails, *leads) for b in (*trails, *leads) if a not in leads or b not in leads]
    decoded = {bytes(pair).decode("gbk", "ignore") for pair in pairs}
    return "".join(sorted(one for one in decoded if len(one) == 1 and "\u4e00" <= one <= "\u9fff"))


@cache
def _suspect_run() -> re.Pattern:
    return re.compile(f"[{_gbk_suspects()}]{{3,}}")


def _is_gbk_of_utf8(han: str) -> bool:
    code = han.encode("gbk", "ignore")
    reread_han = sum("\u4e00" <= character <= "\u9fff" for character in code.decode("utf-8", "ignore"))
    return reread_han >= 2 and 3 * reread_han >= 0.7 * len(code)
