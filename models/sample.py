"""Samples: conversations with an id; and markers of missing values in texts."""

import re
import unicodedata
from dataclasses import dataclass

from models.storage import sha256_of_json

# "text" is a document for continued pretraining, which is the only message of its row.
ROLES = ("system", "user", "assistant", "text")
_MAX_BLANK_LENGTH = 40  # characters; longer texts of invisible characters have not been seen in exports
_MAX_MARKER_LENGTH = 200  # characters, including repetitions
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
    """One conversation, or a single message of role ``text``.

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


def is_missing(text: object) -> bool:
    """Whether the value of a text key is null, blank, or a marker of a missing value."""
    return text is None or (isinstance(text, str) and (is_blank(text) or is_null_marker(text)))


def is_empty(value: object) -> bool:
    """Whether a value holds no information, so that its key can be ignored."""
    return is_missing(value) or value == [] or value == {}
