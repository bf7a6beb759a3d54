"""The one place where a conversation becomes a prompt: encode, evaluate and chat all use it.

The published code numbers the turns differently in training and in evaluation; here both go
through :func:`render`, which follows the published ``chat()``.
"""

import re
import unicodedata
from collections.abc import Sequence

import regex

from models.sample import Message

PROMPT_VERSION = "chatglm-6b/1"  # stands in manifests; raise it whenever the same messages give other tokens

IGNORED_LABEL = -100
PROMPT_MARKS, ANSWER_MARKS = 2, 1  # tokens beside those of the text: ``[gMASK] <sop>``, and ``<eop>``
_PUNCTUATION = {",": "，", "!": "！", ":": "：", ";": "；", "?": "？"}
_HAN = "\u4e00-\u9fff"
_BESIDE_HAN = re.compile(rf"(?<=[{_HAN}])[,!:;?]|[,!:;?](?=[{_HAN}])")
_LONG_RUN_OF_MARKS = regex.compile(r"([\p{M}--\u034F]{30})(?=[\p{M}--\u034F])", regex.V1)
_GRAPHEME_JOINER = "\u034f"


def render(messages: Sequence[Message]) -> str:
    """The context that asks for the next answer.

    A single question stands as it is. With earlier turns, each becomes ``[Round i]\\n问：…\\n答：…``
    and the last ``答：`` stays open. A system message is put before the first question.

    Args:
        messages: ending with the user's question.
    """
    system = [message.content for message in messages if message.role == "system"]
    turns = [message.content for message in messages if message.role != "system"]
    turns[0] = "\n".join([*system, turns[0]])
    if len(turns) == 1:
        return turns[0]
    rounds = [
        f"[Round {index // 2}]\n问：{turns[index]}\n答：{turns[index + 1] if index + 1 < len(turns) else ''}"
        for index in range(0, len(turns), 2)
    ]
    return "\n".join(rounds)


def encode_prompt(tokenizer, messages: Sequence[Message]) -> list[int]:
    """Ids of ``context [gMASK] <sop>``. A control token that somebody spells stays plain text."""
    return tokenizer(render(messages), split_special_tokens=True)["input_ids"]


def encode_sample(tokenizer, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
    """Ids of the prompt, and of the last answer with its ``<eop>``."""
    prompt = encode_prompt(tokenizer, messages[:-1])
    return prompt, [*encode_text(tokenizer, messages[-1].content), tokenizer.eop_token_id]


def encode_text(tokenizer, text: str) -> list[int]:
    """Ids of a text alone. A control token that somebody spells stays plain text."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def label(prompt: list[int], answer: list[int]) -> dict[str, list[int]]:
    """A training row: the answer is learnt, the prompt is not."""
    return {"input_ids": prompt + answer, "labels": [IGNORED_LABEL] * len(prompt) + answer}


def clean_answer(text: str) -> str:
    """The answer as a reader expects it: punctuation beside Chinese characters is Chinese again.

    The tokenizer's normalization makes it ASCII; the published ``process_response`` does the same.
    """
    return _BESIDE_HAN.sub(lambda mark: _PUNCTUATION[mark[0]], text.strip())


def nfkc(text: str) -> str:
    """Unicode's compatibility form of a text, as the tokenizers of the ChatGLM family make it, in linear time.

    Python sorts a run of combining marks in quadratic time (80,000 marks took 7 s). So a long run is cut by a
    combining grapheme joiner behind every 30 marks, as Unicode's Stream-Safe Text Format does (UAX #15).
    """
    return unicodedata.normalize("NFKC", _LONG_RUN_OF_MARKS.sub(rf"\1{_GRAPHEME_JOINER}", text))


def normalize(text: str) -> str:
    """Text without blanks and with one form for each character and punctuation mark, to compare answers by."""
    for ascii_mark, han_mark in _PUNCTUATION.items():  # most Chinese texts need no more, which nfkc() sees at once
        text = text.replace(han_mark, ascii_mark)
    without_blanks = "".join(nfkc(text).split())
    return nfkc(without_blanks)  # a mark that followed a blank belongs to the character before the blank now
