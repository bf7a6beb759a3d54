"""Waiting for child runs: when a run counts as ended, and by which clock."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun, State, StateType

from flows import run_polling
from models.errors import UserError


def make_run(state_type: StateType, **fields) -> FlowRun:
    state = State(type=state_type, **fields)
    return FlowRun(flow_id=uuid4(), name="a run", state=state, state_name=state_type.value.title())


def completed(run: FlowRun) -> FlowRun:
    return run.model_copy(update={"state": State(type=StateType.COMPLETED), "state_name": "Completed"})


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """Replace the monotonic clock by one that only sleeping moves."""
    now = [1000.0]
    monkeypatch.setattr(run_polling.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(run_polling.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    return now


def set_answers(monkeypatch, *answers: list[FlowRun]) -> None:
    """Set the server's answers to the polls, one after another; the last answer is repeated."""
    remaining = list(answers)
    answer = lambda ids: remaining.pop(0) if len(remaining) > 1 else remaining[0]  # noqa: E731
    monkeypatch.setattr(run_polling, "_read_runs", answer)


def test_crashed_run_may_be_restarted_whatever_the_timestamp_of_its_state(clock, monkeypatch):
    run = make_run(StateType.CRASHED, timestamp=datetime.now(UTC) - timedelta(days=2))
    set_answers(monkeypatch, [run], [run], [completed(run)])
    run_polling.wait_for_runs([run])


def test_run_that_stays_crashed_fails(clock, monkeypatch):
    run = make_run(StateType.CRASHED, message="its host is gone")
    set_answers(monkeypatch, [run])
    with pytest.raises(UserError, match="its host is gone"):
        run_polling.wait_for_runs([run])
    assert clock[0] - 1000 > run_polling.CRASH_GRACE_SECONDS


def test_other_runs_are_awaited_after_one_has_failed(clock, monkeypatch):
    failed, running = make_run(StateType.FAILED, message="it diverged"), make_run(StateType.RUNNING)
    set_answers(monkeypatch, [failed, running], [running], [completed(running)])
    states = []
    with pytest.raises(UserError, match="it diverged"):
        run_polling.wait_for_runs([failed, running], lambda run: states.append(run.state_name))
    assert states == ["Failed", "Running", "Completed"]


def test_message_of_an_unexpected_error_is_not_quoted(clock, monkeypatch):
    run = make_run(StateType.FAILED, message="Flow run encountered an exception: ValueError: a sample")
    set_answers(monkeypatch, [run])
    with pytest.raises(UserError, match="the reason is in its log") as error:
        run_polling.wait_for_runs([run])
    assert "a sample" not in str(error.value)


def test_outage_of_the_server_does_not_end_the_wait(clock, monkeypatch):
    run = make_run(StateType.RUNNING)
    set_answers(monkeypatch, [run], [], [], [completed(run)])
    states = []
    run_polling.wait_for_runs([run], lambda changed: states.append(changed.state_name))
    assert states == ["Running", "Completed"]
