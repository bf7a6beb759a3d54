"""The rules of promotion: a gain that exceeds chance in rows, seeds and selection, and no violated guard.

A confidence interval over rows is not enough. Two adapters that differ only in their seed differ a little on every row,
and with enough rows that interval excludes zero. The best of twenty equally good adapters differs even more. The gain
must therefore exceed ::

    E·s·m + √(h² + ((Q - E)·s·m)²)

where s is ``promote.seed_spread``, m the larger of the two means, h the distance from the gain to the lower bound of
its interval, and E and Q the mean and the quantile of the advantage by chance (:mod:`measures.seed_effects`). Its lower
bound must also exceed ``promote.margin``·m, the smallest gain that is worth a promotion.

Guards compare with the best of the base model, the champion and earlier champions, so that what is allowed to one
promotion does not add up over many.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, sqrt

import numpy as np

from measures.confidence_intervals import MIN_ROWS, mean_interval, min_rows, simultaneous_confidence
from measures.dialogues import mean_by_dialogue
from measures.metrics import decisive_probe_rate, pass_rate, rows_with
from measures.seed_effects import compute_seed_advantage

ROUGE = "rouge-l"
SIGNS = {"loss": -1, ROUGE: 1, "bleu-4": 1, "chrf": 1}  # by key of the rows: 1 if higher is better


@dataclass(frozen=True)
class GainRule:
    """What a gain must exceed.

    Attributes:
        metric: a key of :data:`SIGNS`.
        margin: smallest gain that is worth a promotion, as a share of the mean.
        seed_spread: standard deviation between seeds of a model's true mean, as a share of it.
        candidates: number of trained models that the challenger was chosen from.
        challengers: number of adapters that may be tried one after another, the challenger included.
        is_opponent_trained: False for the base model, which has no seed.
    """

    metric: str
    margin: float
    seed_spread: float
    candidates: int = 1
    challengers: int = 1
    is_opponent_trained: bool = True

    @property
    def confidence(self) -> float:
        """Level of the interval: all challengers together have a false promotion in at most 2.5 % of cases."""
        return simultaneous_confidence(self.challengers)


@dataclass(frozen=True)
class Guards:
    """Limits for what must not become worse; each compares with the best of all :class:`Reference` models.

    Attributes:
        forgetting: allowed rise of the loss on general conversations.
        empty_rate: allowed share of empty answers.
        probes: allowed fall of the rate of probes met.
        latency: allowed factor of the time per answer.
        repetition: allowed share of repeated 4-grams in an answer, as the mean over answers.
        general: share of the ROUGE-L on general conversations that must be kept.
        refusals: allowed share of answers that refuse where their reference does not.
    """

    forgetting: float
    empty_rate: float
    probes: float
    latency: float
    repetition: float
    general: float
    refusals: float


@dataclass(frozen=True)
class Evidence:
    """A model's test rows and the metrics over them, as stage evaluate wrote them."""

    name: str
    rows: Sequence[dict]
    figures: dict


@dataclass(frozen=True)
class Reference:
    """A model that guards compare with: the base, the champion, or an earlier champion.

    Attributes:
        name: in the report.
        loss, rouge: on general conversations; None if it answered others.
        probes: rate of probes met; None if it answered others, or there are none.
        latency: time per answer as a multiple of the base's; None if unknown.
    """

    name: str
    loss: float | None = None
    rouge: float | None = None
    probes: float | None = None
    latency: float | None = None


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
        gain: mean gain over the dialogues of the test rows.
        low: lower bound of its interval; None if there are too few dialogues.
        high: upper bound.
        needed: what the gain must exceed; None if there are too few dialogues.
    """

    promote: bool
    gain: float
    low: float | None
    high: float | None
    needed: float | None
    conditions: list[Condition]


def decide(
    champion: Evidence,
    challenger: Evidence,
    references: Sequence[Reference],
    latency: float,
    rule: GainRule,
    guards: Guards,
) -> Decision:
    """Decide on a challenger.

    Args:
        champion: the opponent; the base model if there is no champion.
        references: models that guards compare with, the base first.
        latency: the challenger's time per answer, as a multiple of the base's.
    """
    gain = judge_gain(champion, challenger, rule)
    conditions = [
        gain,
        *_similarity_conditions(champion, challenger, rule),
        *_general_conditions(challenger.figures["general"], references, guards),
        *_answer_conditions(challenger.figures["test"], guards),
        *_probe_conditions(decisive_probe_rate(challenger.figures), references, guards),
        _latency_condition(latency, references, guards),
    ]
    is_promoted = all(condition.met for condition in conditions)
    bounds = (gain.values[name] for name in ("gain", "low", "high", "needed"))
    return Decision(is_promoted, *bounds, conditions)


# Gain ----------------------------------------------------------------------------------------------


def judge_gain(champion: Evidence, challenger: Evidence, rule: GainRule) -> Condition:
    """Return the condition on the challenger's mean gain over the dialogues of the rows, paired by row."""
    old_rows, new_rows = (rows_with(rule.metric, model.rows) for model in (champion, challenger))
    old, new = ([row[rule.metric] for row in rows] for rows in (old_rows, new_rows))
    row_gains = [SIGNS[rule.metric] * (after - before) for before, after in zip(old, new, strict=True)]
    gains = mean_by_dialogue(new_rows, row_gains)
    gain = float(np.mean(gains))
    low, high = mean_interval(gains, confidence=rule.confidence)
    mean = max(abs(float(np.mean(values))) for values in (old, new))
    needed = _needed_gain(gain - low, mean, rule)
    values = {"metric": rule.metric, "gain": gain, "low": low, "high": high, "needed": needed}
    values |= {"confidence": rule.confidence, "seed_spread": rule.seed_spread, "candidates": rule.candidates}
    values |= {"margin": rule.margin * mean, "rows": len(gains), "min_rows": min_rows(rule.confidence)}
    return _condition("gain", gain > needed, **values)


