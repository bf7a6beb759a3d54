"""The keeper against a real server: when a run counts as dead, is rescheduled, cancelled or failed."""

import json
from uuid import uuid4

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import Cancelled, Crashed, Running
from sites import LOGIN, Site, create_small_project, wait_until

from flows.child_runs import cancel_children
from flows.deployments import active_schedules, restore_schedules
from flows.keeper import DELIVERY_DELAY, HEARTBEAT_EVENT, MISSED_HEARTBEATS, RESCHEDULE_DELAY, Keeper
from flows.run_metadata import HEARTBEAT_LABEL, PROJECT_TAG, child_tag

pytestmark = pytest.mark.integration

HEARTBEAT = 30  # seconds
SILENCE_TIMEOUT = MISSED_HEARTBEATS * HEARTBEAT + DELIVERY_DELAY


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    site = Site(folder, create_small_project(folder / "project"))
    try:
        site.start("server")
        with SyncPrefectClient(site.api, auth_string=LOGIN) as client:
            wait_until(lambda: client.api_healthcheck() is None, "the server")
            yield client
    finally:
        site.kill(*site.running)


@pytest.fixture
def run(client) -> FlowRun:
    """A running run with a heartbeat of 30 s."""
    flow = client.request("POST", "/flows/", json={"name": "kept"}).json()["id"]
    body = {"name": str(uuid4()), "flow_id": flow, "tags": [PROJECT_TAG]}
    deployment = client.request("POST", "/deployments/", json=body).json()["id"]
    body = {"name": "finetune lora", "tags": [PROJECT_TAG], "state": {"type": "PENDING"}}
    run_id = client.request("POST", f"/deployments/{deployment}/create_flow_run", json=body).json()["id"]
    client.set_flow_run_state(run_id, Running(), force=True)
    client.update_flow_run_labels(run_id, {HEARTBEAT_LABEL: HEARTBEAT})
    yield client.read_flow_run(run_id)
    client.delete_flow_run(run_id)


def state(client, run: FlowRun) -> StateType:
    return client.read_flow_run(run.id).state.type


def send_heartbeat(client, keeper: Keeper, run: FlowRun, occurred: str) -> None:
    """Send a heartbeat with a timestamp by the clock of the run's host."""
    before = keeper.activity_of(run)
    event = {"id": str(uuid4()), "occurred": occurred, "event": HEARTBEAT_EVENT, "payload": {}}
    event["resource"] = {"prefect.resource.id": f"prefect.flow-run.{run.id}"}
    client.request("POST", "/events", json=[event])
    wait_until(lambda: keeper.activity_of(run) != before, "the event", 30)


@pytest.mark.parametrize("occurred", ["2090-01-01T00:00:00Z", "2001-01-01T00:00:00Z"], ids=["ahead", "behind"])
def test_heartbeat_counts_whatever_its_timestamp(client, run, occurred):
    keeper = Keeper(client)
    keeper.check_runs(0)
    keeper.check_runs(SILENCE_TIMEOUT - 1)
    send_heartbeat(client, keeper, run, occurred)
    keeper.check_runs(5)
    keeper.check_runs(SILENCE_TIMEOUT - 1)
    assert state(client, run) == StateType.RUNNING
    keeper.check_runs(5)
    assert state(client, run) == StateType.CRASHED


def test_longer_heartbeat_interval_lengthens_the_timeout(client, run):
    client.update_flow_run_labels(run.id, {HEARTBEAT_LABEL: 180})
    keeper = Keeper(client)
    keeper.check_runs(0)
    keeper.check_runs(MISSED_HEARTBEATS * 180 + DELIVERY_DELAY - 1)
    assert state(client, run) == StateType.RUNNING
    keeper.check_runs(5)
    assert state(client, run) == StateType.CRASHED


@pytest.mark.parametrize(("pool_type", "seconds"), [("process", 90), ("docker", 1800), ("kubernetes", 3600)])
def test_start_timeout_depends_on_the_pool_type(client, pool_type, seconds):
    client.request("POST", "/work_pools/", json={"name": pool_type, "type": pool_type, "base_job_template": {}})
    flow = client.request("POST", "/flows/", json={"name": "kept"}).json()["id"]
    body = {"name": f"in {pool_type}", "flow_id": flow, "tags": [PROJECT_TAG], "work_pool_name": pool_type}
    deployment = client.request("POST", "/deployments/", json=body).json()["id"]
    body = {"tags": [PROJECT_TAG], "state": {"type": "PENDING"}}
    run_id = client.request("POST", f"/deployments/{deployment}/create_flow_run", json=body).json()["id"]
    pending, keeper = client.read_flow_run(run_id), Keeper(client)
    keeper.check_runs(0)
    keeper.check_runs(seconds)
    assert state(client, pending) == StateType.PENDING
    keeper.check_runs(1)
    assert state(client, pending) == StateType.CRASHED
    client.delete_flow_run(run_id)


def test_active_schedule_stays_active_after_deploy(client):
    """`prefect deploy` creates the schedules of prefect.yaml again, inactive."""
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


def test_run_that_crashes_too_often_fails_with_one_notification(client, run, monkeypatch, tmp_path):
    notifications = tmp_path / "notifications"
    monkeypatch.setenv("TUNELINE_RESTARTS", "2")
    monkeypatch.setenv("TUNELINE_COMMAND", f"tee --append {notifications}")
    monkeypatch.delenv("TUNELINE_WEBHOOK", raising=False)
    keeper = Keeper(client)
    for _ in range(2):
        client.set_flow_run_state(run.id, Crashed(message="power loss"), force=True)
        keeper.check_runs(0)
        keeper.check_runs(RESCHEDULE_DELAY - 1)
        assert state(client, run) == StateType.CRASHED  # a worker may still hold its concurrency slot
        keeper.check_runs(2)
        assert state(client, run) == StateType.SCHEDULED
        client.set_flow_run_state(run.id, Running(), force=True)
    client.set_flow_run_state(run.id, Crashed(message="power loss"), force=True)
    keeper.check_runs(0)
    for _ in range(3):
        keeper.check_runs(RESCHEDULE_DELAY + 1)
    assert state(client, run) == StateType.FAILED
    (line,) = notifications.read_text(encoding="utf-8").splitlines()
    event = json.loads(line)
    assert (event["event"], event["run"]) == ("failed", "finetune lora")
    assert "3 times" in event["text"]
    assert "power loss" in event["text"]


def create_crashed_child(client, run: FlowRun) -> FlowRun:
    """Return a crashed run that another run has started."""
    body = {"name": "a child", "tags": [PROJECT_TAG, child_tag(run.id)], "state": {"type": "PENDING"}}
    child = client.request("POST", f"/deployments/{run.deployment_id}/create_flow_run", json=body).json()["id"]
    client.set_flow_run_state(child, Crashed(message="power loss"), force=True)
    return client.read_flow_run(child)


def test_crashed_child_of_a_cancelled_run_is_cancelled_by_the_keeper(client, run):
    keeper, child = Keeper(client), create_crashed_child(client, run)
    client.set_flow_run_state(run.id, Cancelled(), force=True)
    keeper.check_runs(0)
    keeper.check_runs(RESCHEDULE_DELAY + 1)
    assert state(client, child) == StateType.CANCELLED


def test_cancelling_children_includes_crashed_ones(client, run):
    child = create_crashed_child(client, run)
    cancel_children(client, run.id)
    assert state(client, child) == StateType.CANCELLED
