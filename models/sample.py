"""Samples: conversations with an id, and the conversion of raw rows in all accepted formats to messages.

The accepted formats are ``{context,target}``, ``{prompt,response,history}``, ``{content,summary}``,
``{instruction,input,output,history}`` and ``{messages:[…]}``. A ``system`` text becomes the first message.
"""

import re
import unicodedata
from dataclasses import dataclass

from models.storage import sha256_of_json

QUESTION_ANSWER_KEYS = (
    ("context", "target"),
    ("prompt", "response"),
    ("content", "summary"),
    ("instruction", "output"),
)
ROLES = ("system", "user", "assistant", "text")
# Rows with these keys are rejected: they hold tool calls or media, and ChatGLM-6B would be trained on the text alone.
UNSUPPORTED_KEYS = (
    "tools", "functions", "tool_calls", "function_call", "images", "image", "videos", "video", "audios", "audio",
)  # fmt: skip
# Loss weights, of a row or of a message; only weight 1 is supported.
LOSS_KEYS = ("weight", "loss")
_MESSAGE_LOSS_KEYS = (*LOSS_KEYS, "train")
_CHECKED_KEYS = frozenset((*UNSUPPORTED_KEYS, *_MESSAGE_LOSS_KEYS))
_READ_KEYS = {
    ("messages",): {"messages", "system", *LOSS_KEYS},
    **{
        keys: {*keys, "system", "history", *LOSS_KEYS} | ({"input"} if "instruction" in keys else set())
        for keys in QUESTION_ANSWER_KEYS
    },
}
_READ_MESSAGE_KEYS = {"role", "content", *_MESSAGE_LOSS_KEYS}
_MAX_BLANK_LENGTH = 40  # characters; longer texts of invisible characters have not been seen in exports
_MAX_MARKER_LENGTH = 200  # characters, including repetitions
_QUOTED_LENGTH = 40  # characters of a key or value that an error message shows
# Markers of a missing value in exports of pandas, Excel, databases and JavaScript, alone or repeated.
_NULL_MARKER = re.compile(
    r"(?:(?:[-+]?nan|NaN|NAN|NaT|[Nn]one|NONE|[Nn]ull|NULL|undefined|<(?:NA|na|null|NULL|none|None|undefined)>"
    r"|#N/A(?: N/A)?|#NA|[Nn]/[Aa]|NA|#(?:VALUE|REF|NAME|NULL|NUM|SPILL|CALC)[!?]?|#DIV/0!?|\\N|_x000[dD]_"
    r"|\[object Object\]|\[\]|\{\}|<no ?input>|TODO|TBD|tbd)[\s,，;；|/]*+)++"
    r"|待(?:补充|完善|填写?|更新|定|续)|同上|见上|如上|略"
)
# A marker can be the right answer to a question about programming, and «None» or «N/A» to a choice.
_PROGRAMMING = re.compile(
    r"python|java|\bjs\b|c\+\+|\bsql\b|pandas|numpy|excel|\bjson|\bhtml|\bcode\b|\breturn|\bprint|\boutput|\bfunction"
    r"|variable|\btype\b|\bword|translat|\bnull|\bnan\b|undefined|代码|程序|编程|函数|返回|输出|打印|变量|类型|公式"
    r"|单元格|表格|空值|缺失值|单词|翻译|英文|英语|缩写|数据库|报错",
    re.IGNORECASE,
)
_CHOICE = re.compile(
    r"\bnone\b|\bwhich\b|\bany\b|\bhow (?:many|much)\b|\bwho\b|applicable|missing|extract", re.IGNORECASE
)
_CHOICE_MARKERS = ("none", "n/a", "na", "null")
_AROUND_MARKER = " \t\r\n\u3000\ufeff。.；;！!…\"'“”‘’「」()（）【】"


class UnknownFormat(ValueError):
    """A row in none of the accepted formats; the message names the problem."""


class UnknownLayout(UnknownFormat):
    """A row whose keys belong to the layout of another program."""


@dataclass(frozen=True)
class Message:
    """One message.

    Attributes:
        role: one of :data:`ROLES`.
        learn: whether an assistant's message is trained on; False if the row gives it a loss weight of 0.
    """

    role: str
    content: str
    learn: bool = True

    def to_json(self) -> dict:
        """Return the message as it is stored in JSON Lines files, where ``learn`` is written only if it is False."""
        return {"role": self.role, "content": self.content} | ({} if self.learn else {"learn": False})


