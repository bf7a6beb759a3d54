"""Reader of raw rows: the messages of a row in any accepted layout, recognized by its keys.

====================  =============================================================================================
layout                keys
====================  =============================================================================================
turns                 ``messages``, ``conversations``, … of ``role`` and ``content`` (OpenAI), of ``from`` and ``value``
                      (ShareGPT), or of a question and an answer (``human`` and ``assistant``, ms-swift)
question and answer   :data:`QUESTION_ANSWER_KEYS`, or one key of :data:`QUESTIONS` and one of :data:`ANSWERS`; also
                      ``history``, and ``input`` or ``context`` for the text that the question refers to
marked turns          ``utterances`` that begin with their speaker, MOSS's ``chat``; see :mod:`models.marked_turns`
text                  ``text``, a document for continued pretraining
columns               any other layout, by the names of its columns (``ingest.columns`` of params.yaml)
====================  =============================================================================================

A ``system`` text becomes the first message. A separate module from :mod:`models.sample`, so that a new layout does not
make trained adapters stale.
"""

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from models.answer_options import find_option_keys, format_options
from models.marked_turns import is_moss_chat, merge_turns, read_moss_chat, read_utterances
from models.sample import Message, is_blank, is_empty, is_missing, is_null_marker

QUESTION_ANSWER_KEYS = (
    ("context", "target"),
    ("prompt", "response"),
    ("content", "summary"),
    ("instruction", "output"),
)
# Pairs whose names have other meanings beside the names below: ``source`` often says where a row is from.
_PAIRS_BY_THEMSELVES = (
    ("source", "target"),
    ("text", "summary"),
    ("article", "summary"),
    ("document", "summary"),
    ("input", "content"),
)
# Names of question and answer in other layouts. Weak names are used only in rows without a strong one.
QUESTIONS = ("question", "query", "instruction", "prompt", "ask", "problem", "问题", "提问", "指令")
ANSWERS = ("answer", "response", "output", "completion", "reply", "chosen", "答案", "回答", "回复", "输出")
WEAK_QUESTIONS = (
    "q", "human", "user", "input", "inputs", "input_text", "questions", "src", "source_text", "patient", "问", "用户",
    "患者", "病人",
)  # fmt: skip
WEAK_ANSWERS = (
    "a", "solution", "assistant", "bot", "gpt", "target", "targets", "output_text", "answers", "label", "tgt",
    "target_text", "doctor", "答", "助手", "医生",
)  # fmt: skip
# Keys beside ``text`` that show that it is no document: a message of a tree of conversations, or a labelled example.
_NOT_OF_A_DOCUMENT = frozenset((
    *QUESTIONS, *ANSWERS,
    "role", "parent_id", "message_tree_id", "label", "labels", "summary", "sentiment", "target", "translation",
))  # fmt: skip
TURNS = ("messages", "conversations", "conversation", "dialogue", "dialog", "dialogs", "chat", "turns")
LISTS_OF_TEXTS = (*TURNS, "data", "items", "utterances")
_PASSAGES = ("input", "context", "passage")  # the text that a question refers to, such as Dolly's ``context``
_SYSTEMS = ("system", "system_prompt")
_ROLE_KEYS, _CONTENT_KEYS = ("role", "from"), ("content", "value", "parts")
_ROLE_NAMES = {
    **dict.fromkeys(("system", "developer", "系统"), "system"),
    **dict.fromkeys(("user", "human", "prompter", "用户"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "chatbot", "model", "bing", "bard", "助手"), "assistant"),
    "text": "text",  # the only message of a checked document
}
_TASK_ROLE_NAMES = _ROLE_NAMES | {"usr": "user", "sys": "assistant"}  # task-oriented dialogues: user and system
# Roles of tool calls and their results, which the base model cannot express.
_TOOL_ROLES = (
    "tool", "function", "function_call", "function_response", "tool_call", "tool_calls", "tool_response", "observation",
    "ipython", "environment",
)  # fmt: skip
# Rows with these keys are rejected: they hold tool calls or media, and ChatGLM-6B would be trained on the text alone.
UNSUPPORTED_KEYS = (
    "tools", "functions", "tool_calls", "function_call", "images", "image", "videos", "video", "audios", "audio",
)  # fmt: skip
# Loss weights of a row, and of a message: OpenAI's ``weight``, ms-swift's ``loss`` and ``loss_scale``, LLaMA-Factory's
# ``loss_weight``, Axolotl's ``train``, and Tuneline's own ``learn``.
ROW_LOSS_KEYS = ("weight", "loss")
_MESSAGE_LOSS_KEYS = (*ROW_LOSS_KEYS, "loss_scale", "loss_weight", "train", "learn")
_CHECKED_KEYS = frozenset((*UNSUPPORTED_KEYS, *_MESSAGE_LOSS_KEYS))
_FLAGS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
_TEXT_PARTS = ("text", "input_text", "output_text")  # types of content parts that hold text
_QUOTED_LENGTH = 40  # characters of a key or value that an error message shows
_MAX_CACHED_KEYS = 32  # of a row; more keys are not kept in the cache of layouts
_LIST_INDEX = re.compile(r"[0-9]{1,9}")
_ABSENT = object()


