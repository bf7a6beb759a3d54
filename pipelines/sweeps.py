"""Parameter sweep of one adapter: each parameter set is a DVC experiment in a clone of its own.

An agent runs an experiment on the published commit and pushes it to the origin, to ``refs/exps/`` as DVC does. The
orchestrator fetches all experiments and applies the best one, which becomes the challenger.
"""

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence

from formats import params_schema
from models.errors import UserError
from pipelines import checkpoint_sync, dvc
from pipelines.agent_training import attempts_while_killed, fetch_starts_in_clone
from pipelines.clone import Clone
from pipelines.promotion import require_adapter
from pipelines.retraining import model_stages
from pipelines.retries import retry_while_unavailable

MAX_POINTS = 1000  # a larger grid is a mistake
BASE_REF = "refs/tuneline/handed_out"  # in the clone: the commit that the experiments are based on
CHOSEN = "tuneline.chosen"  # git setting of the clone, for a restarted run: the best experiment

Value = bool | int | float | str
Point = dict[str, Value]  # a parameter set: values by parameter of an adapter


def expand_grid(sets: Mapping[str, Sequence[Value]] | Sequence[Point]) -> list[Point]:
    """Return the points of a grid, the first parameter varying slowest; a list of points is returned as it is.

    Args:
        sets: values by parameter, or a list of points.

    Raises:
        UserError: there are no points, more than ``MAX_POINTS`` or duplicates, or a parameter or value is not valid.
    """
    if isinstance(sets, Mapping) and math.prod(map(len, sets.values())) <= MAX_POINTS:
        sets = [dict(zip(sets, values, strict=True)) for values in itertools.product(*sets.values())]
    elif isinstance(sets, Mapping):
        raise UserError(f"A sweep needs 1 to {MAX_POINTS} different parameter sets; this grid has more.")
    for point in sets:
        for key, value in point.items():
            if not re.fullmatch(r"[a-z][a-z0-9_]*", key) or not isinstance(value, Value):
                raise UserError(f"{key}: {value!r} is not a parameter of an adapter with a single value.")
    # Duplicates: also with another order of parameters, or with 8 and 8.0.
    names = {
        experiment_name(
            "", {key: float(value) if type(value) is int else value for key, value in sorted(point.items())}
        )
        for point in sets
    }
    if not sets or not all(sets) or len(sets) > MAX_POINTS or len(names) < len(sets):
        raise UserError(f"A sweep needs 1 to {MAX_POINTS} different parameter sets; these are {len(sets)}.")
    return list(sets)


def experiment_name(adapter: str, point: Point) -> str:
    """Return the name of an experiment, such as ``lora-rank-8``, valid as part of a git ref."""
    parts = [adapter, *(f"{key}-{value}" for key, value in point.items())]
    return re.sub(r"[^\w.-]|\.(?=lock$|$)", "_", "-".join(part for part in parts if part)).replace("..", "_")


def validate_points(params: params_schema.Params, adapter: str, points: Sequence[Point]) -> None:
    """Raise UserError if params.yaml has no such adapter, or a point is not valid for it."""
    require_adapter(params, adapter)
    for point in points:
        if "chosen_from" in point:
            raise UserError("chosen_from is not a parameter to sweep: the sweep sets it to its number of sets.")
        params_schema.override_adapter(params, adapter, point)


# On an agent ----------------------------------------------------------------------------------------


def run_experiment(clone: Clone, run: str, adapter: str, point: Point, candidates: int, max_restarts: int) -> None:
    """Train and evaluate an adapter with one parameter set, as a DVC experiment.

    Args:
        candidates: number of parameter sets of the sweep, which promotion must know of the best one.
        max_restarts: how often a killed training run is restarted from its last checkpoint.

    Raises:
        RemoteUnavailable: DVC's remote is still unavailable after all retries.
        UserError: a stage failed.
    """
    name = experiment_name(adapter, point)
    if clone.git("for-each-ref", f"refs/exps/*/*/{name}"):
        return  # an earlier attempt of this run was killed after the experiment
    fetch_starts_in_clone(clone, adapter)
    with checkpoint_sync.uploading_checkpoints(clone, run, adapter):
        for attempt in attempts_while_killed(clone, adapter, max_restarts):
            with attempt:
                _run_dvc_experiment(clone, name, adapter, point, candidates)


