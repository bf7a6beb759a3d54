"""The data as a whole: the books, what Great Expectations finds of them, and why they must not go on, if so."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stages.validate import length_drift
from stages.validate.check_report import hits_of
from stages.validate.checks import Check
from stages.validate.expectations import Finding, judge
from stages.validate.notices import layout_notes, notes_of
from stages.validate.row_decisions import Decision
from stages.validate.row_table import RowTable

_WORST = 3


@dataclass(frozen=True)
class Outcome:
    """What there is to report.

    Attributes:
        books: rows in, where they went, and what else describes the data; all of it a DVC metric.
        lengths: histogram of tokens a row, of what goes on.
        rows: for each check of rows, how many failed, with examples.
        data: for each check of the whole, what was seen and whether it passed.
        findings: of all checks, in their order.
        reasons: why these data must not go on; empty if they may.
        notes: what else a person should know, each a sentence by language.
    """

    books: dict
    length_drift: list[int]
    rows: list[dict]
    data: list[dict]
    findings: list[Finding]
    reasons: list[str]
    notes: list[dict[str, str]]


def judge_whole(examined: RowTable, decision: Decision, checks: Sequence[Check], former: list[int] | None) -> Outcome:
    """Keep the books and judge them.

    Args:
        former: histogram of the data that were accepted before, if any.
    """
    tokens = (examined.prompt_tokens + examined.answer_tokens)[~decision.quarantined]
    books = keep_books(examined, decision, tokens, former)
    rows = hits_of(checks, decision.findings, examined)
    data, findings = judge_books(books, [check for check in checks if check.scope == "data"])
    reasons = reasons_to_block(books, rows, data)
    if reasons:
        reasons += [note["en"].removesuffix(".") for note in layout_notes(examined)]
    findings = [*decision.findings, *findings]
    return Outcome(books, length_drift.histogram(tokens), rows, data, findings, reasons, notes_of(examined))


def keep_books(examined: RowTable, decision: Decision, tokens: np.ndarray, former: list[int] | None) -> dict:
    """Rows in = train + eval + quarantined, and the figures that the whole is judged by."""
    kept = ~decision.quarantined
    good, evaluated = int(kept.sum()), int(decision.evaluated.sum())
    cut = int((examined.turns_cut[kept] > 0).sum())
    spread = np.percentile(tokens, [50, 95, 100]) if good else [0, 0, 0]
    moved = length_drift.drift(former, length_drift.histogram(tokens)) if former and good else None
    return {
        "rows_in": len(kept),
        "train": good - evaluated,
        "eval": evaluated,
        "quarantined": len(kept) - good,
        "quarantined_share": round(1 - good / len(kept), 4),
        "failed_row_checks": len(kept) - len(examined.passed),  # quarantined for what they are, however many there are
        "cut": cut,
        "cut_share": round(cut / max(good, 1), 4),
        "diversity": decision.diversity,
        "tokens": dict(zip(("median", "p95", "longest"), map(int, spread), strict=True)),
        "length_drift": moved,
        "length_drift_class": length_drift.drift_class(moved),
        # Those that failed none would be thirty columns of zeros in `dvc exp show`.
        "failed": {finding.check: len(finding.rows) for finding in decision.findings if len(finding.rows)},
        "unread_keys": dict(sorted(examined.unread.items())),
    }


def judge_books(books: dict, checks: Sequence[Check]) -> tuple[list[dict], list[Finding]]:
    """What Great Expectations finds in the books: told for reports, and as findings."""
    features = {"good_rows": books["train"] + books["eval"], **books}
    table = {check.column: np.array([features[check.column]], np.float64) for check in checks}
    findings = judge(table, np.zeros(1, np.int64), checks)
    told = [
        check.told() | {"seen": features[check.column], "passed": not finding.rows}
        for check, finding in zip(checks, findings, strict=True)
    ]
    return told, findings


def reasons_to_block(books: dict, rows: Sequence[dict], data: Sequence[dict]) -> list[str]:
    reasons = [
        f"{line['rows']} rows fail {line['check']}, the first at {line['examples'][0]['place']}"
        for line in rows
        if line["severity"] == "block" and line["rows"]
    ]
    reasons += [
        f"{line['meaning']['en']} ({line['seen']}; validate.checks.{line['check']}.limit is {line['limit']})"
        for line in data
        if line["severity"] == "block" and not line["passed"]
    ]
    worst = sorted((line for line in rows if line["severity"] != "warn" and line["rows"]), key=lambda x: -x["rows"])
    if reasons and worst:
        reasons.append("what failed most: " + ", ".join(f"{e['check']} ({e['rows']} rows)" for e in worst[:_WORST]))
    if not reasons and not (books["train"] and books["eval"]):
        reasons.append("all good rows are alike or open the same way, so that none can be kept for evaluation")
    return reasons