def _needed_gain(half_width: float, mean: float, rule: GainRule) -> float:
    """Return what a gain must exceed; see the docstring of the module.

    Args:
        half_width: distance from the gain to the lower bound of its interval.
        mean: of the metric.
    """
    advantage = compute_seed_advantage(rule.candidates, rule.confidence, rule.is_opponent_trained)
    spread = rule.seed_spread * mean
    seed_width = (advantage.quantile - advantage.mean) * spread
    beyond_chance = advantage.mean * spread + sqrt(half_width**2 + seed_width**2)
    return max(beyond_chance, rule.margin * mean + half_width)


def _similarity_conditions(champion: Evidence, challenger: Evidence, rule: GainRule) -> list[Condition]:
    """Return the condition that answers are not proven worse by ROUGE-L; none for plain texts, or if it is the metric.

    A lower loss is measured on the reference's words; the model's own answers can be worse nevertheless.
    """
    old_rows, new_rows = (rows_with(ROUGE, model.rows) for model in (champion, challenger))
    if rule.metric == ROUGE or not new_rows or len(old_rows) != len(new_rows):
        return []
    row_gains = [new[ROUGE] - old[ROUGE] for old, new in zip(old_rows, new_rows, strict=True)]
    gains = mean_by_dialogue(new_rows, row_gains)
    low, high = mean_interval(gains, confidence=rule.confidence)
    values = {"gain": float(np.mean(gains)), "low": low, "high": high, "confidence": rule.confidence}
    return [_condition("answers", not high < 0, **values)]


# Guards --------------------------------------------------------------------------------------------
# A promotion needs proof, so doubt counts against the challenger: a guard compares the measured value, not a bound of
# its interval, and with fewer than MIN_ROWS general rows there is no promotion. Probes are optional: fewer than
# MIN_ROWS of them are too few to say anything, and judge nothing.


def _general_conditions(general: Mapping, references: Sequence[Reference], guards: Guards) -> list[Condition]:
    lowest = min((reference for reference in references if reference.loss is not None), key=lambda other: other.loss)
    highest = max((reference for reference in references if reference.rouge is not None), key=lambda other: other.rouge)
    loss, rouge = general["loss"], general["rouge-l"]
    counts = {"rows": general["rows"], "min_rows": MIN_ROWS}
    is_enough = general["rows"] >= MIN_ROWS
    return [
        _condition(
            "forgetting",
            is_enough and loss - lowest.loss <= guards.forgetting,
            loss=loss,
            reference=lowest.name,
            before=lowest.loss,
            allowed=guards.forgetting,
            **counts,
        ),
        _condition(
            "general",
            is_enough and rouge >= guards.general * highest.rouge,
            rouge=rouge,
            reference=highest.name,
            before=highest.rouge,
            kept=min(rouge / highest.rouge, 1.0) if highest.rouge else 1.0,
            allowed=guards.general,
            **counts,
        ),
    ]


def _answer_conditions(test: Mapping, guards: Guards) -> list[Condition]:
    """Return the conditions on the answers to the test rows; none if all rows are plain texts."""
    repetition, rows = test["repetition"], test["answered"]
    if not rows:
        return []
    return [
        _rate_condition("empty_rate", test["empty_rate"], rows, guards.empty_rate),
        _rate_condition("refusals", test["refusal_rate"], rows, guards.refusals),
        _condition("repetition", repetition <= guards.repetition, rate=repetition, allowed=guards.repetition),
    ]


def _rate_condition(name: str, rate: float, rows: int, allowed: float) -> Condition:
    bounds = pass_rate(round(rate * rows), rows)
    return _condition(name, rate <= allowed, rate=rate, low=bounds["low"], high=bounds["high"], allowed=allowed)


def _probe_conditions(rate: Mapping | None, references: Sequence[Reference], guards: Guards) -> list[Condition]:
    """Return the condition on the rate of probes met, see :func:`decisive_probe_rate`; none if there are no probes."""
    known = [reference for reference in references if reference.probes is not None]
    if rate is None or not known:
        return []
    best = max(known, key=lambda reference: reference.probes)
    is_met = rate["of"] < MIN_ROWS or best.probes - rate["rate"] <= guards.probes
    bounds = {"low": rate["low"], "high": rate["high"], "rows": rate["of"], "min_rows": MIN_ROWS}
    values = {"before": best.probes, "after": rate["rate"], "reference": best.name, "allowed": guards.probes}
    return [_condition("probes", is_met, **values, **bounds)]


def _latency_condition(latency: float, references: Sequence[Reference], guards: Guards) -> Condition:
    known = [reference for reference in references if reference.latency is not None]
    fastest = min(known, key=lambda reference: reference.latency)
    is_met = latency <= guards.latency * fastest.latency
    values = {"before": fastest.latency, "after": latency, "reference": fastest.name, "allowed": guards.latency}
    return _condition("latency", is_met, **values)


def _condition(name: str, is_met: bool, **values: float | str) -> Condition:
    return Condition(
        name, bool(is_met), {key: value if isinstance(value, str) else _finite(value) for key, value in values.items()}
    )


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None
