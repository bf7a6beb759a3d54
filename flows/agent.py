"""An agent serves a Prefect work pool on this host: ``python -m flows.agent --gpus 0``, ``--gpus 0,1``, or ``--cpu``.

``--gpus`` serves pool ``gpu``, one run at a time, from the work queue for runs that need this number of GPUs. A GPU
belongs to one agent of the host. ``--gpus none`` uses the CPU in place of a GPU. ``--cpu`` serves pool ``cpu``:
orchestrating runs, which mostly wait.

The agent supervises a worker (:mod:`flows.worker`) and everything below it: the processes end with the agent, unless
SIGKILL ends the agent, in which case the next agent on the same GPU ends them. A worker that crashes is restarted, and
processes of a flow that was killed are ended. SIGTERM and SIGINT stop the agent; its runs are rescheduled elsewhere.
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
from flows.orphan_processes import watch_orphans
from models.command_line import entry_point
from models.errors import UserError
from pipelines.clone import home
from pipelines.processes import AGENT_VARIABLE, run_module, terminate_by_environment
from texts import translate

PROCESS_POOL = "process"  # type of the work pools that agents serve
CPU_RUN_LIMIT = 8  # concurrent orchestrating runs
SERVER_TIMEOUT = 120.0  # seconds until the server must answer
WORKER_STOP_TIMEOUT = 5.0  # seconds between SIGTERM and SIGKILL for the worker
RUN_STOP_TIMEOUT = 40.0  # seconds between SIGTERM and SIGKILL for a flow run: enough to save a checkpoint
MIN_WORKER_UPTIME = 60.0  # seconds: a worker that crashes sooner would crash again, so it is not restarted
REJECTION_HINTS = {  # by HTTP status
    httpx.codes.BAD_REQUEST: "unknown host name; add its URL to TUNELINE_ORIGINS of the server.",
    httpx.codes.UNAUTHORIZED: "the login is missing or wrong; set PREFECT_API_AUTH_STRING to the server's login.",
}


def lock_agent_name(name: str) -> None:
    """Lock the agent's name for the lifetime of this process.

    Raises:
        UserError: another agent on this host, with the same TUNELINE_HOME, has the name.
    """
    folder = home() / "agents"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = os.open(folder / f"{name}.lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"Agent {name} already runs on this host; stop it first.") from None


def wait_for_server() -> None:
    """Wait until the Prefect server answers.

    Raises:
        UserError: PREFECT_API_URL is not set, the server does not answer within SERVER_TIMEOUT, or it rejects the
            host name or the login.
    """
    api_url, login = PREFECT_API_URL.value(), PREFECT_API_AUTH_STRING.value()
    if not api_url:
        raise UserError("PREFECT_API_URL is not set; `make server` starts a server and prints its URL.")
    auth = httpx.BasicAuth(*login.partition(":")[::2]) if login else None
    deadline = time.monotonic() + SERVER_TIMEOUT
    while time.monotonic() < deadline:
        with suppress(httpx.HTTPError):
            response = httpx.get(f"{api_url}/version", auth=auth, timeout=5)  # /health requires no login
            if response.status_code == httpx.codes.OK:
                return
            if hint := REJECTION_HINTS.get(response.status_code):
                raise UserError(f"The Prefect server at {api_url} rejects requests of this host: {hint}")
        time.sleep(1)
    raise UserError(f"No Prefect server answers at {api_url}.")


@entry_point
def main() -> None:
    parser = argparse.ArgumentParser(description="Run flows on this host.")
    pool = parser.add_mutually_exclusive_group(required=True)
    pool.add_argument("--gpus", help="the agent's GPUs, such as 0 or 0,1; none uses the CPU instead")
    pool.add_argument("--cpu", action="store_true", help="serve orchestrating runs, which need no GPU")
    arguments = parser.parse_args()
    owned = [] if arguments.cpu else gpus.select_gpus(arguments.gpus, gpus.list_gpus())
    gpu_names = "-".join(gpu.name.replace("/", "-") for gpu in owned) or gpus.NO_GPU  # old MIG UUIDs contain slashes
    name = f"{socket.gethostname()}-{'cpu' if arguments.cpu else f'gpu-{gpu_names}'}"
    lock_agent_name(name)
    marker = f"{home()} {name}"  # with the home, since another site on this host may use the same agent name
    terminate_by_environment(AGENT_VARIABLE, marker)  # of an earlier process of this agent
    locks = gpus.claim_gpus(owned)
    for gpu in owned:  # processes of a killed agent with another name or home, which held no lock of this name
        terminate_by_environment(gpu.marker, gpus.MARKER_VALUE, grace=RUN_STOP_TIMEOUT)
    os.environ |= {AGENT_VARIABLE: marker, "PYTHONPATH": str(Path.cwd())}
    os.environ |= {gpu.marker: gpus.MARKER_VALUE for gpu in owned}
    os.environ[gpus.VISIBLE_DEVICES] = ",".join(gpu.uuid for gpu in owned)  # empty hides all GPUs
    queue = ("--pool", "cpu", "--limit", str(CPU_RUN_LIMIT))
    if not arguments.cpu:
        queue = ("--pool", "gpu", "--limit", "1", "--work-queue", f"gpus-{max(len(owned), 1)}")
    # SIGINT stops the worker and its children. A background job of a shell would ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(supervise_worker(("--type", PROCESS_POOL, "--name", name, *queue), marker, locks))


def supervise_worker(worker: Sequence[str], marker: str, locks: Sequence[int]) -> int:
    """Run a worker and restart it when it crashes; return the exit code of the last one.

    Args:
        worker: arguments of flows.worker.
        marker: the value of TUNELINE_AGENT in the environment of this agent's processes.
        locks: open files that the worker inherits, so that locks are held while the worker lives.

    Raises:
        UserError: the server does not answer.
    """
    while True:
        wait_for_server()
        started, stopped = time.monotonic(), threading.Event()
        threading.Thread(target=watch_orphans, args=(marker, RUN_STOP_TIMEOUT, stopped), daemon=True).start()
        try:
            code = run_module("flows.worker", *worker, grace=WORKER_STOP_TIMEOUT, files=locks)
        finally:
            stopped.set()
            uptime = time.monotonic() - started
            # A worker does not wait for its runs on SIGTERM; they would continue without it.
            terminate_by_environment(AGENT_VARIABLE, marker, grace=RUN_STOP_TIMEOUT)
        if code == 0 or uptime < MIN_WORKER_UPTIME:
            return code
        print(translate("The worker crashed (exit code {code}); restarting it.", code=code), flush=True)


if __name__ == "__main__":
    main()
