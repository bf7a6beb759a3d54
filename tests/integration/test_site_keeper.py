"""The keeper against a real server: whom it takes for dead, and when it gives a run up."""

import json
from uuid import uuid4

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import Cancelled, Crashed, Running
from sites import LOGIN, Site, until

from flows.child_runs import cancel_children
from flows.deployments import active_schedules, restore_schedules
from flows.keeper import DELIVERY_DELAY, HEARTBEAT_EVENT, MISSED_HEARTBEATS, RESCHEDULE_DELAY, Keeper
from flows.run_metadata import HEARTBEAT_LABEL, PROJECT_TAG, child_tag

pytestmark = pytest.mark.integration

BEAT = 30
SILENCE = MISSED_HEARTBEATS * BEAT + DELIVERY_DELAY


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    site = Site(tmp_path_factory.mktemp("site"))
    try:
        site.start("server")
        with SyncPrefectClient(site.api, auth_string=LOGIN) as client:
            until(lambda: client.api_healthcheck() is None, "the server")
            yield client
    finally:
        site.power_loss(*site.running)


@pytest.fixture
def run(client) -> FlowRun:
    """A run that somebody has begun."""
    flow = client.request("POST", "/flows/", json={"name": "kept"}).json()["id"]
    body = {"name": str(uuid4()), "flow_id": flow, "tags": [PROJECT_TAG]}
    deployment = client.request("POST", "/deployments/", json=body).json()["id"]
    body = {"name": "finetune lora", "tags": [PROJECT_TAG], "state": {"type": "PENDING"}}
    made = client.request("POST", f"/deployments/{deployment}/create_flow_run", json=body).json()["id"]
    client.set_flow_run_state(made, Running(), force=True)
    client.update_flow_run_labels(made, {HEARTBEAT_LABEL: BEAT})
    yield client.read_flow_run(made)
    client.delete_flow_run(made)


def state(client, run: FlowRun) -> StateType:
    return client.read_flow_run(run.id).state.type


def beat(client, keeper: Keeper, run: FlowRun, occurred: str) -> None:
    """A sign of life, dated by the clock of the run's host."""
    before = keeper.activity_of(run)
    event = {"id": str(uuid4()), "occurred": occurred, "event": HEARTBEAT_EVENT, "payload": {}}
    event["resource"] = {"prefect.resource.id": f"prefect.flow-run.{run.id}"}
    client.request("POST", "/events", json=[event])
    until(lambda: keeper.activity_of(run) != before, "the event", 30)


@pytest.mark.parametrize("occurred", ["2090-01-01T00:00:00Z", "2001-01-01T00:00:00Z"], ids=["ahead", "behind"])
def test_a_sign_counts_whatever_the_clock_of_its_host_shows(client, run, occurred):
    keeper = Keeper(client)
    keeper.check_runs(0)
    keeper.check_runs(SILENCE - 1)
    beat(client, keeper, run, occurred)
    keeper.check_runs(5)
    keeper.check_runs(SILENCE - 1)
    assert state(client, run) == StateType.RUNNING
    keeper.check_runs(5)
    assert state(client, run) == StateType.CRASHED


def test_a_run_whose_heartbeats_are_rare_is_listened_to_for_longer(client, run):
    client.update_flow_run_labels(run.id, {HEARTBEAT_LABEL: 180})
    keeper = Keeper(client)
    keeper.check_runs(0)
    keeper.check_runs(MISSED_HEARTBEATS * 180 + DELIVERY_DELAY - 1)
    assert state(client, run) == StateType.RUNNING
    keeper.check_runs(5)
    assert state(client, run) == StateType.CRASHED


