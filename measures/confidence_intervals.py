"""The interval of a mean over rows, by which stages tell a real difference from chance.

Fewer rows than :data:`FEWEST` give no verdict: whatever they are, chance makes rows so extreme more often than once in
twenty.
"""

import itertools
from collections.abc import Sequence

import numpy as np

RESAMPLES = 9_999
LEVEL = 0.95
FEWEST = 6  # of five rows, all lie on one side of the true mean in 2 of 2⁵ cases, more than 5 %
FEW = 13  # rows up to which all ways to flip signs are tried


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """Bounds of the mean at 95 %: what the bootstrap over rows and the test of flipped signs both leave open.

    The bootstrap (BCa, Efron 1987; percentiles where BCa has none) is too sure of itself on few rows, and on many rows
    of which few differ. Whether a mean is possible is also asked of a test that is exact there (Fisher 1935): if it
    were the true one, each row might as well lie on its other side. The wider bounds count.

    Unbounded for fewer rows than :data:`FEWEST`. Rows that are nearly all the same leave little to resample or flip;
    :func:`_unseen` bounds their mean.
    """
    values = np.asarray(values, dtype=float)
    if len(values) < FEWEST:
        return -np.inf, np.inf
    mean, reach = float(values.mean()), _unseen(values)
    if np.ptp(values) <= 1e-9 * np.abs(values).max():
        return mean - reach, mean + reach
    bounds = [_bootstrap(values, seed), _flips(values, seed), (mean - reach, mean + reach)]
    return min(low for low, _ in bounds), max(high for _, high in bounds)


def _unseen(values: np.ndarray) -> float:
    """How far the mean may lie from that of nearly equal rows, because of rows that are not among them.

    A share of ``1 - (0.05 / 2) ** (1 / rows)`` of all rows may be of another kind without one among these (the rule of
    three, with two sides). They are assumed to lie no farther than on the other side of zero. Rows that do differ show
    what else there is: their spread is subtracted, so that this matters for nearly equal rows alone.
    """
    share = 1 - ((1 - LEVEL) / 2) ** (1 / len(values))
    return max(2 * share * abs(float(values.mean())) - float(np.ptp(values)), 0.0)


def _bootstrap(values: np.ndarray, seed: int) -> tuple[float, float]:
    from scipy.stats import bootstrap

    for method in ("BCa", "percentile"):
        rng = np.random.default_rng(seed)
        found = bootstrap(
            (values,), np.mean, confidence_level=LEVEL, n_resamples=RESAMPLES, method=method, rng=rng, batch=1000
        ).confidence_interval
        if np.isfinite([found.low, found.high]).all():
            break
    return float(found.low), float(found.high)


def _flips(values: np.ndarray, seed: int) -> tuple[float, float]:
    """Bounds of the means that a test of flipped signs does not refuse, found by halving."""
    sums, balance = _flipped(values, seed)
    mean, reach = float(values.mean()), float(np.abs(values - values.mean()).max()) + 1e-12

    def refused(candidate: float) -> bool:
        distance = abs(mean - candidate)
        return np.mean(np.abs(sums - candidate * balance) >= distance * (1 - 1e-9)) < 1 - LEVEL

    return tuple(_edge(refused, mean, mean + side * 2 * reach) for side in (-1, 1))


def _edge(refused, inside: float, outside: float, steps: int = 40) -> float:
    """Where between two candidates, the first of which is not refused, refusal begins."""
    for _ in range(steps):
        middle = (inside + outside) / 2
        inside, outside = (inside, middle) if refused(middle) else (middle, outside)
    return inside


def _flipped(values: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """For each way to flip signs: the mean of the flipped values, and the mean of the signs."""
    if len(values) <= FEW:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=len(values))))
        return signs @ values / len(values), signs.mean(axis=1)
    rng = np.random.default_rng(seed)
    sums, balance = [values.mean()], [1.0]  # the signs as they are, one way among the others
    for _ in range(9):
        signs = rng.integers(0, 2, (RESAMPLES // 9, len(values)), dtype=np.int8) * np.int8(2) - np.int8(1)
        sums.extend(signs @ values / len(values))
        balance.extend(signs.mean(axis=1))
    return np.array(sums), np.array(balance)
