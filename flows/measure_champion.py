"""Flow measure_champion: run champion and challengers on a GPU agent, as the decision between them needs it."""

from flows import runs
from flows.train_adapter import free_the_gpu
from pipelines import agent_training, run_refs


@runs.flow(name="measure-champion")
def measure_champion(ref: str, names: list[str]) -> None:
    """Have the champion answer what these challengers were asked, and time both sides, of what ``ref`` hands out."""
    run = runs.begin()
    free_the_gpu()
    clone = runs.patiently(agent_training.take, run, ref, names[0])
    runs.patiently(agent_training.measure, clone, names)
    runs.patiently(run_refs.hand_out_measurements, clone, run)
    clone.discard()
