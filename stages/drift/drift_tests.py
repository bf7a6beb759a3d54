"""Two tables of features, column by column, by Evidently: is a difference real, and is it large?

Real: a two-sample Kolmogorov-Smirnov test, its level divided by the number of tests (Bonferroni), so that data which
did not change raise an alarm in at most ``false_alarms`` of all comparisons. Large: the Wasserstein distance in
standard deviations of the reference, since among many rows a difference of no importance is real, too.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path

import pandas

from stages.drift.conversation_features import label

DRIFT, STEADY, UNKNOWN = "drift", "steady", "unknown"


@dataclass(frozen=True)
class Found:
    """What became of one column.

    Attributes:
        p_value: of the Kolmogorov-Smirnov test; of Fisher's for a share of rows.
        distance: Wasserstein's, in standard deviations of the reference; Cohen's h for a share of rows.
    """

    column: str
    p_value: float
    distance: float
    drifted: bool
    reference_mean: float
    current_mean: float


def compare(
    reference: pandas.DataFrame,
    current: pandas.DataFrame,
    false_alarms: float,
    effect: float,
    page: Path | None = None,
    other_tests: int = 0,
) -> list[Found]:
    """Judge every column; the page, if asked for, is Evidently's own report.

    Args:
        other_tests: how many tests beside those of the columns may raise a false alarm.
    """
    warnings.filterwarnings("ignore", module="evidently")
    from evidently import DataDefinition, Dataset, Report
    from evidently.metrics import ValueDrift

    columns = list(reference.columns)
    titles = {column: label(column) for column in columns}
    level = false_alarms / (len(columns) + other_tests)
    definition = DataDefinition(numerical_columns=list(titles.values()))
    both = [
        Dataset.from_pandas(table.rename(columns=titles).astype(float), data_definition=definition)
        for table in (current, reference)
    ]
    metrics = [
        ValueDrift(column=titles[column], method=method, threshold=threshold)
        for column in columns
        for method, threshold in (("ks", level), ("wasserstein", effect))
    ]
    result = Report(metrics, include_tests=True).run(*both)
    if page is not None:
        result.save_html(str(page))
    values = [float(metric["value"]) for metric in result.dict()["metrics"]]
    return [
        Found(
            column,
            p_value,
            distance,
            bool(p_value < level and distance > effect),
            float(reference[column].mean()),
            float(current[column].mean()),
        )
        for column, p_value, distance in zip(columns, values[::2], values[1::2], strict=True)
    ]
