"""Start child runs on agents, and cancel them."""

import itertools
from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from prefect import runtime
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.states import Cancelled, Cancelling

from flows.run_metadata import PAGE_SIZE, PROJECT_TAG, UNSUCCESSFUL, child_tag


def start_child_run(deployment: str, key: str, name: str, parameters: dict, gpus: int | None = None) -> FlowRun:
    """Start a run of a deployment; a second call with the same key returns the same run.

    A failed child is restarted only if its parent failed later and was retried. After a mere crash of the parent the
    inputs are unchanged, so the child would fail again. A cancelled child is restarted if its parent was cancelled too.

    Args:
        deployment: ``flow/name``.
        key: identifies the child among all runs.
        gpus: number of GPUs. It selects the work queue of process agents with this number of GPUs. Kubernetes pools
            read it as a job variable, which other pools ignore.
    """
    parent = runtime.flow_run.id
    failure_times = _read_failure_times(parent)
    for attempt in itertools.count():
        run = run_deployment(
            deployment,
            parameters=parameters,
            flow_run_name=name,
            timeout=0,
            idempotency_key=f"{key} {attempt}",
            work_queue_name=f"gpus-{gpus}" if gpus else None,
            job_variables={"gpus": gpus} if gpus else None,
            tags=[PROJECT_TAG, *([child_tag(parent)] if parent else [])],
        )
        if not _needs_new_attempt(run, failure_times):
            break
    return run


def _read_failure_times(run: str | None) -> list[datetime]:
    """Return the times at which earlier attempts of a run failed or were cancelled, by the server's clock."""
    if run is None:
        return []
    with get_client(sync_client=True) as client:
        states = client.read_flow_run_states(UUID(str(run)))
    return [state.timestamp for state in states if state.type in UNSUCCESSFUL]


def _needs_new_attempt(run: FlowRun, parent_failure_times: Sequence[datetime]) -> bool:
    """Return whether a child failed or was cancelled in an earlier attempt of its parent."""
    if run.state is None or not (run.state.type in UNSUCCESSFUL or run.state.is_cancelling()):
        return False
    if run.state.is_failed():
        return any(time > run.state.timestamp for time in parent_failure_times)
    return bool(parent_failure_times)  # a child may end after the parent with which it was cancelled


def cancel_children(client: SyncPrefectClient, run: UUID | str) -> None:
    """Cancel all child runs of a run that have not ended."""
    children = FlowRunFilter(tags=FlowRunFilterTags(all_=[child_tag(run)]))
    for offset in itertools.count(0, PAGE_SIZE):
        page = client.read_flow_runs(flow_run_filter=children, limit=PAGE_SIZE, offset=offset)
        for child in page:
            if child.state and child.state.is_crashed():  # the keeper would restart it
                client.set_flow_run_state(child.id, Cancelled(), force=True)
            elif child.state and not child.state.is_final():
                client.set_flow_run_state(child.id, Cancelling())
        if len(page) < PAGE_SIZE:
            break
