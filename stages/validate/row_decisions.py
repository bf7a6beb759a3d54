"""What becomes of every row, once all were examined: it is judged among all others and given a side."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from tqdm import tqdm

from formats.params_schema import Validate
from stages.validate.checks import Check
from stages.validate.dedup import first_of, near_duplicates, other_answers
from stages.validate.expectations import Finding, judge
from stages.validate.row_table import RaggedFiles, RowTable
from stages.validate.split import split
from stages.validate.worker_pool import WorkerPool

_SAMPLED = 2000  # rows by which diversity is told: it falls with the number of rows looked at
_AT_ONCE = 50_000  # rows in one table


@dataclass(frozen=True)
class Decision:
    """The outcome of every row: rows in = train + eval + quarantined.

    Attributes:
        evaluated, quarantined: bool of shape (rows,); a row that is neither is trained on.
        findings: one for each check of rows, by themselves and among all others.
        diversity: distinct 4-grams over all 4-grams in a sample of the rows that go on; None without rows.
    """

    evaluated: np.ndarray
    quarantined: np.ndarray
    findings: list[Finding]
    diversity: float | None


def decide(examined: RowTable, checks: Sequence[Check], knobs: Validate, crew: WorkerPool) -> Decision:
    """Judge rows among all others, and divide those that go on into training and evaluation.

    Only rows that passed so far are compared, so that a good row is no copy of one that was set aside for
    another reason.
    """
    sieve = RowFilter(examined, checks)
    sieve.find_copies()
    pairs = sieve.find_near_duplicates(knobs.checks.no_near_duplicate.similarity)
    sieve.find_other_answers()
    evaluated = sieve.divide(pairs, knobs.eval_share)
    findings = [*examined.findings, *sieve.findings(crew)]
    quarantined = np.zeros(len(examined.lines), bool)
    for finding in findings:
        if sieve.severity[finding.check] != "warn":
            quarantined[finding.rows] = True
    return Decision(evaluated & ~quarantined, quarantined, findings, sieve.diversity(~quarantined))


class RowFilter:
    """Rows that still go on, and the features that tell why others do not."""

    def __init__(self, examined: RowTable, checks: Sequence[Check]):
        self.examined = examined
        self.checks = [check for check in checks if check.scope == "among"]
        self.severity = {check.name: check.severity for check in checks}
        self.features = {check.column: np.full(len(examined.lines), None, object) for check in self.checks}
        self.grams = RaggedFiles(examined.grams)
        self.going = examined.passed

    def _fail(self, check: str, seen: dict[int, str]) -> None:
        for row, what in seen.items():
            self.features[f"{check}_fault"][row] = what
        if self.severity[check] != "warn":
            self.going = self.going[~np.isin(self.going, list(seen))]

    def find_copies(self) -> None:
        """Every row that repeats another one counts, whatever became of that one."""
        first = first_of(self.examined.keys.sample)
        copies = np.flatnonzero(first != np.arange(len(first)))
        self._fail("unique", {row: self.examined.place(first[row]) for row in copies.tolist()})

    def find_near_duplicates(self, similarity: float) -> list[tuple[int, int, float]]:
        """Pairs of rows, the later one first."""
        positions = np.searchsorted(self.examined.passed, self.going)
        alike = near_duplicates(self.examined.bands[positions], lambda row: self.grams[positions[row]], similarity)
        pairs = [(int(self.going[later]), int(self.going[earlier]), share) for later, earlier, share in alike]
        nearest = {later: f"{self.examined.place(earlier)} ({share:.0%})" for later, earlier, share in reversed(pairs)}
        self._fail("no_near_duplicate", nearest)
        return pairs

    def find_other_answers(self) -> None:
        others = other_answers(self.examined.keys, self.going)
        self._fail("one_answer", {row: self.examined.place(other) for row, other in others.items()})

    def divide(self, pairs: Sequence[tuple[int, int, float]], eval_share: float) -> np.ndarray:
        """Which rows are kept for evaluation: bool of shape (rows,)."""
        position = {row: index for index, row in enumerate(self.going.tolist())} if pairs else {}
        among = [(position[a], position[b], share) for a, b, share in pairs if a in position and b in position]
        divided = split(self.examined.keys, self.going, among, eval_share)
        evaluated = np.zeros(len(self.examined.lines), bool)
        evaluated[self.going] = divided.evaluated
        torn = {int(self.going[row]): int(self.going[other]) for row, other in divided.torn.items()}
        self._fail("no_leakage", {row: self.examined.place(other) for row, other in torn.items()})
        return evaluated

    def findings(self, crew: WorkerPool) -> list[Finding]:
        """What Great Expectations finds in the features."""
        count = len(self.examined.lines)
        tables = (np.arange(start, min(start + _AT_ONCE, count)) for start in range(0, count, _AT_ONCE))
        pieces = (({column: values[rows] for column, values in self.features.items()}, rows) for rows in tables)
        parts = []
        with tqdm(desc="judge · 评判", unit=" rows", delay=2, total=count) as bar:
            for part in crew.in_order(partial(_judge_piece, self.checks), pieces):
                parts.append(part)
                bar.update(min(_AT_ONCE, count - bar.n))
        return [Finding.joined(same) for same in zip(*parts, strict=True)]

    def diversity(self, kept: np.ndarray) -> float | None:
        positions = np.flatnonzero(kept[self.examined.passed])
        if not len(positions):
            return None
        by_hash = np.argsort(self.examined.keys.sample[self.examined.passed[positions]], kind="stable")
        sampled = [self.grams[position] for position in positions[by_hash[:_SAMPLED]]]
        every = np.concatenate(sampled)
        return round(len(np.unique(every)) / max(len(every), 1), 4)


def _judge_piece(checks: Sequence[Check], piece: tuple[dict[str, np.ndarray], np.ndarray]) -> list[Finding]:
    features, numbers = piece
    return judge(features, numbers, checks)
