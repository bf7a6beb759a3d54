"""The part of a retraining that runs on an agent: train or measure models in a clone with the prepared data.

The orchestrator publishes the data as a commit under ``refs/tuneline/runs/``, see :mod:`pipelines.run_refs`; the
results return through DVC's cache or remote.
"""

import contextlib
import os
import re
from collections.abc import Iterator

from tenacity import AttemptManager, RetryCallState, Retrying, retry_if_exception, stop_after_attempt

from models import checkpoints
from models.errors import UserError
from models.storage import read_json
from pipelines import checkpoint_sync, promotion, registry
from pipelines.clone import Clone, open_clone
from pipelines.processes import AGENT_VARIABLE, terminate_by_environment
from pipelines.retraining import PREPARED_STAGES, model_stages
from pipelines.retries import retry_while_unavailable
from pipelines.stage_paths import WEIGHTS
from pipelines.start_from import fetch_starts
from texts import translate


def open_job_clone(run: str, ref: str, name: str) -> Clone:
    """Return the run's clone at a published commit, with the checkpoint that another host has uploaded.

    Args:
        ref: from :func:`pipelines.run_refs.publish`.
        name: the model to train, a key under ``evaluate.models`` in params.yaml.

    Raises:
        RemoteUnavailable: the origin or DVC's remote is still unavailable after all retries.
        UserError: there is no such ref or model.
    """
    if not re.fullmatch(r"refs/tuneline/runs/[\w.-]+", ref):
        raise UserError(f"{ref!r} is not a ref that a retraining has published.")
    clone = open_clone(run, ref)
    checkpoint_sync.download_checkpoint(clone, run)
    models = clone.params().evaluate.models
    if name not in models:
        raise UserError(f"params.yaml has no model {name!r}; it has {', '.join(models)}.")
    return clone


def train(clone: Clone, run: str, name: str, max_restarts: int) -> None:
    """Train and evaluate one model.

    Args:
        max_restarts: how often a killed training run is restarted from its last checkpoint.

    Raises:
        UserError: a stage failed.
    """
    clone.checkout_data(*PREPARED_STAGES)
    fetch_starts_in_clone(clone, name)
    with checkpoint_sync.uploading_checkpoints(clone, run, name):
        for attempt in attempts_while_killed(clone, name, max_restarts):
            with attempt:
                clone.repro("--single-item", *model_stages(name))


@retry_while_unavailable
def fetch_starts_in_clone(clone: Clone, name: str) -> None:
    """Fetch the champion or the version that an adapter starts from, if it does.

    Raises:
        RemoteUnavailable: DVC's remote is still unavailable after all retries.
        UserError: there is no such version, or its files are lost.
    """
    params = clone.params()
    with contextlib.chdir(clone.folder):
        fetch_starts(params, [name])


def attempts_while_killed(clone: Clone, name: str, max_restarts: int) -> Iterator[AttemptManager]:
    """Yield attempts at a training run; a killed attempt, e.g. by the OOM killer, is followed by another."""

    def is_killed(error: BaseException) -> bool:
        return isinstance(error, UserError) and checkpoints.was_killed(
            clone.folder / checkpoint_sync.LOCAL_FOLDER, name
        )

    def prepare_restart(_: RetryCallState) -> None:
        terminate_agent_leftovers()  # if only its parent was killed, the training process still runs
        print(translate("The training run was killed; it resumes from its last checkpoint."))

    return iter(
        Retrying(
            retry=retry_if_exception(is_killed),
            stop=stop_after_attempt(max_restarts + 1),
            before_sleep=prepare_restart,
            reraise=True,
        )
    )


def terminate_agent_leftovers() -> None:
    """Terminate the processes of this agent's earlier runs, which would still hold its GPUs."""
    if agent := os.environ.get(AGENT_VARIABLE):
        terminate_by_environment(AGENT_VARIABLE, agent)


def measure_challengers(clone: Clone, names: list[str]) -> None:
    """Run champion and challengers for the decisions on these challengers; see :func:`pipelines.promotion.measure`.

    Raises:
        UserError: a model cannot be run.
    """
    clone.checkout_data("compare")
    clone.repro("compare")
    with contextlib.chdir(clone.folder):
        retry_while_unavailable(registry.fetch_champion)()
        for name in names:
            promotion.measure(name)


def read_loss_history(clone: Clone, name: str) -> list[dict]:
    """Return the losses in an adapter's manifest: points ``{step, split, loss}``."""
    return read_json(clone.folder / WEIGHTS / name / "manifest.json")["training"]["history"]


def push_results(clone: Clone, run: str) -> None:
    """Push the results for the orchestrator, and remove the uploaded checkpoints of the run.

    A clone with a cache of its own also pushes DVC's run cache, by which the orchestrator finds the results.
    """
    clone.push_data(*(() if clone.shares_cache else ("--run-cache",)))
    checkpoint_sync.remove_checkpoints(clone, run)
