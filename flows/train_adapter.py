"""Flow train_adapter: train and evaluate one model on a GPU agent."""

from flows import artifacts
from flows.lifecycle import flow, max_restarts, set_up_run
from pipelines import agent_training


@flow(name="train-adapter")
def train_adapter(ref: str, name: str) -> None:
    """Train an adapter on the data of a retraining, and evaluate it; the base model is only evaluated.

    Args:
        ref: git ref that the retraining has published.
        name: the adapter's key in params.yaml, or ``base``.
    """
    run = set_up_run()
    agent_training.terminate_agent_leftovers()
    clone = agent_training.open_job_clone(run, ref, name)
    with artifacts.progress(clone.folder, name):
        agent_training.train(clone, run, name, max_restarts())
    if name != "base":
        artifacts.show_losses(name, agent_training.read_loss_history(clone, name))
    agent_training.push_results(clone, run)
    clone.discard()
