"""Many parameter sets of one adapter, each tried as a DVC experiment in a clone of its own; the best is the challenger.

A trainer runs its experiment on the commit that was handed out and pushes it to the origin, under ``refs/exps/`` as DVC
does; the orchestrator fetches all of them, shows the table, and applies the best.
"""

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence

from formats import params_schema
from models.errors import UserError
from pipelines import checkpoint_sync, dvc
from pipelines.clone import Clone
from pipelines.processes import ProgramFailed, RemoteUnavailable, output_of
from pipelines.retraining import stages_of

MOST = 1000  # points: more are a slip of the pen
HANDED_OUT = "refs/tuneline/handed_out"  # in the clone: what the experiments began from
CHOSEN = "tuneline.chosen"  # in the clone's settings: the best experiment, once it is known

Value = bool | int | float | str
Point = dict[str, Value]


def points_of(sets: Mapping[str, Sequence[Value]] | Sequence[Point]) -> list[Point]:
    """The points of a grid, values by key, the first key varying slowest; or of a list, as they are.

    Raises:
        UserError: there is none, there are too many, one is there twice, or a key or value is none.
    """
    if isinstance(sets, Mapping) and math.prod(map(len, sets.values())) <= MOST:
        sets = [dict(zip(sets, chosen, strict=True)) for chosen in itertools.product(*sets.values())]
    elif isinstance(sets, Mapping):
        raise UserError(f"A sweep needs 1 to {MOST} different parameter sets; this grid has more.")
    for point in sets:
        for key, value in point.items():
            if not re.fullmatch(r"[a-z][a-z0-9_]*", key) or not isinstance(value, Value):
                raise UserError(f"{key}: {value!r} is no setting of an adapter with one value.")
    # Whatever the order of its keys, and 8 as well as 8.0.
    names = {
        name_of("", {key: float(value) if type(value) is int else value for key, value in sorted(point.items())})
        for point in sets
    }
    if not sets or not all(sets) or len(sets) > MOST or len(names) < len(sets):
        raise UserError(f"A sweep needs 1 to {MOST} different parameter sets; these are {len(sets)}.")
    return list(sets)


def name_of(adapter: str, point: Point) -> str:
    """An experiment's name, such as ``lora-rank-8``, as git allows it."""
    parts = [adapter, *(f"{key}-{value}" for key, value in point.items())]
    return re.sub(r"[^\w.-]|\.(?=lock$|$)", "_", "-".join(part for part in parts if part)).replace("..", "_")


def check(adapter: str, points: Sequence[Point]) -> None:
    """Raises UserError: params.yaml has no such adapter, or would not take one of the points."""
    knobs = params_schema.load()
    if adapter not in knobs.adapters:
        raise UserError(f"params.yaml has no adapter {adapter!r}; it has {', '.join(knobs.adapters)}.")
    for point in points:
        params_schema.override_adapter(knobs, adapter, point)


def attempt(clone: Clone, run: str, adapter: str, point: Point) -> None:
    """Run one experiment in a trainer's clone.

    Raises:
        RemoteUnavailable: it failed, and DVC's remote does not answer either.
        UserError: a stage failed.
    """
    # Both places: params.yaml merges the second from the first, and DVC writes back what it read in each.
    changes = [
        part
        for key, value in point.items()
        for place in ("adapters", "evaluate.models")
        for part in ("-S", f"{place}.{adapter}.{key}={json.dumps(value)}")
    ]
    name = name_of(adapter, point)
    if output_of("git", "for-each-ref", f"refs/exps/*/*/{name}"):
        return  # a run that died after it
    try:
        with checkpoint_sync.following(clone, run, adapter):
            dvc.tell("exp", "run", "--name", name, *changes, "--single-item", *clone.pull, *stages_of(adapter))
    except RemoteUnavailable:
        raise
    except UserError:
        clone.raise_if_unavailable()
        raise


def give_back(clone: Clone, run: str, adapter: str, point: Point) -> None:
    """Push an experiment, and what it made.

    Raises:
        RemoteUnavailable: DVC's remote or the origin.
    """
    cache = () if clone.has_remote else ("--no-cache",)
    try:
        with clone.needing_origin():
            dvc.ask("exp", "push", "--force", *cache, "origin", name_of(adapter, point))
    except ProgramFailed:
        clone.raise_if_unavailable()
        raise
    clone.push_data(*(() if clone.shares_cache else ("--run-cache",)))
    checkpoint_sync.withdraw(clone, run)


def fetch(clone: Clone, adapter: str, points: Sequence[Point], ref: str) -> dict[str, dict]:
    """Fetch the experiments that were run on what was handed out; gives the metrics of each by its name.

    Raises:
        RemoteUnavailable: the origin does not answer.
    """
    names = [name_of(adapter, point) for point in points]
    with clone.needing_origin():
        clone.git("fetch", "--quiet", "origin", f"+{ref}:{HANDED_OUT}")
        commit = clone.git("rev-parse", HANDED_OUT)
        spaces = f"refs/exps/{commit[:2]}/{commit[2:]}"
        clone.git("fetch", "--quiet", "origin", *(f"+{spaces}/{name}:{spaces}/{name}" for name in names))
    metrics = f"reports/metrics/{adapter}.json"
    return {name: _figures_in(f"{spaces}/{name}:{metrics}") for name in names}


def _figures_in(file: str) -> dict:
    """The figures of an experiment.

    Args:
        file: as git calls it, with its revision.

    Raises:
        UserError: they are none.
    """
    try:
        found = json.loads(output_of("git", "show", file))
        return found | {"loss": float(found["loss"])}
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{file} holds no figures of an experiment; remove it with `dvc exp remove`.") from None


def table() -> str:
    """What `dvc exp show` says of the experiments that were fetched, as Markdown."""
    shown = ("--only-changed", "--hide-workspace", "--no-pager", "--md")
    return dvc.ask("exp", "show", "--rev", output_of("git", "rev-parse", HANDED_OUT), *shown)


def best_of(found: Mapping[str, dict]) -> str:
    """The name of the experiment with the lowest evaluation loss."""
    return min(found, key=lambda name: (math.isnan(found[name]["loss"]), found[name]["loss"]))


def chosen(clone: Clone) -> str | None:
    """The best experiment, if an earlier life of this run had come so far."""
    return clone.setting(CHOSEN)


def apply(clone: Clone, name: str) -> None:
    """Make an experiment's parameters those of this clone, by which DVC's run cache knows its results.

    `dvc exp apply` would fail where other models than this adapter have not been trained yet.
    """
    clone.git("config", CHOSEN, name)
    ref = clone.git("for-each-ref", "--format=%(refname)", f"refs/exps/*/*/{name}")
    clone.git("restore", "--source", ref, "--worktree", "--", "params.yaml")
