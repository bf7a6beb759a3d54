"""Application of the decisions of a review (:mod:`formats.review_decisions`) to the rows of the gate."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from formats.params_schema import required_checks
from formats.raw_row import RawRow
from formats.review_decisions import ReviewDecision, hash_content
from stages.validate.checks import Check
from stages.validate.expectations import Finding
from stages.validate.row_features import excerpt

NOT_DECIDED = -1


def match_decisions(rows: Sequence[RawRow], decisions: Mapping[str, ReviewDecision]) -> np.ndarray:
    """Return the index of each row's decision, :data:`NOT_DECIDED` without one: int32 of shape (rows,)."""
    matches = np.full(len(rows), NOT_DECIDED, np.int32)
    if decisions:  # no row is hashed without decisions
        indices = {content_sha256: index for index, content_sha256 in enumerate(decisions)}
        matches[:] = [indices.get(hash_content(row.content), NOT_DECIDED) for row in rows]
    return matches


def replace_edited(rows: Sequence[RawRow], matches: np.ndarray, decisions: Mapping[str, ReviewDecision]) -> list[bytes]:
    """Return the content of each row, the new content of edited ones."""
    contents, reviews = [row.content for row in rows], list(decisions.values())
    for index in np.flatnonzero(matches != NOT_DECIDED).tolist():
        contents[index] = reviews[matches[index]].content or contents[index]
    return contents


def rows_with_decision(matches: np.ndarray, reviews: Sequence[ReviewDecision], decision: str) -> np.ndarray:
    """Return the rows with a decision, ``keep``, ``drop`` or ``edit``: bool of shape (rows,)."""
    has_decision = np.array([review.decision == decision for review in reviews] + [False], bool)
    return has_decision[matches]  # NOT_DECIDED is the index of the last entry


def overridable_checks(checks: Sequence[Check]) -> set[str]:
    """Return the names of the checks that a decision ``keep`` overrides: not required ones, and none that blocks."""
    required = required_checks()
    return {check.name for check in checks if check.severity != "block" and check.name not in required}


def override_findings(
    findings: Sequence[Finding], kept: Collection[int], dropped: Collection[int], overridable: Collection[str]
) -> list[Finding]:
    """Return the findings without those that a review overrides.

    Args:
        kept: indices of rows that pass the overridable checks.
        dropped: indices of rows that are judged by no check, so that dropping a row also lifts a block.
        overridable: names of the checks that ``keep`` overrides.
    """
    if not kept and not dropped:
        return list(findings)
    return [
        _without(finding, {*kept, *dropped} if finding.check in overridable else set(dropped)) for finding in findings
    ]


def _without(finding: Finding, rows: set[int]) -> Finding:
    pairs = [(row, value) for row, value in zip(finding.rows, finding.values, strict=True) if row not in rows]
    return Finding(finding.check, [row for row, _ in pairs], [value for _, value in pairs])


def find_dropped(matches: np.ndarray, reviews: Sequence[ReviewDecision]) -> Finding:
    """Return the finding of the check ``review``: the dropped rows with the reasons of the review."""
    rows = np.flatnonzero(rows_with_decision(matches, reviews, "drop")).tolist()
    return Finding("review", rows, [excerpt(reviews[matches[row]].reason) for row in rows])


def count_reviewed(matches: np.ndarray, reviews: Sequence[ReviewDecision], is_quarantined: np.ndarray) -> dict:
    """Return the numbers of a review for the books.

    Returns:
        ``kept``, ``dropped`` and ``edited`` rows; ``overruled``, rows to keep that fail a required check;
        ``unmatched``, decisions on content that no row has.
    """
    is_kept = rows_with_decision(matches, reviews, "keep")
    return {
        "kept": int((is_kept & ~is_quarantined).sum()),
        "dropped": int(rows_with_decision(matches, reviews, "drop").sum()),
        "edited": int(rows_with_decision(matches, reviews, "edit").sum()),
        "overruled": int((is_kept & is_quarantined).sum()),
        "unmatched": len(reviews) - len(np.unique(matches[matches != NOT_DECIDED])),
    }