@retry_while_unavailable
def _run_dvc_experiment(clone: Clone, name: str, adapter: str, point: Point, candidates: int) -> None:
    # In both sections: params.yaml merges the second from the first, but DVC writes both out.
    # With ++, because params.yaml may leave out a parameter that has a default.
    changes = [
        part
        for key, value in (point | {"chosen_from": candidates}).items()
        for section in ("adapters", "evaluate.models")
        for part in ("-S", f"++{section}.{adapter}.{key}={json.dumps(value)}")
    ]
    options = ("--name", name, *changes, "--single-item", *clone.pull_option)
    with clone.requiring_remote():
        # Stage params first: train and evaluate depend on its output, and would not see the changes of params.yaml.
        dvc.run_with_stage_error("exp", "run", *options, "params", *model_stages(adapter), folder=clone.folder)


def push_experiment(clone: Clone, run: str, adapter: str, point: Point) -> None:
    """Push an experiment and its data, and remove the uploaded checkpoints of the run.

    Raises:
        RemoteUnavailable: DVC's remote or the origin is still unavailable after all retries.
    """
    _push_experiment_ref(clone, experiment_name(adapter, point))
    clone.push_data(*(() if clone.shares_cache else ("--run-cache",)))
    checkpoint_sync.remove_checkpoints(clone, run)


@retry_while_unavailable
def _push_experiment_ref(clone: Clone, name: str) -> None:
    no_cache = () if clone.has_remote else ("--no-cache",)
    with clone.requiring_remote(), clone.requiring_origin():
        dvc.capture("exp", "push", "--force", *no_cache, "origin", name, folder=clone.folder)


# In the orchestrator --------------------------------------------------------------------------------


@retry_while_unavailable
def fetch_metrics(clone: Clone, adapter: str, points: Sequence[Point], ref: str) -> dict[str, dict]:
    """Fetch experiments, and return the evaluation metrics of each by its name.

    Args:
        ref: the published commit that the experiments are based on.

    Raises:
        RemoteUnavailable: the origin is still unavailable after all retries.
        UserError: an experiment has no valid metrics.
    """
    names = [experiment_name(adapter, point) for point in points]
    with clone.requiring_origin():
        clone.git("fetch", "--quiet", "origin", f"+{ref}:{BASE_REF}")
        commit = clone.git("rev-parse", BASE_REF)
        prefix = f"refs/exps/{commit[:2]}/{commit[2:]}"
        clone.git("fetch", "--quiet", "origin", *(f"+{prefix}/{name}:{prefix}/{name}" for name in names))
    metrics = f"reports/metrics/{adapter}.json"
    return {name: _read_metrics(clone, f"{prefix}/{name}:{metrics}") for name in names}


def _read_metrics(clone: Clone, file: str) -> dict:
    """Read the metrics of an experiment.

    Args:
        file: ``REVISION:PATH``.

    Raises:
        UserError: the file has no loss.
    """
    try:
        metrics = json.loads(clone.git("show", file))
        return metrics | {"loss": float(metrics["loss"])}
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{file} has no metrics of an experiment; remove it with `dvc exp remove`.") from None


def experiments_table(clone: Clone) -> str:
    """Return the table of ``dvc exp show`` for the fetched experiments, as Markdown."""
    options = ("--only-changed", "--hide-workspace", "--no-pager", "--md")
    return dvc.capture("exp", "show", "--rev", clone.git("rev-parse", BASE_REF), *options, folder=clone.folder)


def best_experiment(metrics: Mapping[str, dict]) -> str:
    """Return the name of the experiment with the lowest evaluation loss."""
    return min(metrics, key=lambda name: (math.isnan(metrics[name]["loss"]), metrics[name]["loss"]))


def chosen_experiment(clone: Clone) -> str | None:
    """Return the best experiment if this run had chosen it before a restart."""
    return clone.config(CHOSEN)


def apply_experiment(clone: Clone, name: str) -> None:
    """Restore params.yaml of an experiment and resolve it; DVC then finds its results in the run cache.

    ``dvc exp apply`` would fail if other models than this adapter have not been trained yet.
    """
    clone.git("config", CHOSEN, name)
    ref = clone.git("for-each-ref", "--format=%(refname)", f"refs/exps/*/*/{name}")
    clone.git("restore", "--source", ref, "--worktree", "--", "params.yaml")
    clone.repro("--single-item", "params")  # the stages of the adapter depend on its output
