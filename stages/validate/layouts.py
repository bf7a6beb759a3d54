"""Unsupported layouts of rows: their descriptions, and how to read or convert them."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from models.row_layouts import QUESTION_ANSWER_KEYS, TURNS, quote_value
from texts import LANGUAGES, translatable, translate

_LISTS_OF_TEXTS = (*TURNS, "data", "items", "utterances")


@dataclass(frozen=True)
class Layout:
    """An unsupported layout.

    Attributes:
        message: description of the layout, in the catalogue of texts.
        values: values of the placeholders of the message, by name.
        program: jq program that converts a row; None if ``ingest.columns`` of params.yaml serves instead.
    """

    message: str
    values: tuple[tuple[str, str], ...] = ()
    program: str | None = None

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
        None if the row is not an object, is empty, or has the key of an accepted layout.
    """
    if not isinstance(row, dict) or not row:
        return None
    return _recognize_texts(row) or _recognize_nested_rows(row) or _list_keys(row)


def _recognize_texts(row: Mapping) -> Layout | None:
    """Recognize a list of strings, of user and assistant in turn."""
    for key in _LISTS_OF_TEXTS:
        turns = row.get(key)
        if isinstance(turns, list) and len(turns) > 1 and all(isinstance(turn, str) for turn in turns):
            turn = '{role: (if .key % 2 == 0 then "user" else "assistant" end), content: .value}'
            program = f"{{messages: [{_jq_path(key)} | to_entries[] | {turn}]}}"
            return Layout(translatable("{key}, a list of texts"), (("key", repr(key)),), program)
    return None


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
    jq = f"jq -c {shlex.quote(f'(arrays[], objects) | {layout.program}')}"
    return f"gzip -dc {source} | {jq} > {target}" if file.endswith(".gz") else f"{jq} {source} > {target}"