@dataclass(frozen=True)
class Sample:
    """One conversation; its last message is the answer to be trained on.

    Attributes:
        id: hash of the content only, so it stays the same when rows move.
        file, line: position of the row; lines are counted from 1.
        messages: in the order of the conversation.
        number: position in the file's JSON array, counted from 1; None for JSON Lines.
    """

    id: str
    file: str
    line: int
    messages: tuple[Message, ...]
    number: int | None = None

    def to_json(self) -> dict:
        """Return the sample as it is stored in JSON Lines files."""
        number = {} if self.number is None else {"number": self.number}
        return {
            "id": self.id,
            "source": {"file": self.file, "line": self.line, **number},
            "messages": [message.to_json() for message in self.messages],
        }

    @classmethod
    def from_json(cls, row: dict) -> "Sample":
        """Return the sample of a row that :meth:`to_json` made."""
        messages = tuple(Message(**message) for message in row["messages"])
        source = row["source"]
        return cls(row["id"], source["file"], source["line"], messages, source.get("number"))


def make_sample_id(messages: tuple[Message, ...]) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of roles and texts."""
    return sha256_of_json([[message.role, message.content] for message in messages])[:16]


# Missing values ------------------------------------------------------------------------------------


def is_blank(text: str) -> bool:
    """Whether a text is whitespace, or a short text of separators, control and zero-width characters."""
    if not text.strip():
        return True
    return len(text) < _MAX_BLANK_LENGTH and all(unicodedata.category(character)[0] in "ZC" for character in text)


def is_null_marker(text: str, question: str = "") -> bool:
    """Whether a text is a marker of a missing value, such as ``nan``, ``None``, ``#N/A`` or ``待补充``.

    Args:
        question: question or instruction that the text belongs to. The text is not a marker if the question mentions
            it, or is about programming, where ``None`` can be a right answer.
    """
    marker = text.strip(_AROUND_MARKER) or text.strip() if len(text) <= _MAX_MARKER_LENGTH else ""
    if not marker or not _NULL_MARKER.fullmatch(marker):
        return False
    # Not as a part of a word: «nan» occurs in «banana», and «略» in «策略».
    letters = "A-Za-z" if marker.isascii() else "\u4e00-\u9fff"
    is_quoted = re.search(f"(?<![{letters}]){re.escape(marker)}(?![{letters}])", question, re.IGNORECASE)
    may_be_chosen = marker.lower() in _CHOICE_MARKERS and _CHOICE.search(question)
    return not (is_quoted or may_be_chosen or _PROGRAMMING.search(question))


def _is_missing(text: object) -> bool:
    """Whether the value of a text key is null, blank, or a marker of a missing value."""
    return text is None or (isinstance(text, str) and (is_blank(text) or is_null_marker(text)))


def _is_empty(value: object) -> bool:
    """Whether a value holds no information, so that its key can be ignored."""
    return _is_missing(value) or value == [] or value == {}


# Reading -------------------------------------------------------------------------------------------


def read_messages(row: object) -> tuple[Message, ...]:
    """Return the messages of a row in any accepted format; see :func:`read_row`."""
    return read_row(row)[0]


def read_row(row: object) -> tuple[tuple[Message, ...], set[str]]:
    """Return the messages of a row in any accepted format, and the names of keys whose values are ignored.

    A key of messages is named ``messages[].key``.

    Raises:
        UnknownFormat: the row has none of the formats, a value has the wrong type, or a key needs a feature that
            training does not support.
    """
    if not isinstance(row, dict):
        raise UnknownFormat(f"a row must be a JSON object, not {_json_type(row)}")
    layout = _layout_of(row)
    _check_supported(row, LOSS_KEYS)
    messages = _from_messages(row["messages"]) if layout == ("messages",) else _from_question_and_answer(row, *layout)
    return _with_system(row.get("system"), messages), _unread_keys(row, layout)


def _unread_keys(row: dict, layout: tuple[str, ...]) -> set[str]:
    unread = {key for key in row.keys() - _READ_KEYS[layout] if not _is_empty(row[key])}
    for message in row["messages"] if layout == ("messages",) else ():
        for key in message.keys() - _READ_MESSAGE_KEYS:
            if not _is_empty(message[key]):
                unread.add(f"messages[].{key}")
    return unread


def _layout_of(row: dict) -> tuple[str, ...]:
    """Return the keys that identify the format of a row."""
    if "messages" in row:
        return ("messages",)
    layouts = [keys for keys in QUESTION_ANSWER_KEYS if all(key in row for key in keys)]
    if len(layouts) > 1:
        raise UnknownFormat(f"more than one format has these keys: {', '.join(sum(layouts, ()))}")
    if layouts:
        return layouts[0]
    keys = ", ".join(map(quote_value, list(row)[:6])) or "no keys"
    raise UnknownLayout(f"no known format has these keys: {keys}")


def _check_supported(part: dict, loss_keys: tuple[str, ...]) -> None:
    """Raise UnknownFormat if a row or message has tool calls, media, or a loss weight other than 1."""
    if _CHECKED_KEYS.isdisjoint(part):
        return
    for key in UNSUPPORTED_KEYS:
        if not _is_empty(part.get(key)):
            raise UnknownFormat(
                f"the key {key!r} holds more than text, which this base model does not support; remove the row"
            )
    for key in loss_keys:
        value = part.get(key)
        if not _is_empty(value) and value != 1:
            raise UnknownFormat(
                f"the key {key!r} is {quote_value(value)}, but an answer can only be trained with weight 1; remove the "
                "row, or the key"
            )


def _from_messages(messages: object) -> tuple[Message, ...]:
    if not isinstance(messages, list) or not messages:
        raise UnknownFormat("'messages' must be a list with at least one message")
    for message in messages:
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise UnknownLayout("every message needs 'role' and 'content'")
        if message["role"] not in ROLES:
            raise UnknownLayout(f"a role must be one of {', '.join(ROLES)}, not {quote_value(message['role'])}")
        # Only the last answer is trained on, so a loss weight of 0 for an earlier one has no effect.
        _check_supported(message, _MESSAGE_LOSS_KEYS if message is messages[-1] else ())
    # Exports write an empty system message where no system prompt was set.
    kept = [message for message in messages if message["role"] != "system" or not _is_missing(message["content"])]
    if not kept:
        raise UnknownFormat("'messages' has only an empty system message")
    return tuple(Message(message["role"], _text(message["content"], "content")) for message in kept)


def _with_system(system: object, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Return the messages with the row's ``system`` text as the first one."""
    if _is_missing(system):
        return messages
    first = Message("system", _text(system, "system"))
    if messages[0].role != "system":
        return (first, *messages)
    if messages[0] != first:
        raise UnknownFormat("the key 'system' and the first system message differ; keep one of them")
    return messages


