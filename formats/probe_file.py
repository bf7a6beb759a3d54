"""Dialogue probes: questions with expectations about the answer.

The source is a file or a folder of files, read as raw data are. A row has an ``id``, a conversation in any accepted
format that ends with a reference answer, and expectations:

- ``contains``, ``absent``: texts that the answer must, or must not, contain;
- ``equals``: the answer, apart from punctuation forms and whitespace;
- ``matches``: a regular expression that must match somewhere in the answer; whitespace counts;
- ``number``: a number that the answer must contain, in digits;
- ``ask``: other wordings of the last question, each evaluated too;
- ``identity``: ``{"new": [...], "old": [...]}``, names of the assistant after and before training.

Texts are compared by :func:`models.text_normalization.normalize_text`, patterns and numbers in the NFKC form of the
answer. Expectations are encoded and decoded by the model's tokenizer first, as answers are. An empty answer fails.
"""

import json
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path

import regex

from formats.raw_row import RawRow
from formats.raw_rows import find_files, read_rows
from models.errors import UserError
from models.row_layouts import QUESTION_ANSWER_KEYS, UnknownFormat, read_messages
from models.sample import Message
from models.text_normalization import normalize_nfkc, normalize_text

FORMAT_KEYS = {key for keys in QUESTION_ANSWER_KEYS for key in keys} | {"history", "input", "messages", "system"}
LIST_KEYS, SCALAR_KEYS = ("contains", "absent"), ("equals", "matches", "number")
MET, UNMET = "回答符合预期", "生成错误"
MATCH_TIMEOUT = 1.0  # seconds per pattern, against catastrophic backtracking
_PATTERN_UNIT = regex.compile(r"\\(?:u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|x[0-9A-Fa-f]{2}|.)|.", regex.DOTALL)
_MINUS = "\u2212"  # NFKC does not replace the minus sign
_NUMBER = regex.compile(r"(?:(?<!\d)[-+])?\d+(?:,\d{3})*(?:\.\d+)?")  # "80-90" has no sign


@dataclass(frozen=True)
class Expectation:
    """Conditions on an answer, as in the module's docstring; empty or None for no condition."""

    contains: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    equals: str | None = None
    matches: str | None = None
    number: float | None = None

    def is_met_by(self, answer: str) -> bool:
        """Return whether an answer is not empty and meets all conditions."""
        return next(self.failed_conditions(answer), None) is None

    def failed_conditions(self, answer: str) -> Iterator[str]:
        """Yield the conditions that an answer does not meet, such as ``contains '小茶'``; ``empty`` for no answer."""
        text = normalize_text(answer)
        if not text:
            yield "empty"
            return
        yield from (f"contains {part!r}" for part in self.contains if normalize_text(part) not in text)
        yield from (f"absent {part!r}" for part in self.absent if normalize_text(part) in text)
        if self.equals is not None and text != normalize_text(self.equals):
            yield f"equals {self.equals!r}"
        if self.matches is not None and not _matches(self.matches, answer):
            yield f"matches {self.matches!r}"
        if self.number is not None and self.number not in find_numbers(answer):
            yield f"number {self.number:g}"

    def roundtrip_text(self, roundtrip: Callable[[str], str]) -> "Expectation":
        """Return the expectation with its texts encoded and decoded.

        Args:
            roundtrip: encodes and decodes a text, as answers are decoded.
        """
        absent = [roundtrip(part) for part in self.absent]
        return replace(
            self,
            contains=tuple(map(roundtrip, self.contains)),
            absent=tuple(part for part in absent if normalize_text(part)),  # no answer can contain the others
            equals=self.equals and roundtrip(self.equals),
        )


