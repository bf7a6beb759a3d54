"""Flow sweep: parameter sets of one adapter, spread over the GPU agents; the best becomes the challenger.

Each set is a run of flow try_parameters, which waits in the GPU pool's queue until an agent is free.
"""

from flows import artifacts, runs
from flows.finetune_adapters import finish, train_on_agents
from flows.prepare_data import prepare
from flows.train_adapter import free_the_gpu, going_on
from formats import params_schema
from models.errors import UserError
from pipelines import agent_training, retraining, run_refs
from pipelines import sweeps as experiments
from pipelines.clone import Clone

Value = bool | int | float | str


@runs.flow(name="sweep", flow_run_name="sweep · {adapter}")
def sweep_parameters(
    adapter: str, sets: dict[str, list[Value]] | list[dict[str, Value]], revision: str = "HEAD"
) -> str:
    """Try a grid (values by setting) or a list of sets, and retrain with the best.

    Args:
        adapter: its key under ``adapters:`` in params.yaml.
        sets: such as ``{"rank": [8, 16], "learning_rate": [0.001, 0.003]}``.
    """
    run = runs.begin()
    with runs.failures_told(run):
        points = experiments.points_of(sets)
        clone = runs.patiently(retraining.enter, run, revision)
        experiments.check(adapter, points)
        prepare(clone)
        best = experiments.chosen(clone) or attempt_all(clone, run, adapter, points)
        experiments.apply(clone, best)
        train_on_agents(run, runs.patiently(run_refs.hand_out, clone, run))
        return finish(clone, run, f"sweep: {best}, the best of {len(points)}")


def attempt_all(clone: Clone, run: str, adapter: str, points: list[experiments.Point]) -> str:
    """Have every set tried on an agent; gives the best one's name. Those that fail, such as diverge, are left out."""
    ref = runs.patiently(run_refs.hand_out, clone, run)
    gpus = params_schema.load().train.devices
    started = [
        runs.start(
            "try-parameters/try-parameters",
            key=f"{run} {experiments.name_of(adapter, point)}",
            name=f"try {experiments.name_of(adapter, point)}",
            parameters={"ref": ref, "adapter": adapter, "point": point},
            gpus=gpus,
        )
        for point in points
    ]
    well = {child.id for child in runs.ended(started) if child.state.is_completed()}
    tried = [point for child, point in zip(started, points, strict=True) if child.id in well]
    if not tried:
        raise UserError("Not one set of the sweep could be tried; the runs of flow try-parameters say why.")
    found = runs.patiently(experiments.fetch, clone, adapter, tried, ref)
    artifacts.show_text("sweep", experiments.table())
    best = experiments.best_of(found)
    print(f"{best}: loss {found[best]['loss']:.4f}, the lowest of {len(found)} · 最低")
    return best


@runs.flow(name="try-parameters")
def try_parameters(ref: str, adapter: str, point: dict[str, Value]) -> None:
    """Train and evaluate an adapter with other settings, of what a sweep handed out."""
    run = runs.begin()
    free_the_gpu()
    clone = runs.patiently(agent_training.take, run, ref, adapter)
    with artifacts.progress(adapter):
        runs.patiently(going_on, adapter, experiments.attempt, clone, run, adapter, point)
    runs.patiently(experiments.give_back, clone, run, adapter, point)
    clone.discard()
