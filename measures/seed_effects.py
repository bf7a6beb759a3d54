"""The advantage that chance in training alone gives to a challenger over an equally good opponent.

Two trainings that differ only in their seed differ in their true mean loss. The standard deviation of that loss is the
seed spread (``promote.seed_spread``), which is the unit here.
The winner of a sweep is the best of k such draws, so its expected advantage grows with k; the opponent is one draw, or
none if it was not trained, as the base model.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

_GRID = np.linspace(-9.0, 9.0, 3601)  # of a standard normal variable; spacing 0.005


@dataclass(frozen=True)
class SeedAdvantage:
    """Advantage of the best of several equally good candidates, in standard deviations between seeds.

    Attributes:
        mean: expected value.
        quantile: value that is exceeded by chance with probability (1 - confidence) / 2.
    """

    mean: float
    quantile: float


@cache
def compute_seed_advantage(candidates: int, confidence: float, is_opponent_trained: bool = True) -> SeedAdvantage:
    """Return the advantage of the best of equally good candidates over one opponent, by numeric integration.

    Args:
        candidates: number of trained models that the challenger was chosen from, at least 1.
        confidence: two-sided level, such as 0.95.
        is_opponent_trained: whether the opponent's mean varies with its seed, too.
    """
    from scipy.optimize import brentq
    from scipy.special import log_ndtr, ndtr

    density = np.exp(-(_GRID**2) / 2) / np.sqrt(2 * np.pi)
    density_of_maximum = candidates * density * np.exp((candidates - 1) * log_ndtr(_GRID))
    mean = float(np.trapezoid(_GRID * density_of_maximum, _GRID))  # the opponent's is 0

    def exceeds(advantage: float) -> float:
        if is_opponent_trained:
            share_below = np.trapezoid(ndtr(_GRID + advantage) ** candidates * density, _GRID)
        else:
            share_below = ndtr(advantage) ** candidates
        return float(share_below) - (1 + confidence) / 2

    return SeedAdvantage(mean, float(brentq(exceeds, -20, 20, xtol=1e-9)))
