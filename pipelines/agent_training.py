"""The other side of a retraining: train and evaluate one model of what was handed out, and give it back.

What is handed out is a commit under ``refs/tuneline/runs/``, in a clone of the trainer's own; what is made goes back
through DVC's cache or remote.
"""

import os
import re
from pathlib import Path

from formats import params_schema
from models import checkpoints
from models.errors import UserError
from pipelines import checkpoint_sync, promotion
from pipelines.clone import Clone, open_clone
from pipelines.retraining import PREPARED, stages_of


def take(run: str, ref: str, name: str) -> Clone:
    """Go into a clone of what was handed out.

    Raises:
        RemoteAway: the origin does not answer.
        UserError: there is no such ref, or no such model in it.
    """
    if not re.fullmatch(r"refs/tuneline/runs/[\w.-]+", ref):
        raise UserError(f"{ref!r} is nothing that a retraining hands out.")
    clone = open_clone(run, ref)
    checkpoint_sync.take(clone, run)
    os.chdir(clone.folder)
    if name not in params_schema.load().evaluate.models:
        raise UserError(f"params.yaml has no model {name!r}; it has {', '.join(params_schema.load().evaluate.models)}.")
    return clone


def train(clone: Clone, run: str, name: str) -> None:
    """Train and evaluate one model in a trainer's clone.

    Raises:
        UserError: it failed; the lines before say why.
    """
    clone.take_data(*PREPARED)
    with checkpoint_sync.following(clone, run, name):
        clone.repro("--single-item", *stages_of(name))


def measure(clone: Clone, names: list[str]) -> None:
    """Run champion and challengers as the decisions on these need it; what was trained is in DVC's cache or remote.

    Raises:
        UserError: a model cannot be run; the lines before say why.
    """
    clone.take_data("compare")
    clone.repro("compare")
    for name in names:
        promotion.measure(name)


def was_killed(name: str) -> bool:
    """Whether the training of this clone ended without saying why; it can go on from its last checkpoint."""
    return checkpoints.was_killed(Path("models/checkpoints"), name)


def give_back(clone: Clone, run: str) -> None:
    """Let the orchestrator find what was made. A clone with a cache of its own must tell what was run, too."""
    clone.push_data(*(() if clone.shares_cache else ("--run-cache",)))
    checkpoint_sync.withdraw(clone, run)
