"""What flows that died alone have left on this host: a training that goes on for nobody.

Its output still goes to the agent's worker, which takes the flow for alive as long as something writes there; and
Prefect's worker breaks down when it is given that run once more.
"""

import threading
from contextlib import suppress

import psutil

from pipelines.processes import end_all

LOOKS = 5.0  # seconds
AGENT, RUN = "TUNELINE_AGENT", "PREFECT__FLOW_RUN_ID"  # in the environment of what an agent, and a flow, started


def end_orphans(agent: str, patience: float, ended: threading.Event) -> None:
    """Look again and again for flows of an agent that are gone, and end what they left behind.

    Args:
        patience: seconds that it may take to end; a training writes a checkpoint.
        ended: set when the agent's worker has ended, behind which all flows are without a parent.
    """
    before: set[str] = set()
    while not ended.wait(LOOKS):
        left = left_behind(agent)
        gone = before & left.keys()  # seen twice: whoever ends in order may take a moment
        if gone and not ended.is_set():
            end_all([process for run in gone for process in left[run]], patience)
            print(f"Of flow runs that died, what they left was ended · 已结束遗留的进程: {', '.join(gone)}", flush=True)
        before = set(left)


def left_behind(agent: str) -> dict[str, list[psutil.Process]]:
    """The processes of each flow run of this agent whose flow is gone, while it has left a program of ours.

    A flow is a child of the agent's worker, and what it starts are children of its own. What has left its parents on
    purpose, such as git's own housekeeping or a service of the user's, says nothing of a flow.
    """
    ours: dict[int, tuple[psutil.Process, int, str | None]] = {}
    for pid in psutil.pids():  # process_iter remembers processes, and passes over one that has another's number
        with suppress(psutil.Error, OSError):  # another user's, or gone
            process = psutil.Process(pid)
            environment = process.environ()
            if environment.get(AGENT) == agent:
                ours[pid] = (process, process.ppid(), environment.get(RUN))
    alive = {run for _, parent, run in ours.values() if parent in ours and ours[parent][2] != run}
    left: dict[str, list[psutil.Process]] = {}
    for process, _, run in ours.values():
        if run is not None and run not in alive:
            left.setdefault(run, []).append(process)
    return {run: processes for run, processes in left.items() if any(map(_is_ours, processes))}


def _is_ours(process: psutil.Process) -> bool:
    """Whether it is DVC or a stage of the pipeline, which a flow waits for."""
    with suppress(psutil.Error, OSError):
        return any(part == "dvc" or part.startswith("stages.") for part in process.cmdline())
    return False