@dataclass(frozen=True)
class Probe:
    """One wording of a probe.

    Attributes:
        id: of the probe; shared by all its wordings.
        wording: 0 for the probe's own question, then 1 … for those of ``ask``.
        messages: the conversation, ending with the reference answer.
        expectation: conditions on the answer.
        names: (new, old) names of the assistant, or None if the question is not about identity.
        is_seen: whether the wording occurs in the training rows; None if that was not examined.
        location: file and line of the row.
    """

    id: str
    wording: int
    messages: tuple[Message, ...]
    expectation: Expectation
    names: tuple[tuple[str, ...], tuple[str, ...]] | None = None
    is_seen: bool | None = None
    location: str = field(default="", repr=False, compare=False)

    @property
    def question(self) -> str:
        """The last question, which the wordings of a probe differ in."""
        return self.messages[-2].content

    @property
    def reference(self) -> str:
        return self.messages[-1].content

    def roundtrip_text(self, roundtrip: Callable[[str], str]) -> "Probe":
        """Return the probe with its expectation and names encoded and decoded.

        Args:
            roundtrip: encodes and decodes a text, as answers are decoded.

        Raises:
            UserError: even the reference answer, encoded and decoded, does not meet the expectation.
        """
        expectation, reference = self.expectation.roundtrip_text(roundtrip), roundtrip(self.reference)
        texts = [*expectation.contains, *([] if expectation.equals is None else [expectation.equals])]
        if not all(map(normalize_text, texts)) or not expectation.is_met_by(reference):
            raise UserError(
                f"Probe {self.id!r} cannot be met by any answer: the base's tokenizer turns its reference answer into "
                f"{reference!r}. Change the expectation to characters that the tokenizer can represent."
            )
        names = self.names and tuple(tuple(filter(normalize_text, map(roundtrip, names))) for names in self.names)
        return replace(self, expectation=expectation, names=names)


# Reading -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ProbeRow:
    """A row of a probe file.

    Attributes:
        location: ``file:line``, or ``file#number`` in a JSON array.
        wordings: the probe, once for each wording; empty if the row is damaged.
        fault: what is wrong with the row; None if nothing is.
    """

    location: str
    wordings: tuple[Probe, ...] = ()
    fault: str | None = None


def read_probes(source: Path) -> list[Probe]:
    """Return every wording of every probe in a file or a folder of files.

    Raises:
        UserError: there are no probes, or a probe has no id, another's id, no expectation, an expectation that its
            reference answer does not meet, or an unknown format. The message names file and line.
    """
    probes: list[Probe] = []
    for row in read_probe_rows(source):
        if row.fault:
            raise UserError(f"{row.location}: {row.fault}.")
        probes += row.wordings
    if not probes:
        raise UserError(f"{source} contains no probes; add some, or set evaluate.probes to data/no_probes.")
    return probes


def read_probe_rows(source: Path) -> Iterator[ProbeRow]:
    """Yield every row of a probe file or of a folder of files, damaged ones with the reason.

    Raises:
        UserError: a file cannot be read.
    """
    first_locations: dict[str, str] = {}
    for path in find_files(source).values():
        for raw in read_rows(path, str(path)):
            row = _read_row(raw)
            for probe in row.wordings[:1]:
                if probe.id in first_locations:
                    row = replace(row, fault=f"the id {probe.id!r} is not unique: {first_locations[probe.id]} has it")
                first_locations.setdefault(probe.id, row.location)
            yield row


def _read_row(raw: RawRow) -> ProbeRow:
    try:
        wordings = _read_wordings(json.loads(raw.content.decode("utf-8")), raw.location)
    except UnicodeDecodeError as error:
        return ProbeRow(raw.location, fault=f"not UTF-8 (byte {error.start + 1} of the row); save the file as UTF-8")
    except (UnknownFormat, regex.error) as error:
        return ProbeRow(raw.location, fault=str(error))
    except (ValueError, RecursionError) as error:
        return ProbeRow(raw.location, fault=f"not JSON ({error})")
    failed = ", ".join(wordings[0].expectation.failed_conditions(wordings[0].reference))
    fault = f"the probe's reference answer does not meet its expectation: {failed}" if failed else None
    return ProbeRow(raw.location, tuple(wordings), fault)


def _read_wordings(row: dict, location: str) -> list[Probe]:
    if not isinstance(row, dict) or not isinstance(row.get("id"), str) or not row["id"].strip():
        raise UnknownFormat("a probe must be a JSON object with an 'id'")
    if unknown := row.keys() - {"id", "ask", "identity", *LIST_KEYS, *SCALAR_KEYS, *FORMAT_KEYS}:
        raise UnknownFormat(f"{sorted(unknown)[0]!r} is not a key of a probe")
    messages = read_messages(row)
    if len(messages) < 2 or messages[-1].role != "assistant" or messages[-2].role != "user":
        raise UnknownFormat("a probe needs a question and a reference answer")
    names = _read_names(row.get("identity"))
    probe = Probe(row["id"], 0, messages, _read_expectation(row), names, location=location)
    wordings = _read_texts(row, "ask")
    if len({probe.question, *wordings}) <= len(wordings):
        raise UnknownFormat("'ask' repeats a wording")
    return [probe, *(_reword(probe, number, question) for number, question in enumerate(wordings, start=1))]


