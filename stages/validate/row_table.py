"""The row table: what the gate keeps of every row after its row checks, built in chunks.

Arrays of numbers stay in memory. 4-grams, samples and raw bytes are spooled to files.
"""

import json
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import repeat
from pathlib import Path

import numpy as np

from formats.params_schema import Params
from formats.raw_row import RawRow, format_location
from formats.raw_rows import UTF8, read_rows
from formats.review_decisions import ReviewDecision
from measures.ngrams import hash_ngrams, join_dialogue
from models.families import recognize_tokenizer
from models.sample import Message, Sample
from stages.validate.checks import Check, build_checks
from stages.validate.dedup import RowKeys, compute_keys
from stages.validate.expectations import Finding, run_checks
from stages.validate.layouts import Layout
from stages.validate.minhash import compute_bands
from stages.validate.reviewed_rows import (
    match_decisions,
    overridable_checks,
    override_findings,
    replace_edited,
    rows_with_decision,
)
from stages.validate.row_features import compute_features, drop_oldest_turns, excerpt
from stages.validate.row_parsing import ParseFault, parse_content

_JSON = json.JSONEncoder(ensure_ascii=False)
# Limits of a chunk, which a worker holds in memory. Great Expectations takes a third of a second per table, so smaller
# chunks cost time.
_CHUNK_ROWS, _CHUNK_BYTES = 40_000, 16 * 2**20
MAX_NAMES = 100  # distinct keys and layouts that are counted by name
OTHER_KEYS = "other keys"  # counts all further ones
_LANGUAGE_SAMPLE = 10_000  # characters from which a language is recognized
_TOKENS_PER_CHARACTER = 0.5  # above this, a tokenizer spells English in letters; a real one needs 0.25


@dataclass(frozen=True)
class GateConfig:
    """Configuration of the row checks.

    Attributes:
        params: params.yaml.
        tokenizer: folder of the tokenizer that counts tokens.
        spool: folder for the files of the row table.
        decisions: decisions of a review, by the hash of the row's content.
    """

    params: Params
    tokenizer: Path
    spool: Path
    decisions: Mapping[str, ReviewDecision] = field(default_factory=dict)

    @property
    def checks(self) -> list[Check]:
        """All checks with their limits."""
        return build_checks(self.params)

    @property
    def vocabulary(self):
        """The vocabulary of the tokenizer, loaded once per process; see :mod:`models.families.family`."""
        return _load_vocabulary(self.tokenizer)