class UnknownFormat(ValueError):
    """A row in none of the accepted formats; the message names the problem."""


class UnknownLayout(UnknownFormat):
    """A row whose keys belong to the layout of another program."""


class PairKeys(NamedTuple):
    """Keys of a row of question and answer; None for a key that the row does not have."""

    question: str
    answer: str
    passage: str | None
    system: str | None
    history: str | None
    options: tuple[str, ...] = ()

    @property
    def read(self) -> set[str]:
        """The keys that are read."""
        return {*filter(None, self[:-1]), *self.options, *ROW_LOSS_KEYS}


# Rows ----------------------------------------------------------------------------------------------


def read_messages(row: object, columns: Mapping[str, str] | None = None) -> tuple[Message, ...]:
    """Return the messages of a row in any accepted format; see :func:`read_row`."""
    return read_row(row, columns)[0]


def read_row(row: object, columns: Mapping[str, str] | None = None) -> tuple[tuple[Message, ...], set[str]]:
    """Return the messages of a row in any accepted format, and the names of keys whose values are ignored.

    A key of messages is named ``messages[].key``.

    Args:
        columns: names of columns, by part: ``question`` and ``answer`` with ``history`` and ``system``, ``messages``,
            or ``text``. Names with a dot are also paths (``data.question``). Rows without these columns are recognized
            by their keys.

    Raises:
        UnknownFormat: the row has none of the formats, a value has the wrong type, nothing of it is learnt, or a key
            needs a feature that training does not support.
    """
    if not isinstance(row, dict):
        problem = f"a row must be a JSON object, not {_json_type(row)}"
        raise UnknownLayout(problem) if isinstance(row, list) else UnknownFormat(problem)
    _check_supported(row)
    _check_row_weight(row)
    values = _select_columns(row, columns) if columns else None
    return _read_columns(row, columns, values) if values else _read_layout(row, columns)


def _read_layout(row: dict, columns: Mapping[str, str] | None) -> tuple[tuple[Message, ...], set[str]]:
    if key := _turns_key(row):
        messages, unread = _read_conversation(row[key], key)
        read_answer = set()
        if "chosen" in row and key != "chosen" and messages[-1].role == "user":  # preference data
            chosen, unread_of_answer = _read_answer(row["chosen"])
            messages, unread, read_answer = (*messages, *chosen), unread | unread_of_answer, {"chosen"}
        system = next((name for name in _SYSTEMS if name in row), None)
        read = {key, system, *read_answer, *ROW_LOSS_KEYS}
    elif marked := _read_marked_turns(row):
        key, messages = marked
        unread, system = set(), next((name for name in _SYSTEMS if name in row), None)
        read = {key, system, *ROW_LOSS_KEYS}
    elif pair := _pair_of(tuple(row)):
        messages, unread = _read_pair(row, pair)
        system, read = pair.system, pair.read
    elif isinstance(row.get("text"), str) and _is_document(row):
        messages, unread, system, read = (Message("text", row["text"]),), set(), None, {"text", *ROW_LOSS_KEYS}
    else:
        raise UnknownLayout(_describe_keys(row, columns))
    return _with_system(row.get(system), messages, system), unread | _unread_keys(row, read)


