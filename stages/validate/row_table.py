"""Look at every row by itself, piece by piece; what will be needed of it later is kept on disk."""

import json
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import repeat
from pathlib import Path

import numpy as np

from formats.params_schema import Params
from formats.raw_rows import RawRow, place_of, read_rows
from measures.ngrams import hash_ngrams, join_dialogue
from models.sample import Message, Sample
from models.vocabulary import Vocabulary
from stages.validate.checks import Check, checks_of
from stages.validate.dedup import Keys, keys_of
from stages.validate.expectations import Finding, judge
from stages.validate.layouts import Layout
from stages.validate.minhash import bands
from stages.validate.row_features import Fault, describe, parse, shown, without_oldest

_JSON = json.JSONEncoder(ensure_ascii=False)
# Of a piece, which is what a worker has in memory at a time. Great Expectations takes a third of a second for
# any table, so smaller ones cost time.
_ROWS, _BYTES = 40_000, 16 * 2**20
MOST_NAMES = 100  # keys and layouts that are counted by name, since rows may have any number of them
OTHERS = "other keys"
_TOLD = 10_000  # characters by which a language is told
_LETTERS = 0.5  # tokens for a character of English: a real tokenizer takes 0.25


@dataclass(frozen=True)
class GateConfig:
    """What the examination of a row depends on, and the folder where things are kept meanwhile."""

    params: Params
    tokenizer: Path
    spool: Path

    @property
    def checks(self) -> list[Check]:
        return checks_of(self.params)

    @property
    def vocabulary(self) -> Vocabulary:
        return _vocabulary(self.tokenizer)


@lru_cache(maxsize=1)
def _vocabulary(folder: Path) -> Vocabulary:
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    options = {name: bool(config.get(name)) for name in ("do_lower_case", "remove_space")}
    return Vocabulary(folder / "ice_text.model", **options)


@dataclass(frozen=True)
class Piece:
    """Rows that follow one another, and the number of the first."""

    first: int
    rows: list[RawRow]


def pieces(files: Mapping[str, Path]) -> Iterator[Piece]:
    """All rows of all files, in the order of names and lines."""
    first, size, rows = 0, 0, []
    for name, path in files.items():
        for row in read_rows(path, name):
            rows.append(row)
            size += len(row.content)
            if len(rows) == _ROWS or size >= _BYTES:
                yield Piece(first, rows)
                first, size, rows = first + len(rows), 0, []
    if rows:
        yield Piece(first, rows)


