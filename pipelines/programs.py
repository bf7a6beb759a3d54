"""Start the programs that a job consists of, and end them with it."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

QUIET = {"DVC_NO_ANALYTICS": "1", "ITERATIVE_DO_NOT_TRACK": "1", "DO_NOT_TRACK": "1"}


def run_module(name: str, *arguments: str) -> int:
    """Run ``python -m name`` with this interpreter, its output going to the terminal; gives its exit code.

    It gets a process group of its own, and whatever ends this process, but for SIGKILL, ends that whole
    group: a program killed alone would leave what it started running.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    command = [sys.executable, "-m", name, *arguments]
    process = subprocess.Popen(command, env={**os.environ, **QUIET, "PATH": path}, start_new_session=True)
    try:
        with terminable():
            return process.wait()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM end this process as an exception would, so that what it started is ended too."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python takes signals in the main thread alone
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
