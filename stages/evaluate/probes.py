"""Dialogue probes: questions, what an answer must be like, and how often it is.

A row of the probes' file has an ``id``, a conversation in any accepted format whose last answer is the one
taught, and expectations:

- ``contains``, ``absent``: texts that must, or must not, stand in the answer;
- ``equals``: the answer, punctuation and blanks aside; ``matches``: a regular expression that must be found, blanks
  as they are;
- ``number``: a number that must stand in the answer, in digits;
- ``ask``: other ways to put the last question, each asked too;
- ``identity``: ``{"new": [...], "old": [...]}``, names for the measure of drift.

Texts are compared by :func:`models.prompt.normalize`, patterns and numbers in the NFKC form of the answer. Before a
model is asked, expectations go through its tokenizer, as answers do. An empty answer meets nothing.
"""

import sys
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path

import regex

from models.errors import UserError
from models.prompt import nfkc, normalize
from models.sample import QUESTION_AND_ANSWER, Message, UnknownFormat, read_messages
from models.storage import read_numbered_jsonl

FORMAT_KEYS = {key for keys in QUESTION_AND_ANSWER for key in keys} | {"history", "input", "messages"}
LISTS, ONES = ("contains", "absent"), ("equals", "matches", "number")
MET, UNMET = "回答符合预期", "生成错误"
SECONDS_A_MATCH = 1.0  # a pattern may be as bad as it likes
_UNIT_OF_PATTERN = regex.compile(r"\\(?:u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|x[0-9A-Fa-f]{2}|.)|.", regex.DOTALL)
_MINUS = "\u2212"  # which NFKC leaves as it is
_NUMBER = regex.compile(r"(?:(?<!\d)[-+])?\d+(?:,\d{3})*(?:\.\d+)?")  # behind a digit, a sign is none of the number's


@dataclass(frozen=True)
class Expectation:
    """What an answer must be like. Attributes as in the module's docstring; empty or None where nothing is asked."""

    contains: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    equals: str | None = None
    matches: str | None = None
    number: float | None = None

    def met(self, answer: str) -> bool:
        text = normalize(answer)
        return (
            text != ""
            and all(normalize(piece) in text for piece in self.contains)
            and not any(normalize(piece) in text for piece in self.absent)
            and (self.equals is None or text == normalize(self.equals))
            and (self.matches is None or _found(self.matches, answer))
            and (self.number is None or self.number in numbers_in(answer))
        )

    def roundtrip_text(self, read: Callable[[str], str]) -> "Expectation":
        """The same expectation of answers that come out of a tokenizer.

        Args:
            read: gives a text as an answer of its ids reads.
        """
        absent = [read(piece) for piece in self.absent]  # what no answer can spell is absent from all
        return replace(
            self,
            contains=tuple(map(read, self.contains)),
            absent=tuple(piece for piece in absent if normalize(piece)),
            equals=self.equals and read(self.equals),
        )


@dataclass(frozen=True)
class Probe:
    """One question, in one wording.

    Attributes:
        id: of the probe; all its wordings share it.
        wording: 0 for the probe's own, then those of ``ask``.
        messages: the conversation, ending with the answer taught.
        names: (new, old) names of the assistant, or None where the question is not about identity.
    """

    id: str
    wording: int
    messages: tuple[Message, ...]
    expectation: Expectation
    names: tuple[tuple[str, ...], tuple[str, ...]] | None = None

    @property
    def turns(self) -> int:
        return sum(message.role == "user" for message in self.messages)

    def roundtrip_text(self, read: Callable[[str], str]) -> "Probe":
        """The same probe, what it expects in the form in which a model's answers come.

        Args:
            read: gives a text as an answer of its ids reads.

        Raises:
            UserError: not even an answer of the taught answer's ids would meet it.
        """
        expectation, taught = self.expectation.roundtrip_text(read), read(self.messages[-1].content)
        texts = [*expectation.contains, *([] if expectation.equals is None else [expectation.equals])]
        if not all(map(normalize, texts)) or not expectation.met(taught):
            raise UserError(
                f"Probe {self.id!r} can be met by no answer: the base's tokenizer makes {taught!r} of the answer "
                "taught; let the probe expect what the tokenizer can spell."
            )
        names = self.names and tuple(tuple(filter(normalize, map(read, names))) for names in self.names)
        return replace(self, expectation=expectation, names=names)


# Reading -------------------------------------------------------------------------------------------


def read_probes(path: Path) -> list[Probe]:
    """Every wording of every probe.

    Raises:
        UserError: a probe has no id or one that another has, expects nothing, or is in no accepted format.
    """
    probes: list[Probe] = []
    for line, row in read_numbered_jsonl(path):
        try:
            wordings = _wordings(row)
        except (UnknownFormat, regex.error) as error:
            raise UserError(f"{path}, line {line}: {error}.") from None
        if any(probe.id == row["id"] for probe in probes):
            raise UserError(f"{path}, line {line}: another probe has the id {row['id']!r} too.")
        probes += wordings
    if not probes:
        raise UserError(f"{path} holds no probes.")
    return probes


