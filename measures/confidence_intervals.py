"""Confidence interval of a mean over rows, to tell real differences from chance.

With few rows the interval is unbounded, see :func:`min_rows`. Several intervals that are read together are corrected
for by :func:`simultaneous_confidence`.
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np

from measures.metrics import CONFIDENCE_LEVEL

RESAMPLES = 9_999  # at 95 %; more where the tails are smaller, up to ten times as many
TAIL_RESAMPLES = 100  # about as many resamples lie outside of an interval
SIGN_FLIP_ROWS = 1_111  # sign assignments per matrix; one matrix of all signs takes 9 times the memory
MAX_EXACT_ROWS = 13  # up to this number of rows, all 2ⁿ sign flips are enumerated


def min_rows(confidence: float = CONFIDENCE_LEVEL) -> int:
    """Return the number of rows from which an interval is bounded.

    n rows have the same sign by chance in 2 of 2ⁿ cases. That must not exceed 1 - confidence: 6 rows at 95 %.
    """
    return math.ceil(1 - math.log2(1 - confidence) - 1e-9)


MIN_ROWS = min_rows()


def simultaneous_confidence(comparisons: int, confidence: float = CONFIDENCE_LEVEL) -> float:
    """Return the level of each of several intervals that all hold with this confidence (Bonferroni)."""
    return 1 - (1 - confidence) / max(comparisons, 1)


def mean_interval(values: Sequence[float], seed: int = 0, confidence: float = CONFIDENCE_LEVEL) -> tuple[float, float]:
    """Return a confidence interval of the mean: the smallest that contains three intervals.

    1. Bootstrap (BCa, Efron 1987; percentile where BCa is undefined). Too narrow for few rows, and for many rows of
       which few differ.
    2. Sign-flip test (Fisher 1935), exact for symmetric values.
    3. Mean ± margin for subpopulations absent from the sample, see :func:`_unseen_rows_margin`. Alone if all values are
       equal.

    Args:
        values: one per row, e.g. paired differences.
        seed: of the resampling.
        confidence: two-sided level.

    Returns:
        Lower and upper bound; -inf and inf for fewer rows than :func:`min_rows`.
    """
    values = np.asarray(values, dtype=float)
    if len(values) < min_rows(confidence):
        return -np.inf, np.inf
    mean, margin = float(values.mean()), _unseen_rows_margin(values, confidence)
    if np.ptp(values) <= 1e-9 * np.abs(values).max():
        return mean - margin, mean + margin
    intervals = [
        _bootstrap_interval(values, seed, confidence),
        _sign_flip_interval(values, seed, confidence),
        (mean - margin, mean + margin),
    ]
    return min(low for low, _ in intervals), max(high for _, high in intervals)


def _unseen_rows_margin(values: np.ndarray, confidence: float) -> float:
    """Return the half-width for subpopulations absent from the sample (rule of three).

    At 95 %, they make up at most ``1 - (0.05 / 2) ** (1 / rows)`` of all rows (two-sided). Their mean is assumed to be
    the sample's mean with the opposite sign. The sample's range is subtracted: resampling covers values with a spread,
    so the margin matters for nearly equal values only.
    """
    share = 1 - ((1 - confidence) / 2) ** (1 / len(values))
    return max(2 * share * abs(float(values.mean())) - float(np.ptp(values)), 0.0)


def _count_resamples(confidence: float) -> int:
    return min(max(round(TAIL_RESAMPLES / (1 - confidence)), RESAMPLES), 10 * RESAMPLES)


def _bootstrap_interval(values: np.ndarray, seed: int, confidence: float) -> tuple[float, float]:
    from scipy.stats import bootstrap

    for method in ("BCa", "percentile"):
        rng = np.random.default_rng(seed)
        interval = bootstrap(
            (values,),
            np.mean,
            confidence_level=confidence,
            n_resamples=_count_resamples(confidence),
            method=method,
            rng=rng,
            batch=1000,
        ).confidence_interval
        if np.isfinite([interval.low, interval.high]).all():
            break
    return float(interval.low), float(interval.high)


def _sign_flip_interval(values: np.ndarray, seed: int, confidence: float) -> tuple[float, float]:
    """Return the smallest and largest mean that a sign-flip test does not reject, by bisection."""
    flipped_means, sign_means = _flip_signs(values, seed, _count_resamples(confidence))
    mean, radius = float(values.mean()), float(np.abs(values - values.mean()).max()) + 1e-12

    def is_rejected(candidate: float) -> bool:
        distance = abs(mean - candidate)
        return np.mean(np.abs(flipped_means - candidate * sign_means) >= distance * (1 - 1e-9)) < 1 - confidence - 1e-12

    return tuple(_bisect(is_rejected, mean, mean + side * 2 * radius) for side in (-1, 1))


def _bisect(is_rejected, inside: float, outside: float, steps: int = 40) -> float:
    """Return the largest candidate between ``inside`` and ``outside`` that is not rejected."""
    for _ in range(steps):
        middle = (inside + outside) / 2
        inside, outside = (inside, middle) if is_rejected(middle) else (middle, outside)
    return inside


def _flip_signs(values: np.ndarray, seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return for each assignment of signs the mean of the flipped values, and the mean of the signs."""
    if len(values) <= MAX_EXACT_ROWS:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=len(values))))
        return signs @ values / len(values), signs.mean(axis=1)
    rng = np.random.default_rng(seed)
    flipped_means, sign_means = [values.mean()], [1.0]  # the observed signs are one of the assignments
    for start in range(0, count, SIGN_FLIP_ROWS):
        size = (min(SIGN_FLIP_ROWS, count - start), len(values))
        signs = rng.integers(0, 2, size, dtype=np.int8) * np.int8(2) - np.int8(1)
        flipped_means.extend(signs @ values / len(values))
        sign_means.extend(signs.mean(axis=1))
    return np.array(flipped_means), np.array(sign_means)
