"""The only place that starts dvc."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from models.errors import UserError

QUIET = {"DVC_NO_ANALYTICS": "1", "ITERATIVE_DO_NOT_TRACK": "1", "DO_NOT_TRACK": "1"}


def run(*arguments: str) -> None:
    """Run ``dvc`` with this interpreter's programs first on the path, its output going to the terminal.

    dvc gets a process group of its own, and whatever ends this process, but for SIGKILL, ends that whole
    group: killing dvc alone would leave its stage running.

    Raises:
        UserError: dvc failed; it has said why.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-m", "dvc", *arguments], env={**os.environ, **QUIET, "PATH": path}, start_new_session=True
    )
    try:
        with terminable():
            code = process.wait()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
    if code != 0:
        raise UserError(f"`dvc {' '.join(arguments)}` stopped; the lines above say where and why.")


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
