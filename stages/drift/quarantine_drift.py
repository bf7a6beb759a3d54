"""The share of rows that the row checks set aside, on both sides: is a difference real, and is it large?

Only checks of a row by itself count. How many rows are copies of others depends on how many rows there are.
"""

import math
from collections.abc import Mapping

from stages.drift.drift_tests import Found

COLUMN = "quarantined_share"
_CHECK_KEYS = ("name", "column", "severity", "maximum", "minimum")


def is_comparable(reference: Mapping, current: Mapping, least_rows: int) -> bool:
    """Whether the facts of two gates tell the share, of rows enough, by the same row checks and tokenizer."""
    suites = [_row_checks(facts) for facts in (reference, current)]
    tokenizers = [facts.get("tokenizer_sha256") for facts in (reference, current)]
    books = [facts.get("books", {}) for facts in (reference, current)]
    counted = all("failed_row_checks" in book and book["rows_in"] >= least_rows for book in books)
    return counted and suites[0] == suites[1] and tokenizers[0] == tokenizers[1]


def _row_checks(facts: Mapping) -> list[Mapping]:
    """Return the row checks of a gate, without the texts that older receipts contain."""
    checks = facts.get("suite", {}).get("checks", [])
    return [{key: check.get(key) for key in _CHECK_KEYS} for check in checks if check["scope"] == "row"]


def compare_shares(reference: Mapping, current: Mapping, level: float, effect: float) -> Found:
    """Judge the share by Fisher's exact test and Cohen's h, the difference of proportions in standard deviations.

    Args:
        reference, current: books of two gates, with ``rows_in`` and ``failed_row_checks``.
        level: p-value below which a difference is real.
        effect: h above which it is large.
    """
    from scipy.stats import fisher_exact

    counts = [(books["failed_row_checks"], books["rows_in"]) for books in (reference, current)]
    p_value = float(fisher_exact([(failed, rows - failed) for failed, rows in counts]).pvalue)
    shares = [failed / rows for failed, rows in counts]
    distance = abs(2 * math.asin(math.sqrt(shares[1])) - 2 * math.asin(math.sqrt(shares[0])))
    return Found(COLUMN, p_value, distance, bool(p_value < level and distance > effect), *shares)