def _describe_keys(row: dict, columns: Mapping[str, str] | None) -> str:
    keys = ", ".join(map(quote_value, list(row)[:6])) or "no keys"
    if columns:
        named = ", ".join(map(quote_value, columns.values()))
        return f"no known format has these keys: {keys}; the row has none of the columns of ingest.columns ({named})"
    return f"no known format has these keys: {keys}"


def _unread_keys(row: dict, read: set[str]) -> set[str]:
    return {key for key in row.keys() - read if not is_empty(row[key])}


def _turns_key(row: dict) -> str | None:
    """Return the key of the list of turns; a list of texts has no roles and does not count."""
    for key in TURNS:
        if key in row and (key == "messages" or _is_list_of_objects(row[key])):
            return key
    contents = row.get("contents")  # Gemini; documents of a question have no roles
    if isinstance(contents, list) and contents and isinstance(contents[0], dict) and "role" in contents[0]:
        return "contents"
    if "rejected" in row and _is_list_of_objects(row.get("chosen")) and "prompt" not in row:  # preference data
        return "chosen"
    return None


def _read_marked_turns(row: dict) -> tuple[str, tuple[Message, ...]] | None:
    """Return key and messages of turns that are marked in their texts; None if the row has none."""
    if is_moss_chat(row.get("chat")):
        try:
            return "chat", read_moss_chat(row["chat"])
        except ValueError as error:
            raise UnknownFormat(str(error)) from None
    for key in LISTS_OF_TEXTS:
        if key in row and (messages := read_utterances(row[key])):
            return key, messages
    return None


def _is_list_of_objects(value: object) -> bool:
    if isinstance(value, str):  # a cell of a table
        return value.lstrip()[:1] == "[" and "{" in value[:_QUOTED_LENGTH]
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _decode_list(value: object, key: str) -> object:
    """Return a value, parsed if it is JSON text: a cell of a table holds a list as text."""
    if not isinstance(value, str) or value.lstrip()[:1] != "[":
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise UnknownFormat(f"{key!r} is text that begins with '[' but is not a JSON list") from None


# Unsupported content -------------------------------------------------------------------------------


def _check_supported(part: dict) -> None:
    """Raise UnknownFormat if a row or message has tool calls or media."""
    if _CHECKED_KEYS.isdisjoint(part):
        return
    for key in UNSUPPORTED_KEYS:
        if not is_empty(part.get(key)):
            raise UnknownFormat(
                f"the key {key!r} holds more than text, which this base model does not support; remove the row"
            )


def _check_row_weight(row: dict) -> None:
    """Raise UnknownFormat if a row has a loss weight of 0, so that nothing of it is learnt."""
    if not _is_learnt(row, ROW_LOSS_KEYS):
        key = next(key for key in ROW_LOSS_KEYS if not _is_learnt(row, (key,)))
        raise UnknownFormat(
            f"the key {key!r} is {quote_value(row[key])}, so nothing of the row is learnt; remove the row"
        )


def _is_learnt(part: dict, keys: Sequence[str]) -> bool:
    """Return False if one of the loss weights of a row or message is 0 or false.

    Raises:
        UnknownFormat: a weight is neither 0 nor 1.
    """
    if _CHECKED_KEYS.isdisjoint(part):
        return True
    is_learnt = True
    for key in keys:
        value = part.get(key)
        if is_empty(value):
            continue
        flag = _FLAGS.get(str(value).strip().lower()) if isinstance(value, str | int | float) else None
        if flag is None:
            raise UnknownFormat(
                f"the key {key!r} is {quote_value(value)}, but an answer can only be trained with weight 1, or left "
                "out with weight 0; remove the row, or the key"
            )
        is_learnt = is_learnt and flag
    return is_learnt


# Turns ---------------------------------------------------------------------------------------------


def _read_conversation(value: object, key: str) -> tuple[tuple[Message, ...], set[str]]:
    """Return the messages of a list of turns of which at least one answer is learnt; see :func:`_read_turns`."""
    turns = _decode_list(value, key)
    messages, unread = _read_turns(turns, key)
    answers = [message for message in messages if message.role == "assistant"]
    if answers and not any(message.learn for message in answers):
        flags = [flag for flag in _MESSAGE_LOSS_KEYS if any(flag in turn for turn in turns)]
        keys = " or ".join(f"the key {flag!r}" for flag in flags)
        raise UnknownFormat(f"{keys} is 0 or false for every answer, so nothing of the row is learnt; remove the row")
    return messages, unread


