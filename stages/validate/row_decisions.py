"""The decision for every row: cross-row checks (copies, near-duplicates, conflicting answers), then the split."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from tqdm import tqdm

from formats.data_params import Validate
from formats.receipt import SPLITS
from formats.review_decisions import ReviewDecision
from stages.validate.checks import Check
from stages.validate.dedup import find_conflicting_answers, find_near_duplicates, first_occurrences
from stages.validate.expectations import Finding, run_checks
from stages.validate.reviewed_rows import find_dropped, overridable_checks, rows_with_decision
from stages.validate.row_table import RaggedFiles, RowTable
from stages.validate.split import split_rows
from stages.validate.worker_pool import WorkerPool

_DIVERSITY_SAMPLE = 2000  # rows; a fixed number, because diversity falls with the number of rows
_CHUNK_ROWS = 50_000  # rows of a table for Great Expectations


@dataclass(frozen=True)
class Decision:
    """The destination of every row: rows in = train + eval + test + quarantined.

    Attributes:
        splits: int8 of shape (rows,), indices of :data:`formats.receipt.SPLITS`; they count for accepted rows only.
        is_quarantined: bool of shape (rows,).
        findings: one for each row check, the check ``review``, and each cross-row check.
        diversity: distinct over all 4-grams in a sample of the accepted rows, from 0 to 1; None without rows.
        reviews: all decisions of a review, which ``RowTable.matches`` refers to.
    """

    splits: np.ndarray
    is_quarantined: np.ndarray
    findings: list[Finding]
    diversity: float | None
    reviews: Sequence[ReviewDecision] = ()

    @property
    def rows_by_split(self) -> dict[str, np.ndarray]:
        """The indices of the rows of each split."""
        is_accepted = ~self.is_quarantined
        return {split: np.flatnonzero(is_accepted & (self.splits == index)) for index, split in enumerate(SPLITS)}


def decide_rows(
    table: RowTable,
    checks: Sequence[Check],
    params: Validate,
    pool: WorkerPool,
    decisions: Mapping[str, ReviewDecision] | None = None,
) -> Decision:
    """Run the cross-row checks and split the accepted rows.

    Each step compares only the rows that passed the steps before, so that no good row is quarantined as the duplicate
    of a quarantined row. Only exact copies fail in any case.

    Args:
        decisions: decisions of a review, which the row table was built with.
    """
    reviews = list((decisions or {}).values())
    is_kept, is_dropped = (rows_with_decision(table.matches, reviews, name) for name in ("keep", "drop"))
    row_filter = RowFilter(table, checks, is_kept, is_dropped)
    row_filter.fail_copies()
    pairs = row_filter.fail_near_duplicates(params.checks.no_near_duplicate.similarity)
    row_filter.fail_conflicting_answers()
    splits = row_filter.split(pairs, (params.eval_share, params.test_share))
    dropped = find_dropped(table.matches, reviews)
    findings = [*table.findings, dropped, *row_filter.collect_findings(pool)]
    is_quarantined = np.zeros(len(table.lines), bool)
    for finding in findings:
        if row_filter.severities[finding.check] != "warn":
            is_quarantined[finding.rows] = True
    diversity = measure_diversity(table, ~is_quarantined)
    return Decision(splits, is_quarantined, findings, diversity, reviews)


class RowFilter:
    """The rows that passed all checks so far, and the features of the cross-row checks.

    Args:
        is_kept: rows that a review keeps, for which the checks that it overrides record no fault, (rows,).
        is_dropped: rows that a review drops, for which no check records a fault, (rows,).

    Attributes:
        severities: severity by check.
        accepted: indices of the rows that passed so far.
    """

    def __init__(self, table: RowTable, checks: Sequence[Check], is_kept: np.ndarray, is_dropped: np.ndarray):
        self.severities = {check.name: check.severity for check in checks}
        self.accepted = table.passed
        self._table = table
        self._checks = [check for check in checks if check.scope == "cross_row"]
        self._is_kept, self._is_dropped, self._overridable = is_kept, is_dropped, overridable_checks(self._checks)
        self._features = {check.column: np.full(len(table.lines), None, object) for check in self._checks}

    def _fail(self, check: str, faults: dict[int, str]) -> None:
        """Record the faults of rows; unless the check only warns, the rows are no longer accepted."""
        if check in self._overridable:
            faults = {row: fault for row, fault in faults.items() if not self._is_kept[row]}
        for row, fault in faults.items():
            self._features[f"{check}_fault"][row] = fault
        if self.severities[check] != "warn":
            self.accepted = self.accepted[~np.isin(self.accepted, list(faults))]

    def fail_copies(self) -> None:
        """Fail every row that is a copy of an earlier row, even of a quarantined one."""
        first = first_occurrences(self._table.keys.sample)
        copies = np.flatnonzero((first != np.arange(len(first))) & ~self._is_dropped)
        self._fail("unique", {row: self._table.locate(first[row]) for row in copies.tolist()})

    def fail_near_duplicates(self, similarity: float) -> list[tuple[int, int, float]]:
        """Fail every near-duplicate of an earlier row.

        Returns:
            Later row, earlier row and similarity of each pair.
        """
        rows, grams = self.accepted, RaggedFiles(self._table.grams)
        positions = np.searchsorted(self._table.passed, rows)
        pairs = [
            (int(rows[later]), int(rows[earlier]), pair_similarity)
            for later, earlier, pair_similarity in find_near_duplicates(
                self._table.bands[positions], lambda row: grams[positions[row]], similarity
            )
        ]
        # Reversed, so that the first similar row of each row is the one that is reported.
        faults = {later: f"{self._table.locate(earlier)} ({share:.0%})" for later, earlier, share in reversed(pairs)}
        self._fail("no_near_duplicate", faults)
        return pairs

    def fail_conflicting_answers(self) -> None:
        """Fail every row whose answer differs from the first answer to the same prompt."""
        conflicts = find_conflicting_answers(self._table.keys, self.accepted)
        self._fail("one_answer", {row: self._table.locate(first) for row, first in conflicts.items()})

    def split(self, pairs: Sequence[tuple[int, int, float]], shares: tuple[float, float]) -> np.ndarray:
        """Split the accepted rows, and fail those that belong to rows of two splits.

        Args:
            pairs: near-duplicates as later row, earlier row, similarity.
            shares: of the rows for evaluation and for test.

        Returns:
            Indices of :data:`formats.receipt.SPLITS`: int8 of shape (rows,).
        """
        rows = self.accepted
        positions = {row: position for position, row in enumerate(rows.tolist())} if pairs else {}
        accepted_pairs = [
            (positions[later], positions[earlier], similarity)
            for later, earlier, similarity in pairs
            if later in positions and earlier in positions
        ]
        split = split_rows(self._table.keys, rows, accepted_pairs, shares)
        splits = np.zeros(len(self._table.lines), np.int8)
        splits[rows] = split.splits
        conflicts = {int(rows[row]): self._table.locate(int(rows[other])) for row, other in split.conflicts.items()}
        self._fail("no_leakage", conflicts)
        return splits

    def collect_findings(self, pool: WorkerPool) -> list[Finding]:
        """Return the findings of the cross-row checks, by Great Expectations over the features."""
        count = len(self._table.lines)
        ranges = (np.arange(start, min(start + _CHUNK_ROWS, count)) for start in range(0, count, _CHUNK_ROWS))
        chunks = (({column: values[rows] for column, values in self._features.items()}, rows) for rows in ranges)
        parts = []
        with tqdm(desc="run cross-row checks", unit=" rows", delay=2, total=count) as bar:
            for part in pool.map_ordered(partial(_run_chunk, self._checks), chunks):
                parts.append(part)
                bar.update(min(_CHUNK_ROWS, count - bar.n))
        return [Finding.concatenate(same_check) for same_check in zip(*parts, strict=True)]


def _run_chunk(checks: Sequence[Check], chunk: tuple[dict[str, np.ndarray], np.ndarray]) -> list[Finding]:
    features, rows = chunk
    return run_checks(features, rows, checks)


def measure_diversity(table: RowTable, is_accepted: np.ndarray) -> float | None:
    """Return the share of distinct 4-grams in a sample of the accepted rows, the first 2,000 by hash."""
    positions = np.flatnonzero(is_accepted[table.passed])
    if not len(positions):
        return None
    by_hash = np.argsort(table.keys.sample[table.passed[positions]], kind="stable")
    all_grams = RaggedFiles(table.grams)
    grams = np.concatenate([all_grams[position] for position in positions[by_hash[:_DIVERSITY_SAMPLE]]])
    return round(len(np.unique(grams)) / max(len(grams), 1), 4)
