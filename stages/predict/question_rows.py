"""Questions to answer: rows of any accepted layout, with or without an answer, or the lines of a text file."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from formats.raw_row import RawRow
from formats.raw_rows import find_files, read_rows
from models.errors import UserError
from models.row_layouts import QUESTION_ANSWER_KEYS, UnknownFormat, read_messages
from models.sample import Message, is_blank

TEXT_SUFFIX = ".txt"
# Question keys of rows without an answer, beside those of the layouts.
_BARE_KEYS = ("question", "query", *(question for question, _ in QUESTION_ANSWER_KEYS))
_CONTEXT_KEYS = ("input", "history", "system")
_PLACEHOLDER = "?"  # stands for the missing answer while the layout is read


@dataclass(frozen=True)
class QuestionRow:
    """A row of the questions.

    Attributes:
        location: ``file:line``, or ``file#number`` in a JSON array.
        messages: a conversation that ends with the question; empty if the row has none.
        reference: the row's own answer, if it has one.
        fault: the reason why the row has no question, or None.
    """

    location: str
    messages: tuple[Message, ...] = ()
    reference: str | None = None
    fault: str | None = None


def read_questions(source: Path) -> Iterator[QuestionRow]:
    """Yield a row for every row of a data file or of a folder of files, or for every line of a .txt file that has text.

    Raises:
        UserError: a file cannot be read.
    """
    if source.suffix.lower() == TEXT_SUFFIX:
        yield from _read_text(source)
        return
    for name, path in find_files(source).items():
        yield from map(_read_row, read_rows(path, name))


def _read_text(path: Path) -> Iterator[QuestionRow]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # splitlines() would also split at U+2028 in a text
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; name a file of questions.") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 (byte {error.start + 1}); convert it: iconv -f GB18030 -t UTF-8 FILE > NEW_FILE."
        ) from None
    for number, line in enumerate(lines, start=1):
        if not is_blank(line):
            yield QuestionRow(f"{path.name}:{number}", (Message("user", line.strip()),))


def _read_row(raw: RawRow) -> QuestionRow:
    try:
        messages, reference = parse_question(json.loads(raw.content.decode("utf-8")))
    except UnicodeDecodeError as error:
        return QuestionRow(raw.location, fault=f"not UTF-8 (byte {error.start + 1} of the row)")
    except UnknownFormat as error:
        return QuestionRow(raw.location, fault=str(error))
    except (ValueError, RecursionError) as error:
        return QuestionRow(raw.location, fault=f"not JSON ({error})")
    return QuestionRow(raw.location, messages, reference)


def parse_question(row: object) -> tuple[tuple[Message, ...], str | None]:
    """Return the conversation up to its last question, and the row's answer to it, None if it has none.

    Raises:
        UnknownFormat: the row has none of the layouts, or its conversation has no question at the end.
    """
    if isinstance(row, str):
        messages, reference = (Message("user", row),), None
    elif isinstance(row, dict) and (key := _bare_key(row)):
        context = {name: row[name] for name in _CONTEXT_KEYS if name in row}
        layout = {"instruction": row[key], "output": _PLACEHOLDER} | context
        messages, reference = read_messages(layout)[:-1], None
    else:
        messages = read_messages(row)
        is_answered = messages[-1].role == "assistant"
        reference = messages[-1].content if is_answered else None
        messages = messages[:-1] if is_answered else messages
    _check_turns(messages)
    return messages, reference


def _bare_key(row: dict) -> str | None:
    """Return the key of the question if the row has no answer: the answer's key is missing, null or empty."""
    if "messages" in row or "conversations" in row:
        return None
    answers = dict(QUESTION_ANSWER_KEYS) | {"question": "answer", "query": "response"}
    return next((key for key in _BARE_KEYS if key in row and row.get(answers[key]) in (None, "")), None)


def _check_turns(messages: tuple[Message, ...]) -> None:
    turns = messages[1:] if messages[:1] and messages[0].role == "system" else messages
    roles = [message.role for message in turns]
    if not roles or roles[-1] != "user":
        raise UnknownFormat("the conversation does not end with a question")
    if roles != [("user", "assistant")[index % 2] for index in range(len(roles))]:
        raise UnknownFormat("user and assistant do not alternate")
    if is_blank(turns[-1].content):
        raise UnknownFormat("the question is blank")
