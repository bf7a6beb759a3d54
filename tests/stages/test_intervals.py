import numpy as np
import pytest

from stages.intervals import interval


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """200 samples of 40 skewed differences: at 95 % between 88 and 99 of 100 intervals should hold the mean."""
    draw = np.random.default_rng(5)
    held = 0
    for number in range(200):
        low, high = interval(draw.exponential(1.0, 40) - 1.0, seed=number)
        held += low <= 0 <= high
    assert 176 <= held <= 198


def test_the_same_evidence_gives_the_same_interval():
    values = list(np.random.default_rng(1).normal(0.1, 1, 30))
    assert interval(values) == interval(values)


@pytest.mark.parametrize(("values", "expected"), [([0.5, 0.5, 0.5], (0.5, 0.5)), ([1.0], (-np.inf, np.inf))])
def test_intervals_of_nothing_to_resample(values, expected):
    assert interval(values) == expected


def test_nearly_constant_values_have_bounds():
    low, high = interval([1.0 + i / 9 - (3.0 + i / 9) for i in range(10)])
    assert (low, high) == pytest.approx((-2.0, -2.0))
    low, high = interval([0.0] * 30 + [1.0])
    assert 0 <= low <= high < 1
