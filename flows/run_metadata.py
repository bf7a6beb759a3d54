"""Tags, labels and states by which the project's flow runs are found on the server."""

from uuid import UUID

from prefect.client.schemas.objects import StateType

PROJECT_TAG = "tuneline"  # of every deployment and run
HEARTBEAT_LABEL = "tuneline.heartbeat"  # of a run: seconds between its heartbeats, 0 for none
UNSUCCESSFUL = (StateType.FAILED, StateType.CANCELLED)
PAGE_SIZE = 200  # runs that the server returns for one request


def child_tag(run: UUID | str) -> str:
    """Return the tag of all child runs of a run."""
    return f"of {run}"


def parent_from_tag(tag: str) -> UUID | None:
    """Return the run in a tag of :func:`child_tag`; None for other tags."""
    return UUID(tag.removeprefix("of ")) if tag.startswith("of ") else None
