"""``<think>…</think>`` blocks at the beginning of answers, as reasoning models write them."""

import re
from collections.abc import Iterable
from dataclasses import replace

from models.sample import Message

_OPENING = "<think>"
_BLOCK = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)


def has_thinking(messages: Iterable[Message]) -> bool:
    """Whether an answer contains ``<think>``, at its beginning or elsewhere."""
    return any(_OPENING in message.content for message in messages if message.role == "assistant")


def has_unclosed_thinking(messages: Iterable[Message]) -> bool:
    """Whether an answer begins with ``<think>`` but has no ``</think>``: its end is missing."""
    answers = [message.content for message in messages if message.role == "assistant"]
    return any(answer.lstrip().startswith(_OPENING) and not _BLOCK.match(answer) for answer in answers)


def strip_thinking(messages: Iterable[Message]) -> tuple[Message, ...]:
    """Return the messages without the block at the beginning of each answer, and the whitespace around it."""
    return _replace_blocks(messages, "")


def unwrap_thinking(messages: Iterable[Message]) -> tuple[Message, ...]:
    """Return the messages with the tags of such blocks replaced by line breaks, so that only the text is left."""
    return _replace_blocks(messages, r"\1\n")


def _replace_blocks(messages: Iterable[Message], replacement: str) -> tuple[Message, ...]:
    return tuple(
        replace(message, content=match.expand(replacement) + message.content[match.end() :])
        if message.role == "assistant" and (match := _BLOCK.match(message.content))
        else message
        for message in messages
    )
