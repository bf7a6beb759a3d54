"""Unsupported layouts of rows, such as ShareGPT: their descriptions, and the jq commands that convert them."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from models.sample import QUESTION_ANSWER_KEYS, quote_value
from texts import LANGUAGES, translatable, translate

_QUESTIONS = (
    "question", "query", "instruction", "prompt", "ask", "q", "problem", "human", "user", "input", "问题", "问", "提问",
    "指令", "src", "source_text",
)  # fmt: skip
_ANSWERS = (
    "answer", "response", "output", "completion", "chosen", "a", "reply", "solution", "assistant", "bot", "gpt",
    "target", "label", "答案", "回答", "答", "回复", "输出", "tgt", "target_text",
)  # fmt: skip
_TURNS = ("conversations", "conversation", "messages", "dialogue", "dialog", "dialogs", "chat", "turns")
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant"}


@dataclass(frozen=True)
class Layout:
    """An unsupported layout.

    Attributes:
        message: description of the layout, in the catalogue of texts.
        values: values of the placeholders of the message, by name.
        program: jq program that converts a row; None if there is none.
        is_known: False if only the names of the keys are known.
    """

    message: str
    values: tuple[tuple[str, str], ...] = ()
    program: str | None = None
    is_known: bool = True

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
    recognizers = (_recognize_turns, _recognize_texts, _recognize_nested_rows, _recognize_pair, _recognize_text)
    return next((layout for recognizer in recognizers if (layout := recognizer(row))), None) or _list_keys(row)


def _recognize_turns(row: Mapping) -> Layout | None:
    """Recognize a list of turns with other keys than ``messages`` of ``role`` and ``content``, such as ShareGPT."""
    for key in _TURNS:
        turns = row.get(key)
        if not isinstance(turns, list) or not turns or not isinstance(turns[0], dict):
            continue
        for role, content in (("from", "value"), ("role", "content"), ("role", "value"), ("from", "content")):
            if {role, content} <= turns[0].keys():
                if (key, role, content) == ("messages", "role", "content") and not _has_foreign_role(turns):
                    return None
                turn = f"{{role: ({json.dumps(_ROLES)}[.{role}] // .{role}), content: .{content}}}"
                program = f"del({_jq_path(key)}) + {{messages: [{_jq_path(key)}[] | {turn}]}}"
                return _turn_layout(key, role, content, program)
        if pair := _find_pair(turns[0]):
            turn = (
                f'{{role: "user", content: {_jq_path(pair[0])}}}, {{role: "assistant", content: {_jq_path(pair[1])}}}'
            )
            return _turn_layout(key, *pair, f"{{messages: [{_jq_path(key)}[] | {turn}]}}")
    return None


def _has_foreign_role(turns: list) -> bool:
    return any(isinstance(turn, dict) and turn.get("role") in tuple(_ROLES) for turn in turns)


def _turn_layout(key: str, first: str, second: str, program: str) -> Layout:
    sharegpt = translatable("ShareGPT: {key} of {first} and {second}")
    message = sharegpt if second == "value" else translatable("{key} of {first} and {second}")
    return Layout(message, (("key", repr(key)), ("first", repr(first)), ("second", repr(second))), program)


def _recognize_texts(row: Mapping) -> Layout | None:
    """Recognize a list of strings, of user and assistant in turn."""
    for key in (*_TURNS, "data", "items"):
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
            if "messages" in keys or any(keys >= set(pair) for pair in QUESTION_ANSWER_KEYS):
                message = translatable("a list of rows below {key}")
                return Layout(message, (("key", quote_value(key)),), f"{_jq_path(key)}[]")
    return None


def _recognize_pair(row: Mapping) -> Layout | None:
    """Recognize a question and an answer with other keys."""
    if not (pair := _find_pair(row)):
        return None
    question, answer = pair
    message = translatable("{question} and {answer}")
    values = (("question", repr(question)), ("answer", repr(answer)))
    if isinstance(row[answer], list):
        return Layout(message, values, f"{{messages: {_jq_path(answer)}}}" if answer == "chosen" else None)
    # The text that the question refers to, such as Dolly's `context`.
    passage = next((key for key in ("input", "context", "passage") if key in row and key not in pair), None)
    keys = {"instruction": question, "input": passage, "output": answer}
    if passage is None:
        keys = {"prompt": question, "response": answer}
    system = next((key for key in ("system", "system_prompt") if key in row), None)
    keys |= ({"system": system} if system else {}) | ({"history": "history"} if "history" in row else {})
    return Layout(message, values, "{" + ", ".join(f"{new}: {_jq_path(old)}" for new, old in keys.items()) + "}")


def _recognize_text(row: Mapping) -> Layout | None:
    if isinstance(row.get("text"), str):
        return Layout(translatable("'text' alone, without question and answer"))
    return None


def _list_keys(row: Mapping) -> Layout | None:
    if "messages" in row:
        return None
    keys = ", ".join(map(quote_value, list(row)[:6]))
    return Layout(translatable("the keys {keys}"), (("keys", keys),), is_known=False)


def _find_pair(row: Mapping) -> tuple[str, str] | None:
    """Return the keys of question and answer as spelled in the row; their case does not matter."""
    keys = {key.lower(): key for key in reversed(row)}
    question = next((keys[name] for name in _QUESTIONS if name in keys), None)
    answer = next((keys[name] for name in _ANSWERS if name in keys and keys[name] != question), None)
    return (question, answer) if question is not None and answer is not None else None


def _jq_path(key: str) -> str:
    return f".{key}" if key.isascii() and key.isidentifier() else f".[{json.dumps(key, ensure_ascii=False)}]"


# Conversion ----------------------------------------------------------------------------------------


def describe_conversion(file: str, rows: int, layout: Layout) -> dict[str, str]:
    """Return a sentence, by language: the unsupported layout of a file, the accepted keys, and how to convert it."""
    if (command := conversion_command(file, layout)) is None:
        message = translatable("{file}: {rows:,} rows have an unsupported layout: {layout}. Accepted keys: {accepted}.")
    elif layout.is_known:
        message = translatable(
            "{file}: {rows:,} rows have an unsupported layout: {layout}. Accepted keys: {accepted}. "
            "To convert the file: `{command}`"
        )
    else:
        message = translatable(
            "{file}: {rows:,} rows have an unsupported layout: {layout}. Accepted keys: {accepted}. "
            "To convert the file, insert your own keys for QUESTION and ANSWER: `{command}`"
        )
    pairs = [" + ".join(keys) for keys in QUESTION_ANSWER_KEYS]
    values = {"file": file, "rows": rows, "command": command}
    values["accepted"] = ", ".join((*pairs, "messages: [{role, content}, …]"))
    return {
        language: translate(message, language, layout=layout.describe(language), **values) for language in LANGUAGES
    }


def conversion_command(file: str, layout: Layout) -> str | None:
    """Return a shell command that converts a file of JSON Lines or of one array; None if there is none."""
    program = layout.program or (None if layout.is_known else "{prompt: .QUESTION, response: .ANSWER}")
    if program is None:
        return None
    stem = file.removesuffix(".gz").removesuffix(".jsonl").removesuffix(".json")
    target, source = shlex.quote(f"{stem}.converted.jsonl"), shlex.quote(file)
    jq = f"jq -c {shlex.quote(f'(arrays[], objects) | {program}')}"
    return f"gzip -dc {source} | {jq} > {target}" if file.endswith(".gz") else f"{jq} {source} > {target}"