@lru_cache(maxsize=1)
def _load_vocabulary(folder: Path):
    return recognize_tokenizer(folder).load_vocabulary(folder)


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows, and the index of the first."""

    first: int
    rows: list[RawRow]


def read_chunks(files: Mapping[str, Path], encoding: str = UTF8) -> Iterator[Chunk]:
    """Yield the rows of all files in chunks, in the order of files and lines.

    Args:
        files: paths by name.
        encoding: of text files that are not UTF-8.

    Raises:
        UserError: a file cannot be read.
    """
    first, size, rows = 0, 0, []
    for name, path in files.items():
        for row in read_rows(path, name, encoding):
            rows.append(row)
            size += len(row.content)
            if len(rows) == _CHUNK_ROWS or size >= _CHUNK_BYTES:
                yield Chunk(first, rows)
                first, size, rows = first + len(rows), 0, []
    if rows:
        yield Chunk(first, rows)


# Spooled columns -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class RaggedFile:
    """A column of variable length for the rows of a chunk, concatenated in a file.

    Attributes:
        path: file, an array of ``dtype``.
        starts: offset of each row, and of the end: int64 of shape (rows + 1,).
    """

    path: Path
    starts: np.ndarray
    dtype: str = "uint8"

    @classmethod
    def write(cls, path: Path, values: Sequence[bytes]) -> "RaggedFile":
        """Write a column of bytes."""
        path.write_bytes(b"".join(values))
        return cls(path, np.cumsum([0, *map(len, values)], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def read(self) -> np.ndarray:
        """Return the memory-mapped content of the file."""
        return np.memmap(self.path, self.dtype, "r") if self.starts[-1] else np.empty(0, self.dtype)


class RaggedFiles:
    """Random access to a spooled column of all chunks, by the position of a row."""

    def __init__(self, files: Sequence[RaggedFile]):
        self._starts = [file.starts for file in files]
        self._ends = np.cumsum([len(file) for file in files])
        self._values = [file.read() for file in files]

    def __getitem__(self, position: int) -> np.ndarray:
        chunk = int(np.searchsorted(self._ends, position, side="right"))
        within = position - (int(self._ends[chunk - 1]) if chunk else 0)
        start, end = self._starts[chunk][within : within + 2]
        return self._values[chunk][start:end]


# Table ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RowTable:
    """Columns of all rows.

    Attributes:
        files, lines, offsets, numbers: location of each row, of shape (rows,); see :class:`formats.raw_row.RawRow`.
        keys: hashes for deduplication and split.
        prompt_tokens, answer_tokens, turns_cut: NaN for a row without a conversation, float32 of shape (rows,).
        turn_tokens: see :class:`stages.validate.row_features.Features`; ``keys.counts`` has the turns of each row.
        findings: one for each check of scope ``row``.
        passed: indices of the rows that no such check quarantines.
        bands: MinHash bands of those rows, of shape (passed, bands).
        grams, samples: spooled columns of those rows: 4-grams; samples as lines of JSON.
        contents: spooled column of all rows: their own bytes.
        unread_keys: number of rows by key that is not read.
        layouts: number of rows by file and unsupported layout.
        is_spelled: whether a row exceeds the token budget because the tokenizer spells English in letters, (rows,).
        matches: index of each row's decision of a review, -1 without one, (rows,).
    """

    files: np.ndarray
    lines: np.ndarray
    offsets: np.ndarray
    numbers: np.ndarray
    keys: RowKeys
    prompt_tokens: np.ndarray
    answer_tokens: np.ndarray
    turns_cut: np.ndarray
    turn_tokens: np.ndarray
    findings: list[Finding]
    passed: np.ndarray
    bands: np.ndarray
    grams: list[RaggedFile]
    samples: list[RaggedFile]
    contents: list[RaggedFile]
    unread_keys: Counter[str]
    layouts: Counter[tuple[str, Layout]]
    is_spelled: np.ndarray
    matches: np.ndarray

    def locate(self, row: int) -> str:
        """Return file and line of a row: ``rows.jsonl:3``, or ``rows.json#3`` in a JSON array."""
        return format_location(self.files[row], self.lines[row], self.numbers[row])

    @classmethod
    def concatenate(cls, parts: Sequence["RowTable"]) -> "RowTable":
        """Return the tables of consecutive chunks as one."""
        columns = {name: [getattr(part, name) for part in parts] for name in cls.__dataclass_fields__}
        keys = RowKeys.concatenate(columns.pop("keys"))
        findings = [Finding.concatenate(same_check) for same_check in zip(*columns.pop("findings"), strict=True)]
        counters = {name: _add_counters(columns.pop(name)) for name in ("unread_keys", "layouts")}
        spooled = {
            name: [file for files in columns.pop(name) for file in files] for name in ("grams", "samples", "contents")
        }
        arrays = {name: np.concatenate(column) for name, column in columns.items()}
        return cls(keys=keys, findings=findings, **counters, **spooled, **arrays)


def _add_counters(counters: Sequence[Counter]) -> Counter:
    names = (name for counter in counters for name in counter)
    return _count(names, (count for counter in counters for count in counter.values()))


def _count(names: Iterable[Hashable], counts: Iterable[int] = repeat(1)) -> Counter:
    """Add counts by name; after :data:`MAX_NAMES` names, further ones are counted as :data:`OTHER_KEYS`."""
    total = Counter()
    for name, count in zip(names, counts, strict=False):
        total[name if name in total or len(total) < MAX_NAMES else OTHER_KEYS] += count
    return total


def _count_unread(unread: Sequence[set[str]]) -> Counter[str]:
    """Return the number of rows by unread key, as a report shows the key.

    Args:
        unread: the unread keys of every row.
    """
    total = _count(key for keys in unread for key in sorted(keys)[:MAX_NAMES])
    return _count(map(excerpt, total), total.values())


# Chunks --------------------------------------------------------------------------------------------


def build_chunk_table(config: GateConfig, chunk: Chunk) -> RowTable:
    """Parse the rows of a chunk, compute their features, run the row checks, and spool what later steps need."""
    matches = match_decisions(chunk.rows, config.decisions)
    parsed, unread = _parse_rows(config, chunk, matches)
    features = compute_features(parsed, config.vocabulary, config.params)
    rows = np.arange(chunk.first, chunk.first + len(parsed))
    findings, failed = _run_row_checks(config, rows, features.table, matches)
    passed = [index for index, row in enumerate(rows.tolist()) if row not in failed]
    keys = compute_keys([None if isinstance(messages, ParseFault) else messages for messages in parsed])
    hashes, starts = hash_ngrams([join_dialogue(parsed[index]) for index in passed])
    turns_cut = features.table["turns_cut"]
    samples = [
        encode_sample_line(chunk.rows[index], parsed[index], int(keys.sample[index]), int(turns_cut[index]))
        for index in passed
    ]
    return RowTable(
        **_locations(chunk.rows),
        keys=keys,
        **{name: features.table[name].astype(np.float32) for name in ("prompt_tokens", "answer_tokens", "turns_cut")},
        turn_tokens=features.turn_tokens,
        findings=findings,
        passed=rows[passed],
        bands=compute_bands(hashes, starts),
        **_spool_columns(config.spool / f"{chunk.first}", chunk.rows, samples, hashes, starts),
        is_spelled=_find_spelled(parsed, features.table, findings, chunk.first),
        matches=matches,
        unread_keys=_count_unread(unread),
        layouts=_count_layouts(chunk.rows, parsed),
    )