def _reword(probe: Probe, wording: int, question: str) -> Probe:
    *history, last_question, reference = probe.messages
    return replace(probe, wording=wording, messages=(*history, replace(last_question, content=question), reference))


def _read_expectation(row: dict) -> Expectation:
    lists = {name: _read_texts(row, name) for name in LIST_KEYS}
    scalars = {name: row.get(name) for name in SCALAR_KEYS}
    if not any((*lists.values(), *(value is not None for value in scalars.values()))):
        raise UnknownFormat(f"a probe needs at least one of {', '.join((*LIST_KEYS, *SCALAR_KEYS))}")
    for name in ("equals", "matches"):
        if scalars[name] is not None and not (isinstance(scalars[name], str) and scalars[name]):
            raise UnknownFormat(f"{name!r} must be a string that is not empty")
    number = scalars["number"]
    if number is not None and (isinstance(number, bool) or not isinstance(number, int | float) or not isfinite(number)):
        raise UnknownFormat("'number' must be a number")
    if scalars["matches"] is not None:
        regex.compile(scalars["matches"])  # raises regex.error
    return Expectation(**lists, **scalars)


def _read_texts(row: dict, name: str) -> tuple[str, ...]:
    texts = row.get(name, [])
    if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
        raise UnknownFormat(f"{name!r} must be a list of strings that are not empty")
    return tuple(texts)


def _read_names(identity: object) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    if identity is None:
        return None
    if not isinstance(identity, dict) or identity.keys() != {"new", "old"}:
        raise UnknownFormat("'identity' needs the lists 'new' and 'old'")
    if not identity["new"] or not identity["old"]:
        raise UnknownFormat("'identity' needs at least one new and one old name")
    return _read_texts(identity, "new"), _read_texts(identity, "old")


# Judging -------------------------------------------------------------------------------------------


def _matches(pattern: str, answer: str) -> bool:
    try:
        return regex.search(normalize_pattern(pattern), normalize_nfkc(answer), timeout=MATCH_TIMEOUT) is not None
    except TimeoutError:
        return False


def normalize_pattern(pattern: str) -> str:
    """Return a pattern that matches in the NFKC form of a text where ``pattern`` matches in the text.

    Each character is replaced by its NFKC form, escaped: ``（`` becomes ``\\(``, which opens no group.
    """
    parts, in_class = [], False
    for unit in _PATTERN_UNIT.findall(pattern):
        in_class = unit == "[" or (in_class and unit != "]")
        character = _literal_character(unit)
        normalized = character and normalize_nfkc(character)
        if normalized is None or normalized == character:
            parts.append(unit)
        else:
            escaped = regex.escape(normalized, special_only=True)
            parts.append(escaped if in_class or len(normalized) == 1 else f"(?:{escaped})")
    return unicodedata.normalize("NFC", "".join(parts))


def _literal_character(unit: str) -> str | None:
    """Return the character that a unit of a pattern denotes, or None for operators such as ``\\d``."""
    if unit[0] != "\\":
        return unit
    if len(unit) > 2:
        return chr(min(int(unit[2:], 16), sys.maxunicode))
    return None if unit.isascii() else unit[1:]


def find_numbers(text: str) -> set[float]:
    """Return the numbers in a text: digits of any width, with or without thousands separators."""
    return {float(number.replace(",", "")) for number in _NUMBER.findall(normalize_nfkc(text).replace(_MINUS, "-"))}


def classify_identity(answer: str, new: Sequence[str], old: Sequence[str]) -> str:
    """Return which names an answer contains: ``new``, ``old``, ``mixed`` or ``none``.

    If a new name contains an old one (ChatGLM-6B-test, ChatGLM-6B), its occurrences do not count as the old name.
    """
    text = normalize_text(answer)
    has_new = any(normalize_text(name) in text for name in new)
    for name in sorted(map(normalize_text, new), key=len, reverse=True):
        text = text.replace(name, "\0")
    has_old = any(normalize_text(name) in text for name in old)
    return {(True, True): "mixed", (True, False): "new", (False, True): "old"}.get((has_new, has_old), "none")
