"""Drift of each feature, by Evidently: is the difference significant, and is it large?

Significant: the two-sample Kolmogorov-Smirnov test at the level of :func:`bonferroni_level`. Large: the Wasserstein
distance in standard deviations of the reference, because with many rows even negligible differences are significant.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path

import pandas

from stages.drift.conversation_features import feature_label
from texts import terminal_language

DRIFT, STEADY, UNKNOWN = "drift", "steady", "unknown"


@dataclass(frozen=True)
class FeatureDrift:
    """The comparison of one feature between the reference and the current rows.

    Attributes:
        column: name of the feature.
        p_value: of the Kolmogorov-Smirnov test; of Fisher's exact test for a share of rows.
        distance: Wasserstein distance in standard deviations of the reference; Cohen's h for a share of rows.
        drifted: whether the difference is significant and large.
    """

    column: str
    p_value: float
    distance: float
    drifted: bool
    reference_mean: float
    current_mean: float


def bonferroni_level(false_alarms: float, num_tests: int) -> float:
    """Return the significance level of each test with which unchanged data rarely raises any alarm (Bonferroni).

    Args:
        false_alarms: maximum probability that at least one test raises a false alarm.
        num_tests: number of tests of a comparison.
    """
    return false_alarms / num_tests


def compare_features(
    reference: pandas.DataFrame,
    current: pandas.DataFrame,
    significance_level: float,
    effect: float,
    page: Path | None = None,
) -> list[FeatureDrift]:
    """Compare two tables of features, column by column.

    Args:
        significance_level: p-value below which a difference is significant, see :func:`bonferroni_level`.
        effect: distance above which a difference is large.
        page: file for Evidently's report in HTML, with the features' names in the terminal's language.
    """
    values = _run_evidently(reference, current, {"ks": significance_level, "wasserstein": effect}, page)
    return [
        FeatureDrift(
            column,
            p_value,
            distance,
            bool(p_value < significance_level and distance > effect),
            float(reference[column].mean()),
            float(current[column].mean()),
        )
        for column, p_value, distance in zip(reference.columns, values[::2], values[1::2], strict=True)
    ]


def _run_evidently(
    reference: pandas.DataFrame, current: pandas.DataFrame, thresholds: dict[str, float], page: Path | None
) -> list[float]:
    """Return the value of each drift method for each column: all methods of the first column, then of the next.

    Args:
        thresholds: by method of Evidently; the report marks features beyond them.
    """
    warnings.filterwarnings("ignore", module="evidently")
    from evidently import DataDefinition, Dataset, Report
    from evidently.metrics import ValueDrift

    titles = {column: feature_label(column)[terminal_language()] for column in reference.columns}
    definition = DataDefinition(numerical_columns=list(titles.values()))
    datasets = [
        Dataset.from_pandas(table.rename(columns=titles).astype(float), data_definition=definition)
        for table in (current, reference)
    ]
    metrics = [
        ValueDrift(column=title, method=method, threshold=threshold)
        for title in titles.values()
        for method, threshold in thresholds.items()
    ]
    result = Report(metrics, include_tests=True).run(*datasets)
    if page is not None:
        result.save_html(str(page))
    return [float(metric["value"]) for metric in result.dict()["metrics"]]
