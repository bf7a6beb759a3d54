"""Flow measure_champion: run champion and challengers on a GPU agent, for the decisions on the challengers."""

from flows.lifecycle import flow, set_up_run
from pipelines import agent_training, run_refs


@flow(name="measure-champion")
def measure_champion(ref: str, names: list[str]) -> None:
    """Evaluate the champion on the challengers' rows, and measure the latency of both.

    Args:
        ref: git ref that the retraining has published.
        names: the challengers' keys in params.yaml.
    """
    run = set_up_run()
    agent_training.terminate_agent_leftovers()
    clone = agent_training.open_job_clone(run, ref, names[0])
    agent_training.measure_challengers(clone, names)
    run_refs.publish_measurements(clone, run)
    clone.discard()
