"""The rules of promotion: a significant gain that exceeds the difference between seeds, and no violated guard.

A confidence interval over rows is not enough: two adapters that differ only in their seed differ a little on every
row, and with enough rows that interval excludes zero. The lower bound of the gain must therefore exceed a margin, a
share of the champion's mean, which is to cover the differences that seeds make.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np

from measures.confidence_intervals import MIN_ROWS, mean_interval
from measures.metrics import decisive_probe_rate

SIGNS = {"loss": -1, "rouge-l": 1, "bleu-4": 1, "chrf": 1}  # by key of the rows: 1 if higher is better


@dataclass(frozen=True)
class Guards:
    """Limits for what must not become worse, see section ``promote.guards`` of params.yaml.

    Attributes:
        forgetting: allowed rise of the loss on general conversations above that of the base model, so that small rises
            do not add up over a series of champions.
        empty_rate: allowed share of empty answers.
        probes: allowed fall of the rate of probes met, from the champion's.
        latency: allowed factor between the challenger's and the champion's time per answer.
        repetition: allowed share of repeated 4-grams in an answer, as the mean over answers.
    """

    forgetting: float
    empty_rate: float
    probes: float
    latency: float
    repetition: float = 0.2


@dataclass(frozen=True)
class Evidence:
    """A model's evaluation rows and the metrics over them, as stage evaluate wrote them."""

    name: str
    rows: Sequence[dict]
    figures: dict


@dataclass(frozen=True)
class Condition:
    """A condition of promotion; its text is in :mod:`pipelines.promotion_report`.

    Attributes:
        condition: its name.
        met: whether the challenger meets it.
        values: what was compared, by name; None for a number that is not finite.
    """

    condition: str
    met: bool
    values: dict[str, float | str | None]


@dataclass(frozen=True)
class Decision:
    """Whether to promote, and why.

    Attributes:
        gain: mean gain over the rows.
        low: lower bound of its 95 % interval; None if there are too few rows.
        high: upper bound.
        needed: the margin that the lower bound must exceed.
    """

    promote: bool
    gain: float
    low: float | None
    high: float | None
    needed: float
    conditions: list[Condition]


def compute_gain(champion: Evidence, challenger: Evidence, metric: str) -> tuple[float, float, float]:
    """Return the challenger's mean gain over the rows, paired by row, and the bounds of its 95 % interval."""
    pairs = zip(champion.rows, challenger.rows, strict=True)
    gains = [SIGNS[metric] * (new[metric] - old[metric]) for old, new in pairs]
    return sum(gains) / len(gains), *mean_interval(gains)


def decide(
    champion: Evidence,
    challenger: Evidence,
    base_loss: float,
    seconds: tuple[float, float],
    metric: str,
    margin: float,
    guards: Guards,
) -> Decision:
    """Decide on a challenger.

    Args:
        base_loss: the base model's loss on general conversations.
        seconds: time per answer of the champion and of the challenger.
        metric: a key of :data:`SIGNS`.
        margin: share of the champion's mean that the gain's lower bound must exceed.
    """
    gain, low, high = compute_gain(champion, challenger, metric)
    needed = margin * abs(float(np.mean([row[metric] for row in champion.rows])))
    values = {"metric": metric, "gain": gain, "low": low, "high": high, "needed": needed}
    values |= {"rows": len(challenger.rows), "min_rows": MIN_ROWS}
    conditions = [
        _condition("gain", low > needed, **values),
        *_guard_conditions(champion, challenger, base_loss, guards),
        _latency_condition(*seconds, guards.latency),
    ]
    is_promoted = all(condition.met for condition in conditions)
    return Decision(is_promoted, gain, _finite(low), _finite(high), needed, conditions)


def _guard_conditions(champion: Evidence, challenger: Evidence, base_loss: float, guards: Guards) -> list[Condition]:
    loss = challenger.figures["general"]["loss"]
    evaluation = challenger.figures["eval"]
    empty_rate, repetition = evaluation["empty_rate"], evaluation["repetition"]
    return [
        _condition(
            "forgetting",
            loss - base_loss <= guards.forgetting,
            base_loss=base_loss,
            loss=loss,
            allowed=guards.forgetting,
        ),
        _condition("empty_rate", empty_rate <= guards.empty_rate, rate=empty_rate, allowed=guards.empty_rate),
        _condition("repetition", repetition <= guards.repetition, rate=repetition, allowed=guards.repetition),
        *_probe_conditions(champion, challenger, guards.probes),
    ]


def _probe_conditions(champion: Evidence, challenger: Evidence, allowed: float) -> list[Condition]:
    """Return the condition on the probes' pass rate, of the unseen wordings if there are any; none without probes."""
    rates = [decisive_probe_rate(model.figures) for model in (champion, challenger)]
    if None in rates:
        return []
    before, after = (rate["rate"] for rate in rates)
    return [_condition("probes", before - after <= allowed, before=before, after=after, allowed=allowed)]


def _latency_condition(before: float, after: float, allowed: float) -> Condition:
    return _condition("latency", after <= allowed * before, before=before, after=after, allowed=allowed)


def _condition(name: str, is_met: bool, **values: float | str) -> Condition:
    return Condition(
        name, bool(is_met), {key: value if isinstance(value, str) else _finite(value) for key, value in values.items()}
    )


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None
