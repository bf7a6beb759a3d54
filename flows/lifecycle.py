"""Lifecycle of a flow run: the flow decorator, its setup, failure and cancellation."""

import functools
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from uuid import UUID

import httpx
import prefect
from prefect import runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import FailedRun, PrefectHTTPStatusError
from prefect.logging import get_run_logger
from prefect.settings import get_current_settings
from prefect.states import Failed

from flows import notifications
from flows.child_runs import cancel_children
from flows.clone_cleanup import remove_old_clones
from flows.orphan_processes import RUN_VARIABLE
from flows.run_metadata import HEARTBEAT_LABEL
from models.errors import DataBlocked, UserError
from pipelines import retraining, run_refs
from pipelines.clone import existing_clone
from pipelines.processes import terminate_by_environment


def max_restarts() -> int:
    """Return how often a killed flow run or training run is restarted: ``TUNELINE_RESTARTS``, by default 3.

    Raises:
        UserError: the variable is not a number.
    """
    value = os.environ.get("TUNELINE_RESTARTS", "3")
    if not value.isdecimal():
        raise UserError(f"TUNELINE_RESTARTS is {value!r}; set it to a number, such as 3.")
    return int(value)


def flow(**options):
    """Decorate a function as a Prefect flow of this project.

    A UserError becomes the message of state Failed and one line of the log, without a traceback. A cancelled run
    cancels its children and removes its clone.

    Args:
        options: of ``prefect.flow``.
    """

    def decorate(function: Callable) -> prefect.Flow:
        @functools.wraps(function)
        def run_and_report(*arguments, **keywords):
            try:
                return function(*arguments, **keywords)
            except UserError as error:
                get_run_logger().error("%s", error)
                for name in ("prefect.flow_runs", "prefect.engine"):
                    logging.getLogger(name).addFilter(_has_no_failed_run)
                return Failed(message=str(error))

        return prefect.flow(log_prints=True, on_cancellation=[clean_up_cancelled], **options)(run_and_report)

    return decorate


def _has_no_failed_run(record: logging.LogRecord) -> bool:
    """Return False for Prefect's traceback of a run that returned state Failed: the log has the reason already."""
    return record.exc_info is None or not isinstance(record.exc_info[1], FailedRun)


def set_up_run() -> str:
    """Prepare this flow run, and return its id.

    Reports the heartbeat interval to the keeper. Terminates leftover processes of the run from before a restart, which
    would train in parallel with the new ones. Removes clones of other runs that have ended.
    """
    run = str(runtime.flow_run.id)
    report_heartbeat(run)
    terminate_by_environment(RUN_VARIABLE, run)
    remove_old_clones(run)
    return run


def report_heartbeat(run: str) -> None:
    """Label a run with its heartbeat interval, for the keeper: the run's host may have another setting."""
    seconds = get_current_settings().flows.heartbeat_frequency or 0
    with get_client(sync_client=True) as client:
        client.update_flow_run_labels(UUID(run), {HEARTBEAT_LABEL: seconds})


@contextmanager
def reporting_failure(run: str) -> Iterator[None]:
    """On an error in the block, unpublish the run's ref, cancel its children, and notify; then raise the error.

    Blocked data has its own notification, and no child run was started.
    """
    try:
        yield
    except DataBlocked:
        raise
    except Exception as error:
        clone = existing_clone(run)
        if clone is not None and clone.origin:
            run_refs.try_unpublish(clone, run)
        # An unavailable server must not replace the error.
        with suppress(httpx.HTTPError, PrefectHTTPStatusError), get_client(sync_client=True) as client:
            cancel_children(client, run)
        # The message of an unexpected error may quote a sample; only the run's log has it.
        is_expected = isinstance(error, UserError)
        message = str(error) if is_expected else f"{type(error).__name__}; see the log of the run for details"
        notifications.notify("failed", message)
        raise


def clean_up_cancelled(flow, flow_run: FlowRun, state) -> None:
    """Cancel the children of a cancelled run, and remove its processes and clone; a hook with Prefect's parameters."""
    with get_client(sync_client=True) as client:
        cancel_children(client, flow_run.id)
    terminate_by_environment(RUN_VARIABLE, str(flow_run.id))
    retraining.discard_run(str(flow_run.id))
