"""Tokenization by a base model's SentencePiece model, without transformers.

The tokenizer in :mod:`models.chatglm` is built on it. The data checks use it directly: their worker processes count the
tokens of millions of rows without importing torch and transformers.
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import sentencepiece

LINE_BREAK, TAB = "<n>", "<|tab|>"
MAX_BLANKS = 80
_BLANKS = re.compile(f" {{2,{MAX_BLANKS}}}")
_BLANK_SYMBOL = re.compile(r"<\|blank_([2-9]|[1-7][0-9]|80)\|>")


def blank_symbol(count: int) -> str:
    """Return the symbol for a run of 2 to ``MAX_BLANKS`` blanks."""
    return f"<|blank_{count}|>"


class Vocabulary:
    """The SentencePiece model ``ice_text.model``, with symbols for line breaks, tabs and runs of blanks.

    Args:
        file: path of the SentencePiece model.
        do_lower_case, remove_space: options of the published tokenizer, both off in published checkpoints.

    Attributes:
        sha256: hash of the bytes that the model was parsed from.

    Raises:
        OSError, RuntimeError: the file cannot be read as a SentencePiece model.
    """

    def __init__(self, file: str | Path, do_lower_case: bool = False, remove_space: bool = False):
        self.do_lower_case, self.remove_space = do_lower_case, remove_space
        self.pieces = sentencepiece.SentencePieceProcessor()
        content = Path(file).read_bytes()
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.pieces.LoadFromSerializedProto(content)

    def _prepare(self, text: str) -> str:
        if self.remove_space:
            text = " ".join(text.split())
        if self.do_lower_case:
            text = text.lower()
        text = text.replace("\n", LINE_BREAK).replace("\t", TAB)
        return _BLANKS.sub(lambda blanks: blank_symbol(len(blanks[0])), text) if "  " in text else text

    def tokenize(self, text: str) -> list[str]:
        """Return the pieces of a text."""
        return self.pieces.encode(self._prepare(text), out_type=str)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the number of pieces of each text. A lone surrogate, which has no UTF-8 form, counts as ``?``."""
        prepared = [self._prepare(text).encode("utf-8", "replace") for text in texts]
        return [len(pieces) for pieces in self.pieces.encode(prepared, out_type=int)]

    def detokenize(self, pieces: Sequence[str]) -> str:
        """Return the text of pieces."""
        text = self.pieces.decode_pieces(list(pieces))
        text = text.replace(LINE_BREAK, "\n").replace(TAB, "\t")
        return _BLANK_SYMBOL.sub(lambda symbol: " " * int(symbol[1]), text)

    def control_tokens(self) -> tuple[str, ...]:
        """Return the strings that a text must not contain: control tokens, and symbols for whitespace."""
        ids = range(self.pieces.get_piece_size())
        controls = [self.pieces.id_to_piece(i) for i in ids if self.pieces.is_control(i) or self.pieces.is_unknown(i)]
        return (*controls, LINE_BREAK, TAB, *map(blank_symbol, range(2, MAX_BLANKS + 1)))
