"""Text quality of the answers: descriptors of each answer, whose means Evidently tests against thresholds.

The descriptors are our own, because those of Evidently count English words: length in characters, share of Chinese
letters, repetition, similarity to the reference, refusals.
"""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from models.text_normalization import normalize_nfkc
from stages.compare.evaluated_models import EvaluatedModel
from texts import translatable

CHINESE_CHARACTER, LETTER = re.compile(r"[\u3400-\u9fff]"), re.compile(r"[^\W\d_]")


@dataclass(frozen=True)
class Threshold:
    """The range in which the mean of a descriptor passes.

    Attributes:
        column: name of the descriptor, see :func:`describe`.
        label: English; translated when it is shown.
        low: least mean that passes; None for no lower bound.
        high: greatest mean that passes; None for no upper bound.
        is_relative: whether the bounds are factors of the references' mean.
    """

    column: str
    label: str
    low: float | None = None
    high: float | None = None
    is_relative: bool = False


THRESHOLDS = (
    Threshold("length", translatable("Length, characters"), 0.5, 2.0, is_relative=True),
    Threshold("chinese", translatable("Share of Chinese letters"), 0.8, None, is_relative=True),
    Threshold("repetition", translatable("Repetition"), None, 0.2),
    Threshold("similarity", translatable("Similarity to the reference (chrF)"), 0.2, None),
    Threshold("refusal", translatable("Refusals"), None, 0.05),
)


@dataclass(frozen=True)
class TextQualityResult:
    """Evidently's result for one descriptor of one model's answers.

    Attributes:
        model: name of the model.
        value: mean over the model's answers.
        reference: mean over the references, if the threshold is relative to it.
    """

    model: str
    threshold: Threshold
    value: float
    reference: float | None
    is_passed: bool

    @property
    def bounds_text(self) -> str:
        """The bounds that were tested, such as ``≥ 6.00, ≤ 24.00``."""
        scale = 1.0 if self.reference is None else self.reference
        bounds = (("≥", self.threshold.low), ("≤", self.threshold.high))
        return ", ".join(f"{sign} {bound * scale:.2f}" for sign, bound in bounds if bound is not None)


def describe(text: str, similarity: float, repetition: float, refusal: bool = False) -> dict[str, float]:
    """Return the descriptors of a text.

    Args:
        text: an answer or a reference.
        similarity: chrF to the reference, from 0 to 1.
        repetition: share of 4-grams that occurred before in the text.
        refusal: whether it refuses where the reference does not.
    """
    text = normalize_nfkc(text)  # answers are NFKC already; references are not
    letters = LETTER.findall(text)
    num_chinese = sum(bool(CHINESE_CHARACTER.match(letter)) for letter in letters)
    return {
        "length": float(len(text)),
        "chinese": num_chinese / len(letters) if letters else 0.0,
        "repetition": repetition,
        "similarity": similarity,
        "refusal": float(refusal),
    }


def check_text_quality(model: EvaluatedModel) -> list[TextQualityResult]:
    """Test the mean of every descriptor over a model's answers to the evaluation rows; no results without answers."""
    rows = [row for row in model.task if "answer" in row]
    if not rows:
        return []
    answers = [describe(row["answer"], row["chrf"] / 100, row["repetition"], row["refusal"]) for row in rows]
    references = [describe(row["reference"], 1.0, 0.0) for row in rows]
    relative_columns = [threshold.column for threshold in THRESHOLDS if threshold.is_relative]
    reference_means = {column: _mean(references, column) for column in relative_columns}
    means, passed = _run_evidently(answers, reference_means)
    return [
        TextQualityResult(
            model.name,
            threshold,
            means[threshold.column],
            reference_means.get(threshold.column),
            passed[threshold.column],
        )
        for threshold in THRESHOLDS
    ]


def _mean(rows: Sequence[dict], column: str) -> float:
    return sum(row[column] for row in rows) / len(rows)


def _run_evidently(rows: Sequence[dict], reference_means: dict[str, float]) -> tuple[dict[str, float], dict[str, bool]]:
    """Return the mean of every column, and whether all tests of the column passed."""
    warnings.filterwarnings("ignore", module="evidently")
    import pandas
    from evidently import DataDefinition, Dataset, Report
    from evidently.metrics import MeanValue
    from evidently.tests import gte, lte

    def tests_of(threshold: Threshold) -> list:
        scale = reference_means.get(threshold.column, 1.0)
        bounds = ((gte, threshold.low), (lte, threshold.high))
        return [test(bound * scale) for test, bound in bounds if bound is not None]

    columns = [threshold.column for threshold in THRESHOLDS]
    dataset = Dataset.from_pandas(pandas.DataFrame(rows), data_definition=DataDefinition(numerical_columns=columns))
    report = Report([MeanValue(column=threshold.column, tests=tests_of(threshold)) for threshold in THRESHOLDS])
    result = report.run(dataset, None).dict()
    column_of = {metric["id"]: metric["config"]["column"] for metric in result["metrics"]}
    passed = dict.fromkeys(columns, True)
    for test in result["tests"]:
        passed[column_of[test["metric_config"]["metric_id"]]] &= str(test["status"]).endswith("SUCCESS")
    return {metric["config"]["column"]: metric["value"] for metric in result["metrics"]}, passed


def group_by_threshold(results: Sequence[TextQualityResult]) -> list[list[TextQualityResult]]:
    """Return the results of all models for each threshold, in the order of :data:`THRESHOLDS`."""
    groups = [[result for result in results if result.threshold == threshold] for threshold in THRESHOLDS]
    return [group for group in groups if group]
