"""Runs that wait for others: what ends the waiting, and by which clock."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import httpx
import pytest
from prefect.client.schemas.objects import FlowRun, State, StateType

from flows import runs
from models.errors import DataBlocked, UserError
from pipelines.clone import RemoteUnavailable


def run_in(kind: StateType, **more) -> FlowRun:
    return FlowRun(flow_id=uuid4(), name="a run", state=State(type=kind, **more), state_name=kind.value.title())


def completed(run: FlowRun) -> FlowRun:
    return run.model_copy(update={"state": State(type=StateType.COMPLETED), "state_name": "Completed"})


@pytest.fixture
def steady(monkeypatch):
    """A steady clock that the test moves."""
    now = [1000.0]
    monkeypatch.setattr(runs.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(runs.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    return now


def answers(monkeypatch, *rounds: list[FlowRun]) -> None:
    """What the server says, round for round; the last again and again."""
    left = list(rounds)
    monkeypatch.setattr(runs, "_read", lambda ids: left.pop(0) if len(left) > 1 else left[0])


def test_a_crashed_run_may_be_taken_up_again_however_old_its_state_looks(steady, monkeypatch):
    run = run_in(StateType.CRASHED, timestamp=datetime.now(UTC) - timedelta(days=2))
    answers(monkeypatch, [run], [run], [completed(run)])
    runs.wait([run])


def test_one_that_stays_crashed_is_given_up(steady, monkeypatch):
    run = run_in(StateType.CRASHED, message="its host is gone")
    answers(monkeypatch, [run])
    with pytest.raises(UserError, match="its host is gone"):
        runs.wait([run])
    assert steady[0] - 1000 > runs.FORGIVEN


def test_one_that_failed_does_not_end_the_waiting_for_others(steady, monkeypatch):
    bad, good = run_in(StateType.FAILED, message="it diverged"), run_in(StateType.RUNNING)
    answers(monkeypatch, [bad, good], [good], [completed(good)])
    seen = []
    with pytest.raises(UserError, match="it diverged"):
        runs.wait([bad, good], lambda changed: seen.append(changed.state_name))
    assert seen == ["Failed", "Running", "Completed"]


@pytest.mark.parametrize(
    ("kind", "behind", "tried"),
    [
        (StateType.FAILED, [], 1),  # who asks has merely died
        (StateType.FAILED, [-60], 1),  # it had failed before that, and was tried again
        (StateType.FAILED, [-60, 60], 2),  # it failed with it, and is tried again
        (StateType.CANCELLED, [], 1),  # by hand
        (StateType.CANCELLED, [-60], 2),  # with who asks; it took longer to end
        (StateType.CANCELLING, [-60], 2),
        (StateType.COMPLETED, [-60, 60], 1),
        (StateType.CRASHED, [60], 1),  # the keeper takes it up
    ],
)
def test_what_came_to_nothing_is_tried_again_if_who_asks_has_failed_with_it(monkeypatch, kind, behind, tried):
    """The second attempt is always a new run."""
    asked, ended = [], datetime.now(UTC)

    def deployed(_, idempotency_key, **more):
        asked.append(idempotency_key)
        return run_in(kind, timestamp=ended) if len(asked) == 1 else run_in(StateType.SCHEDULED)

    monkeypatch.setattr(runs, "run_deployment", deployed)
    monkeypatch.setattr(runs, "_ends", lambda run: [ended + timedelta(seconds=seconds) for seconds in behind])
    runs.start("train-adapter/train-adapter", key="key", name="a", parameters={})
    assert asked == ["key 0", "key 1"][:tried]


def test_what_nobody_has_foreseen_is_not_quoted(steady, monkeypatch):
    run = run_in(StateType.FAILED, message="Flow run encountered an exception: ValueError: a sample")
    answers(monkeypatch, [run])
    with pytest.raises(UserError, match="its log says why") as told:
        runs.wait([run])
    assert "a sample" not in str(told.value)


def test_while_the_server_is_away_nothing_is_decided(steady, monkeypatch):
    run = run_in(StateType.RUNNING)
    answers(monkeypatch, [run], [], [], [completed(run)])
    seen = []
    runs.wait([run], lambda changed: seen.append(changed.state_name))
    assert seen == ["Running", "Completed"]


def test_a_step_is_tried_again_while_something_is_away_and_not_for_ever(steady, capsys):
    class Away(RemoteUnavailable):
        pass

    tried = []

    def step(word: str) -> str:
        tried.append(word)
        if len(tried) < 3:
            raise Away("The remote is away.")
        return word

    assert runs.patiently(step, "pushed") == "pushed"
    assert steady[0] - 1000 == sum(runs.PAUSES[:2])
    assert "Trying again in 10 s" in capsys.readouterr().out
    tried.clear()
    with pytest.raises(UserError, match="another"):
        runs.patiently(lambda: (_ for _ in ()).throw(UserError("another")))
    with pytest.raises(Away):
        runs.patiently(lambda: (_ for _ in ()).throw(Away("still")))


def test_why_a_run_failed_is_told_although_the_server_is_away(monkeypatch):
    def away(**_):
        raise httpx.ConnectError("refused")

    told = []
    monkeypatch.setattr(runs, "get_client", away)
    monkeypatch.setattr(runs.handover, "withdraw", lambda run: (_ for _ in ()).throw(UserError("no clone")))
    monkeypatch.setattr(runs.notify, "tell", lambda *said: told.append(said))
    for error, text in ((UserError("because"), "because"), (ValueError("a sample"), "ValueError; see its log")):
        with pytest.raises(type(error), match=str(error)), runs.failures_told("run"):
            raise error
        assert told.pop() == ("failed", text)
    with pytest.raises(DataBlocked), runs.failures_told("run"):
        raise DataBlocked("dirty")
    assert told == []
