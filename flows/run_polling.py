"""Wait for child runs."""

import time
from collections.abc import Callable, Iterator, Sequence
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import PrefectHTTPStatusError

from flows.run_metadata import PAGE_SIZE
from models.errors import UserError

POLL_SECONDS = 3.0
CRASH_GRACE_SECONDS = 300.0  # for the keeper to restart a crashed run
PREFECT_EXCEPTION = "Flow run encountered an exception"  # Prefect's message for an error other than UserError


def wait_for_runs(runs: Sequence[FlowRun], on_change: Callable[[FlowRun], None] | None = None) -> None:
    """Wait until all runs have ended, even after a failure: the next retraining reuses the results of the other runs.

    Args:
        on_change: called with a run whenever its state has changed; by default :func:`log_state`.

    Raises:
        UserError: runs failed, were cancelled or deleted, or crashed too often.
    """
    unsuccessful = [run for run in runs_as_ended(runs, on_change) if not run.state.is_completed()]
    if unsuccessful:
        raise UserError(" ".join(map(_describe_end, unsuccessful)))


def runs_as_ended(runs: Sequence[FlowRun], on_change: Callable[[FlowRun], None] | None = None) -> Iterator[FlowRun]:
    """Yield each run when it has ended, in any final state. An outage of the server only prolongs the wait.

    Raises:
        UserError: a run was deleted.
    """
    states: dict[UUID, str | None] = dict.fromkeys(run.id for run in runs)
    crash_times: dict[UUID, float] = {}
    while states:
        for run in _read_runs(list(states)):
            if run.state_name != states[run.id]:
                (on_change or log_state)(run)
            states[run.id] = run.state_name
            if _has_ended(run, crash_times):
                del states[run.id]
                yield run
        time.sleep(POLL_SECONDS)


def log_state(run: FlowRun) -> None:
    """Print the state of a run."""
    print(f"{run.name}: {run.state_name}")


def _describe_end(run: FlowRun) -> str:
    message = run.state.message or ""
    if not message or message.startswith(PREFECT_EXCEPTION):  # the exception may quote a sample
        message = "the reason is in its log"
    return f"Run {run.name!r} ended as {run.state.name}: {message}"


def _read_runs(ids: Sequence[UUID]) -> list[FlowRun]:
    """Return runs by their ids; an empty list while the server does not answer.

    Raises:
        UserError: a run was deleted.
    """
    runs: list[FlowRun] = []
    try:
        with get_client(sync_client=True) as client:
            for first in range(0, len(ids), PAGE_SIZE):
                page = FlowRunFilter(id=FlowRunFilterId(any_=list(ids[first : first + PAGE_SIZE])))
                runs += client.read_flow_runs(flow_run_filter=page, limit=PAGE_SIZE)
    except (httpx.HTTPError, PrefectHTTPStatusError) as error:  # the server restarts, or its database is down
        print(f"The Prefect server does not answer ({type(error).__name__}); waiting for it.")
        return []
    if deleted := set(ids) - {run.id for run in runs}:
        raise UserError(f"Child runs were deleted: {', '.join(map(str, deleted))}.")
    return runs


def _has_ended(run: FlowRun, crash_times: dict[UUID, float]) -> bool:
    """Return whether a run has ended for good. The keeper may restart a run that crashed.

    Args:
        crash_times: when each run was first seen as crashed, by this host's monotonic clock; wall clocks jump.
    """
    if run.state is not None and run.state.is_crashed():
        return time.monotonic() - crash_times.setdefault(run.id, time.monotonic()) > CRASH_GRACE_SECONDS
    crash_times.pop(run.id, None)
    return run.state is not None and run.state.is_final()
