"""The decision: a gain that is real and larger than what another seed gives, and no guard broken.

An interval over rows alone would promote noise: two adapters of different seeds differ by a little on every row, and
with enough rows the interval of that difference excludes zero. So the gain's lower bound must exceed a margin, a
share of the champion's own mean; what seeds make belongs below it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from measures.confidence_intervals import FEWEST, interval


@dataclass(frozen=True)
class Measure:
    """What must get better: a key of the rows, and whether more of it is better."""

    key: str
    more_is_better: bool


MEASURES = {
    "loss": Measure("loss", False),
    "rouge-l": Measure("rouge-l", True),
    "bleu-4": Measure("bleu-4", True),
    "chrf": Measure("chrf", True),
}


@dataclass(frozen=True)
class Guards:
    """What must not get worse by more than this.

    Attributes:
        forgetting: rise of the loss on general conversations above the base's, however many champions lie between.
        empty_rate: share of empty answers, altogether.
        probes: fall of the rate of probes met.
        latency: factor of the time that an answer of the same length takes.
        repetition: share of an answer's 4-grams that stood before in it, in the mean over answers.
    """

    forgetting: float
    empty_rate: float
    probes: float
    latency: float
    repetition: float = 0.2


@dataclass(frozen=True)
class Evidence:
    """A model's rows and the figures over them, as stage evaluate wrote them."""

    name: str
    rows: Sequence[dict]
    figures: dict


@dataclass(frozen=True)
class Decision:
    """Whether to promote, with a sentence for each condition, in English and Chinese: met, and what was found."""

    promote: bool
    gain: float
    low: float | None  # None: so few rows leave it open
    high: float | None
    needed: float
    conditions: list[dict]


def gain_of(champion: Evidence, challenger: Evidence, measure: Measure) -> tuple[float, float, float]:
    """Mean gain over the rows, paired, with the bounds of its interval."""
    sign = 1 if measure.more_is_better else -1
    pairs = zip(champion.rows, challenger.rows, strict=True)
    gains = [sign * (new[measure.key] - old[measure.key]) for old, new in pairs]
    return sum(gains) / len(gains), *interval(gains)


def decide(
    champion: Evidence,
    challenger: Evidence,
    base_loss: float,
    seconds: tuple[float, float],
    metric: str,
    margin: float,
    guards: Guards,
) -> Decision:
    """Decide from the evidence alone.

    Args:
        base_loss: the base's on general conversations.
        seconds: what an answer takes the champion and the challenger, measured in turn.
        margin: share of the champion's mean by which the gain's lower bound must exceed zero.
    """
    measure = MEASURES[metric]
    rows = len(challenger.rows)
    gain, low, high = gain_of(champion, challenger, measure)
    needed = margin * abs(float(np.mean([row[measure.key] for row in champion.rows])))
    shown = ", ".join(f"{each:+.4f}" if np.isfinite(each) else "–" for each in (low, high))
    found = f"{gain:+.4f} [{shown}] > {needed:.4f}{too_few(rows)}"
    conditions = [
        _condition("gain · 提升", low > needed, f"{metric}: {found}"),
        *_guarded(champion, challenger, base_loss, guards),
        _in_time(*seconds, guards.latency),
    ]
    bounds = (each if np.isfinite(each) else None for each in (low, high))
    return Decision(all(each["met"] for each in conditions), gain, *bounds, needed, conditions)


def too_few(rows: int) -> str:
    """What is added to a condition that rests on too few rows; nothing if they are enough."""
    if rows >= FEWEST:
        return ""
    return f"; {rows} rows are too few to say, {FEWEST} are needed · 只有 {rows} 行，至少要 {FEWEST} 行才能判断"


def _guarded(champion: Evidence, challenger: Evidence, base_loss: float, guards: Guards) -> list[dict]:
    def both(*path: str) -> tuple[float, float]:
        values = []
        for each in (champion, challenger):
            value = each.figures
            for key in path:
                value = value[key]
            values.append(value)
        return values[0], values[1]

    new_loss = both("general", "loss")[1]
    old_rate, new_rate = both("probes", "rates", "all", "rate")
    empty, repetition = (challenger.figures["eval"][key] for key in ("empty_rate", "repetition"))
    return [
        _condition(
            "forgetting · 遗忘",
            new_loss - base_loss <= guards.forgetting,
            f"base · 基座 {base_loss:.4f} → {new_loss:.4f}, + {guards.forgetting} allowed · 允许",
        ),
        _condition("empty answers · 空回答", empty <= guards.empty_rate, f"{empty:.2%} ≤ {guards.empty_rate:.2%}"),
        _condition("repetition · 重复", repetition <= guards.repetition, f"{repetition:.0%} ≤ {guards.repetition:.0%}"),
        _condition(
            "probes · 探针",
            old_rate - new_rate <= guards.probes,
            f"{old_rate:.0%} → {new_rate:.0%}, − {guards.probes:.0%} allowed · 允许",
        ),
    ]


def _in_time(old: float, new: float, allowed: float) -> dict:
    return _condition("latency · 延迟", new <= allowed * old, f"{old:.3f} s → {new:.3f} s, × {allowed} allowed · 允许")


def _condition(name: str, met: bool, found: str) -> dict:
    return {"condition": name, "met": bool(met), "found": found}
