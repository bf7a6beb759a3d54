"""What runs have in common: who they are, the runs that they start, how they wait for them, and how they fail."""

import functools
import itertools
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from uuid import UUID

import httpx
import prefect
from prefect import runtime
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, FlowRunFilterTags
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.deployments import run_deployment
from prefect.exceptions import FailedRun, ObjectNotFound, PrefectHTTPStatusError
from prefect.logging import get_run_logger
from prefect.settings import get_current_settings
from prefect.states import Cancelled, Cancelling, Failed

from flows import notifications
from models.errors import DataBlocked, UserError
from pipelines import retraining, run_refs
from pipelines.clone import RemoteAway, clones
from pipelines.processes import end_leftovers

OURS = "tuneline"  # the tag of every deployment
HEARTBEAT = "tuneline.heartbeat"  # the label by which a run says how often it gives a sign of life, in seconds
POLL = 3.0  # seconds
AT_ONCE = 200  # runs that the server tells of in one answer
PAUSES = (10, 30, 60, 300, 900, 1800)  # seconds between attempts while something elsewhere is away: an hour in all
KEPT = 7 * 86_400.0  # seconds that the clone of a failed run is kept
UNFORESEEN = "Flow run encountered an exception"  # Prefect's words for an error that no flow of ours has foreseen
BAD = (StateType.FAILED, StateType.CANCELLED)
FORGIVEN = 300.0  # seconds for which a crashed run may wait for the keeper to take it up again


def restarts() -> int:
    """How many times a run that died is started again.

    Raises:
        UserError: the environment says no number.
    """
    said = os.environ.get("TUNELINE_RESTARTS", "3")
    if not said.isdecimal():
        raise UserError(f"TUNELINE_RESTARTS is {said!r}; write a number, such as 3.")
    return int(said)


def flow(**named):
    """Prefect's ``flow`` as all of ours are: who is cancelled clears up, and who fails for a known reason says it.

    That sentence is the run's state; an exception would put a traceback beside it in the log.
    """

    def made(function: Callable) -> prefect.Flow:
        @functools.wraps(function)
        def said(*arguments, **more):
            try:
                return function(*arguments, **more)
            except UserError as error:
                get_run_logger().error("%s", error)
                for name in ("prefect.flow_runs", "prefect.engine"):
                    logging.getLogger(name).addFilter(_is_news)
                return Failed(message=str(error))

        return prefect.flow(log_prints=True, on_cancellation=[clear_up], **named)(said)

    return made


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a line of the log is more than that the flow, which said why, has failed; Prefect adds a traceback."""
    return record.exc_info is None or not isinstance(record.exc_info[1], FailedRun)


def begin() -> str:
    """This run's id, once nothing is left of an earlier life of it on this host, and the keeper knows its heartbeat.

    Processes that a killed run had started live on without it, and would train beside their successors.
    """
    run = str(runtime.flow_run.id)
    report_heartbeat(run)
    end_leftovers("PREFECT__FLOW_RUN_ID", run)
    clear_old(run)
    return run


def report_heartbeat(run: str) -> None:
    """Label a run with the seconds between its heartbeats, 0 for none: its host may have another setting."""
    with get_client(sync_client=True) as client:
        client.update_flow_run_labels(UUID(run), {HEARTBEAT: get_current_settings().flows.heartbeat_frequency or 0})


@contextmanager
def failures_told(run: str) -> Iterator[None]:
    """Tell whoever listens why a run failed, end what it had started, and take back what it had handed out.

    Of blocked data they know, and nothing was started.
    """
    try:
        yield
    except DataBlocked:
        raise
    except Exception as error:
        with suppress(UserError):  # it may have failed before there was a clone
            run_refs.withdraw(run)
        # A server that is away must not hide what went wrong.
        with suppress(httpx.HTTPError, PrefectHTTPStatusError), get_client(sync_client=True) as client:
            end_children(client, run)
        # What nobody foresaw may quote a sample; the run's log has it.
        notifications.tell(
            "failed", str(error) if isinstance(error, UserError) else f"{type(error).__name__}; see its log"
        )
        raise


def clear_old(own: str) -> None:
    """Remove clones of runs that will not go on. Who was cancelled may not have come to remove its own."""
    with get_client(sync_client=True) as client:
        for run, age in clones():
            # Whatever is wrong with another's clone is no reason for this run to fail.
            with suppress(UserError):
                if run != own and _is_over(client, run, age):
                    end_leftovers("PREFECT__FLOW_RUN_ID", run)
                    retraining.abandon(run)


def _is_over(client, run: str, age: float) -> bool:
    try:
        state = client.read_flow_run(UUID(run)).state
    except ObjectNotFound:  # deleted, or of another server that shares this folder
        return age > KEPT
    except ValueError:  # no run's name: somebody put it there
        return False
    if state is None or not state.is_final():
        return False
    # What failed or crashed may be tried again by hand, and then goes on from its checkpoints.
    return state.type in (StateType.COMPLETED, StateType.CANCELLED) or age > KEPT


def start(deployment: str, key: str, name: str, parameters: dict, gpus: int | None = None) -> FlowRun:
    """Have an agent do something; whoever asks again under the same key gets the same run.

    If that failed, it is tried once more only where the run which asks has failed behind it, and is tried again
    itself: one that merely died and was taken up has nothing new to offer. What was cancelled was cancelled with it.

    Args:
        deployment: ``flow/name``.
        gpus: how many it needs: process agents that own so many serve a queue of their own, and Kubernetes is asked
            for them by a job variable, of which other pools take no notice.
    """
    parent = runtime.flow_run.id
    ends = _ends(parent)
    for attempt in itertools.count():
        run = run_deployment(
            deployment,
            parameters=parameters,
            flow_run_name=name,
            timeout=0,
            idempotency_key=f"{key} {attempt}",
            work_queue_name=f"gpus-{gpus}" if gpus else None,
            job_variables={"gpus": gpus} if gpus else None,
            tags=[OURS, *([tag_of(parent)] if parent else [])],
        )
        if not _is_tried_again(run, ends):
            break
    return run


def _ends(run: str | None) -> list[datetime]:
    """When a run has failed, or was cancelled, in its earlier lives, by the server's clock."""
    if run is None:
        return []
    with get_client(sync_client=True) as client:
        return [state.timestamp for state in client.read_flow_run_states(UUID(str(run))) if state.type in BAD]


