"""How long the keeper listens in vain before a run counts as dead: by its pool, and by the heartbeat that it has."""

import math
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

from flows import keeper, lifecycle


class Pool:
    def __init__(self, kind: str):
        self.type = kind


class Client:
    """A server that knows pools by name, and keeps the states that it is told."""

    def __init__(self, **pools: str):
        self.pools, self.states, self.asked = pools, [], 0

    def read_work_pool(self, name: str) -> Pool:
        self.asked += 1
        if name not in self.pools:
            raise keeper.ObjectNotFound(Exception(name))
        return Pool(self.pools[name])

    def set_flow_run_state(self, run, state, force: bool) -> None:
        self.states.append(state.type)

    def read_flow_runs(self, **_) -> list[FlowRun]:
        return []


def run(pool: str | None, kind: StateType = StateType.RUNNING, **labels) -> FlowRun:
    made = FlowRun(flow_id=uuid4(), name="a run", work_pool_name=pool, state=State(type=kind))
    return made.model_copy(update={"labels": {name.replace("_", "."): value for name, value in labels.items()}})


POOLS = {"cpu": "process", "gpu": "docker", "cluster": "kubernetes", "cloud": "ecs"}


@pytest.mark.parametrize(
    ("pool", "seconds"), [("cpu", 90), ("gpu", 1800), ("cluster", 3600), ("cloud", 3600), ("gone", 3600), (None, 3600)]
)
def test_a_pool_has_its_own_patience_before_a_run_begins(pool, seconds):
    found = keeper.Keeper(Client(**POOLS)).silence_timeout(run(pool, StateType.PENDING, tuneline_heartbeat=30))
    assert found == seconds


@pytest.mark.parametrize("pool", [*POOLS, "gone"])
@pytest.mark.parametrize(("beat", "seconds"), [(30, 80), (60, 140), (180, 380), (0, math.inf)])
def test_the_heartbeat_that_a_run_has_said_decides_wherever_it_runs(pool, beat, seconds):
    for kind in (StateType.RUNNING, StateType.CANCELLING):
        found = keeper.Keeper(Client(**POOLS)).silence_timeout(run(pool, kind, tuneline_heartbeat=beat))
        assert found == seconds


def test_before_it_has_said_it_an_agents_run_has_the_projects_and_any_other_prefects_own():
    made = keeper.Keeper(Client(**POOLS))
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: 30}):
        assert made.silence_timeout(run("cpu")) == 80
        assert {made.silence_timeout(run(pool)) for pool in ("gpu", "cluster", "cloud", "gone", None)} == {380}
        assert made.silence_timeout(run("gpu", tuneline_heartbeat="30")) == 380  # a label that is no number


def test_prefects_own_heartbeat_is_what_the_keeper_takes_it_for():
    from prefect.settings.models.flows import FlowsSettings

    assert FlowsSettings.model_fields["heartbeat_frequency"].default == keeper.DEFAULT_HEARTBEAT


@pytest.mark.parametrize(
    ("kind", "silent", "become"),
    [
        (StateType.RUNNING, 80, []),
        (StateType.RUNNING, 81, [StateType.CRASHED]),
        (StateType.CANCELLING, 81, [StateType.CANCELLED]),
        (StateType.PENDING, 90, []),
        (StateType.PENDING, 91, [StateType.CRASHED]),
    ],
)
def test_a_run_is_declared_dead_when_patience_is_over(kind, silent, become):
    client = Client(**POOLS)
    found = run("cpu", kind, tuneline_heartbeat=30)
    keeper.Keeper(client, seen={found.id: keeper.Activity("a sign", silent)}).end_if_silent(found)
    assert client.states == become


def test_a_pool_that_was_made_anew_has_the_patience_of_its_new_type():
    client = Client(**POOLS)
    made, pending = keeper.Keeper(client), run("gpu", StateType.PENDING)
    assert made.silence_timeout(pending) == made.silence_timeout(pending) == 1800
    assert client.asked == 1  # once a round, however many runs it has
    client.pools["gpu"] = "process"
    made.check_runs(5)
    assert made.silence_timeout(pending) == 90


@pytest.mark.parametrize(("setting", "label"), [(30, 30), (180, 180), (None, 0)])
def test_a_run_says_the_heartbeat_that_its_process_has(monkeypatch, setting, label):
    told = []

    class Labels:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def update_flow_run_labels(self, run, labels) -> None:
            told.append((run, labels))

    monkeypatch.setattr(lifecycle, "get_client", lambda **_: Labels())
    found = uuid4()
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: setting}):
        lifecycle.report_heartbeat(str(found))
    assert told == [(found, {lifecycle.HEARTBEAT_LABEL: label})]
