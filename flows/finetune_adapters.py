"""Flow finetune_adapters: the main job, spread over agents.

It prepares the data, has each model that changed trained and evaluated on a GPU agent, compares, commits, and promotes
what is really better.
"""

from functools import partial

from prefect import runtime

from flows import artifacts, notifications, runs
from flows.prepare_data import prepare
from formats import params_schema
from pipelines import retraining, run_refs
from pipelines.clone import Clone


@runs.flow(name="finetune-adapters", flow_run_name="finetune · {cause}")
def finetune_adapters(revision: str = "HEAD", cause: str = "by hand") -> str:
    """Retrain what the revision changed, whatever the reason; gives what came of it in a sentence."""
    return retrain_all(revision, cause)


def retrain_all(revision: str, cause: str) -> str:
    """See :func:`finetune_adapters`; flow retrain does the same, when it is time."""
    run = runs.begin()
    with runs.failures_told(run):
        return _retrain(runs.patiently(retraining.enter, run, revision), cause)


def _retrain(clone: Clone, cause: str) -> str:
    run = str(runtime.flow_run.id)
    # Whoever was killed behind its push has still to tell of it.
    if retraining.nothing_changed() and not retraining.new_champion(clone):
        print("Nothing changed · 没有变化")
        clone.discard()
        return "nothing changed"
    prepare(clone)
    train_on_agents(run, runs.patiently(run_refs.hand_out, clone, run))
    return finish(clone, run, cause)


def finish(clone: Clone, run: str, cause: str) -> str:
    """Compare, commit, promote what is better, and show what came of it; gives that in a sentence."""
    repro = partial(runs.patiently, Clone.repro)
    publish = partial(runs.patiently, retraining.publish)
    outcome = retraining.conclude(clone, run, cause, repro, publish, partial(measure_on_agent, run))
    artifacts.show_comparison(list(params_schema.load().evaluate.models))
    artifacts.show_outcome(outcome, clone.address)
    if outcome.promoted:
        notifications.tell("promoted", f"champion {outcome.promoted}", version=outcome.promoted, cause=cause)
    clone.discard()
    said = f"champion {outcome.promoted} · 晋级" if outcome.promoted else "no adapter is better · 无适配器晋级"
    print(f"{retraining.BRANCH} {outcome.commit}: {said}")
    return said


def train_on_agents(run: str, ref: str) -> None:
    """Have every model that changed trained and evaluated, each on a GPU agent."""
    knobs, data = params_schema.load(), retraining.data_hash()
    started = [
        runs.start(
            "train-adapter/train-adapter",
            key=f"{run} {name}",
            name=title(name, data, knobs),
            parameters={"ref": ref, "name": name},
            gpus=knobs.train.devices,
        )
        for name in retraining.pending()
    ]
    runs.wait(started)


def measure_on_agent(run: str, clone: Clone, names: list[str]) -> None:
    """Have a GPU agent run champion and challengers: orchestration owns no GPU."""
    ref, data = runs.patiently(run_refs.hand_out, clone, run), retraining.data_hash()
    started = runs.start(
        "measure-champion/measure-champion",
        key=f"{run} measure {clone.git('rev-parse', 'HEAD')}",
        name=f"measure champion · data {data[:4]}",
        parameters={"ref": ref, "names": names},
        gpus=params_schema.load().train.devices,
    )
    runs.wait([started])
    runs.patiently(run_refs.take_measurements, clone, str(started.id))


def title(name: str, data: str, knobs: params_schema.Params) -> str:
    """A run's name, such as ``finetune lora · data 3f2a · rank 8``."""
    if name == "base":
        return f"evaluate base · data {data[:4]}"
    adapter = knobs.adapters[name]
    size = f"rank {adapter.rank}" if adapter.method == "lora" else adapter.method
    if adapter.method == "ptuning_v2":
        size = f"{adapter.prefix_tokens} prefix tokens"
    return f"finetune {name} · data {data[:4]} · {size}"
