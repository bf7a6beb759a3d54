"""The data set as a whole: row counts, the checks on them, and the reasons to block the data."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from formats.receipt import SPLITS
from stages.validate import length_drift
from stages.validate.check_report import summarize_findings
from stages.validate.checks import Check
from stages.validate.expectations import Finding, run_checks
from stages.validate.notices import collect_notices, layout_notices, review_notices, seen_probe_notice
from stages.validate.probe_contamination import SeenProbe
from stages.validate.reviewed_rows import count_reviewed
from stages.validate.row_decisions import Decision
from stages.validate.row_table import RowTable

_MAX_EXAMPLES = 3  # row checks in the last reason to block the data


@dataclass(frozen=True)
class Outcome:
    """Result of the gate.

    Attributes:
        row_counts: rows in, their destinations, and further figures of the data; called ``books`` on disk.
        length_histogram: histogram of the tokens per accepted row.
        row_findings: for each row check and cross-row check, number of failed rows and examples.
        data_findings: for each check of all data, the value and whether it passed.
        findings: of all checks, in their order.
        block_reasons: reasons to block the data; empty if they pass.
        notices: sentences by language.
    """

    row_counts: dict
    length_histogram: list[int]
    row_findings: list[dict]
    data_findings: list[dict]
    findings: list[Finding]
    block_reasons: list[str]
    notices: list[dict[str, str]]


def check_dataset(
    table: RowTable,
    decision: Decision,
    checks: Sequence[Check],
    previous_lengths: list[int] | None,
    seen_probes: Sequence[SeenProbe] = (),
) -> Outcome:
    """Count the rows, run the checks of all data, and collect what the reports show.

    Args:
        previous_lengths: length histogram of the data that were accepted before, if any.
        seen_probes: wordings of probes that occur in the training rows. Their number is no part of the row counts,
            which the receipt has: a new probe is no reason to retrain.
    """
    tokens = (table.prompt_tokens + table.answer_tokens)[~decision.is_quarantined]
    row_counts = count_rows(table, decision, tokens, previous_lengths)
    row_findings = summarize_findings(checks, decision.findings, table)
    features = row_counts | {"probes_in_training": len(seen_probes)}
    data_findings, findings = check_counts(features, [check for check in checks if check.scope == "data"])
    block_reasons = collect_block_reasons(row_counts, row_findings, data_findings)
    if block_reasons:
        block_reasons += [notice["en"].removesuffix(".") for notice in layout_notices(table)]
    return Outcome(
        row_counts,
        length_drift.compute_histogram(tokens),
        row_findings,
        data_findings,
        [*decision.findings, *findings],
        block_reasons,
        [*collect_notices(table), *review_notices(table, decision), *seen_probe_notice(table, seen_probes)],
    )


def count_rows(table: RowTable, decision: Decision, tokens: np.ndarray, previous_lengths: list[int] | None) -> dict:
    """Return the row counts (rows in = train + eval + test + quarantined) and the figures of the checks of all data.

    Args:
        tokens: number of tokens of each accepted row.
        previous_lengths: length histogram of the data that were accepted before, if any.
    """
    is_accepted = ~decision.is_quarantined
    rows, accepted = len(is_accepted), int(is_accepted.sum())
    rows_by_split = np.bincount(decision.splits[is_accepted], minlength=len(SPLITS)).tolist()
    cut = int((table.turns_cut[is_accepted] > 0).sum())
    percentiles = np.percentile(tokens, [50, 95, 100]) if accepted else [0, 0, 0]
    drift = None
    if previous_lengths and accepted:
        drift = length_drift.compute_drift(previous_lengths, length_drift.compute_histogram(tokens))
    return {
        "rows_in": rows,
        **dict(zip(SPLITS, rows_by_split, strict=True)),
        "quarantined": rows - accepted,
        "quarantined_share": round(1 - accepted / rows, 4),
        "failed_row_checks": rows - len(table.passed),  # without duplicates, whose share grows with the number of rows
        "cut": cut,
        "cut_share": round(cut / max(accepted, 1), 4),
        "diversity": decision.diversity,
        "learnt": {split: count_learnt(table, rows) for split, rows in decision.rows_by_split.items()},
        "tokens": dict(zip(("median", "p95", "longest"), map(int, percentiles), strict=True)),
        "length_drift": drift,
        "length_drift_class": length_drift.classify_drift(drift),
        # Only failed checks: the others would be thirty columns of zeros in `dvc exp show`.
        "failed": {finding.check: len(finding.rows) for finding in decision.findings if len(finding.rows)},
        "unread_keys": dict(sorted(table.unread_keys.items())),
        **(
            {"review": count_reviewed(table.matches, decision.reviews, decision.is_quarantined)}
            if decision.reviews
            else {}
        ),
    }


def count_learnt(table: RowTable, rows: np.ndarray) -> dict[str, int]:
    """Return the number of conversations of a split, of their distinct learnt answers, and of these answers' tokens.

    An answer that several rows repeat after the same turns, as in files with a row for every turn, counts once;
    ``repeated`` is the number of its repetitions.

    Args:
        rows: indices of the rows of the split.
    """
    counts = table.keys.counts[rows].astype(np.int64)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    first_turns = np.cumsum(table.keys.counts, dtype=np.int64) - table.keys.counts
    tokens = table.turn_tokens[np.repeat(first_turns[rows], counts) + within]
    # Keys of the conversations up to each turn: after those without the system message, where there is one.
    parts = np.diff(table.keys.starts)[rows]
    skipped = np.where((parts == 3 * counts - 1) & (counts > 0), counts, 0)
    prefixes = table.keys.turns[np.repeat(table.keys.starts[rows] + skipped, counts) + within]
    is_learnt = tokens > 0
    _, first = np.unique(prefixes[is_learnt], return_index=True)
    return {
        "conversations": len(rows),
        "answers": len(first),
        "tokens": int(tokens[is_learnt][first].sum()),
        "repeated": int(is_learnt.sum()) - len(first),
    }


def check_counts(row_counts: dict, checks: Sequence[Check]) -> tuple[list[dict], list[Finding]]:
    """Run the checks of all data on the row counts.

    Returns:
        Each check with its value and whether it passed, for reports; and the findings.
    """
    features = {"good_rows": sum(row_counts[split] for split in SPLITS), **row_counts}
    table = {check.column: np.array([features[check.column]], np.float64) for check in checks}
    findings = run_checks(table, np.zeros(1, np.int64), checks)
    data_findings = [
        check.to_json() | {"seen": features[check.column], "passed": not finding.rows}
        for check, finding in zip(checks, findings, strict=True)
    ]
    return data_findings, findings


def collect_block_reasons(row_counts: dict, row_findings: Sequence[dict], data_findings: Sequence[dict]) -> list[str]:
    """Return the reasons to block the data, in English; empty if they pass."""
    reasons = [
        f"{finding['rows']} rows fail {finding['check']}, the first at {finding['examples'][0]['place']}"
        for finding in row_findings
        if finding["severity"] == "block" and finding["rows"]
    ]
    reasons += [
        f"{finding['meaning']['en']} "
        f"({finding['seen']}; validate.checks.{finding['check']}.limit is {finding['limit']})"
        for finding in data_findings
        if finding["severity"] == "block" and not finding["passed"]
    ]
    most_failed = sorted(
        (finding for finding in row_findings if finding["severity"] != "warn" and finding["rows"]),
        key=lambda finding: -finding["rows"],
    )
    if reasons and most_failed:
        counts = ", ".join(f"{finding['check']} ({finding['rows']} rows)" for finding in most_failed[:_MAX_EXAMPLES])
        reasons.append(f"checks failed most often: {counts}")
    if not reasons and not all(row_counts[split] for split in SPLITS):
        reasons.append("all accepted rows are similar or begin with the same turns, so none can be held out")
    return reasons