@pytest.mark.parametrize(("kind", "seconds"), [("process", 90), ("docker", 1800), ("kubernetes", 3600)])
def test_a_run_that_a_worker_has_taken_may_take_as_long_as_its_pool_needs_to_start_it(client, kind, seconds):
    client.request("POST", "/work_pools/", json={"name": kind, "type": kind, "base_job_template": {}})
    flow = client.request("POST", "/flows/", json={"name": "kept"}).json()["id"]
    body = {"name": f"in {kind}", "flow_id": flow, "tags": [PROJECT_TAG], "work_pool_name": kind}
    deployment = client.request("POST", "/deployments/", json=body).json()["id"]
    body = {"tags": [PROJECT_TAG], "state": {"type": "PENDING"}}
    made = client.request("POST", f"/deployments/{deployment}/create_flow_run", json=body).json()["id"]
    taken, keeper = client.read_flow_run(made), Keeper(client)
    keeper.check_runs(0)
    keeper.check_runs(seconds)
    assert state(client, taken) == StateType.PENDING
    keeper.check_runs(1)
    assert state(client, taken) == StateType.CRASHED
    client.delete_flow_run(made)


def test_a_schedule_that_was_switched_on_is_switched_on_again(client):
    """As behind `prefect deploy`, which makes the schedules of prefect.yaml anew, and off."""
    flow = client.request("POST", "/flows/", json={"name": "scheduled"}).json()["id"]
    schedules = [{"schedule": {"cron": "0 3 * * *", "timezone": "Asia/Shanghai"}, "active": True}]
    body = {"name": "scheduled", "flow_id": flow, "tags": [PROJECT_TAG], "schedules": schedules}
    client.request("POST", "/deployments/", json=body)
    before = active_schedules(client)
    schedules[0]["active"] = False
    deployment = client.request("POST", "/deployments/", json=body).json()["id"]
    assert active_schedules(client)["scheduled"] == []
    restore_schedules(client, before)
    (schedule,) = client.read_deployment(deployment).schedules
    assert schedule.active
    assert schedule.schedule.cron == "0 3 * * *"


def test_a_run_that_dies_too_often_has_failed_and_is_told_once(client, run, monkeypatch, tmp_path):
    told = tmp_path / "told"
    monkeypatch.setenv("TUNELINE_RESTARTS", "2")
    monkeypatch.setenv("TUNELINE_COMMAND", f"tee --append {told}")
    monkeypatch.delenv("TUNELINE_WEBHOOK", raising=False)
    keeper = Keeper(client)
    for _ in range(2):
        client.set_flow_run_state(run.id, Crashed(message="power loss"), force=True)
        keeper.check_runs(0)
        keeper.check_runs(RESCHEDULE_DELAY - 1)
        assert state(client, run) == StateType.CRASHED  # a worker may still hold its place
        keeper.check_runs(2)
        assert state(client, run) == StateType.SCHEDULED
        client.set_flow_run_state(run.id, Running(), force=True)
    client.set_flow_run_state(run.id, Crashed(message="power loss"), force=True)
    keeper.check_runs(0)
    for _ in range(3):
        keeper.check_runs(RESCHEDULE_DELAY + 1)
    assert state(client, run) == StateType.FAILED
    (line,) = told.read_text(encoding="utf-8").splitlines()
    found = json.loads(line)
    assert (found["event"], found["run"]) == ("failed", "finetune lora")
    assert "3 times" in found["text"]
    assert "power loss" in found["text"]


def start_child(client, run: FlowRun) -> FlowRun:
    """A run that a run has started, and that has died."""
    body = {"name": "a child", "tags": [PROJECT_TAG, child_tag(run.id)], "state": {"type": "PENDING"}}
    made = client.request("POST", f"/deployments/{run.deployment_id}/create_flow_run", json=body).json()["id"]
    client.set_flow_run_state(made, Crashed(message="power loss"), force=True)
    return client.read_flow_run(made)


def test_a_run_that_died_is_not_taken_up_for_one_that_was_cancelled(client, run):
    keeper, child = Keeper(client), start_child(client, run)
    client.set_flow_run_state(run.id, Cancelled(), force=True)
    keeper.check_runs(0)
    keeper.check_runs(RESCHEDULE_DELAY + 1)
    assert state(client, child) == StateType.CANCELLED


def test_who_ends_what_it_had_started_ends_what_died_too(client, run):
    child = start_child(client, run)
    cancel_children(client, run.id)
    assert state(client, child) == StateType.CANCELLED
