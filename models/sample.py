"""The sample: what every accepted format becomes.

``{context,target}``, ``{prompt,response,history}``, ``{content,summary}``,
``{instruction,input,output,history}`` and ``{messages:[…]}`` all turn into messages, in order; a ``system`` text
becomes the first of them.
"""

import re
import unicodedata
from dataclasses import dataclass

from models.storage import sha256_of_json

QUESTION_ANSWER_KEYS = (("context", "target"), ("prompt", "response"), ("content", "summary"), ("instruction", "output"))
ROLES = ("system", "user", "assistant")
# A row with one of these means more than its texts, and ChatGLM-6B would learn something else from the texts alone.
UNSUPPORTED_KEYS = (
    "tools", "functions", "tool_calls", "function_call", "images", "image", "videos", "video", "audios", "audio",
)  # fmt: skip
# Shares of the loss; only 1 can be expressed. Training frameworks write them into a row or into its messages.
LOSS_KEYS = ("weight", "loss")
_MESSAGE_LOSS_KEYS = (*LOSS_KEYS, "train")
_TELLING_KEYS = frozenset((*UNSUPPORTED_KEYS, *_MESSAGE_LOSS_KEYS))
_READ_KEYS = {
    ("messages",): {"messages", "system", *LOSS_KEYS},
    **{
        keys: {*keys, "system", "history", *LOSS_KEYS} | ({"input"} if "instruction" in keys else set())
        for keys in QUESTION_ANSWER_KEYS
    },
}
_READ_MESSAGE_KEYS = {"role", "content", *_MESSAGE_LOSS_KEYS}
_LONGEST_BLANK = 40  # characters; no export pads a missing text with more
_LONGEST_MARK = 200  # characters, repeated marks included
_QUOTED_LENGTH = 40  # characters of a user's key or value in a message
# What pandas, Excel, databases and JavaScript write for a missing value, alone or repeated.
_NULL_MARK = re.compile(
    r"(?:(?:[-+]?nan|NaN|NAN|NaT|[Nn]one|NONE|[Nn]ull|NULL|undefined|<(?:NA|na|null|NULL|none|None|undefined)>"
    r"|#N/A(?: N/A)?|#NA|[Nn]/[Aa]|NA|#(?:VALUE|REF|NAME|NULL|NUM|SPILL|CALC)[!?]?|#DIV/0!?|\\N|_x000[dD]_"
    r"|\[object Object\]|\[\]|\{\}|<no ?input>|TODO|TBD|tbd)[\s,，;；|/]*+)++"
    r"|待(?:补充|完善|填写?|更新|定|续)|同上|见上|如上|略"
)
# A question about programs or tables may be answered by such a mark, one for a choice or a date by «None» or «N/A».
_PROGRAMS = re.compile(
    r"python|java|\bjs\b|c\+\+|\bsql\b|pandas|numpy|excel|\bjson|\bhtml|\bcode\b|\breturn|\bprint|\boutput|\bfunction"
    r"|variable|\btype\b|\bword|translat|\bnull|\bnan\b|undefined|代码|程序|编程|函数|返回|输出|打印|变量|类型|公式"
    r"|单元格|表格|空值|缺失值|单词|翻译|英文|英语|缩写|数据库|报错",
    re.IGNORECASE,
)
_CHOICE = re.compile(
    r"\bnone\b|\bwhich\b|\bany\b|\bhow (?:many|much)\b|\bwho\b|applicable|missing|extract", re.IGNORECASE
)
_CHOICE_MARKS = ("none", "n/a", "na", "null")
_AROUND_MARK = " \t\r\n\u3000\ufeff。.；;！!…\"'“”‘’「」()（）【】"


class UnknownFormat(ValueError):
    """A row in none of the accepted formats; the message says what is off."""


class UnknownLayout(UnknownFormat):
    """A row whose keys are those of another program's layout."""


@dataclass(frozen=True)
class Message:
    role: str
    content: str


@dataclass(frozen=True)
class Sample:
    """One conversation that ends with the answer to be learnt.

    Attributes:
        id: from the content alone, so that it stays when rows move.
        file, line: where the row stood, the line counted from 1.
        messages: roles and texts, in order.
        number: position in the file's JSON array, counted from 1; None in JSON Lines.
    """

    id: str
    file: str
    line: int
    messages: tuple[Message, ...]
    number: int | None = None

    def to_json(self) -> dict:
        number = {} if self.number is None else {"number": self.number}
        return {
            "id": self.id,
            "source": {"file": self.file, "line": self.line, **number},
            "messages": [dict(vars(message)) for message in self.messages],
        }

    @classmethod
    def from_json(cls, row: dict) -> "Sample":
        messages = tuple(Message(**message) for message in row["messages"])
        source = row["source"]
        return cls(row["id"], source["file"], source["line"], messages, source.get("number"))


def make_sample_id(messages: tuple[Message, ...]) -> str:
    """16 hexadecimal digits of the content's SHA-256."""
    return sha256_of_json([[message.role, message.content] for message in messages])[:16]


# Missing values ------------------------------------------------------------------------------------


def is_blank(text: str) -> bool:
    """Whether nothing of a text is seen; ``isspace`` alone would let zero-width characters pass."""
    if not text.strip():
        return True
    return len(text) < _LONGEST_BLANK and all(unicodedata.category(character)[0] in "ZC" for character in text)


