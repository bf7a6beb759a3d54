"""End training processes whose flow process was killed.

An orphaned training process keeps the worker's output pipe open. Prefect's worker then treats the flow as alive, and
crashes when the run is submitted again.
"""

import threading
from contextlib import suppress

import psutil

from pipelines.processes import AGENT_VARIABLE, terminate_all
from texts import translate

SCAN_INTERVAL = 5.0  # seconds
RUN_VARIABLE = "PREFECT__FLOW_RUN_ID"  # environment variable of all processes of a flow run


def watch_orphans(agent: str, stop_timeout: float, stopped: threading.Event) -> None:
    """Scan for orphaned processes of an agent and end them, until the worker stops.

    Args:
        agent: the value of TUNELINE_AGENT.
        stop_timeout: seconds between SIGTERM and SIGKILL, in which a training run saves a checkpoint.
        stopped: set when the worker has ended, after which every flow is without a parent.
    """
    previous: set[str] = set()
    while not stopped.wait(SCAN_INTERVAL):
        orphans = find_orphans(agent)
        # In two scans: the processes of a flow that ends normally take a moment to exit.
        confirmed = previous & orphans.keys()
        if confirmed and not stopped.is_set():
            terminate_all([process for run in confirmed for process in orphans[run]], stop_timeout)
            print(translate("Ended orphaned processes of flow runs: {runs}", runs=", ".join(confirmed)), flush=True)
        previous = set(orphans)


def find_orphans(agent: str) -> dict[str, list[psutil.Process]]:
    """Return the processes of each flow run of this agent whose flow process is gone.

    A flow process is a child of the agent's worker, and the flow's programs are descendants of the flow process. Runs
    whose remaining processes include neither DVC nor a stage are left out: a daemonized process, such as git's
    housekeeping or a service of the user, does not show that a flow was killed.
    """
    processes: dict[int, tuple[psutil.Process, int, str | None]] = {}
    for pid in psutil.pids():  # process_iter caches processes, and skips one that has reused a PID
        with suppress(psutil.Error, OSError):  # of another user, or ended meanwhile
            process = psutil.Process(pid)
            environment = process.environ()
            if environment.get(AGENT_VARIABLE) == agent:
                processes[pid] = (process, process.ppid(), environment.get(RUN_VARIABLE))
    alive = {run for _, parent, run in processes.values() if parent in processes and processes[parent][2] != run}
    remaining: dict[str, list[psutil.Process]] = {}
    for process, _, run in processes.values():
        if run is not None and run not in alive:
            remaining.setdefault(run, []).append(process)
    return {run: members for run, members in remaining.items() if any(map(_is_pipeline_process, members))}


def _is_pipeline_process(process: psutil.Process) -> bool:
    """Return whether the process is DVC or a stage, for which a flow waits."""
    with suppress(psutil.Error, OSError):
        return any(argument == "dvc" or argument.startswith("stages.") for argument in process.cmdline())
    return False
