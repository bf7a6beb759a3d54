"""Turns that a data set marks in the text itself instead of by roles.

==========  ================================================================================================
data set    row
==========  ================================================================================================
BELLE       a question ``Human:q1\\nAssistant:a1\\nHuman:q2\\nAssistant:``, which ends with an open answer
MedDialog   ``utterances``: a list of texts that begin with their speaker, ``病人：…``, ``医生：…``
MOSS        ``chat``: ``{"turn_1": {"Human": "<|Human|>: q1<eoh>\\n", "MOSS": "<|MOSS|>: a1<eom>\\n"}, …}``
==========  ================================================================================================

The marks are removed: the base has its own prompt template, and would learn to write them.
"""

import re
from collections.abc import Mapping, Sequence

from models.sample import Message

_USERS = "human|user|usr|patient|customer|用户|用戶|病人|患者|客户|顾客|买家|学生"
_ASSISTANTS = "assistant|bot|moss|doctor|agent|助手|助理|医生|大夫|客服|卖家|老师"
_MARK = re.compile(rf"\s*(?:<\||\[)?(?:({_USERS})|({_ASSISTANTS}))(?:\|>|\])?\s?[:：]\s*", re.IGNORECASE)
# Only these marks open a turn within a text, where "医生：" may be part of a sentence.
_TURN_START = re.compile(r"(?:^|\n)[ \t]*(?:(Human|User|用户)|(Assistant|助手))\s?[:：]")
_END_TOKENS = ("<eoh>", "<eom>", "<eoa>", "<eoc>", "<eot>")
_NO_COMMANDS = ("", "None")
_MOSS_TURN = re.compile(r"turn_\d{1,4}")


def split_question(text: str) -> tuple[Message, ...] | None:
    """Return the turns of a question that holds a whole conversation and ends with an open answer; None for others."""
    if not text.rstrip().endswith((":", "：")):
        return None
    marks = list(_TURN_START.finditer(text))
    roles = ["user" if mark[1] else "assistant" for mark in marks]
    if not marks or text[: marks[0].start()].strip() or roles != ["user", "assistant"] * (len(roles) // 2):
        return None
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    turns = [text[mark.end() : end].strip() for mark, end in zip(marks, ends, strict=True)]
    if turns[-1]:
        return None
    return tuple(Message(role, turn) for role, turn in zip(roles[:-1], turns[:-1], strict=True))


def read_utterances(texts: object) -> tuple[Message, ...] | None:
    """Return the messages of a list of texts that all begin with their speaker; None for any other value.

    Consecutive texts of a speaker become one message.
    """
    if not isinstance(texts, list) or len(texts) < 2 or not all(isinstance(text, str) for text in texts):
        return None
    marks = [_MARK.match(text) for text in texts]
    if not all(marks):
        return None
    turns: list[tuple[str, list[str]]] = []
    for text, mark in zip(texts, marks, strict=True):
        role = "user" if mark[1] else "assistant"
        if not turns or turns[-1][0] != role:
            turns.append((role, []))
        turns[-1][1].append(text[mark.end() :])
    return tuple(Message(role, "\n".join(parts)) for role, parts in turns)


def is_moss_chat(value: object) -> bool:
    """Whether a value is MOSS's object of numbered turns."""
    return isinstance(value, Mapping) and bool(value) and all(map(_MOSS_TURN.fullmatch, value))


def read_moss_chat(turns: Mapping[str, object]) -> tuple[Message, ...]:
    """Return the messages of MOSS's object of numbered turns.

    Raises:
        ValueError: a turn lacks a text, or calls a tool.
    """
    messages = []
    for name in sorted(turns, key=lambda name: int(name.removeprefix("turn_"))):
        turn = turns[name]
        if not isinstance(turn, Mapping) or not all(isinstance(turn.get(key), str) for key in ("Human", "MOSS")):
            raise ValueError(f"the turn {name!r} needs the texts 'Human' and 'MOSS'")
        command = turn.get("Commands", "")
        if not isinstance(command, str) or _remove_end_token(command.removeprefix("<|Commands|>:")) not in _NO_COMMANDS:
            raise ValueError(
                f"the turn {name!r} has 'Commands', a tool call, which this base model does not support; remove the row"
            )
        messages += Message("user", _unmark(turn["Human"])), Message("assistant", _unmark(turn["MOSS"]))
    return tuple(messages)


def _unmark(text: str) -> str:
    mark = _MARK.match(text)
    return _remove_end_token(text[mark.end() if mark else 0 :])


def _remove_end_token(text: str) -> str:
    stripped = text.strip()
    return next((stripped.removesuffix(token).rstrip() for token in _END_TOKENS if stripped.endswith(token)), stripped)


def merge_turns(before: Sequence[Message], question: str) -> tuple[Message, ...]:
    """Return a conversation up to its question, whose text may hold further turns."""
    return (*before, *(split_question(question) or (Message("user", question),)))
