"""What the answers look like as text, judged by Evidently: descriptors with tests that can fail.

Evidently computes the figures over the rows and runs the tests. The descriptors are ours, as its own count English
words: length in characters, share of Chinese among the letters, repetition, similarity to the reference, refusals.
"""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from measures.boilerplate import find_boilerplate
from models.text_normalization import normalize_nfkc
from stages.compare.model_columns import Model

HAN, LETTER = re.compile(r"[\u3400-\u9fff]"), re.compile(r"[^\W\d_]")


@dataclass(frozen=True)
class Limit:
    """The mean of a descriptor that passes: at least ``low`` and at most ``high``, of the references' mean if relative.

    Attributes:
        label: in English and Chinese.
    """

    column: str
    label: str
    low: float | None = None
    high: float | None = None
    relative: bool = False


LIMITS = (
    Limit("length", "Length, characters · 长度（字）", 0.5, 2.0, relative=True),
    Limit("chinese", "Share of Chinese · 中文比例", 0.8, None, relative=True),
    Limit("repetition", "Repetition · 重复", None, 0.2),
    Limit("similarity", "Similarity to the reference (chrF) · 与参考的相似度", 0.2, None),
    Limit("refusal", "Refusals · 拒答", None, 0.05),
)


@dataclass(frozen=True)
class Verdict:
    """What Evidently found of one descriptor of one model's answers."""

    model: str
    limit: Limit
    value: float
    reference: float | None
    passed: bool

    @property
    def bounds(self) -> str:
        """The limits that were tested, as they are written."""
        scale = 1.0 if self.reference is None else self.reference
        low, high = (None if each is None else each * scale for each in (self.limit.low, self.limit.high))
        parts = [f"≥ {low:.2f}"] if low is not None else []
        return ", ".join(parts + ([f"≤ {high:.2f}"] if high is not None else []))


def describe(text: str, similarity: float, repetition: float) -> dict[str, float]:
    """The descriptors of one text; ``similarity`` and ``repetition`` are those of its row."""
    text = normalize_nfkc(text)  # the form of every answer, and so of the references beside them
    letters = LETTER.findall(text)
    return {
        "length": float(len(text)),
        "chinese": sum(bool(HAN.match(each)) for each in letters) / len(letters) if letters else 0.0,
        "repetition": repetition,
        "similarity": similarity,
        "refusal": float(find_boilerplate(text) is not None),
    }


def judge(model: Model) -> list[Verdict]:
    """Every descriptor's mean over a model's answers to the task's rows, tested."""
    answers = [describe(row["answer"], row["chrf"] / 100, row["repetition"]) for row in model.task]
    references = [describe(row["reference"], 1.0, 0.0) for row in model.task]
    of_references = {limit.column: _mean(references, limit.column) for limit in LIMITS if limit.relative}
    means, passed = _run_evidently(answers, of_references)
    return [
        Verdict(model.name, limit, means[limit.column], of_references.get(limit.column), passed[limit.column])
        for limit in LIMITS
    ]


def _mean(rows: Sequence[dict], column: str) -> float:
    return sum(row[column] for row in rows) / len(rows)


def _run_evidently(rows: Sequence[dict], of_references: dict[str, float]) -> tuple[dict, dict]:
    """Means by column, and whether all tests of a column passed."""
    warnings.filterwarnings("ignore", module="evidently")
    import pandas
    from evidently import DataDefinition, Dataset, Report
    from evidently.metrics import MeanValue
    from evidently.tests import gte, lte

    def tests(limit: Limit) -> list:
        scale = of_references.get(limit.column, 1.0)
        low, high = (None if bound is None else bound * scale for bound in (limit.low, limit.high))
        return [test(bound) for test, bound in ((gte, low), (lte, high)) if bound is not None]

    columns = [limit.column for limit in LIMITS]
    dataset = Dataset.from_pandas(pandas.DataFrame(rows), data_definition=DataDefinition(numerical_columns=columns))
    report = Report([MeanValue(column=limit.column, tests=tests(limit)) for limit in LIMITS])
    found = report.run(dataset, None).dict()
    column_of = {metric["id"]: metric["config"]["column"] for metric in found["metrics"]}
    passed = dict.fromkeys(columns, True)
    for test in found["tests"]:
        passed[column_of[test["metric_config"]["metric_id"]]] &= str(test["status"]).endswith("SUCCESS")
    return {metric["config"]["column"]: metric["value"] for metric in found["metrics"]}, passed


def by_descriptor(verdicts: Sequence[Verdict]) -> list[tuple[str, str, list[Verdict]]]:
    """Label and limits of each descriptor, with the verdicts of all models in their order."""
    found = [[verdict for verdict in verdicts if verdict.limit == limit] for limit in LIMITS]
    return [(each[0].limit.label, each[0].bounds, each) for each in found if each]
