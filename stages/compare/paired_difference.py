"""Whether a difference between two models is real: the same rows, paired.

An interval is that of the mean of the rows' differences (as Koehn 2004 does for translation). Where it excludes
zero, the difference is called real.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from measures.confidence_intervals import interval
from stages.compare.model_columns import Model


@dataclass(frozen=True)
class Measure:
    """What is compared, row by row.

    Attributes:
        label: in English and Chinese.
        rows: which rows of a model: ``task`` or ``general``.
        key: of the row.
        sign: 1 if more is better, -1 if less is.
        show: how many decimals.
    """

    label: str
    rows: str
    key: str
    sign: int
    decimals: int

    def of(self, model: Model) -> list[float]:
        return [row[self.key] for row in getattr(model, self.rows)]


MEASURES = (
    Measure("Loss · 损失", "task", "loss", -1, 3),
    Measure("ROUGE-L", "task", "rouge-l", 1, 1),
    Measure("BLEU-4", "task", "bleu-4", 1, 1),
    Measure("chrF", "task", "chrf", 1, 1),
    Measure("General loss · 通用对话损失", "general", "loss", -1, 3),
)


@dataclass(frozen=True)
class Difference:
    """How much better one model is than another.

    Attributes:
        before, after: the models' names.
        gain: mean over rows, positive where ``after`` is better; ``low`` and ``high`` bound it at 95 %.
        wins, ties, losses: rows where ``after`` is better, equal, worse.
    """

    before: str
    after: str
    measure: Measure
    gain: float
    low: float
    high: float
    wins: int
    ties: int
    losses: int

    @property
    def real(self) -> bool:
        return self.low > 0 or self.high < 0


def difference(before: Model, after: Model, measure: Measure) -> Difference:
    """One measure of two models, paired by row."""
    pairs = zip(measure.of(before), measure.of(after), strict=True)
    gains = [measure.sign * (new - old) for old, new in pairs]
    low, high = interval(gains)
    wins, losses = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
    return Difference(
        before.name, after.name, measure, float(np.mean(gains)), low, high, wins, len(gains) - wins - losses, losses
    )


def differences(models: Sequence[Model]) -> Iterator[Difference]:
    """Every pair of models, the earlier one before, in every measure that has rows."""
    for before, after in combinations(models, 2):
        for measure in MEASURES:
            if getattr(before, measure.rows):
                yield difference(before, after, measure)


@dataclass(frozen=True)
class Move:
    """A row, and how its loss changed; ``gain`` is positive where it fell."""

    row: dict
    other: dict
    gain: float


def moved_most(before: Model, after: Model, count: int = 20) -> tuple[list[Move], list[Move]]:
    """The rows whose loss fell most, and those where it rose most; never one in both."""
    moves = [Move(old, new, old["loss"] - new["loss"]) for old, new in zip(before.task, after.task, strict=True)]
    moves.sort(key=lambda move: -move.gain)
    better = [move for move in moves[:count] if move.gain > 0]
    worse = [move for move in reversed(moves[-count:]) if move.gain < 0]
    return better, worse
