"""Unsupported layouts of rows: their descriptions, and how to read or convert them."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from models.row_layouts import (
    ANSWERS,
    LISTS_OF_TEXTS,
    QUESTION_ANSWER_KEYS,
    QUESTIONS,
    TURNS,
    WEAK_ANSWERS,
    WEAK_QUESTIONS,
    quote_value,
)
from texts import LANGUAGES, translatable, translate

_TEXT_KEYS = ("content", "text", "message", "answer", "value", "utterance", "body")  # of an object that holds a text
_ANSWER_LISTS = (*ANSWERS, *WEAK_ANSWERS, "human_answers", "answer_list", "responses", "outputs", "replies")


_ALTERNATING = translatable(
    "{key}, texts without roles (the command takes user and assistant in turn; check who speaks first)"
)


@dataclass(frozen=True)
class Layout:
    """An unsupported layout.

    Attributes:
        message: description of the layout, in the catalogue of texts.
        values: values of the placeholders of the message, by name.
        program: jq program that converts a row; None if ``ingest.columns`` of params.yaml serves instead.
        rows: jq program that yields the rows of a file.
    """

    message: str
    values: tuple[tuple[str, str], ...] = ()
    program: str | None = None
    rows: str = "(arrays[], objects)"

    @property
    def is_known(self) -> bool:
        """False if only the names of the keys are known."""
        return self.program is not None

    def describe(self, language: str) -> str:
        """Return the description of the layout in a language."""
        return translate(self.message, language, **dict(self.values))

    @property
    def name(self) -> str:
        """The description in English, for error messages."""
        return self.describe("en")


# Recognition ---------------------------------------------------------------------------------------


def recognize_layout(row: object) -> Layout | None:
    """Return the layout of a row that has none of the accepted ones.

    Returns:
        None if the row is neither an object nor a list of texts, is empty, or has the key of an accepted layout.
    """
    if isinstance(row, list):
        return _recognize_bare_texts(row)
    if not isinstance(row, dict) or not row:
        return None
    return _recognize_texts(row) or _recognize_lists_of_answers(row) or _recognize_nested_rows(row) or _list_keys(row)


def _recognize_bare_texts(row: list) -> Layout | None:
    """Recognize a row that is a list of strings itself."""
    if len(row) < 2 or not all(isinstance(text, str) for text in row):
        return None
    rows = 'if (.[0] | type) == "array" then .[] else . end'
    return Layout(_ALTERNATING, (("key", quote_value(row)),), _turns_program("", ".value"), rows)


def _turns_program(path: str, text: str) -> str:
    turn = f'{{role: (if .key % 2 == 0 then "user" else "assistant" end), content: {text}}}'
    return f"{{messages: [{f'{path} | ' if path else ''}to_entries[] | {turn}]}}"


def _recognize_texts(row: Mapping) -> Layout | None:
    """Recognize a list of strings, or of objects with a text and no role, of user and assistant in turn."""
    for key in LISTS_OF_TEXTS:
        turns = row.get(key)
        if not isinstance(turns, list) or len(turns) < 2 or not isinstance(turns[0], str | dict):
            continue
        text_key = _text_key(turns[0])
        is_alike = all(type(turn) is type(turns[0]) and _text_key(turn) == text_key for turn in turns)
        if is_alike and (text_key or isinstance(turns[0], str)):
            program = _turns_program(_jq_path(key), f".value{_jq_path(text_key) if text_key else ''}")
            return Layout(_ALTERNATING, (("key", repr(key)),), program)
    return None


def _text_key(value: object) -> str | None:
    """Return the key of an object's text; None if it is no object, or has a role."""
    if not isinstance(value, dict) or not value.keys().isdisjoint(("role", "from")):
        return None
    return next((key for key in _TEXT_KEYS if isinstance(value.get(key), str)), None)


def _recognize_lists_of_answers(row: Mapping) -> Layout | None:
    """Recognize a question with a list of answers, or a list of wordings of the question."""
    question = next((key for key in row if key.lower() in (*QUESTIONS, *WEAK_QUESTIONS) and row[key]), None)
    answer = next((key for key in row if key.lower() in _ANSWER_LISTS and row[key] and key != question), None)
    if question is None or answer is None or not any(isinstance(row[key], list) for key in (question, answer)):
        return None
    texts = {part: _first_text(row[key], key) for part, key in (("question", question), ("answer", answer))}
    if None in texts.values():
        return None
    program = f"{{question: {texts['question']}, answer: {texts['answer']}}}"
    message = translatable("{key}, a list (the command takes its first entry)")
    key = question if isinstance(row[question], list) else answer
    return Layout(message, (("key", quote_value(key)),), program)


def _first_text(value: object, key: str) -> str | None:
    """Return the jq program for a text, or for the first text of a list; None for another value."""
    if isinstance(value, str):
        return _jq_path(key)
    while isinstance(value, list) and value:
        value = value[0]
    first = f"({_jq_path(key)} | flatten | .[0])"
    if isinstance(value, str):
        return first
    text_key = _text_key(value)
    return first + _jq_path(text_key) if text_key else None


def _recognize_nested_rows(row: Mapping) -> Layout | None:
    """Recognize a file whose rows are a list below one key."""
    for key, value in row.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            keys = value[0].keys()
            if not keys.isdisjoint(TURNS) or any(keys >= set(pair) for pair in QUESTION_ANSWER_KEYS):
                message = translatable("a list of rows below {key}")
                return Layout(message, (("key", quote_value(key)),), f"{_jq_path(key)}[]")
    return None


def _list_keys(row: Mapping) -> Layout | None:
    if "messages" in row:
        return None
    keys = ", ".join(map(quote_value, list(row)[:6]))
    return Layout(translatable("the keys {keys}"), (("keys", keys),))


def _jq_path(key: str) -> str:
    return f".{key}" if key.isascii() and key.isidentifier() else f".[{json.dumps(key, ensure_ascii=False)}]"


# Conversion ----------------------------------------------------------------------------------------


def describe_conversion(file: str, rows: int, layout: Layout) -> dict[str, str]:
    """Return a sentence, by language: the unsupported layout of a file, and how to read or convert it."""
    if layout.is_known:
        message = translatable(
            "{file}: {rows:,} rows have an unsupported layout: {layout}. To convert the file: `{command}`"
        )
    else:
        message = translatable(
            "{file}: {rows:,} rows have an unsupported layout: {layout}. Name the columns of question and answer in "
            "params.yaml: `{command}`"
        )
    command = conversion_command(file, layout)
    return {
        language: translate(message, language, layout=layout.describe(language), file=file, rows=rows, command=command)
        for language in LANGUAGES
    }


def conversion_command(file: str, layout: Layout) -> str:
    """Return a shell command that converts a file of JSON Lines or of one array, or the setting that reads it."""
    if layout.program is None:
        return "ingest: {columns: {question: QUESTION, answer: ANSWER}}"
    stem = file.removesuffix(".gz").removesuffix(".jsonl").removesuffix(".json")
    target, source = shlex.quote(f"{stem}.converted.jsonl"), shlex.quote(file)
    jq = f"jq -c {shlex.quote(f'{layout.rows} | {layout.program}')}"
    return f"gzip -dc {source} | {jq} > {target}" if file.endswith(".gz") else f"{jq} {source} > {target}"
