"""Create the deployments of prefect.yaml once server and work pools exist: ``python -m flows.deployments``.

Runs at every start of a site. Schedules that were activated or added in Prefect's UI stay active.
"""

import time

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import ObjectNotFound

from flows.agent import SERVER_TIMEOUT, wait_for_server
from flows.run_metadata import PROJECT_TAG
from models.command_line import entry_point
from models.errors import UserError
from pipelines.processes import run_module

POOLS = ("cpu", "gpu")


def wait_for_pools() -> None:
    """Wait until the work pools exist, which agents create.

    Raises:
        UserError: a pool is missing after SERVER_TIMEOUT.
    """
    deadline = time.monotonic() + SERVER_TIMEOUT
    with get_client(sync_client=True) as client:
        for pool in POOLS:
            while not _has_pool(client, pool):
                if time.monotonic() > deadline:
                    raise UserError(f"Work pool {pool!r} does not exist; start an agent that serves it.")
                time.sleep(1)


def _has_pool(client: SyncPrefectClient, name: str) -> bool:
    try:
        client.read_work_pool(name)
        return True
    except ObjectNotFound:
        return False


def active_schedules(client: SyncPrefectClient) -> dict[str, list]:
    """Return the active schedules, by deployment name."""
    return {
        deployment.name: [entry.schedule for entry in deployment.schedules if entry.active]
        for deployment in client.read_deployments()
        if PROJECT_TAG in deployment.tags
    }


def restore_schedules(client: SyncPrefectClient, wanted: dict[str, list]) -> None:
    """Activate schedules again; create those that prefect.yaml does not contain.

    Args:
        wanted: the result of :func:`active_schedules` before ``prefect deploy``.
    """
    for deployment in client.read_deployments():
        for schedule in wanted.get(deployment.name, ()):
            existing = next((entry for entry in deployment.schedules if entry.schedule == schedule), None)
            if existing is None:
                client.create_deployment_schedules(deployment.id, [(schedule, True)])
            elif not existing.active:
                client.update_deployment_schedule(deployment.id, existing.id, active=True)


@entry_point
def main() -> None:
    wait_for_server()
    wait_for_pools()
    with get_client(sync_client=True) as client:
        schedules = active_schedules(client)
    if run_module("prefect", "--no-prompt", "deploy", "--all") != 0:
        raise UserError("`prefect deploy --all` failed; see the lines above.")
    with get_client(sync_client=True) as client:
        restore_schedules(client, schedules)


if __name__ == "__main__":
    main()
