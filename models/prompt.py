"""Prompt templates of ChatGLM-6B and ChatGLM2-6B, and encoding of conversations for training, evaluation and chat.

The published code of ChatGLM-6B numbers the turns differently in training and in evaluation. Here :func:`render_prompt`
serves both, and follows the published ``chat()``.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Literal

from models.sample import Message

PROMPT_VERSION = "chatglm-6b/1"  # saved in manifests; increase it when the same messages give other tokens

IGNORED_LABEL = -100  # the ignore_index of cross_entropy
Learn = Literal["all", "last"]  # the answers of a conversation that are learnt
ANSWER_ROLES = ("assistant", "text")  # a text is the answer to an empty prompt
PROMPT_SPECIAL_TOKENS, ANSWER_SPECIAL_TOKENS = 2, 1  # ``[gMASK] <sop>`` after the prompt, ``<eop>`` after the answer


def render_prompt(messages: Sequence[Message]) -> str:
    """Return the text of the prompt for the next answer.

    Without messages it is empty: the prompt of a plain text. A single question is the prompt. With earlier turns, each
    turn becomes ``[Round i]\\n问：…\\n答：…``, and the last ``答：`` is left open. System messages are put before the
    first question.

    Args:
        messages: conversation that ends with the user's question; may be empty.
    """
    if not messages:
        return ""
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


def render_rounds(messages: Sequence[Message]) -> str:
    """Return the text of ChatGLM2's prompt for the next answer: ``[Round 1]\\n\\n问：…\\n\\n答：``.

    System messages, which the published code does not know, are put before the first question.

    Args:
        messages: conversation that ends with the user's question; empty for the prompt of a plain text.
    """
    if not messages:
        return ""
    system = [message.content for message in messages if message.role == "system"]
    turns = [message.content for message in messages if message.role != "system"]
    turns[0] = "\n".join([*system, turns[0]])
    rounds = []
    for index in range(0, len(turns), 2):
        answer = turns[index + 1] if index + 1 < len(turns) else ""
        rounds.append(f"[Round {index // 2 + 1}]\n\n问：{turns[index]}\n\n答：{answer}")
    return "\n\n".join(rounds)


def find_learnt(messages: Sequence[Message], learn: Learn = "all") -> list[int]:
    """Return the indices of the answers that are learnt: all whose ``learn`` is true, or only the last one of them."""
    indices = [index for index, message in enumerate(messages) if message.role in ANSWER_ROLES and message.learn]
    return indices[-1:] if learn == "last" else indices


# Tokens of any family, see :class:`models.families.family.Family` ----------------------------------


def encode_prompt(tokenizer, messages: Sequence[Message]) -> list[int]:
    """Return the ids of the prompt for the next answer. Control tokens spelled in a message are plain text."""
    return tokenizer.family.encode_prompt(tokenizer, messages)


def encode_sample(tokenizer, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
    """Return the ids of the prompt, and of the last answer with the token that ends it."""
    return tokenizer.family.encode_sample(tokenizer, messages)


def encode_text(tokenizer, text: str) -> list[int]:
    """Return the ids of a text, without special tokens. Control tokens spelled in it are plain text."""
    return tokenizer.family.encode_text(tokenizer, text)


def label_parts(parts: Sequence[list[int]]) -> dict[str, list[int]]:
    """Return a training row with its label mask (loss mask).

    Args:
        parts: ids that are ignored and ids that are learnt, in turn.

    Returns:
        ``input_ids`` and ``labels``, each (length,); the labels of ignored ids are IGNORED_LABEL.
    """
    labels = [part if index % 2 else [IGNORED_LABEL] * len(part) for index, part in enumerate(parts)]
    return {"input_ids": [*chain.from_iterable(parts)], "labels": [*chain.from_iterable(labels)]}


def label_sample(prompt: list[int], answer: list[int]) -> dict[str, list[int]]:
    """Return a training row of a prompt, which is ignored, and an answer; see :func:`label_parts`."""
    return label_parts([prompt, answer])
