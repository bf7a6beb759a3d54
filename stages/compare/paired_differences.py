"""Paired differences between two models over the same rows, with simultaneous confidence intervals.

The interval is that of the mean of the rows' differences (Koehn 2004 compares translation systems like this). Rows of
one dialogue count once. A comparison shows several measures of several pairs of models, of which one would exclude zero
by chance every now and then: the intervals are wide enough for all of them to hold together with 95 % confidence
(Bonferroni). A difference is significant if its interval excludes zero.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import isfinite

import numpy as np

from measures.confidence_intervals import mean_interval, simultaneous_confidence
from measures.dialogues import mean_by_dialogue
from measures.metrics import CONFIDENCE_LEVEL, rows_with
from stages.compare.evaluated_models import EvaluatedModel
from texts import translatable


@dataclass(frozen=True)
class PairedMetric:
    """A metric of rows; those without it, such as plain texts without an answer, are not compared.

    Attributes:
        label: English; translated when it is shown.
        rows: the rows of a model: ``task`` or ``general``.
        key: of the row.
        sign: 1 if higher is better, -1 if lower is better.
        decimals: to show.
    """

    label: str
    rows: str
    key: str
    sign: int
    decimals: int

    def rows_of(self, model: EvaluatedModel) -> list[dict]:
        """Return the rows of a model that have the metric."""
        return rows_with(self.key, getattr(model, self.rows))


PAIRED_METRICS = (
    PairedMetric(translatable("Loss"), "task", "loss", -1, 3),
    PairedMetric("ROUGE-L", "task", "rouge-l", 1, 1),
    PairedMetric("BLEU-4", "task", "bleu-4", 1, 1),
    PairedMetric("chrF", "task", "chrf", 1, 1),
    PairedMetric(translatable("General loss"), "general", "loss", -1, 3),
)


@dataclass(frozen=True)
class PairedDifference:
    """The difference of one metric between two models.

    Attributes:
        before: name of the model that is subtracted.
        after: name of the other model.
        gain: mean over rows; positive where ``after`` is better.
        low: lower bound of the interval of the gain; infinite if there are too few rows.
        high: upper bound.
        wins: number of rows where ``after`` is better.
        ties: number of rows where both are equal.
        losses: number of rows where ``after`` is worse.
        confidence: level of the interval by itself.
    """

    before: str
    after: str
    metric: PairedMetric
    gain: float
    low: float
    high: float
    wins: int
    ties: int
    losses: int
    confidence: float = CONFIDENCE_LEVEL

    @property
    def is_significant(self) -> bool:
        return self.low > 0 or self.high < 0

    @property
    def is_bounded(self) -> bool:
        """Whether there were enough rows for an interval."""
        return isfinite(self.low) and isfinite(self.high)

    @property
    def pair(self) -> str:
        return f"{self.after} − {self.before}"

    @property
    def gain_text(self) -> str:
        return f"{self.gain:+.{self.metric.decimals}f}"

    @property
    def interval_text(self) -> str:
        low, high = (
            f"{bound:+.{self.metric.decimals}f}" if isfinite(bound) else "–" for bound in (self.low, self.high)
        )
        return f"[{low}, {high}]"

    @property
    def counts_text(self) -> str:
        return f"{self.wins} / {self.ties} / {self.losses}"


def paired_difference(
    before: EvaluatedModel, after: EvaluatedModel, metric: PairedMetric, confidence: float = CONFIDENCE_LEVEL
) -> PairedDifference:
    """Return the difference of one metric between two models, paired by row.

    Args:
        confidence: level of the interval.
    """
    pairs = zip(metric.rows_of(before), metric.rows_of(after), strict=True)
    gains = [metric.sign * (new[metric.key] - old[metric.key]) for old, new in pairs]
    means = mean_by_dialogue(metric.rows_of(after), gains)
    low, high = mean_interval(means, confidence=confidence)
    wins, losses = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
    ties = len(gains) - wins - losses
    gain = float(np.mean(means))
    return PairedDifference(before.name, after.name, metric, gain, low, high, wins, ties, losses, confidence)


def count_comparisons(models: Sequence[EvaluatedModel]) -> int:
    """Return the number of differences of :func:`paired_differences`."""
    pairs = len(models) * (len(models) - 1) // 2
    return pairs * sum(bool(metric.rows_of(models[0])) for metric in PAIRED_METRICS)


def paired_differences(models: Sequence[EvaluatedModel]) -> Iterator[PairedDifference]:
    """Yield the differences of all pairs of models, the earlier one before, in every metric that has rows.

    All intervals hold together with 95 % confidence.
    """
    confidence = simultaneous_confidence(count_comparisons(models))
    for before, after in combinations(models, 2):
        for metric in PAIRED_METRICS:
            if metric.rows_of(before):
                yield paired_difference(before, after, metric, confidence)


@dataclass(frozen=True)
class LossChange:
    """The change of one row's loss between two models.

    Attributes:
        before: the row of the first model.
        after: the row of the second model.
        gain: how much the loss fell; negative where it rose.
    """

    before: dict
    after: dict
    gain: float


def largest_loss_changes(
    before: EvaluatedModel, after: EvaluatedModel, count: int = 20
) -> tuple[list[LossChange], list[LossChange]]:
    """Return up to ``count`` rows whose loss fell most, and up to ``count`` rows whose loss rose most."""
    pairs = zip(before.task, after.task, strict=True)
    changes = [LossChange(old, new, old["loss"] - new["loss"]) for old, new in pairs]
    changes.sort(key=lambda change: -change.gain)
    fell = [change for change in changes[:count] if change.gain > 0]
    rose = [change for change in reversed(changes[-count:]) if change.gain < 0]
    return fell, rose
