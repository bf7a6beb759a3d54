"""Flow finetune_adapters: retrain what has changed, with the GPU work on agents."""

from prefect.client.schemas.objects import FlowRun

from flows import artifacts, notifications
from flows.child_runs import start_child_run
from flows.lifecycle import flow, reporting_failure, set_up_run
from flows.prepare_data import prepare
from flows.run_polling import wait_for_runs
from formats import params_schema
from models.errors import UserError
from pipelines import retraining, run_refs
from pipelines.clone import Clone
from pipelines.retraining import Outcome
from texts import translate


@flow(name="finetune-adapters", flow_run_name="finetune · {cause}")
def finetune_adapters(revision: str = "HEAD", cause: str = "by hand") -> str:
    """Retrain what a revision has changed, compare, and promote the best adapter if it is better than the champion.

    Args:
        cause: reason of the retraining, for the commit.

    Returns:
        The outcome in one sentence.
    """
    return retrain(revision, cause)


def retrain(revision: str, cause: str) -> str:
    """See :func:`finetune_adapters`; flow retrain does the same on a schedule."""
    run = set_up_run()
    with reporting_failure(run):
        clone = retraining.open_branch_clone(run, revision)
        # A restarted run that was killed after its push has still to report the promotion.
        if retraining.is_up_to_date(clone) and not retraining.promoted_version(clone):
            clone.discard()
            return _print_result(translate("Nothing has changed."))
        prepare(clone)
        train_on_agents(clone, run)
        outcome = compare_and_promote(clone, run, cause)
        return report_outcome(clone, outcome, cause)


def train_on_agents(clone: Clone, run: str) -> None:
    """Train and evaluate all outdated models, each in a child run on a GPU agent."""
    ref = run_refs.publish(clone, run)
    wait_for_runs([_start_training(clone, run, ref, name) for name in retraining.find_outdated_models(clone)])


def _start_training(clone: Clone, run: str, ref: str, name: str) -> FlowRun:
    params = clone.params()
    return start_child_run(
        "train-adapter/train-adapter",
        key=f"{run} {name}",
        name=training_title(name, retraining.compute_data_hash(clone), params),
        parameters={"ref": ref, "name": name},
        gpus=params.train.devices,
    )


def compare_and_promote(clone: Clone, run: str, cause: str) -> Outcome:
    """Compare the models, promote the best adapter if it is better than the champion, and push the results.

    If another retraining has pushed in the meantime, its results are merged, and the comparison is repeated with its
    champion.

    Raises:
        UserError: other retrainings have pushed after every comparison.
    """
    for _ in range(retraining.MAX_PUSH_ATTEMPTS):
        retraining.compare_models(clone, cause)
        if names := retraining.unmeasured_challengers(clone):
            measure_on_agent(clone, run, names)
        decisions = retraining.promote_best(clone)
        if retraining.push_results(clone, run):
            return retraining.read_outcome(clone, decisions)
        retraining.merge_remote_changes(clone)
    raise UserError(
        f"Branch {retraining.BRANCH} was changed by others during each of {retraining.MAX_PUSH_ATTEMPTS} attempts to "
        "push; run this again when they have ended."
    )


def measure_on_agent(clone: Clone, run: str, names: list[str]) -> None:
    """Measure champion and challengers in a child run on a GPU agent, and fetch the measurements."""
    ref = run_refs.publish(clone, run)
    child = start_child_run(
        "measure-champion/measure-champion",
        key=f"{run} measure {clone.git('rev-parse', 'HEAD')}",
        name=f"measure champion · data {retraining.compute_data_hash(clone)[:4]}",
        parameters={"ref": ref, "names": names},
        gpus=clone.params().train.devices,
    )
    wait_for_runs([child])
    run_refs.fetch_measurements(clone, str(child.id))


def report_outcome(clone: Clone, outcome: Outcome, cause: str) -> str:
    """Show the outcome in Prefect's UI, notify of a promotion, and remove the clone; return one sentence."""
    artifacts.show_comparison(clone.folder, list(clone.params().evaluate.models))
    artifacts.show_outcome(outcome, clone.masked_origin)
    if outcome.version:
        notifications.notify("promoted", f"champion {outcome.version}", version=outcome.version, cause=cause)
    clone.discard()
    place = {"branch": retraining.BRANCH, "commit": outcome.commit}
    if outcome.version:
        return _print_result(
            translate("{branch} {commit}: champion {version} was promoted.", version=outcome.version, **place)
        )
    return _print_result(translate("{branch} {commit}: no adapter is better than the champion.", **place))


def _print_result(sentence: str) -> str:
    print(sentence)
    return sentence


def training_title(name: str, data: str, params: params_schema.Params) -> str:
    """Return the name of the flow run that trains an adapter, such as ``finetune lora · data 3f2a · rank 8``."""
    if name == "base":
        return f"evaluate base · data {data[:4]}"
    adapter = params.adapters[name]
    size = f"rank {adapter.rank}" if adapter.method == "lora" else adapter.method
    if adapter.method == "ptuning_v2":
        size = f"{adapter.prefix_tokens} prefix tokens"
    return f"finetune {name} · data {data[:4]} · {size}"
