"""What flows that died alone have left on this host: a training that goes on for nobody.

Its output still goes to the agent's worker, which takes the flow for alive as long as something writes there; and
Prefect's worker breaks down when it is given that run once more.
"""

import time
from contextlib import suppress
from typing import NoReturn

import psutil

from pipelines.programs import end_all

LOOKS = 5.0  # seconds
AGENT, RUN = "TUNELINE_AGENT", "PREFECT__FLOW_RUN_ID"  # in the environment of what an agent, and a flow, started


def end_orphans(agent: str, patience: float) -> NoReturn:
    """Look again and again for flows of an agent that are gone, and end what they left behind.

    Args:
        patience: seconds that it may take to end; a training writes a checkpoint.
    """
    before: set[str] = set()
    while True:
        time.sleep(LOOKS)
        left = left_behind(agent)
        for run in before & left.keys():  # seen twice: whoever ends in order may take a moment
            print(f"Flow run {run} is gone; what it left is ended · 流程已不在，结束其遗留的进程", flush=True)
            end_all(left[run], patience)
        before = set(left)


def left_behind(agent: str) -> dict[str, list[psutil.Process]]:
    """The processes of each flow run of this agent whose flow is gone.

    A flow is a child of the agent's worker, and what it starts are children of its own. What has left its parents on
    purpose, such as git's own housekeeping, says nothing of a flow that lives.
    """
    ours: dict[int, tuple[psutil.Process, int, str | None]] = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):  # another user's, or gone
            environment = process.environ()
            if environment.get(AGENT) == agent:
                ours[process.pid] = (process, process.ppid(), environment.get(RUN))
    alive = {run for _, parent, run in ours.values() if parent in ours and ours[parent][2] != run}
    left: dict[str, list[psutil.Process]] = {}
    for process, _, run in ours.values():
        if run is not None and run not in alive:
            left.setdefault(run, []).append(process)
    return left
