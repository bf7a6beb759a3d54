"""An agent: a worker that owns GPUs. ``python -m flows.agent --gpus 0``, ``--gpus 0,1``, or ``--cpu``.

With ``--gpus`` it serves pool ``gpu``, one run at a time, and of those the ones that need as many GPUs as it owns;
no other agent on this host can own any of them, and what a run that died left there is ended before the next begins.
``--gpus none`` stands in for a GPU on a host without one. With ``--cpu`` it serves pool ``cpu``: orchestration, which
waits most of the time. It ends with SIGTERM or SIGINT, and what it was doing is done again elsewhere.

Its worker (flows.worker) is a process below it, and so is what that runs: whatever ends the agent, but for SIGKILL,
ends them. A worker that breaks down is started again, and what a flow left that died alone is ended.
"""

import argparse
import fcntl
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import httpx
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL

from flows import gpus
from flows.orphan_processes import end_orphans
from models.command_line import entry_point
from models.errors import UserError
from pipelines.clone import home
from pipelines.processes import end_leftovers, run_module

PROCESS = "process"  # the type of the work pools that agents serve
SIDE_BY_SIDE = 8  # orchestrating runs, which wait for others
PATIENCE = 120.0  # seconds for the server to answer at first
LETTING_GO = 5.0  # seconds that a worker may take to end
ENDING = 40.0  # seconds that what it runs may take; a training writes a checkpoint
SHORT = 60.0  # seconds: a worker that ends sooner would do so again
REFUSALS = {  # of a server that is there, by status
    httpx.codes.BAD_REQUEST: "it is reached by a name that it does not know; add that to TUNELINE_ORIGINS there.",
    httpx.codes.UNAUTHORIZED: "the password is missing or wrong; set PREFECT_API_AUTH_STRING to the server's.",
}


def serve_alone(name: str) -> None:
    """Be the agent of this name for as long as this process lives.

    Raises:
        UserError: another agent of this host and home is.
    """
    folder = home() / "agents"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = os.open(folder / f"{name}.lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"Another agent on this host is {name}; stop it first.") from None


def wait_for_server() -> None:
    """Raises UserError: no server is named, none answers, or it takes no request of this program's."""
    address, login = PREFECT_API_URL.value(), PREFECT_API_AUTH_STRING.value()
    if not address:
        raise UserError("PREFECT_API_URL names no server; `make server` starts one and says its address.")
    auth = httpx.BasicAuth(*login.partition(":")[::2]) if login else None
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        with suppress(httpx.HTTPError):
            answer = httpx.get(f"{address}/version", auth=auth, timeout=5)  # /health asks for no password
            if answer.status_code == httpx.codes.OK:
                return
            if answer.status_code in REFUSALS:
                raise UserError(f"The Prefect server at {address} refuses this program: {REFUSALS[answer.status_code]}")
        time.sleep(1)
    raise UserError(f"No Prefect server answers at {address}.")


@entry_point
def main() -> None:
    parser = argparse.ArgumentParser(description="Serve flows on this host.")
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--gpus", help="those that it owns: 0, or 0,1, or none for the CPU in their place")
    kind.add_argument("--cpu", action="store_true", help="serve what needs no GPU")
    arguments = parser.parse_args()
    owned = [] if arguments.cpu else gpus.chosen(arguments.gpus, gpus.present())
    names = "-".join(gpu.name.replace("/", "-") for gpu in owned) or gpus.NONE  # old drivers' UUIDs have strokes
    name = f"{socket.gethostname()}-{'cpu' if arguments.cpu else f'gpu-{names}'}"
    serve_alone(name)
    mark = f"{home()} {name}"  # another site on this host may have an agent of this name
    end_leftovers("TUNELINE_AGENT", mark)  # its worker, had it been killed alone, and what that runs
    locks = gpus.own(owned)
    for gpu in owned:  # what a dead agent of another name or home left there, which has no lock
        end_leftovers(gpu.mark, gpus.OWNED, patience=ENDING)
    os.environ |= {"TUNELINE_AGENT": mark, "PYTHONPATH": str(Path.cwd())} | {gpu.mark: gpus.OWNED for gpu in owned}
    os.environ[gpus.VISIBLE] = ",".join(gpu.uuid for gpu in owned)  # none for orchestration, which owns none
    work = ("--pool", "cpu", "--limit", str(SIDE_BY_SIDE))
    if not arguments.cpu:
        work = ("--pool", "gpu", "--limit", "1", "--work-queue", f"gpus-{max(len(owned), 1)}")
    # The worker ends by SIGINT, which a job in a shell's background ignores, and its children with it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(serve(("--type", PROCESS, "--name", name, *work), mark, locks))


def serve(worker: Sequence[str], mark: str, locks: Sequence[int]) -> int:
    """Run a worker, and another when it breaks down; gives the exit code of the last.

    Args:
        worker: arguments of flows.worker.
        mark: by which all that it starts is known.
        locks: open files that it holds for as long as it lives.

    Raises:
        UserError: no server answers.
    """
    while True:
        wait_for_server()
        began, ended = time.monotonic(), threading.Event()
        threading.Thread(target=end_orphans, args=(mark, ENDING, ended), daemon=True).start()
        try:
            code = run_module("flows.worker", *worker, patience=LETTING_GO, files=locks)
        finally:
            ended.set()
            lived = time.monotonic() - began
            # Told to end, a worker lets go of what it runs, which would go on without it.
            end_leftovers("TUNELINE_AGENT", mark, patience=ENDING)
        if code == 0 or lived < SHORT:
            return code
        print(f"The worker broke down (exit code {code}); another is started · 工作进程已中断，重新启动", flush=True)


if __name__ == "__main__":
    main()
