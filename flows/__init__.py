"""Prefect flows, deployments and the programs that run them: server, agents, workers and keeper.

The keeper is the monitor that restarts crashed runs.
A flow adds retries, concurrency limits, artifacts and schedules to a pipeline; the logic is in ``pipelines``.
"""

import os

from pipelines.processes import QUIET

# For the processes that run flows. In a container Prefect reads its settings before this package is imported, so the
# image and the job templates of container pools (deploy/) repeat these values.
RUN_SETTINGS = {
    **QUIET,
    # The temporary server of a run without PREFECT_API_URL starts slowly on a small machine.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # seconds; the minimum that Prefect accepts
    # Exponential backoff, four minutes in total, while the server restarts or its database is unavailable.
    "PREFECT_CLIENT_MAX_RETRIES": "7",
    "PREFECT_CLIENT_RETRY_EXTRA_CODES": "500",
}
SETTINGS = RUN_SETTINGS | {  # for server and workers as well
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_WORKER_QUERY_SECONDS": "3",
    # With leases in memory, a restarted server never releases the concurrency slots that were in use.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
}

# Prefect reads its settings once, at import.
for _name, _value in SETTINGS.items():
    os.environ.setdefault(_name, _value)
