"""The interval of a mean over rows, by which stages tell a real difference from chance."""

from collections.abc import Sequence

import numpy as np

RESAMPLES = 9_999
LEVEL = 0.95


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """Bounds of the mean at 95 %: the bootstrap over rows, BCa (Efron 1987), or percentiles where BCa has none.

    Without bounds for fewer than two rows; the mean itself where all are the same but for rounding.
    """
    from scipy.stats import bootstrap

    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return -np.inf, np.inf
    if np.ptp(values) <= 1e-9 * np.abs(values).max():
        return float(values.mean()), float(values.mean())
    for method in ("BCa", "percentile"):
        rng = np.random.default_rng(seed)
        found = bootstrap(
            (values,), np.mean, confidence_level=LEVEL, n_resamples=RESAMPLES, method=method, rng=rng, batch=1000
        ).confidence_interval
        if np.isfinite([found.low, found.high]).all():
            break
    return float(found.low), float(found.high)