def _read_turns(turns: object, key: str) -> tuple[tuple[Message, ...], set[str]]:
    """Return the messages of a list of turns, and the keys of turns that are not read."""
    if not isinstance(turns, list) or not turns:
        raise UnknownFormat(f"{key!r} must be a list with at least one message")
    first = turns[0] if isinstance(turns[0], dict) else {}
    role_key = next((name for name in _ROLE_KEYS if name in first), None)
    content_key = next((name for name in _CONTENT_KEYS if name in first), None)
    if role_key and content_key:
        names = _TASK_ROLE_NAMES if first[role_key] == "usr" else _ROLE_NAMES
        messages = [_read_message(turn, role_key, content_key, names) for turn in turns]
        read = {role_key, content_key, *_MESSAGE_LOSS_KEYS}
    elif first and (pair := _pair_of(tuple(first))):
        messages, read = _read_pair_turns(turns, pair), {pair.question, pair.answer, pair.system, *_MESSAGE_LOSS_KEYS}
    else:
        raise UnknownLayout(f"every message of {key!r} needs 'role' and 'content'")
    unread = {f"{key}[].{name}" for turn in turns for name in turn.keys() - read if not is_empty(turn[name])}
    # Exports write an empty system message where no system prompt was set.
    kept = tuple(message for message in messages if message is not None)
    if not kept:
        raise UnknownFormat(f"{key!r} has only an empty system message")
    return kept, unread


def _read_answer(value: object) -> tuple[tuple[Message, ...], set[str]]:
    """Return the preferred answer to a conversation: a text, a message, or a list of messages."""
    if isinstance(value, str):
        return (Message("assistant", value),), set()
    return _read_turns([value] if isinstance(value, dict) else value, "chosen")


def _read_message(turn: object, role_key: str, content_key: str, role_names: Mapping[str, str]) -> Message | None:
    """Return a message; None for an empty system message."""
    if not isinstance(turn, dict) or not {role_key, content_key} <= turn.keys():
        raise UnknownLayout(f"every message needs {role_key!r} and {content_key!r}")
    name = turn[role_key]
    role = role_names.get(name, role_names.get(name.strip().lower())) if isinstance(name, str) else None
    if role is None:
        if isinstance(name, str) and name.strip().lower() in _TOOL_ROLES:
            raise UnknownFormat(
                f"a message has the {role_key!r} {quote_value(name)}, a tool call or its result, which this base model "
                "does not support; remove the row"
            )
        raise UnknownLayout(f"a role must be one of system, user, assistant, not {quote_value(name)}")
    _check_supported(turn)
    is_learnt = _is_learnt(turn, _MESSAGE_LOSS_KEYS) or role != "assistant"
    content = turn[content_key]
    if role == "system" and is_missing(content):
        return None
    return Message(role, content if isinstance(content, str) else _join_parts(content, content_key), is_learnt)


def _join_parts(content: object, key: str) -> str:
    """Return the text of a content list, its parts concatenated as chat templates do."""
    if not isinstance(content, list) or not content:
        return _text(content, key)
    texts = []
    for part in content:
        content_part = {"text": part} if isinstance(part, str) else part
        if not isinstance(content_part, dict):
            raise UnknownFormat(f"{key!r} has a part that is neither text nor an object")
        kind, text = content_part.get("type", "text"), content_part.get("text", content_part.get("value"))
        if kind not in _TEXT_PARTS or not isinstance(text, str):
            raise UnknownFormat(
                f"{key!r} has a part of type {quote_value(kind)}, which this base model cannot use; remove the row"
            )
        texts.append(text)
    return "".join(texts)


def _read_pair_turns(turns: Sequence[object], pair: PairKeys) -> list[Message]:
    """Return the messages of turns that are a question and an answer each; the first may have a system text."""
    messages = []
    for turn in turns:
        if not isinstance(turn, dict) or not {pair.question, pair.answer} <= turn.keys():
            raise UnknownLayout(f"every turn needs {pair.question!r} and {pair.answer!r}")
        _check_supported(turn)
        system = turn.get(pair.system) if pair.system else None
        if not is_missing(system):
            messages.append(Message("system", _text(system, pair.system)))
        messages.append(Message("user", _text(turn[pair.question], pair.question)))
        is_learnt = _is_learnt(turn, _MESSAGE_LOSS_KEYS)
        messages.append(Message("assistant", _text(turn[pair.answer], pair.answer), is_learnt))
    return messages


