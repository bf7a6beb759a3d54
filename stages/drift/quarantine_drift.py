"""Drift of the share of rows that fail a row check: is the difference significant, and is it large?

Only checks of single rows count. The number of duplicates depends on the number of rows.
"""

import math
from collections.abc import Mapping

from stages.drift.conversation_features import QUARANTINED_SHARE
from stages.drift.drift_tests import FeatureDrift


def is_comparable(reference: Mapping, current: Mapping, min_rows: int) -> bool:
    """Return whether the shares of two datasets are comparable.

    Args:
        reference, current: row counts, checks and tokenizer of the data checks, as in a receipt. They must have the
            same row checks and tokenizer, and enough rows.
    """
    row_counts = [record.get("books", {}) for record in (reference, current)]
    if not all("failed_row_checks" in counts and counts["rows_in"] >= min_rows for counts in row_counts):
        return False
    has_same_tokenizer = reference.get("tokenizer_sha256") == current.get("tokenizer_sha256")
    return has_same_tokenizer and _row_checks(reference) == _row_checks(current)


def _row_checks(record: Mapping) -> list[Mapping]:
    return [check for check in record.get("suite", {}).get("checks", []) if check["scope"] == "row"]


def compare_shares(reference: Mapping, current: Mapping, significance_level: float, effect: float) -> FeatureDrift:
    """Compare the shares by Fisher's exact test and Cohen's h, the difference of proportions in standard deviations.

    Args:
        reference, current: row counts of the data checks, with ``rows_in`` and ``failed_row_checks``.
        significance_level: p-value below which the difference is significant.
        effect: h above which the difference is large.
    """
    from scipy.stats import fisher_exact

    counts = [(row_counts["failed_row_checks"], row_counts["rows_in"]) for row_counts in (reference, current)]
    p_value = float(fisher_exact([(failed, rows - failed) for failed, rows in counts]).pvalue)
    shares = [failed / rows for failed, rows in counts]
    distance = abs(2 * math.asin(math.sqrt(shares[1])) - 2 * math.asin(math.sqrt(shares[0])))
    return FeatureDrift(
        QUARANTINED_SHARE, p_value, distance, bool(p_value < significance_level and distance > effect), *shares
    )
