"""Normalize texts."""

import re
import unicodedata

import regex

_PUNCTUATION = {",": "，", "!": "！", ":": "：", ";": "；", "?": "？"}
_HAN = "\u4e00-\u9fff"
_BESIDE_HAN = re.compile(rf"(?<=[{_HAN}])[,!:;?]|[,!:;?](?=[{_HAN}])")
_LONG_RUN_OF_MARKS = regex.compile(r"([\p{M}--\u034F]{30})(?=[\p{M}--\u034F])", regex.V1)
_GRAPHEME_JOINER = "\u034f"


def restore_chinese_punctuation(text: str) -> str:
    """The answer as a reader expects it: punctuation beside Chinese characters is Chinese again.

    The tokenizer's normalization makes it ASCII; the published ``process_response`` does the same.
    """
    return _BESIDE_HAN.sub(lambda mark: _PUNCTUATION[mark[0]], text.strip())


def normalize_nfkc(text: str) -> str:
    """Unicode's compatibility form of a text, as the tokenizers of the ChatGLM family make it, in linear time.

    Python sorts a run of combining marks in quadratic time (80,000 marks took 7 s). So a long run is cut by a
    combining grapheme joiner behind every 30 marks, as Unicode's Stream-Safe Text Format does (UAX #15).
    """
    return unicodedata.normalize("NFKC", _LONG_RUN_OF_MARKS.sub(rf"\1{_GRAPHEME_JOINER}", text))


def normalize_text(text: str) -> str:
    """Text without blanks and with one form for each character and punctuation mark, to compare answers by."""
    for ascii_mark, han_mark in _PUNCTUATION.items():  # most Chinese texts need no more, which nfkc() sees at once
        text = text.replace(han_mark, ascii_mark)
    without_blanks = "".join(normalize_nfkc(text).split())
    return normalize_nfkc(without_blanks)  # a mark that followed a blank belongs to the character before the blank now