def _from_question_and_answer(row: dict, question: str, answer: str) -> tuple[Message, ...]:
    asked = _text(row[question], question)
    # A marker of a missing instruction is not joined with the input, so that the check for such markers detects it.
    if question == "instruction" and _has_input(row.get("input"), asked) and not is_null_marker(asked):
        asked = f"{asked}\n{_text(row['input'], 'input')}"
    turns = [*_history(row.get("history")), (asked, _text(row[answer], answer))]
    return tuple(
        message for asked, answered in turns for message in (Message("user", asked), Message("assistant", answered))
    )


def _has_input(value: object, instruction: str) -> bool:
    """Whether the input is to be joined to the instruction."""
    if not isinstance(value, str):
        return value is not None
    return not is_blank(value) and not is_null_marker(value, instruction)


def _history(history: object) -> list[tuple[str, str]]:
    if _is_missing(history):
        return []
    if not isinstance(history, list):
        raise UnknownFormat(f"'history' must be a list of [question, answer] pairs, not {_json_type(history)}")
    for turn in history:
        if not isinstance(turn, list) or len(turn) != 2:
            raise UnknownFormat("every turn of 'history' must be a [question, answer] pair")
    return [(_text(asked, "history"), _text(answered, "history")) for asked, answered in history]


def _text(value: object, key: str) -> str:
    if not isinstance(value, str):
        parts = " of parts" if key == "content" and isinstance(value, list) else ""
        raise UnknownFormat(f"{key!r} must be text, not {_json_type(value)}{parts}")
    return value


def quote_value(value: object) -> str:
    """Return a key or value of a row as an error message shows it: text in quotes and shortened."""
    if isinstance(value, str):
        return repr(value) if len(value) <= _QUOTED_LENGTH else f"{value[:_QUOTED_LENGTH]!r}…"
    return _json_type(value) if isinstance(value, list | dict) else repr(value)


def _json_type(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
