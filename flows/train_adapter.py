"""Flow train_adapter: train and evaluate one model on a GPU agent, which works on one run at a time."""

import os
from collections.abc import Callable

from flows import artifacts, runs
from models.errors import UserError
from models.storage import read_json
from pipelines import agent_training
from pipelines.processes import end_leftovers


@runs.flow(name="train-adapter")
def train_adapter(ref: str, name: str) -> None:
    """Train an adapter of what a retraining handed out under ``ref``, and evaluate it; ``base`` is evaluated only."""
    run = runs.begin()
    free_the_gpu()
    clone = runs.patiently(agent_training.take, run, ref, name)
    with artifacts.progress(name):
        runs.patiently(going_on, name, agent_training.train, clone, run, name)
    if name != "base":
        artifacts.show_losses(name, read_json(artifacts.WEIGHTS / name / "manifest.json")["training"]["history"])
    runs.patiently(agent_training.give_back, clone, run)
    clone.discard()


def going_on(name: str, train: Callable, *arguments) -> None:
    """Train, and go on from the last checkpoint as often as the training is killed, up to the number of restarts."""
    for left in reversed(range(runs.restarts() + 1)):
        try:
            train(*arguments)
            break
        except UserError:  # of a remote that is away, too: nothing was killed then
            if not left or not agent_training.was_killed(name):
                raise
            free_the_gpu()  # had its shell died alone, it would still be there
            print("The training was killed; it goes on from its last checkpoint · 训练被杀死，从最后的检查点继续")


def free_the_gpu() -> None:
    """End what an earlier run of this agent, or the agent's earlier life, left on its GPUs."""
    if agent := os.environ.get("TUNELINE_AGENT"):
        end_leftovers("TUNELINE_AGENT", agent)