def _wordings(row: dict) -> list[Probe]:
    if not isinstance(row, dict) or not isinstance(row.get("id"), str) or not row["id"].strip():
        raise UnknownFormat("a probe must be a JSON object with an 'id'")
    if unknown := row.keys() - {"id", "ask", "identity", *LISTS, *ONES, *FORMAT_KEYS}:
        raise UnknownFormat(f"a probe has no key {sorted(unknown)[0]!r}")
    messages = read_messages(row)
    if len(messages) < 2 or messages[-1].role != "assistant":
        raise UnknownFormat("a probe needs a question and the answer taught")
    first = Probe(row["id"], 0, messages, _expectation(row), _names(row.get("identity")))
    if not first.expectation.met(messages[-1].content):
        raise UnknownFormat("the answer that the probe itself gives does not meet its expectation")
    if len({messages[-2].content, *_texts(row, "ask")}) <= len(_texts(row, "ask")):
        raise UnknownFormat("'ask' has a wording twice")
    return [first, *(_asked_as(first, number, text) for number, text in enumerate(_texts(row, "ask"), start=1))]


def _asked_as(probe: Probe, wording: int, question: str) -> Probe:
    *before, asked, taught = probe.messages
    return replace(probe, wording=wording, messages=(*before, replace(asked, content=question), taught))


def _expectation(row: dict) -> Expectation:
    """What a row expects; a probe that expects nothing would always be met."""
    lists = {name: _texts(row, name) for name in LISTS}
    ones = {name: row.get(name) for name in ONES}
    if not any((*lists.values(), *(value is not None for value in ones.values()))):
        raise UnknownFormat(f"a probe needs one of {', '.join((*LISTS, *ONES))}")
    for name in ("equals", "matches"):
        if ones[name] is not None and not (isinstance(ones[name], str) and ones[name]):
            raise UnknownFormat(f"{name!r} must be a text that is not empty")
    number = ones["number"]
    if number is not None and (isinstance(number, bool) or not isinstance(number, int | float) or not isfinite(number)):
        raise UnknownFormat("'number' must be a number")
    if ones["matches"] is not None:
        regex.compile(ones["matches"])
    return Expectation(**lists, **ones)


def _texts(row: dict, name: str) -> tuple[str, ...]:
    texts = row.get(name, [])
    if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
        raise UnknownFormat(f"{name!r} must be a list of texts that are not empty")
    return tuple(texts)


def _names(identity: object) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    if identity is None:
        return None
    if not isinstance(identity, dict) or identity.keys() != {"new", "old"}:
        raise UnknownFormat("'identity' needs the lists 'new' and 'old'")
    if not identity["new"] or not identity["old"]:
        raise UnknownFormat("'identity' needs a new and an old name")
    return _texts(identity, "new"), _texts(identity, "old")


# Judging -------------------------------------------------------------------------------------------


def _found(pattern: str, answer: str) -> bool:
    try:
        return regex.search(pattern_in_nfkc(pattern), nfkc(answer), timeout=SECONDS_A_MATCH) is not None
    except TimeoutError:
        return False


def pattern_in_nfkc(pattern: str) -> str:
    """The pattern that finds in the NFKC form of a text what ``pattern`` finds in the text.

    Each character is replaced by its own form, escaped: ``（`` becomes ``\\(``, and opens no group.
    """
    parts, in_class = [], False
    for unit in _UNIT_OF_PATTERN.findall(pattern):
        in_class = unit == "[" or (in_class and unit != "]")
        character = _character_of(unit)
        form = character and nfkc(character)
        if form is None or form == character:
            parts.append(unit)
        else:
            escaped = regex.escape(form, special_only=True)
            parts.append(escaped if in_class or len(form) == 1 else f"(?:{escaped})")
    return unicodedata.normalize("NFC", "".join(parts))


def _character_of(unit: str) -> str | None:
    """The character that a unit of a pattern stands for, if it stands for one."""
    if unit[0] != "\\":
        return unit
    if len(unit) > 2:
        return chr(min(int(unit[2:], 16), sys.maxunicode))
    return None if unit.isascii() else unit[1:]


def numbers_in(text: str) -> set[float]:
    """Numbers that stand in a text, in any width of digit, with or without commas for thousands."""
    return {float(number.replace(",", "")) for number in _NUMBER.findall(nfkc(text).replace(_MINUS, "-"))}


def identity_of(answer: str, new: Sequence[str], old: Sequence[str]) -> str:
    """By whose name an answer goes: ``new``, ``old``, ``mixed`` or ``none``.

    The new name may hold the old one (ChatGLM-6B-test, ChatGLM-6B): where it stands it is not the old one.
    """
    text = normalize(answer)
    with_new = any(normalize(name) in text for name in new)
    for name in sorted(map(normalize, new), key=len, reverse=True):
        text = text.replace(name, "\0")
    with_old = any(normalize(name) in text for name in old)
    return {(True, True): "mixed", (True, False): "new", (False, True): "old"}.get((with_new, with_old), "none")