def _is_tried_again(run: FlowRun, ends: Sequence[datetime]) -> bool:
    """Whether a run came to nothing in an earlier life of the one that had started it, which has ended so often."""
    if run.state is None or not (run.state.type in BAD or run.state.is_cancelling()):
        return False
    # It may take a while to end behind the one with which it was cancelled.
    return bool(ends) if not run.state.is_failed() else any(end > run.state.timestamp for end in ends)


def say(run: FlowRun) -> None:
    """Print what has become of a run."""
    print(f"{run.name}: {run.state_name}")


def wait(runs: Sequence[FlowRun], on_change: Callable[[FlowRun], None] = say) -> None:
    """Wait until all runs have ended. What one does is of use to the next retraining, though another fails.

    Raises:
        UserError: some failed, were cancelled or deleted, or died more often than they are started again.
    """
    bad = [run for run in ended(runs, on_change) if not run.state.is_completed()]
    if bad:
        raise UserError(" ".join(_in_words(run) for run in bad))


def _in_words(run: FlowRun) -> str:
    said = run.state.message or ""
    if not said or said.startswith(UNFORESEEN):  # it may quote a sample
        said = "its log says why"
    return f"Run {run.name!r} ended as {run.state.name}: {said}"


def ended(runs: Sequence[FlowRun], on_change: Callable[[FlowRun], None] = say) -> Iterator[FlowRun]:
    """The runs, each as it ends, well or not. A server that is away for a while is waited for.

    Raises:
        UserError: one was deleted.
    """
    shown: dict[UUID, str | None] = dict.fromkeys(run.id for run in runs)
    crashed: dict[UUID, float] = {}
    while shown:
        for run in _read(list(shown)):
            if run.state_name != shown[run.id]:
                on_change(run)
            shown[run.id] = run.state_name
            if _has_ended(run, crashed):
                del shown[run.id]
                yield run
        time.sleep(POLL)


def _read(ids: Sequence[UUID]) -> list[FlowRun]:
    """Runs by their ids; none of them, while the server does not answer."""
    found: list[FlowRun] = []
    try:
        with get_client(sync_client=True) as client:
            for first in range(0, len(ids), AT_ONCE):
                wanted = FlowRunFilter(id=FlowRunFilterId(any_=list(ids[first : first + AT_ONCE])))
                found += client.read_flow_runs(flow_run_filter=wanted, limit=AT_ONCE)
    except (httpx.HTTPError, PrefectHTTPStatusError) as error:  # the server restarts, or its database is gone
        print(f"The server does not answer ({type(error).__name__}); waiting for it.")
        return []
    if gone := set(ids) - {run.id for run in found}:
        raise UserError(f"Runs that were waited for were deleted: {', '.join(map(str, gone))}.")
    return found


def _has_ended(run: FlowRun, crashed: dict[UUID, float]) -> bool:
    """Whether nothing will come of a run any more. One that crashed may be taken up again.

    Args:
        crashed: since when which run is, by this host's steady clock; clocks that show the time of day jump.
    """
    if run.state is not None and run.state.is_crashed():
        return time.monotonic() - crashed.setdefault(run.id, time.monotonic()) > FORGIVEN
    crashed.pop(run.id, None)
    return run.state is not None and run.state.is_final()


def patiently(step: Callable, *arguments):
    """Do a step; while what it needs elsewhere is away, do it again after ever longer pauses.

    Raises:
        RemoteAway: it is still away after an hour.
        UserError: what the step raises else.
    """
    for pause in PAUSES:
        try:
            return step(*arguments)
        except RemoteAway as error:
            print(f"{error} Trying again in {pause} s · {pause} 秒后重试")
            time.sleep(pause)
    return step(*arguments)


def clear_up(flow, flow_run: FlowRun, state) -> None:
    """Let the runs end that a cancelled one had started, and remove its clone; a hook, called with these names."""
    with get_client(sync_client=True) as client:
        end_children(client, flow_run.id)
    end_leftovers("PREFECT__FLOW_RUN_ID", str(flow_run.id))
    retraining.abandon(str(flow_run.id))


def end_children(client: SyncPrefectClient, run: UUID | str) -> None:
    """Let the runs end that a run had started and that are not over."""
    children = FlowRunFilter(tags=FlowRunFilterTags(all_=[tag_of(run)]))
    for first in itertools.count(0, AT_ONCE):
        some = client.read_flow_runs(flow_run_filter=children, limit=AT_ONCE, offset=first)
        for child in some:
            if child.state and child.state.is_crashed():  # the keeper would take it up again
                client.set_flow_run_state(child.id, Cancelled(), force=True)
            elif child.state and not child.state.is_final():
                client.set_flow_run_state(child.id, Cancelling())
        if len(some) < AT_ONCE:
            break


def tag_of(run) -> str:
    """By which the runs that a run started are found."""
    return f"of {run}"


def starter_in(tag: str) -> UUID | None:
    """The run that a tag of :func:`tag_of` names."""
    return UUID(tag.removeprefix("of ")) if tag.startswith("of ") else None
