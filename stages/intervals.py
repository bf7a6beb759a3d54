"""The interval of a mean over rows, by which stages tell a real difference from chance."""

import itertools
from collections.abc import Sequence

import numpy as np

RESAMPLES = 9_999
LEVEL = 0.95
FEW = 13  # rows up to which all ways to flip signs are tried


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """Bounds of the mean at 95 %: what the bootstrap over rows and the test of flipped signs both leave open.

    The bootstrap (BCa, Efron 1987; percentiles where BCa has none) is too sure of itself on few rows, and on many rows
    of which few differ. Whether a mean is possible is also asked of a test that is exact there (Fisher 1935): if it
    were the true one, each row might as well lie on its other side. The wider bounds count.

    Unbounded for fewer rows than six, which no test can tell from chance at this level; the mean itself where all rows
    are the same but for rounding.
    """
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return -np.inf, np.inf
    if np.ptp(values) <= 1e-9 * np.abs(values).max():
        return float(values.mean()), float(values.mean())
    low, high = _bootstrap(values, seed)
    below, above = _flips(values, seed)
    return min(low, below), max(high, above)


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
    if 2.0 ** (1 - len(values)) > 1 - LEVEL:  # even the most extreme signs are no surprise
        return -np.inf, np.inf
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
