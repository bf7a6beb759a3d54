"""Launch the ranks of a training run, one process per device, with torchrun's launcher."""

import logging
import os
import sys
from dataclasses import fields

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from models.errors import UserError

SHUTDOWN_SECONDS = 120  # between SIGTERM and SIGKILL: time for a step and a checkpoint of all weights


def launch(module: str, arguments: list[str], processes: int) -> None:
    """Run ``python -m module`` in ``processes`` processes of this host, as one process group, and wait for them.

    If one fails or is killed, the others are terminated at once. SIGTERM is forwarded to them.

    Raises:
        UserError: a process was killed by a signal.
        SystemExit: a process failed, which has reported its error; or this process received a signal.
    """
    for name in ("agent.server.api", "multiprocessing.api", "multiprocessing.errors"):
        # torchrun's tables of failures would surround our error message.
        logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    supported = {field.name for field in fields(LaunchConfig)}
    shutdown = {"shutdown_timeout": SHUTDOWN_SECONDS} if "shutdown_timeout" in supported else {}  # newer torch only
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=module,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        monitor_interval=0.1,
        **shutdown,
    )
    try:
        elastic_launch(config, sys.executable)("-m", module, *arguments)
    except ChildFailedError as error:
        rank, failure = _root_cause(error)
        if failure.exitcode < 0:
            raise UserError(
                f"Rank {rank} was killed by signal {-failure.exitcode}, so the other ranks were terminated. "
                "Run the command again to resume from the last checkpoint."
            ) from None
        sys.exit(failure.exitcode)
    except SignalException as error:
        sys.exit(128 + error.sigval)


def _root_cause(error: ChildFailedError) -> tuple[int, ProcessFailure]:
    """Return rank and failure of a killed process if there is one, since others fail when they lose their peer."""
    killed = [(rank, failure) for rank, failure in error.failures.items() if failure.exitcode < 0]
    return killed[0] if killed else error.get_first_failure()