def _with_system(system: object, messages: tuple[Message, ...], key: str | None) -> tuple[Message, ...]:
    """Return the messages with the row's system text as the first one."""
    if is_missing(system):
        return messages
    first = Message("system", _text(system, key))
    if messages[0].role != "system":
        return (first, *messages)
    if messages[0] != first:
        raise UnknownFormat(f"the key {key!r} and the first system message differ; keep one of them")
    return messages


# Question and answer -------------------------------------------------------------------------------


def _pair_of(keys: tuple[str, ...]) -> PairKeys | None:
    """Return the keys of question and answer of a row with these keys; None if it has none.

    Raises:
        UnknownFormat: more than one key may be the question or the answer.
    """
    return _find_pair(keys) if len(keys) <= _MAX_CACHED_KEYS else _find_pair.__wrapped__(keys)


@lru_cache(maxsize=1024)
def _find_pair(keys: tuple[str, ...]) -> PairKeys | None:
    present = set(keys)
    pairs = [pair for pair in QUESTION_ANSWER_KEYS if present.issuperset(pair)]
    if len(pairs) > 1:
        raise UnknownFormat(f"more than one format has these keys: {', '.join(sum(pairs, ()))}")
    system = next((key for key in _SYSTEMS if key in present), None)
    history = "history" if "history" in present else None
    options = find_option_keys(keys)
    if pairs:
        passage = "input" if "instruction" in pairs[0] and "input" in present else None
        return PairKeys(*pairs[0], passage, system, history, options)
    question, answer = _find_key(keys, QUESTIONS, WEAK_QUESTIONS), _find_key(keys, ANSWERS, WEAK_ANSWERS)
    if question is None or answer is None:
        question, answer = next((pair for pair in _PAIRS_BY_THEMSELVES if present.issuperset(pair)), (None, None))
    if question is None or answer in options:
        return None
    passage = next((key for name in _PASSAGES for key in keys if key.lower() == name and key != question), None)
    return PairKeys(question, answer, passage, system, history, options)


def _find_key(keys: Sequence[str], strong: Sequence[str], weak: Sequence[str]) -> str | None:
    """Return the key with one of these names, whose case does not matter; None if there is none."""
    for names in (strong, weak):
        matches = [key for key in keys if key.lower() in names]
        if len(matches) > 1:
            listed = " or ".join(map(quote_value, matches[:3]))
            raise UnknownFormat(f"the question or answer may be in {listed}; name the right column in ingest.columns")
        if matches:
            return matches[0]
    return None


def _is_document(row: dict) -> bool:
    return _NOT_OF_A_DOCUMENT.isdisjoint(key.lower() for key in row)


def _read_pair(row: dict, pair: PairKeys) -> tuple[tuple[Message, ...], set[str]]:
    answer = row[pair.answer]
    if pair.answer == "chosen" and isinstance(answer, list):  # preference data: the whole conversation
        messages, unread = _read_turns(answer, "chosen")
        return messages, unread | {pair.question}
    if lists := [key for key in (pair.question, pair.answer) if isinstance(row[key], list)]:
        raise UnknownLayout(f"{lists[0]!r} must be text, not a list")
    asked = _text(row[pair.question], pair.question)
    passage = row[pair.passage] if pair.passage else None
    # A marker of a missing instruction is not joined with the input, so that the check for such markers detects it.
    if _has_passage(passage, asked) and not is_null_marker(asked):
        asked = f"{asked}\n{_text(passage, pair.passage)}"
    if options := _read_options(row, pair):
        asked = f"{asked}\n{options}"
    history, unread = _read_history(row.get(pair.history) if pair.history else None, pair.history)
    return (*merge_turns(history, asked), Message("assistant", _text(answer, pair.answer))), unread


def _read_options(row: dict, pair: PairKeys) -> str:
    try:
        return format_options({key: row[key] for key in pair.options}) if pair.options else ""
    except ValueError as error:
        raise UnknownFormat(f"{' or '.join(map(repr, pair.options))}: {error}") from None


