"""Parameter sets: expansion of grids, validation, and names of experiments."""

import contextlib
import itertools
import subprocess
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats import params_schema
from models.errors import UserError
from pipelines import sweeps

VALUES = st.one_of(st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=12))


def test_grid_is_expanded_with_its_first_parameter_slowest():
    assert sweeps.expand_grid({"rank": [8, 16], "alpha": [32]}) == [{"rank": 8, "alpha": 32}, {"rank": 16, "alpha": 32}]
    assert sweeps.expand_grid([{"rank": 8}, {"alpha": 4.0}]) == [{"rank": 8}, {"alpha": 4.0}]


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
def test_invalid_sets_are_refused(sets):
    with pytest.raises(UserError):
        sweeps.expand_grid(sets)


def test_grid_too_large_for_memory_is_refused():
    with pytest.raises(UserError, match="more"):
        sweeps.expand_grid({name: list(range(10_000)) for name in "abcdef"})


@given(st.dictionaries(st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True), VALUES, min_size=1, max_size=3))
def test_experiment_name_is_valid_in_a_git_ref(point):
    name = sweeps.experiment_name("lora", point)
    assert subprocess.run(["git", "check-ref-format", f"refs/exps/a/{name}"]).returncode == 0
    assert "/" not in name


def test_points_that_are_not_valid_for_the_adapter_are_refused():
    params = params_schema.load()
    sweeps.validate_points(params, "lora", [{"rank": 4}])
    for adapter, point in (
        ("other", {"rank": 4}),
        ("lora", {"rank": -1}),
        ("lora", {"rnak": 4}),
        ("lora", {"chosen_from": 4}),
    ):
        with pytest.raises(UserError):
            sweeps.validate_points(params, adapter, [point])
    assert params_schema.override_adapter(params, "lora", {"rank": 4}).adapters["lora"].rank == 4


def test_experiment_records_how_many_it_is_chosen_from(monkeypatch):
    """As ``chosen_from`` of the adapter, which params.yaml may leave out, so that promotion knows of the best one."""
    calls = []
    monkeypatch.setattr(sweeps.dvc, "run_with_stage_error", lambda *arguments, folder: calls.append(arguments))
    clone = SimpleNamespace(pull_option=(), folder=None, requiring_remote=contextlib.nullcontext)
    sweeps._run_dvc_experiment(clone, "x", "lora", {"rank": 8}, 20)
    (arguments,) = calls
    changes = [argument for option, argument in itertools.pairwise(arguments) if option == "-S"]
    assert changes == [
        f"++{section}.lora.{change}"
        for change in ("rank=8", "chosen_from=20")
        for section in ("adapters", "evaluate.models")
    ]
