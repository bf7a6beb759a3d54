"""Start of child runs: when an unsuccessful one is started again."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun, State, StateType

from flows import child_runs


def make_run(state_type: StateType, **fields) -> FlowRun:
    return FlowRun(flow_id=uuid4(), name="a run", state=State(type=state_type, **fields))


@pytest.mark.parametrize(
    ("state_type", "parent_failure_times", "attempts"),
    [
        (StateType.FAILED, [], 1),  # the parent has crashed only
        (StateType.FAILED, [-60], 1),  # the parent failed before the child, which was started again since
        (StateType.FAILED, [-60, 60], 2),  # the parent failed after the child, and was retried
        (StateType.CANCELLED, [], 1),  # by hand
        (StateType.CANCELLED, [-60], 2),  # with its parent, after which the child ended
        (StateType.CANCELLING, [-60], 2),
        (StateType.COMPLETED, [-60, 60], 1),
        (StateType.CRASHED, [60], 1),  # the keeper restarts it
    ],
)
def test_unsuccessful_child_is_started_again_if_its_parent_failed_with_it(
    monkeypatch, state_type, parent_failure_times, attempts
):
    """The parent's failures are in seconds after the end of the child. The second attempt is always a new run."""
    keys, ended = [], datetime.now(UTC)

    def run_deployment(_, idempotency_key, **options):
        keys.append(idempotency_key)
        return make_run(state_type, timestamp=ended) if len(keys) == 1 else make_run(StateType.SCHEDULED)

    monkeypatch.setattr(child_runs, "run_deployment", run_deployment)
    failure_times = [ended + timedelta(seconds=seconds) for seconds in parent_failure_times]
    monkeypatch.setattr(child_runs, "_read_failure_times", lambda run: failure_times)
    child_runs.start_child_run("train-adapter/train-adapter", key="key", name="a", parameters={})
    assert keys == ["key 0", "key 1"][:attempts]
