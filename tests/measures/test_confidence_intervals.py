import numpy as np
import pytest

from measures.confidence_intervals import mean_interval, min_rows, simultaneous_confidence


def excludes_zero(values, seed: int = 0, confidence: float = 0.95) -> bool:
    low, high = mean_interval(values, seed, confidence)
    return low > 0 or high < 0


def test_coverage_matches_the_confidence_level():
    """200 samples of 40 skewed differences: between 88 % and 99.5 % of the 95 % intervals contain the true mean."""
    rng = np.random.default_rng(5)
    covered = 0
    for seed in range(200):
        low, high = mean_interval(rng.exponential(1.0, 40) - 1.0, seed=seed)
        covered += low <= 0 <= high
    assert 176 <= covered <= 199


@pytest.mark.parametrize("rows", [8, 15, 40])
def test_few_rows_of_noise_keep_the_false_positive_rate(rows):
    """Symmetric noise with three of four rows at zero, as for answers of two similar adapters."""
    rng = np.random.default_rng(rows)
    trials = [rng.choice([0.0, 1.0], rows, p=[0.75, 0.25]) * rng.normal(0, 1, rows) for _ in range(200)]
    assert sum(excludes_zero(values) for values in trials if np.ptp(values)) <= 16


def test_three_different_rows_of_fifteen_are_not_significant():
    assert not excludes_zero([-2.0] * 3 + [0.0] * 12)
    assert excludes_zero([-2.0] * 9 + [0.0] * 6)


def test_large_difference_is_significant_on_few_rows():
    rng = np.random.default_rng(2)
    assert sum(excludes_zero(rng.normal(1.5, 1, 10)) for _ in range(50)) >= 45


def test_interval_is_deterministic():
    values = list(np.random.default_rng(1).normal(0.1, 1, 30))
    assert mean_interval(values) == mean_interval(values)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 1.0], [0.5] * 5, [1.0, 2.0, 3.0, 4.0, 5.0]])
def test_fewer_than_six_rows_give_an_unbounded_interval(values):
    assert mean_interval(values) == (-np.inf, np.inf)


def test_six_rows_of_one_sign_are_significant():
    assert excludes_zero([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert not excludes_zero([-1.0, 2.0, 3.0, 4.0, 5.0, 6.0])


def test_equal_rows_have_a_margin_for_unseen_rows():
    """By hand, rule of three: of 20 equal rows up to 1 - 0.025 ** (1 / 20) = 16.8 % of all may be of another kind."""
    assert mean_interval([2.0] * 20) == pytest.approx((2.0 - 2 * 0.16843 * 2.0, 2.0 + 2 * 0.16843 * 2.0), abs=1e-4)
    mirrored = tuple(-bound for bound in reversed(mean_interval([2.0] * 20)))
    assert mean_interval([-2.0] * 20) == pytest.approx(mirrored)
    assert mean_interval([0.0] * 20) == (0.0, 0.0)
    assert excludes_zero([1.0] * 6)


def test_nearly_equal_rows_have_the_bounds_of_equal_rows():
    for nearly in ([2.0 + i / 1e6 for i in range(10)], [1.0 + i / 9 - (-1.0 + i / 9) for i in range(10)]):
        assert mean_interval(nearly) == pytest.approx(mean_interval([2.0] * 10), abs=1e-4)
    low, high = mean_interval([0.0] * 30 + [1.0])
    assert low <= 0 <= high < 1


def test_margin_for_unseen_rows_has_no_effect_on_rows_with_a_spread(monkeypatch):
    values = np.random.default_rng(4).normal(2.0, 1.0, 30)
    before = mean_interval(values)
    monkeypatch.setattr("measures.confidence_intervals._unseen_rows_margin", lambda *_: 0.0)
    assert mean_interval(values) == before


@pytest.mark.parametrize("comparisons", [1, 2, 15, 100])
def test_intervals_that_hold_together_need_more_rows(comparisons):
    confidence = simultaneous_confidence(comparisons)
    rows = min_rows(confidence)
    assert 2 * 0.5**rows <= 1 - confidence < 2 * 0.5 ** (rows - 1)  # probability that all rows have the same sign
    assert mean_interval([1.0] * (rows - 1), confidence=confidence) == (-np.inf, np.inf)
    assert mean_interval(np.arange(rows) + 1.0, confidence=confidence)[0] > 0


def test_fifteen_comparisons_of_noise_exclude_zero_in_at_most_5_of_100_families():
    rng = np.random.default_rng(7)
    confidence = simultaneous_confidence(15)
    families = rng.normal(0, 1, (40, 15, 40)) * rng.lognormal(0, 1, (40, 1, 40))
    false_claims = [
        any(excludes_zero(values, confidence=confidence) for values in family if abs(_t_statistic(values)) > 2.5)
        for family in families
    ]
    assert sum(false_claims) <= 4


def _t_statistic(values: np.ndarray) -> float:
    """Values below 2.5 are far from an interval at 99.7 %; this saves most of the resampling."""
    return values.mean() / values.std(ddof=1) * len(values) ** 0.5
