"""Flow sweep: try parameter sets of one adapter on the GPU agents; the best set becomes the challenger.

Each set is a child run of flow try_parameters, which waits in the queue of the GPU pool until an agent is free.
"""

from prefect.client.schemas.objects import FlowRun

from flows import artifacts
from flows.child_runs import start_child_run
from flows.finetune_adapters import compare_and_promote, report_outcome, train_on_agents
from flows.lifecycle import flow, max_restarts, reporting_failure, set_up_run
from flows.prepare_data import prepare
from flows.run_polling import runs_as_ended
from models.errors import UserError
from pipelines import agent_training, retraining, run_refs, sweeps
from pipelines.clone import Clone
from texts import translate

Value = bool | int | float | str


@flow(name="sweep", flow_run_name="sweep · {adapter}")
def sweep_parameters(
    adapter: str, sets: dict[str, list[Value]] | list[dict[str, Value]], revision: str = "HEAD"
) -> str:
    """Try parameter sets, and retrain with the best.

    Args:
        adapter: its key under ``adapters:`` in params.yaml.
        sets: a grid, such as ``{"rank": [8, 16], "learning_rate": [0.001, 0.003]}``, or a list of parameter sets.

    Returns:
        The outcome in one sentence.
    """
    run = set_up_run()
    with reporting_failure(run):
        points = sweeps.expand_grid(sets)
        clone = retraining.open_branch_clone(run, revision)
        sweeps.validate_points(clone.params(), adapter, points)
        prepare(clone)
        best = sweeps.chosen_experiment(clone) or try_all(clone, run, adapter, points)
        sweeps.apply_experiment(clone, best)
        train_on_agents(clone, run)
        cause = f"sweep: {best}, the best of {len(points)}"
        outcome = compare_and_promote(clone, run, cause)
        return report_outcome(clone, outcome, cause)


def try_all(clone: Clone, run: str, adapter: str, points: list[sweeps.Point]) -> str:
    """Try every parameter set on an agent, and return the name of the best experiment; failed ones are left out.

    Raises:
        UserError: all experiments failed.
    """
    ref = run_refs.publish(clone, run)
    children = [_start_experiment(clone, run, ref, adapter, point, len(points)) for point in points]
    completed = {child.id for child in runs_as_ended(children) if child.state.is_completed()}
    tried = [point for child, point in zip(children, points, strict=True) if child.id in completed]
    if not tried:
        raise UserError("All experiments of the sweep failed; the runs of flow try-parameters have the reasons.")
    metrics = sweeps.fetch_metrics(clone, adapter, tried, ref)
    artifacts.show_text("sweep", sweeps.experiments_table(clone))
    best = sweeps.best_experiment(metrics)
    loss = f"{metrics[best]['loss']:.4f}"
    print(
        translate(
            "{name} has the lowest loss of {number} experiments: {loss}.", name=best, number=len(tried), loss=loss
        )
    )
    return best


def _start_experiment(clone: Clone, run: str, ref: str, adapter: str, point: sweeps.Point, candidates: int) -> FlowRun:
    name = sweeps.experiment_name(adapter, point)
    return start_child_run(
        "try-parameters/try-parameters",
        key=f"{run} {name}",
        name=f"try {name}",
        parameters={"ref": ref, "adapter": adapter, "point": point, "candidates": candidates},
        gpus=clone.params().train.devices,
    )


@flow(name="try-parameters")
def try_parameters(ref: str, adapter: str, point: dict[str, Value], candidates: int = 1) -> None:
    """Train and evaluate an adapter with one parameter set of a sweep.

    Args:
        ref: git ref that the sweep has published.
        adapter: its key in params.yaml.
        point: values by parameter.
        candidates: number of parameter sets of the sweep.
    """
    run = set_up_run()
    agent_training.terminate_agent_leftovers()
    clone = agent_training.open_job_clone(run, ref, adapter)
    with artifacts.progress(clone.folder, adapter):
        sweeps.run_experiment(clone, run, adapter, point, candidates, max_restarts())
    sweeps.push_experiment(clone, run, adapter, point)
    clone.discard()
