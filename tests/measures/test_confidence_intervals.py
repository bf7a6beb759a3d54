import numpy as np
import pytest

from measures.confidence_intervals import interval


def excludes_zero(values, seed: int = 0) -> bool:
    low, high = interval(values, seed)
    return low > 0 or high < 0


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """200 samples of 40 skewed differences: at 95 % between 88 and 99.5 of 100 intervals should hold the mean."""
    draw = np.random.default_rng(5)
    held = 0
    for number in range(200):
        low, high = interval(draw.exponential(1.0, 40) - 1.0, seed=number)
        held += low <= 0 <= high
    assert 176 <= held <= 199


@pytest.mark.parametrize("rows", [8, 15, 40])
def test_noise_on_few_rows_is_no_difference(rows):
    """Symmetric noise, three rows of four equal, as answers of two similar adapters are: 5 % may seem real."""
    draw = np.random.default_rng(rows)
    trials = [draw.choice([0.0, 1.0], rows, p=[0.75, 0.25]) * draw.normal(0, 1, rows) for _ in range(200)]
    assert sum(excludes_zero(values) for values in trials if np.ptp(values)) <= 16


def test_three_rows_of_fifteen_are_no_proof():
    assert not excludes_zero([-2.0] * 3 + [0.0] * 12)
    assert excludes_zero([-2.0] * 9 + [0.0] * 6)


def test_a_clear_difference_is_found_on_few_rows():
    draw = np.random.default_rng(2)
    assert sum(excludes_zero(draw.normal(1.5, 1, 10)) for _ in range(50)) >= 45


def test_the_same_evidence_gives_the_same_interval():
    values = list(np.random.default_rng(1).normal(0.1, 1, 30))
    assert interval(values) == interval(values)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 1.0], [0.5] * 5, [1.0, 2.0, 3.0, 4.0, 5.0]])
def test_fewer_than_six_rows_say_nothing(values):
    assert interval(values) == (-np.inf, np.inf)


def test_six_rows_of_one_sign_are_the_fewest_that_can_tell():
    assert excludes_zero([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert not excludes_zero([-1.0, 2.0, 3.0, 4.0, 5.0, 6.0])


def test_rows_of_one_value_leave_room_for_those_that_were_not_seen():
    """By hand, rule of three: of 20 equal rows up to 1 - 0.025 ** (1 / 20) = 16.8 % of all may be of another kind."""
    assert interval([2.0] * 20) == pytest.approx((2.0 - 2 * 0.16843 * 2.0, 2.0 + 2 * 0.16843 * 2.0), abs=1e-4)
    assert interval([-2.0] * 20) == pytest.approx(tuple(-bound for bound in reversed(interval([2.0] * 20))))
    assert interval([0.0] * 20) == (0.0, 0.0)
    assert excludes_zero([1.0] * 6)


def test_nearly_equal_rows_have_nearly_the_bounds_of_equal_ones():
    for nearly in ([2.0 + i / 1e6 for i in range(10)], [1.0 + i / 9 - (-1.0 + i / 9) for i in range(10)]):
        assert interval(nearly) == pytest.approx(interval([2.0] * 10), abs=1e-4)
    low, high = interval([0.0] * 30 + [1.0])
    assert low <= 0 <= high < 1


def test_rows_that_differ_enough_are_bounded_by_themselves_alone(monkeypatch):
    values = np.random.default_rng(4).normal(2.0, 1.0, 30)
    before = interval(values)
    monkeypatch.setattr("measures.confidence_intervals._unseen", lambda _: 0.0)
    assert interval(values) == before
