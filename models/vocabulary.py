"""Tokenization by a base model's SentencePiece model, without transformers.

The tokenizer in :mod:`models.chatglm` is built on it. The data checks use it directly: their worker processes count the
tokens of millions of rows without importing torch and transformers.
"""

import hashlib
import re
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path

import sentencepiece

from models.prompt import ANSWER_SPECIAL_TOKENS, PROMPT_SPECIAL_TOKENS, render_prompt, render_rounds
from models.sample import Message

LINE_BREAK, TAB = "<n>", "<|tab|>"
MAX_BLANKS = 80
_BLANKS = re.compile(f" {{2,{MAX_BLANKS}}}")
_BLANK_SYMBOL = re.compile(r"<\|blank_([2-9]|[1-7][0-9]|80)\|>")


def blank_symbol(count: int) -> str:
    """Return the symbol for a run of 2 to ``MAX_BLANKS`` blanks."""
    return f"<|blank_{count}|>"


def _load_pieces(file: str | Path) -> tuple[sentencepiece.SentencePieceProcessor, str]:
    """Return a SentencePiece model and the hash of the bytes that it was parsed from."""
    content = Path(file).read_bytes()
    pieces = sentencepiece.SentencePieceProcessor()
    pieces.LoadFromSerializedProto(content)
    return pieces, hashlib.sha256(content).hexdigest()


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
        self.pieces, self.sha256 = _load_pieces(file)

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

    def count_prompts(self, conversations: Sequence[Sequence[Message]]) -> list[int]:
        """Return the number of tokens of the prompts for the next answers."""
        counts = self.count_tokens([render_prompt(messages) for messages in conversations])
        return [count + PROMPT_SPECIAL_TOKENS for count in counts]

    def count_answers(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of answers with the token that ends them."""
        return [count + ANSWER_SPECIAL_TOKENS for count in self.count_tokens(texts)]

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


# ChatGLM2 and ChatGLM3 -----------------------------------------------------------------------------

CONTROL_TOKENS = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
ROLE_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")  # of ChatGLM3 only
END_TOKEN = "</s>"
START_TOKENS = 2  # ``[gMASK] sop``


class SuccessorVocabulary:
    """The SentencePiece model ``tokenizer.model`` of ChatGLM2-6B and ChatGLM3-6B, the same in both releases.

    Control tokens follow its pieces and never come from a text: a text that spells one becomes ordinary pieces.

    Args:
        file: path of the SentencePiece model.
        has_roles: ChatGLM3, which has tokens for roles, and decodes control tokens to their spelling.

    Attributes:
        sha256: hash of the bytes that the model was parsed from.
        control_ids: ids of control tokens by their spelling.

    Raises:
        OSError, RuntimeError: the file cannot be read as a SentencePiece model.
    """

    def __init__(self, file: str | Path, has_roles: bool):
        self.pieces, self.sha256 = _load_pieces(file)
        self.has_roles = has_roles
        names = CONTROL_TOKENS + (ROLE_TOKENS if has_roles else ())
        self.control_ids = {name: self.pieces.get_piece_size() + index for index, name in enumerate(names)}
        self.control_ids[END_TOKEN] = self.pieces.eos_id()
        self._spelling = {token_id: name for name, token_id in self.control_ids.items()}
        self._header_tokens = 1 + len(self.encode("\n"))  # the role's token, and an empty line of metadata

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without control tokens."""
        return self.pieces.encode(text)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the number of pieces of each text. A lone surrogate, which has no UTF-8 form, counts as ``?``."""
        encodable = [text.encode("utf-8", "replace") for text in texts]
        return [len(ids) for ids in self.pieces.encode(encodable, out_type=int)]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids. Control tokens give nothing; with roles, their spelling."""
        size = self.pieces.get_piece_size()
        return self.pieces.decode_pieces(
            [self.spell(token_id) for token_id in ids if self.has_roles or token_id < size]
        )

    def spell(self, token_id: int) -> str:
        """Return the piece or the control token of an id; empty for an id beyond them."""
        if token_id < self.pieces.get_piece_size():
            return self.pieces.id_to_piece(token_id)
        return self._spelling.get(token_id, "")

    def tokenize(self, text: str) -> list[str]:
        """Return the pieces of a text."""
        return self.pieces.encode(text, out_type=str)

    def count_prompts(self, conversations: Sequence[Sequence[Message]]) -> list[int]:
        """Return the number of tokens of the prompts for the next answers."""
        if not self.has_roles:
            counts = self.count_tokens([render_rounds(messages) for messages in conversations])
            return [count + START_TOKENS for count in counts]
        contents = self.count_tokens([message.content for messages in conversations for message in messages])
        ends, header = list(accumulate(map(len, conversations), initial=0)), self._header_tokens
        return [START_TOKENS + sum(contents[start:end]) + (end - start) * header + 1 for start, end in pairwise(ends)]

    def count_answers(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of answers with the token that ends them."""
        header = self._header_tokens - 1 if self.has_roles else 0  # the role's token belongs to the prompt
        return [count + header + 1 for count in self.count_tokens(texts)]

    def control_tokens(self) -> tuple[str, ...]:
        """Return the strings that a text must not contain: none, since a text cannot spell a control token."""
        return ()
