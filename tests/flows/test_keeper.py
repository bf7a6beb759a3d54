"""The keeper's timeouts: by pool type before a run starts, then by the run's heartbeat interval."""

import math
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

from flows import keeper, lifecycle


class Pool:
    def __init__(self, pool_type: str):
        self.type = pool_type


class Client:
    """A stand-in for the server: work pools by name; it records new states and reads of pools."""

    def __init__(self, **pools: str):
        self.pools, self.states, self.pool_reads = pools, [], 0

    def read_work_pool(self, name: str) -> Pool:
        self.pool_reads += 1
        if name not in self.pools:
            raise keeper.ObjectNotFound(Exception(name))
        return Pool(self.pools[name])

    def set_flow_run_state(self, run, state, force: bool) -> None:
        self.states.append(state.type)

    def read_flow_runs(self, **_) -> list[FlowRun]:
        return []


def make_run(pool: str | None, state: StateType = StateType.RUNNING, **labels) -> FlowRun:
    run = FlowRun(flow_id=uuid4(), name="a run", work_pool_name=pool, state=State(type=state))
    return run.model_copy(update={"labels": {name.replace("_", "."): value for name, value in labels.items()}})


POOLS = {"cpu": "process", "gpu": "docker", "cluster": "kubernetes", "cloud": "ecs"}


@pytest.mark.parametrize(
    ("pool", "seconds"), [("cpu", 90), ("gpu", 1800), ("cluster", 3600), ("cloud", 3600), ("gone", 3600), (None, 3600)]
)
def test_start_timeout_depends_on_the_pool_type(pool, seconds):
    run = make_run(pool, StateType.PENDING, tuneline_heartbeat=30)
    assert keeper.Keeper(Client(**POOLS)).silence_timeout(run) == seconds


@pytest.mark.parametrize("pool", [*POOLS, "gone"])
@pytest.mark.parametrize(("heartbeat", "seconds"), [(30, 80), (60, 140), (180, 380), (0, math.inf)])
def test_timeout_follows_the_reported_heartbeat_in_every_pool(pool, heartbeat, seconds):
    for state in (StateType.RUNNING, StateType.CANCELLING):
        run = make_run(pool, state, tuneline_heartbeat=heartbeat)
        assert keeper.Keeper(Client(**POOLS)).silence_timeout(run) == seconds


def test_default_heartbeat_is_the_projects_for_agents_and_prefects_for_containers():
    timeouts = keeper.Keeper(Client(**POOLS))
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: 30}):
        assert timeouts.silence_timeout(make_run("cpu")) == 80
        assert {timeouts.silence_timeout(make_run(pool)) for pool in ("gpu", "cluster", "cloud", "gone", None)} == {380}
        assert timeouts.silence_timeout(make_run("gpu", tuneline_heartbeat="30")) == 380  # not a number


def test_default_heartbeat_matches_prefects_default():
    from prefect.settings.models.flows import FlowsSettings

    assert FlowsSettings.model_fields["heartbeat_frequency"].default == keeper.DEFAULT_HEARTBEAT


@pytest.mark.parametrize(
    ("state", "silent", "new_states"),
    [
        (StateType.RUNNING, 80, []),
        (StateType.RUNNING, 81, [StateType.CRASHED]),
        (StateType.CANCELLING, 81, [StateType.CANCELLED]),
        (StateType.PENDING, 90, []),
        (StateType.PENDING, 91, [StateType.CRASHED]),
    ],
)
def test_silent_run_is_ended_after_its_timeout(state, silent, new_states):
    client = Client(**POOLS)
    run = make_run("cpu", state, tuneline_heartbeat=30)
    keeper.Keeper(client, seen={run.id: keeper.Activity("state 1", silent)}).end_if_silent(run)
    assert client.states == new_states


def test_pool_types_are_read_again_in_each_round():
    client = Client(**POOLS)
    timeouts, pending = keeper.Keeper(client), make_run("gpu", StateType.PENDING)
    assert timeouts.silence_timeout(pending) == timeouts.silence_timeout(pending) == 1800
    assert client.pool_reads == 1  # once per round
    client.pools["gpu"] = "process"
    timeouts.check_runs(5)
    assert timeouts.silence_timeout(pending) == 90


@pytest.mark.parametrize(("setting", "label"), [(30, 30), (180, 180), (None, 0)])
def test_run_labels_itself_with_its_heartbeat_interval(monkeypatch, setting, label):
    updates = []

    class LabelClient:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def update_flow_run_labels(self, run, labels) -> None:
            updates.append((run, labels))

    monkeypatch.setattr(lifecycle, "get_client", lambda **_: LabelClient())
    run = uuid4()
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: setting}):
        lifecycle.report_heartbeat(str(run))
    assert updates == [(run, {lifecycle.HEARTBEAT_LABEL: label})]
