"""Make the deployments of prefect.yaml once server and work pools are there: ``python -m flows.deployments``."""

import time

from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound

from flows.agent import PATIENCE, wait_for_server
from models.errors import UserError, program
from pipelines.programs import run_module

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


@program
def main() -> None:
    wait_for_server()
    wait_for_pools()
    if run_module("prefect", "--no-prompt", "deploy", "--all") != 0:
        raise UserError("The deployments were not made; the lines above say why.")


if __name__ == "__main__":
    main()
