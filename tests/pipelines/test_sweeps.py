"""Parameter sets: what a grid unfolds to, what is refused, and names that git takes."""

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats import params_schema
from models.errors import UserError
from pipelines import sweeps

VALUES = st.one_of(st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=12))


def test_a_grid_unfolds_with_its_first_key_slowest():
    assert sweeps.points_of({"rank": [8, 16], "alpha": [32]}) == [{"rank": 8, "alpha": 32}, {"rank": 16, "alpha": 32}]
    assert sweeps.points_of([{"rank": 8}, {"alpha": 4.0}]) == [{"rank": 8}, {"alpha": 4.0}]


@pytest.mark.parametrize(
    "sets",
    [
        {},
        [],
        [{}],
        {"rank": []},
        {"rank": [8, 8]},
        {"rank": list(range(1001))},
        {"../x": [1]},
        {"rank": [[8]]},
        [{"rank": 8, "alpha": 4}, {"alpha": 4, "rank": 8}],
    ],
)
def test_odd_sets_are_refused(sets):
    with pytest.raises(UserError):
        sweeps.points_of(sets)


def test_a_grid_too_large_for_memory_is_refused():
    with pytest.raises(UserError, match="more"):
        sweeps.points_of({name: list(range(10_000)) for name in "abcdef"})


@given(st.dictionaries(st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True), VALUES, min_size=1, max_size=3))
def test_a_name_is_one_that_git_takes(point):
    name = sweeps.name_of("lora", point)
    assert subprocess.run(["git", "check-ref-format", f"refs/exps/a/{name}"]).returncode == 0
    assert "/" not in name


def test_points_that_no_adapter_takes_are_refused_before_anything_runs():
    sweeps.check("lora", [{"rank": 4}])
    for adapter, point in (("other", {"rank": 4}), ("lora", {"rank": -1}), ("lora", {"rnak": 4})):
        with pytest.raises(UserError):
            sweeps.check(adapter, [point])
    assert params_schema.override_adapter(params_schema.load(), "lora", {"rank": 4}).adapters["lora"].rank == 4
