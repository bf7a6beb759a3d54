"""The embedded base model: a real ChatGLM of some millions of parameters, made here.

It has the classes, files and code path of ChatGLM-6B and is a toy in size alone. Everything is
seeded, so on one machine the same corpus gives the same bytes.
"""

import io
from collections.abc import Iterable
from pathlib import Path

import sentencepiece

from models.chatglm import ChatGLMConfig, ChatGLMTokenizer
from models.chatglm.tokenization_chatglm import VOCAB_FILE
from models.errors import UserError
from models.sample import Message, UnknownFormat, read_messages
from models.storage import read_numbered_jsonl
from models.vocabulary import LINE_BREAK, MAX_BLANKS, TAB, blank_symbol

# The published vocabulary's special pieces, by kind: control pieces are never found in text.
CONTROL_PIECES = ["[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>"]
TEXT_PIECES = [LINE_BREAK, TAB, *map(blank_symbol, range(2, MAX_BLANKS + 1))]
PUNCTUATION = "。、“”‘’《》（）【】…—·￥"


def everyday_characters() -> str:
    """The 3,755 most common Chinese characters (first level of GB 2312) and printable ASCII.

    They get pieces of their own although the corpus has few of them: a user's text would
    otherwise fall apart into bytes, three to a character.
    """
    ascii_characters = "".join(map(chr, range(0x21, 0x7F)))
    rows = (bytes([row, column]) for row in range(0xB0, 0xD8) for column in range(0xA1, 0xFF))
    return ascii_characters + PUNCTUATION + "".join(code.decode("gb2312", "ignore") for code in rows)


def read_corpus(path: Path) -> list[tuple[Message, ...]]:
    """Messages of every row of the base corpus.

    Raises:
        UserError: the file is missing or empty, or a row is in none of the accepted formats.
    """
    conversations = []
    for line, row in read_numbered_jsonl(path):
        try:
            conversations.append(read_messages(row))
        except UnknownFormat as error:
            raise UserError(f"{path}, line {line}: {error}.") from None
    if not conversations:
        raise UserError(f"{path} is empty; the tiny base needs conversations to learn from.")
    return conversations


def train_tokenizer(texts: Iterable[str], vocab_size: int, folder: Path) -> ChatGLMTokenizer:
    """Train a SentencePiece model with the published settings and save it into ``folder``.

    Args:
        vocab_size: number of pieces, all special ones and the everyday characters included.

    Raises:
        UserError: the vocabulary is too small for those.
    """
    model = io.BytesIO()
    needed = 4 + len(CONTROL_PIECES) + len(TEXT_PIECES) + 256 + len(set(everyday_characters()))
    if vocab_size < needed:
        raise UserError(
            f"base.tiny.vocab_size is {vocab_size}; special tokens and everyday characters alone take {needed}."
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
        num_threads=1,  # more threads would sum in another order
        minloglevel=2,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / VOCAB_FILE).write_bytes(model.getvalue())
    tokenizer = ChatGLMTokenizer(folder / VOCAB_FILE, eos_token="</s>", num_image_tokens=0)
    tokenizer.save_pretrained(folder)
    return tokenizer


def configure(tokenizer: ChatGLMTokenizer, hidden_size: int, layers: int, heads: int) -> ChatGLMConfig:
    """A small ChatGLM over the tokenizer's vocabulary, rounded up to a multiple of 64."""
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
