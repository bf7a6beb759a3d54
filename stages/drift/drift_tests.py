"""Drift of each feature, by Evidently: is the difference significant, and is it large?

Significant: the two-sample Kolmogorov-Smirnov test, with its level divided by the number of tests (Bonferroni), so that
unchanged data raises a false alarm in at most ``false_alarms`` of all comparisons. Large: the Wasserstein distance in
standard deviations of the reference, because with many rows even negligible differences are significant.
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


def compare_features(
    reference: pandas.DataFrame,
    current: pandas.DataFrame,
    false_alarms: float,
    effect: float,
    page: Path | None = None,
    num_other_tests: int = 0,
) -> list[FeatureDrift]:
    """Compare two tables of features, column by column.

    Args:
        false_alarms: probability that unchanged data raises an alarm, over all tests.
        effect: distance above which a difference is large.
        page: file for Evidently's report in HTML, with the features' names in the terminal's language.
        num_other_tests: number of tests of other features, which share ``false_alarms``.
    """
    warnings.filterwarnings("ignore", module="evidently")
    from evidently import DataDefinition, Dataset, Report
    from evidently.metrics import ValueDrift

    columns = list(reference.columns)
    titles = {column: feature_label(column)[terminal_language()] for column in columns}
    level = false_alarms / (len(columns) + num_other_tests)
    definition = DataDefinition(numerical_columns=list(titles.values()))
    datasets = [
        Dataset.from_pandas(table.rename(columns=titles).astype(float), data_definition=definition)
        for table in (current, reference)
    ]
    metrics = [
        ValueDrift(column=titles[column], method=method, threshold=threshold)
        for column in columns
        for method, threshold in (("ks", level), ("wasserstein", effect))
    ]
    result = Report(metrics, include_tests=True).run(*datasets)
    if page is not None:
        result.save_html(str(page))
    values = [float(metric["value"]) for metric in result.dict()["metrics"]]
    return [
        FeatureDrift(
            column,
            p_value,
            distance,
            bool(p_value < level and distance > effect),
            float(reference[column].mean()),
            float(current[column].mean()),
        )
        for column, p_value, distance in zip(columns, values[::2], values[1::2], strict=True)
    ]
