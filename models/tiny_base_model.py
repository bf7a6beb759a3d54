"""Tokenizer, corpus and configuration of the tiny base model, a ChatGLM of some millions of parameters.

It has the classes, files and code paths of ChatGLM-6B; only its size differs. Everything is seeded, so the same corpus
gives the same bytes on one machine.
"""

import io
from collections.abc import Iterable
from pathlib import Path

import sentencepiece

from models.chatglm import ChatGLMConfig, ChatGLMTokenizer
from models.chatglm.tokenization_chatglm import VOCAB_FILE
from models.errors import UserError
from models.row_layouts import UnknownFormat, read_messages
from models.sample import Message
from models.storage import read_numbered_jsonl
from models.vocabulary import LINE_BREAK, MAX_BLANKS, TAB, blank_symbol

# Special pieces of the published vocabulary. Control pieces never match text.
CONTROL_PIECES = ["[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>"]
TEXT_PIECES = [LINE_BREAK, TAB, *map(blank_symbol, range(2, MAX_BLANKS + 1))]
PUNCTUATION = "。、“”‘’《》（）【】…—·￥"


def everyday_characters() -> str:
    """Return the 3,755 most common Chinese characters (level 1 of GB 2312), punctuation and printable ASCII.

    Each gets a piece, although the corpus has few of them; otherwise a user's text would become bytes, three per
    character.
    """
    ascii_characters = "".join(map(chr, range(0x21, 0x7F)))
    rows = (bytes([row, column]) for row in range(0xB0, 0xD8) for column in range(0xA1, 0xFF))
    return ascii_characters + PUNCTUATION + "".join(code.decode("gb2312", "ignore") for code in rows)


def read_corpus(path: Path) -> list[tuple[Message, ...]]:
    """Return the messages of every row of the base corpus.

    Raises:
        UserError: the file is missing or empty, or a row has none of the accepted formats.
    """
    conversations = []
    for line, row in read_numbered_jsonl(path):
        try:
            conversations.append(read_messages(row))
        except UnknownFormat as error:
            raise UserError(f"{path}, line {line}: {error}.") from None
    if not conversations:
        raise UserError(f"{path} is empty. Add conversations for the tiny base model.")
    return conversations


def train_tokenizer(texts: Iterable[str], vocab_size: int, folder: Path) -> ChatGLMTokenizer:
    """Train a SentencePiece model with the published settings and save it into ``folder``.

    Args:
        texts: to learn pieces from.
        vocab_size: number of pieces, including special pieces and everyday characters.

    Raises:
        UserError: the vocabulary is too small for special pieces and everyday characters.
    """
    model = io.BytesIO()
    required = 4 + len(CONTROL_PIECES) + len(TEXT_PIECES) + 256 + len(set(everyday_characters()))
    if vocab_size < required:
        raise UserError(
            f"base.tiny.vocab_size is {vocab_size}, but special tokens and everyday characters take {required}. "
            "Raise it in params.yaml."
        )
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        vocab_size=vocab_size,
        model_type="unigram",
        normalization_rule_name="nmt_nfkc",
        split_digits=True,
        byte_fallback=True,
        character_coverage=1.0,
        required_chars=everyday_characters(),
        pad_id=3,
        control_symbols=CONTROL_PIECES,
        user_defined_symbols=TEXT_PIECES,
        hard_vocab_limit=False,
        num_threads=1,  # with more threads the order of summation varies
        minloglevel=2,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / VOCAB_FILE).write_bytes(model.getvalue())
    tokenizer = ChatGLMTokenizer(folder / VOCAB_FILE, eos_token="</s>", num_image_tokens=0)
    tokenizer.save_pretrained(folder)
    return tokenizer


def build_config(tokenizer: ChatGLMTokenizer, hidden_size: int, layers: int, heads: int) -> ChatGLMConfig:
    """Return the configuration of a small ChatGLM, with the vocabulary rounded up to a multiple of 64."""
    return ChatGLMConfig(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=hidden_size,
        inner_hidden_size=4 * hidden_size,
        num_layers=layers,
        num_attention_heads=heads,
        bos_token_id=tokenizer.sop_token_id,
        eos_token_id=tokenizer.eop_token_id,
        mask_token_id=tokenizer.mask_token_id,
        gmask_token_id=tokenizer.gmask_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