# Keeping -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stored:
    """One thing of every row of a piece, one after another in a file.

    Attributes:
        file: an array of ``dtype``.
        starts: where each row's begins, and where the last ends: int64 of shape (rows + 1,).
    """

    file: Path
    starts: np.ndarray
    dtype: str = "uint8"

    @classmethod
    def of_bytes(cls, file: Path, things: Sequence[bytes]) -> "Stored":
        file.write_bytes(b"".join(things))
        return cls(file, np.cumsum([0, *map(len, things)], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def read(self) -> np.ndarray:
        """What is in the file, on disk until it is looked at."""
        return np.memmap(self.file, self.dtype, "r") if self.starts[-1] else np.empty(0, self.dtype)


@dataclass(frozen=True)
class RowTable:
    """What is known of rows once they were looked at.

    Attributes:
        files, lines, offsets, numbers: where each row stood, of shape (rows,); see :class:`formats.raw_rows.RawRow`.
        keys: what identifies each.
        prompt_tokens, answer_tokens, turns_cut: lengths, NaN where a row has none, of shape (rows,).
        findings: one for each check of scope ``row``.
        passed: numbers of the rows that go on as far as these checks are concerned.
        bands: of those rows, of shape (passed, bands).
        grams, samples: of those rows, a file for each piece of the data: 4-grams; records as JSON lines.
        contents: of all rows, a file for each piece: their own bytes.
        unread: how many rows have each key that nothing reads.
        layouts: how many rows of each file have a layout that is not accepted.
        spelled: rows over the token budget because the tokenizer cuts their English into letters: bool, (rows,).
    """

    files: np.ndarray
    lines: np.ndarray
    offsets: np.ndarray
    numbers: np.ndarray
    keys: Keys
    prompt_tokens: np.ndarray
    answer_tokens: np.ndarray
    turns_cut: np.ndarray
    findings: list[Finding]
    passed: np.ndarray
    bands: np.ndarray
    grams: list[Stored]
    samples: list[Stored]
    contents: list[Stored]
    unread: Counter[str]
    layouts: Counter[tuple[str, Layout]]
    spelled: np.ndarray

    def place(self, row: int) -> str:
        return place_of(self.files[row], self.lines[row], self.numbers[row])

    @classmethod
    def joined(cls, parts: Sequence["RowTable"]) -> "RowTable":
        """All that was found of pieces that follow one another."""
        columns = {name: [getattr(part, name) for part in parts] for name in cls.__dataclass_fields__}
        keys = Keys.joined(columns.pop("keys"))
        findings = [Finding.joined(same) for same in zip(*columns.pop("findings"), strict=True)]
        counted = {name: _added(columns.pop(name)) for name in ("unread", "layouts")}
        stored = {
            name: [one for part in columns.pop(name) for one in part] for name in ("grams", "samples", "contents")
        }
        arrays = {name: np.concatenate(column) for name, column in columns.items()}
        return cls(keys=keys, findings=findings, **counted, **stored, **arrays)


def _added(counters: Sequence[Counter]) -> Counter:
    """All counts together."""
    return _counted((name for counter in counters for name in counter), (n for c in counters for n in c.values()))


def _counted(names: Iterable[Hashable], counts: Iterable[int] = repeat(1)) -> Counter:
    """How often each of the names came; those that come when there are many already, together."""
    total = Counter()
    for name, count in zip(names, counts, strict=False):
        total[name if name in total or len(total) < MOST_NAMES else OTHERS] += count
    return total


def _unread_names(unread: Sequence[set[str]]) -> Counter[str]:
    """How many rows have each key that nothing reads, by the key as a report shows it."""
    total = _counted(key for keys in unread for key in sorted(keys)[:MOST_NAMES])
    return _counted(map(shown, total), total.values())


class RaggedFiles:
    """What was stored of all rows, or of those that passed, by a row's position among these."""

    def __init__(self, stored: Sequence[Stored]):
        self._starts = [one.starts for one in stored]
        self._ends = np.cumsum([len(one) for one in stored])
        self._values = [one.read() for one in stored]

    def __getitem__(self, position: int) -> np.ndarray:
        piece = int(np.searchsorted(self._ends, position, side="right"))
        within = position - (int(self._ends[piece - 1]) if piece else 0)
        start, end = self._starts[piece][within : within + 2]
        return self._values[piece][start:end]


# Examining -----------------------------------------------------------------------------------------


def examine(setting: GateConfig, piece: Piece) -> RowTable:
    """Parse and describe the rows of a piece and have Great Expectations judge each by itself."""
    max_bytes = setting.params.validate_.checks.parseable.max_bytes
    parsed, unread = zip(*(parse(row.content, max_bytes) for row in piece.rows), strict=True)
    features = describe(parsed, setting.vocabulary, setting.params)
    numbers = np.arange(piece.first, piece.first + len(parsed))
    checks = [check for check in setting.checks if check.scope == "row"]
    findings = judge(features, numbers, checks)
    out = {row for check, found in zip(checks, findings, strict=True) if check.severity != "warn" for row in found.rows}
    passed = [index for index, number in enumerate(numbers.tolist()) if number not in out]
    keys = keys_of([None if isinstance(messages, Fault) else messages for messages in parsed])
    values, starts = hash_ngrams([join_dialogue(parsed[index]) for index in passed])
    samples = [
        sample_line(piece.rows[index], parsed[index], int(keys.sample[index]), int(features["turns_cut"][index]))
        for index in passed
    ]
    file = setting.spool / f"{piece.first}"
    values.tofile(file.with_suffix(".grams"))
    return RowTable(
        files=np.array([row.file for row in piece.rows], object),
        lines=np.array([row.line for row in piece.rows], np.int64),
        offsets=np.array([row.offset for row in piece.rows], np.int64),
        numbers=np.array([row.number for row in piece.rows], np.int64),
        keys=keys,
        **{name: features[name].astype(np.float32) for name in ("prompt_tokens", "answer_tokens", "turns_cut")},
        findings=findings,
        passed=numbers[passed],
        bands=bands(values, starts),
        grams=[Stored(file.with_suffix(".grams"), starts, "uint32")],
        samples=[Stored.of_bytes(file.with_suffix(".samples"), samples)],
        contents=[Stored.of_bytes(file.with_suffix(".contents"), [row.content for row in piece.rows])],
        spelled=_spelled(parsed, features, findings, piece.first),
        unread=_unread_names(unread),
        layouts=_counted(
            (row.file, fault.layout)
            for row, fault in zip(piece.rows, parsed, strict=True)
            if isinstance(fault, Fault) and fault.layout
        ),
    )


def _spelled(parsed: Sequence, features: Mapping, findings: Sequence[Finding], first: int) -> np.ndarray:
    """Which rows are over the token budget because the tokenizer cuts their English into letters: bool, (rows,)."""
    spelled = np.zeros(len(parsed), bool)
    for row in {row for finding in findings if finding.check in ("prompt_fits", "answer_fits") for row in finding.rows}:
        text = join_dialogue(parsed[row - first])
        letters = sum(character.isalpha() and character.isascii() for character in text[:_TOLD])
        tokens = features["prompt_tokens"][row - first] + features["answer_tokens"][row - first]
        spelled[row - first] = 2 * letters > len(text[:_TOLD]) and tokens > _LETTERS * len(text)
    return spelled


def sample_line(row: RawRow, messages: Sequence[Message], key: int, turns_cut: int) -> bytes:
    """The record of a sample as a line of JSON. Its id is that of the whole conversation, before anything was cut."""
    kept = without_oldest(messages, turns_cut) if turns_cut else messages
    sample = Sample(f"{key:016x}", row.file, row.line, kept, row.number or None)
    return _JSON.encode(sample.to_json()).encode("utf-8") + b"\n"
