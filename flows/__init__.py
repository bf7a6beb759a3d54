"""When, where, how often: Prefect decorators and deployments, no logic of their own.

Beside the flows stand the programs that carry them: ``server``, ``agent`` and ``keeper``.
"""

import os

from pipelines.processes import QUIET

# Of the processes that flows run in. In a container Prefect is imported before this package, and reads its settings
# then: the image and the templates of container pools (deploy/) hold these as well.
RUN_SETTINGS = {
    **QUIET,
    # A server that Prefect starts for one run needs longer than its default allows on a small machine.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # the least that it takes; the keeper listens
    # A server that restarts, or whose database is away, is waited for: pauses double, four minutes in all.
    "PREFECT_CLIENT_MAX_RETRIES": "7",
    "PREFECT_CLIENT_RETRY_EXTRA_CODES": "500",
}
SETTINGS = RUN_SETTINGS | {  # and of server and workers
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_WORKER_QUERY_SECONDS": "3",
    # In memory, a server that restarts would forget who holds a place, and never give it back.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
}

# Prefect reads these once, when it is imported.
for _name, _value in SETTINGS.items():
    os.environ.setdefault(_name, _value)
