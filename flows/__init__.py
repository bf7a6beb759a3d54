"""When, where, how often: Prefect decorators and deployments, no logic of their own."""

import os

# Prefect reads these once, when it is imported. A server that it starts for one run needs longer than its
# default allows on a small machine.
for _name, _value in {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
}.items():
    os.environ.setdefault(_name, _value)