def _parse_rows(
    config: GateConfig, chunk: Chunk, matches: np.ndarray
) -> tuple[Sequence[tuple[Message, ...] | ParseFault], Sequence[set[str]]]:
    """Return the messages or the fault of each row, with the edits of a review, and the keys that are not read.

    Args:
        matches: index of each row's decision, see :func:`match_decisions`.
    """
    contents = replace_edited(chunk.rows, matches, config.decisions)
    results = (
        parse_content(content, config.params, row.fault if content is row.content else "")
        for row, content in zip(chunk.rows, contents, strict=True)
    )
    parsed, unread = zip(*results, strict=True)
    return parsed, unread


def _run_row_checks(
    config: GateConfig, rows: np.ndarray, features: Mapping[str, np.ndarray], matches: np.ndarray
) -> tuple[list[Finding], set[int]]:
    """Run the checks of single rows.

    Args:
        rows: indices of the rows.
        features: columns by name.
        matches: index of each row's decision, see :func:`match_decisions`.

    Returns:
        One finding for each check, and the indices of the rows that a check quarantines or a review drops.
    """
    checks = [check for check in config.checks if check.scope == "row"]
    reviews = list(config.decisions.values())
    kept, dropped = (set(rows[rows_with_decision(matches, reviews, name)].tolist()) for name in ("keep", "drop"))
    findings = override_findings(run_checks(features, rows, checks), kept, dropped, overridable_checks(checks))
    failed = {
        row for check, finding in zip(checks, findings, strict=True) if check.severity != "warn" for row in finding.rows
    }
    return findings, dropped | failed


def _locations(rows: Sequence[RawRow]) -> dict[str, np.ndarray]:
    """Return the columns that locate rows, by name."""
    return {
        "files": np.array([row.file for row in rows], object),
        "lines": np.array([row.line for row in rows], np.int64),
        "offsets": np.array([row.offset for row in rows], np.int64),
        "numbers": np.array([row.number for row in rows], np.int64),
    }


def _spool_columns(
    path: Path, rows: Sequence[RawRow], samples: Sequence[bytes], hashes: np.ndarray, starts: np.ndarray
) -> dict[str, list[RaggedFile]]:
    """Write the columns of variable length to files, and return them by name.

    Args:
        path: of the files, without suffix.
        rows: all rows of the chunk, whose content is written.
        samples: lines of JSON of the rows that passed.
        hashes, starts: 4-grams of the rows that passed, concatenated, and the offset of each row.
    """
    hashes.tofile(path.with_suffix(".grams"))
    return {
        "grams": [RaggedFile(path.with_suffix(".grams"), starts, "uint32")],
        "samples": [RaggedFile.write(path.with_suffix(".samples"), samples)],
        "contents": [RaggedFile.write(path.with_suffix(".contents"), [row.content for row in rows])],
    }


def _count_layouts(rows: Sequence[RawRow], parsed: Sequence) -> Counter:
    """Return the number of rows by file and unsupported layout."""
    return _count(
        (row.file, fault.layout)
        for row, fault in zip(rows, parsed, strict=True)
        if isinstance(fault, ParseFault) and fault.layout
    )


def _find_spelled(parsed: Sequence, features: Mapping, findings: Sequence[Finding], first: int) -> np.ndarray:
    """Return which rows exceed the token budget because the tokenizer spells their English in letters.

    Args:
        parsed: messages of every row.
        first: index of the first row.

    Returns:
        bool of shape (rows,).
    """
    is_spelled = np.zeros(len(parsed), bool)
    too_long = (finding for finding in findings if finding.check in ("prompt_fits", "answer_fits"))
    for index in {row - first for finding in too_long for row in finding.rows}:
        text = join_dialogue(parsed[index])
        sample = text[:_LANGUAGE_SAMPLE]
        letters = sum(character.isalpha() and character.isascii() for character in sample)
        tokens = features["prompt_tokens"][index] + features["answer_tokens"][index]
        is_spelled[index] = 2 * letters > len(sample) and tokens > _TOKENS_PER_CHARACTER * len(text)
    return is_spelled


def encode_sample_line(row: RawRow, messages: Sequence[Message], key: int, turns_cut: int) -> bytes:
    """Return a sample as a line of JSON.

    Args:
        key: hash of the whole conversation, before turns were cut: the id of the sample.
        turns_cut: number of oldest turns to leave out.
    """
    kept = drop_oldest_turns(messages, turns_cut) if turns_cut else messages
    sample = Sample(f"{key:016x}", row.file, row.line, kept, row.number or None)
    return _JSON.encode(sample.to_json()).encode("utf-8") + b"\n"
