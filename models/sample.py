"""The sample: what every accepted format becomes.

``{context,target}``, ``{prompt,response,history}``, ``{content,summary}``,
``{instruction,input,output,history}`` and ``{messages:[…]}`` all turn into messages, in order.
"""

from dataclasses import dataclass

from models.storage import sha256_of_json

QUESTION_AND_ANSWER = (("context", "target"), ("prompt", "response"), ("content", "summary"), ("instruction", "output"))
ROLES = ("system", "user", "assistant")


class UnknownFormat(ValueError):
    """A row in none of the accepted formats; the message says what is off."""


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
    """

    id: str
    file: str
    line: int
    messages: tuple[Message, ...]

    def to_json(self) -> dict:
        return {
            "id": self.id,
            "source": {"file": self.file, "line": self.line},
            "messages": [dict(vars(message)) for message in self.messages],
        }

    @classmethod
    def from_json(cls, row: dict) -> "Sample":
        messages = tuple(Message(**message) for message in row["messages"])
        return cls(row["id"], row["source"]["file"], row["source"]["line"], messages)


def sample_id(messages: tuple[Message, ...]) -> str:
    """16 hexadecimal digits of the content's SHA-256."""
    return sha256_of_json([[message.role, message.content] for message in messages])[:16]


def read_messages(row: object) -> tuple[Message, ...]:
    """Messages of a row in any accepted format.

    Raises:
        UnknownFormat: the row has none of the formats, or a part of it has the wrong type.
    """
    if not isinstance(row, dict):
        raise UnknownFormat(f"a row must be a JSON object, not {_json_type(row)}")
    if "messages" in row:
        return _from_messages(row["messages"])
    found = [keys for keys in QUESTION_AND_ANSWER if all(key in row for key in keys)]
    if len(found) > 1:
        raise UnknownFormat(f"more than one format has these keys: {', '.join(sum(found, ()))}")
    if found:
        return _from_question_and_answer(row, *found[0])
    keys = ", ".join(map(repr, list(row)[:6])) or "no keys"
    raise UnknownFormat(f"no known format has these keys: {keys}")


def _from_messages(messages: object) -> tuple[Message, ...]:
    if not isinstance(messages, list) or not messages:
        raise UnknownFormat("'messages' must be a list with at least one message")
    for message in messages:
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise UnknownFormat("every message needs 'role' and 'content'")
        if message["role"] not in ROLES:
            raise UnknownFormat(f"a role must be one of {', '.join(ROLES)}, not {message['role']!r}")
    return tuple(Message(message["role"], _text(message["content"], "content")) for message in messages)


def _from_question_and_answer(row: dict, question: str, answer: str) -> tuple[Message, ...]:
    asked = _text(row[question], question)
    if question == "instruction" and row.get("input") not in ("", None):
        asked = f"{asked}\n{_text(row['input'], 'input')}"
    turns = [*_history(row.get("history")), (asked, _text(row[answer], answer))]
    return tuple(
        message for asked, answered in turns for message in (Message("user", asked), Message("assistant", answered))
    )


def _history(history: object) -> list[tuple[str, str]]:
    if history is None:
        return []
    if not isinstance(history, list):
        raise UnknownFormat(f"'history' must be a list of [question, answer] pairs, not {_json_type(history)}")
    for turn in history:
        if not isinstance(turn, list) or len(turn) != 2:
            raise UnknownFormat("every turn of 'history' must be a [question, answer] pair")
    return [(_text(asked, "history"), _text(answered, "history")) for asked, answered in history]


def _text(value: object, key: str) -> str:
    if not isinstance(value, str):
        raise UnknownFormat(f"{key!r} must be text, not {_json_type(value)}")
    return value


def _json_type(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
