"""Start the programs that a job consists of, and end them with it."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import psutil

from models.errors import UserError

QUIET = {"DVC_NO_ANALYTICS": "1", "ITERATIVE_DO_NOT_TRACK": "1", "DO_NOT_TRACK": "1"}


def run_module(name: str, *arguments: str, patience: float | None = None, files: Sequence[int] = ()) -> int:
    """Run ``python -m name`` with this interpreter, its output going to the terminal; gives its exit code.

    It gets a process group of its own, and whatever ends this process, but for SIGKILL, ends that whole
    group: a program killed alone would leave what it started running.

    Args:
        patience: seconds that the group may take to end when it is told to; None for as long as that takes.
        files: open files that it gets, such as locks that are to be held for as long as it lives.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    command = [sys.executable, "-m", name, *arguments]
    environment = {**os.environ, **QUIET, "PATH": path}
    process = subprocess.Popen(command, env=environment, start_new_session=True, pass_fds=files)
    try:
        with terminable():
            return process.wait()
    finally:
        if process.poll() is None:
            _end(process, patience)


def _end(process: subprocess.Popen, patience: float | None) -> None:
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def output_of(*command: str, **environment: str) -> str:
    """Run a program to its end, with this besides in its environment; gives what it wrote, without blanks around.

    Raises:
        UserError: it is not there, or failed; with what it said was rejected or fatal, or its last line.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    try:
        run = subprocess.run(
            command, env={**os.environ, **QUIET, "PATH": path, **environment}, capture_output=True, text=True
        )
    except FileNotFoundError:
        raise UserError(f"`{command[0]}` is not installed here.") from None
    if run.returncode != 0:
        lines = (run.stderr.strip() or run.stdout.strip() or "no output").splitlines()
        said = next((line.strip() for mark in ("rejected]", "fatal: ") for line in lines if mark in line), lines[-1])
        name = command[2:5] if command[:2] == (sys.executable, "-m") else command[:3]
        whole = f"`{' '.join(name)}` failed: {said}"
        raise UserError(re.sub(r"://[^/@\s]+@", "://", whole))  # without a password, or a token in its place
    return run.stdout.strip()


def feed(text: str, seconds: float, *command: str) -> None:
    """Run a program with this text on its standard input, for so long at most.

    Raises:
        UserError: it is not there, failed, or took longer.
    """
    try:
        subprocess.run(command, input=text, text=True, timeout=seconds, check=True, capture_output=True)
    except OSError as error:
        raise UserError(f"`{command[0]}` cannot be run here ({error.strerror}).") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"`{command[0]}` did not end within {seconds:.0f} s.") from None
    except subprocess.CalledProcessError as error:
        raise UserError(f"`{command[0]}` failed with exit code {error.returncode}.") from None


def become(name: str, *arguments: str) -> NoReturn:
    """Go on as ``python -m name``, in this very process."""
    os.execv(sys.executable, [sys.executable, "-m", name, *arguments])


def end_leftovers(variable: str, value: str, patience: float = 10.0) -> int:
    """End every process of this user that was started with this environment variable, but for this one's line.

    What a killed program had started lives on without it; the environment, which all of them inherit, tells whose
    they are. Gives how many there were.
    """
    psutil.process_iter.cache_clear()  # a process that it remembers may have given its number to another
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = [each for each in psutil.process_iter() if each.pid not in own and _started_with(each, variable) == value]
    end_all(found, patience)
    return len(found)


def end_all(processes: Sequence[psutil.Process], patience: float = 10.0) -> None:
    """Tell processes to end, and kill those that have not after so many seconds."""
    for process in processes:
        with suppress(psutil.Error):
            process.terminate()
    _, deaf = psutil.wait_procs(processes, timeout=patience)
    for process in deaf:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(deaf, timeout=patience)


def _started_with(process: psutil.Process, variable: str) -> str | None:
    try:
        return process.environ().get(variable)
    except (psutil.Error, OSError):  # another user's, or gone
        return None


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM end this process as an exception would, so that what it started is ended too.

    Whoever has made it an exception of its own, as Prefect has in a flow, keeps it.
    """
    # Python takes signals in the main thread alone.
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
