"""Starting a training's processes, one a device, by torchrun's own launcher."""

import logging
import os
import sys
from dataclasses import fields

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from models.errors import UserError

SECONDS_TO_SAVE = 120  # between SIGTERM and SIGKILL: a step and a checkpoint of all weights


def launch(module: str, arguments: list[str], processes: int) -> None:
    """Run ``python -m module`` in so many processes of this host, which form one group; ends when they end.

    If one fails or is killed, the others are ended at once. SIGTERM is handed on to them.

    Raises:
        UserError: one was killed; what it was doing is said by itself otherwise.
        SystemExit: with the code of the process that failed, or of the signal.
    """
    for name in ("agent.server.api", "multiprocessing.api", "multiprocessing.errors"):
        # Its tables of failures would stand beside our sentence.
        logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    known = {field.name for field in fields(LaunchConfig)}
    patience = {"shutdown_timeout": SECONDS_TO_SAVE} if "shutdown_timeout" in known else {}  # not in every version
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
        **patience,
    )
    try:
        elastic_launch(config, sys.executable)("-m", module, *arguments)
    except ChildFailedError as error:
        rank, failure = _first_cause(error)
        if failure.exitcode < 0:
            raise UserError(
                f"The process of device {rank} was ended by signal {-failure.exitcode}; the others were ended too. "
                "Run it again: it goes on from its last checkpoint."
            ) from None
        sys.exit(failure.exitcode)
    except SignalException as error:
        sys.exit(128 + error.sigval)


def _first_cause(error: ChildFailedError):
    """The rank and failure that the others followed from: rather one that was killed than one that missed it."""
    killed = [(rank, each) for rank, each in error.failures.items() if each.exitcode < 0]
    return killed[0] if killed else error.get_first_failure()