def _has_passage(value: object, question: str) -> bool:
    """Whether the text that a question refers to is to be joined to the question."""
    if not isinstance(value, str):
        return value is not None
    return not is_blank(value) and not is_null_marker(value, question)


def _read_history(history: object, key: str | None) -> tuple[tuple[Message, ...], set[str]]:
    """Return the messages of earlier turns: pairs of texts, or turns as in :func:`_read_turns`."""
    if is_missing(history):
        return (), set()
    history = _decode_list(history, key)
    if not isinstance(history, list):
        raise UnknownFormat(f"{key!r} must be a list of [question, answer] pairs, not {_json_type(history)}")
    if history and isinstance(history[0], dict):
        return _read_turns(history, key)
    messages = []
    for turn in history:
        if not isinstance(turn, list) or len(turn) != 2:
            raise UnknownFormat(f"every turn of {key!r} must be a [question, answer] pair")
        messages += Message("user", _text(turn[0], key)), Message("assistant", _text(turn[1], key))
    return tuple(messages), set()


def _text(value: object, key: str) -> str:
    if not isinstance(value, str):
        raise UnknownFormat(f"{key!r} must be text, not {_json_type(value)}")
    return value


# Columns -------------------------------------------------------------------------------------------


def _select_columns(row: dict, columns: Mapping[str, str]) -> dict[str, object] | None:
    """Return the values of the named columns, by part; None if the row has none of the required ones.

    Raises:
        UnknownFormat: the row has some of the required columns only.
    """
    values = {part: value for part, name in columns.items() if (value := _look_up(row, name)) is not _ABSENT}
    required = [part for part in ("messages", "text", "question", "answer") if part in columns]
    if not any(part in values for part in required):
        return None
    for part in required:
        if part not in values:
            raise UnknownFormat(
                f"the column {columns[part]!r}, which ingest.columns names as {part}, is missing or empty"
            )
    return values


def _look_up(row: dict, name: str) -> object:
    """Return the value of a column, or of a path such as ``data.question`` or ``answers.0``.

    Returns:
        :data:`_ABSENT` if there is no such value.
    """
    if name in row:
        return row[name]
    value = row
    for key in name.split("."):
        if isinstance(value, list):
            value = dict(enumerate(value))
            key = int(key) if _LIST_INDEX.fullmatch(key) else key
        if not isinstance(value, dict) or key not in value:
            return _ABSENT
        value = value[key]
    return value


def _read_columns(
    row: dict, columns: Mapping[str, str], values: Mapping[str, object]
) -> tuple[tuple[Message, ...], set[str]]:
    if "text" in values:
        messages, unread = (Message("text", _text(values["text"], columns["text"])),), set()
    elif "messages" in values:
        messages, unread = _read_conversation(values["messages"], columns["messages"])
    else:
        history, unread = _read_history(values.get("history"), columns.get("history"))
        asked, answered = (_text(values[part], columns[part]) for part in ("question", "answer"))
        messages = (*history, Message("user", asked), Message("assistant", answered))
    read = {*columns.values(), *ROW_LOSS_KEYS}
    nested = {name.partition(".")[0] for name in columns.values() if name not in row}
    for key in nested & row.keys():
        unread |= _unread_paths(row[key], key, read)
    return _with_system(values.get("system"), messages, columns.get("system")), unread | _unread_keys(
        row, read | nested
    )


def _unread_paths(value: object, path: str, read: set[str]) -> set[str]:
    """Return the paths below a key that hold values and are not read."""
    if path in read or is_empty(value):
        return set()
    if isinstance(value, dict | list) and any(name.startswith(f"{path}.") for name in read):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {name for key, inner in items for name in _unread_paths(inner, f"{path}.{key}", read)}
    return {path}


# Error messages ------------------------------------------------------------------------------------


def quote_value(value: object) -> str:
    """Return a key or value of a row as an error message shows it: text in quotes and shortened."""
    if isinstance(value, str):
        return repr(value) if len(value) <= _QUOTED_LENGTH else f"{value[:_QUOTED_LENGTH]!r}…"
    return _json_type(value) if isinstance(value, list | dict) else repr(value)


def _json_type(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
