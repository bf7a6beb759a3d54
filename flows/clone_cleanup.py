"""Remove clones of runs that have ended."""

from contextlib import suppress
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import StateType
from prefect.exceptions import ObjectNotFound

from flows.orphan_processes import RUN_VARIABLE
from models.errors import UserError
from pipelines import retraining
from pipelines.clone import list_clones
from pipelines.processes import terminate_by_environment

FAILED_CLONE_SECONDS = 7 * 86_400.0  # for which the clone of a failed run is kept


def remove_old_clones(run: str) -> None:
    """Remove the clones on this host of runs that cannot continue, such as cancelled runs whose hook did not run.

    Args:
        run: the calling run, whose clone stays.
    """
    with get_client(sync_client=True) as client:
        for other, age in list_clones():
            with suppress(UserError):  # a broken clone of another run must not fail this one
                if other != run and _is_disposable(client, other, age):
                    terminate_by_environment(RUN_VARIABLE, other)
                    retraining.discard_run(other)


def _is_disposable(client: SyncPrefectClient, run: str, age: float) -> bool:
    """Return whether the clone of a run is no longer needed.

    Args:
        age: seconds since the clone was made.
    """
    try:
        state = client.read_flow_run(UUID(run)).state
    except ObjectNotFound:  # deleted, or of another server that shares this folder
        return age > FAILED_CLONE_SECONDS
    except ValueError:  # not the id of a run
        return False
    if state is None or not state.is_final():
        return False
    # A user may retry a failed or crashed run, which then resumes from its checkpoints.
    return state.type in (StateType.COMPLETED, StateType.CANCELLED) or age > FAILED_CLONE_SECONDS
