"""Make the deployments of prefect.yaml once server and work pools are there: ``python -m flows.deployments``.

It runs whenever a site starts. Schedules that somebody has switched on, or made, in Prefect's UI stay on.
"""

import time

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import ObjectNotFound

from flows.agent import PATIENCE, wait_for_server
from flows.runs import OURS
from models.command_line import entry_point
from models.errors import UserError
from pipelines.processes import run_module

POOLS = ("cpu", "gpu")


def wait_for_pools() -> None:
    """Raises UserError: no agent made them."""
    until = time.monotonic() + PATIENCE
    with get_client(sync_client=True) as client:
        for pool in POOLS:
            while True:
                try:
                    client.read_work_pool(pool)
                    break
                except ObjectNotFound:
                    if time.monotonic() > until:
                        raise UserError(f"There is no work pool {pool!r}; start an agent for it.") from None
                    time.sleep(1)


def switched_on(client: SyncPrefectClient) -> dict[str, list]:
    """The schedules that are on, by the name of their deployment."""
    return {
        each.name: [one.schedule for one in each.schedules if one.active]
        for each in client.read_deployments()
        if OURS in each.tags
    }


def switch_on(client: SyncPrefectClient, wanted: dict[str, list]) -> None:
    """Switch schedules on again, and make those again that prefect.yaml does not have."""
    for deployment in client.read_deployments():
        for schedule in wanted.get(deployment.name, ()):
            there = [one for one in deployment.schedules if one.schedule == schedule]
            if not there:
                client.create_deployment_schedules(deployment.id, [(schedule, True)])
            elif not there[0].active:
                client.update_deployment_schedule(deployment.id, there[0].id, active=True)


@entry_point
def main() -> None:
    wait_for_server()
    wait_for_pools()
    with get_client(sync_client=True) as client:
        before = switched_on(client)
    if run_module("prefect", "--no-prompt", "deploy", "--all") != 0:
        raise UserError("The deployments were not made; the lines above say why.")
    with get_client(sync_client=True) as client:
        switch_on(client, before)


if __name__ == "__main__":
    main()