def is_null_marker(text: str, question: str = "") -> bool:
    """Whether the whole text is what a table writes for a missing value: ``nan``, ``None``, ``#N/A``, ``待补充``.

    Args:
        question: what the text answers or belongs to. A mark that it speaks of, or a question about programs, for
            which ``None`` may be right, makes the text an ordinary one.
    """
    mark = text.strip(_AROUND_MARK) or text.strip() if len(text) <= _LONGEST_MARK else ""
    if not mark or not _NULL_MARK.fullmatch(mark):
        return False
    # «nan» stands in «banana», and «略» in «策略».
    letters = "A-Za-z" if mark.isascii() else "\u4e00-\u9fff"
    is_quoted = re.search(f"(?<![{letters}]){re.escape(mark)}(?![{letters}])", question, re.IGNORECASE)
    may_be_chosen = mark.lower() in _CHOICE_MARKS and _CHOICE.search(question)
    return not (is_quoted or may_be_chosen or _PROGRAMS.search(question))


def _is_missing(text: object) -> bool:
    """Whether a key that takes a text holds none: null, blank, or the mark of a missing value."""
    return text is None or (isinstance(text, str) and (is_blank(text) or is_null_marker(text)))


def _is_empty(value: object) -> bool:
    """Whether nothing is lost where a key of any type is not read."""
    return _is_missing(value) or value == [] or value == {}


# Reading -------------------------------------------------------------------------------------------


def read_messages(row: object) -> tuple[Message, ...]:
    """Messages of a row in any accepted format; see :func:`read_row`."""
    return read_row(row)[0]


def read_row(row: object) -> tuple[tuple[Message, ...], set[str]]:
    """Messages of a row in any accepted format, and the keys that hold a value which nothing reads.

    A key of messages is named ``messages[].name``.

    Raises:
        UnknownFormat: the row has none of the formats, a part of it has the wrong type, or a key asks for what
            this base cannot learn.
    """
    if not isinstance(row, dict):
        raise UnknownFormat(f"a row must be a JSON object, not {_json_type(row)}")
    layout = _layout_of(row)
    _refuse_unsupported(row, LOSS_KEYS)
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
    """The keys by which a row is in one of the accepted formats."""
    if "messages" in row:
        return ("messages",)
    layouts = [keys for keys in QUESTION_ANSWER_KEYS if all(key in row for key in keys)]
    if len(layouts) > 1:
        raise UnknownFormat(f"more than one format has these keys: {', '.join(sum(layouts, ()))}")
    if layouts:
        return layouts[0]
    keys = ", ".join(map(quote_value, list(row)[:6])) or "no keys"
    raise UnknownLayout(f"no known format has these keys: {keys}")


def _refuse_unsupported(part: dict, loss_keys: tuple[str, ...]) -> None:
    """Refuse a row or message with a key whose meaning would be lost."""
    if _TELLING_KEYS.isdisjoint(part):
        return
    for key in UNSUPPORTED_KEYS:
        if not _is_empty(part.get(key)):
            raise UnknownFormat(
                f"the key {key!r} asks for more than text, which this base cannot learn; take out the row"
            )
    for key in loss_keys:
        value = part.get(key)
        if not _is_empty(value) and value != 1:
            raise UnknownFormat(
                f"the key {key!r} is {quote_value(value)}: an answer is learnt as a whole or not at all; take out the row, "
                "or the key"
            )


def _from_messages(messages: object) -> tuple[Message, ...]:
    if not isinstance(messages, list) or not messages:
        raise UnknownFormat("'messages' must be a list with at least one message")
    for message in messages:
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise UnknownLayout("every message needs 'role' and 'content'")
        if message["role"] not in ROLES:
            raise UnknownLayout(f"a role must be one of {', '.join(ROLES)}, not {quote_value(message['role'])}")
        # Only the last answer is learnt, so that the loss of an earlier one is 0 as it stands.
        _refuse_unsupported(message, _MESSAGE_LOSS_KEYS if message is messages[-1] else ())
    # Exports write an empty system message where no system prompt was set.
    kept = [message for message in messages if message["role"] != "system" or not _is_missing(message["content"])]
    if not kept:
        raise UnknownFormat("'messages' has nothing but an empty system message")
    return tuple(Message(message["role"], _text(message["content"], "content")) for message in kept)


def _with_system(system: object, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The messages with the row's own system text in front."""
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
    # A mark of a missing instruction stays alone, so that the check for such marks finds it.
    if question == "instruction" and _has_input(row.get("input"), asked) and not is_null_marker(asked):
        asked = f"{asked}\n{_text(row['input'], 'input')}"
    turns = [*_history(row.get("history")), (asked, _text(row[answer], answer))]
    return tuple(
        message for asked, answered in turns for message in (Message("user", asked), Message("assistant", answered))
    )


def _has_input(value: object, instruction: str) -> bool:
    """Whether there is an input to join to the instruction."""
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
    """A user's key or value as a message shows it: a text by its first characters, in quotes."""
    if isinstance(value, str):
        return repr(value) if len(value) <= _QUOTED_LENGTH else f"{value[:_QUOTED_LENGTH]!r}…"
    return _json_type(value) if isinstance(value, list | dict) else repr(value)


def _json_type(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
