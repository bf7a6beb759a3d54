"""Start the programs that a job consists of, and end them with it."""

import os
import pty
import signal
import subprocess
import sys
import tempfile
import termios
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NoReturn

import psutil

from models import credentials
from models.credentials import mask_credentials
from models.errors import UserError
from models.program_environment import QUIET, program_environment
from pipelines import watchdog

NETWORK = frozenset({"clone", "fetch", "ls-remote", "pull", "push"})  # git's subcommands that wait for a server
CONNECTING = 30  # seconds for a server to begin SSH
SSH = "ssh -o BatchMode=yes -o ConnectTimeout={seconds} -o ServerAliveInterval=15 -o ServerAliveCountMax=4"
DRAINING = 2.0  # seconds for what a program printed last; what it left behind may hold its output for longer
LEAVING = 5.0  # seconds for a program to end once it is told to


class RemoteAway(UserError):
    """DVC's remote or the git repository is unavailable or full; a retry may succeed."""


class ProgramFailed(UserError):
    """A program ended with another exit code than 0.

    Attributes:
        output: all that it printed; the message has its reason alone.
    """

    def __init__(self, message: str, output: str):
        super().__init__(message)
        self.output = mask_credentials(output)


def run_module(
    name: str,
    *arguments: str,
    patience: float | None = None,
    files: Sequence[int] = (),
    environment: Mapping[str, str] | None = None,
    needs_network: bool = False,
) -> int:
    """Run ``python -m name`` with this interpreter; gives its exit code. Its output goes to the terminal, masked.

    The program gets a process group of its own, which ends with this process, unless SIGKILL ends this process: a
    program killed alone would leave its children running. Its standard input is empty: an agent has no terminal.

    Args:
        patience: seconds that the group may take to end when it is told to; None for as long as that takes.
        files: open files that it gets, such as locks that are to be held for as long as it lives.
        environment: instead of this process's.
        needs_network: end it if it makes no progress while it runs no other program.

    Raises:
        RemoteAway: it made no progress.
    """
    if environment is None:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        environment = {**os.environ, **QUIET, "PATH": path}
    command = [sys.executable, "-m", name, *arguments]
    with masked_output() as outputs:
        process = _start(command, env=environment, pass_fds=files, **outputs)
        guard = watchdog.Watchdog(process.pid, waits_for_children=True) if needs_network else None
        return _wait(process, _name_of(command), patience, guard)


def output_of(*command: str, **environment: str) -> str:
    """Run git or DVC to its end, with this besides in its environment; gives what it wrote, without blanks around.

    Raises:
        RemoteAway: it waited for a server that does not answer.
        ProgramFailed: it failed; with what it said was rejected, fatal or an error, or its last line.
        UserError: it is not there.
    """
    is_dvc = command[:3] == (sys.executable, "-m", "dvc")
    is_transfer = not is_dvc and not NETWORK.isdisjoint(command)
    whole = program_environment(**(_ssh_of(command) if is_transfer else {}), **environment)
    # Files and no pipes: what a program leaves behind, such as the master of SSH connections, would hold a pipe open.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        process = _start(command, env=whole, stdout=out, stderr=errors)
        guard = None
        if is_dvc:
            guard = watchdog.Watchdog(process.pid, waits_for_children=True)
        elif is_transfer:
            guard = watchdog.Watchdog(process.pid, longest=watchdog.LONGEST)
        code = _wait(process, _name_of(command), LEAVING, guard)
        written, said = (_text_of(file).strip() for file in (out, errors))
    if code != 0:
        raise ProgramFailed(f"`{_name_of(command)}` failed: {reason_in(said or written)}", f"{said}\n{written}")
    return written


def reason_in(output: str) -> str:
    """The line of git's or DVC's output that says why it failed: neither ends with it."""
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["no output"]
    for mark in ("rejected]", "fatal: ", "ERROR: ", "is not a git command"):
        for number, line in enumerate(lines):
            if mark in line:
                return " ".join(lines[number : number + 2]) if line.endswith(":") else line
    return lines[-1]


def _start(command: Sequence[str], **options) -> subprocess.Popen:
    """Start a program in a session of its own: without a terminal, there is none that it could ask.

    Raises:
        UserError: it is not there, or cannot be started so.
    """
    try:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, **options)
    except FileNotFoundError:
        raise UserError(f"`{command[0]}` is not installed here.") from None
    except OSError as error:
        raise UserError(f"`{command[0]}` cannot be run here ({error.strerror}).") from None
    except ValueError as error:  # such as a revision with a character that no argument can hold
        raise UserError(f"`{_name_of(command)}` cannot be run with such arguments ({error}).") from None


def _wait(process: subprocess.Popen, name: str, patience: float | None, guard: watchdog.Watchdog | None) -> int:
    """Wait until a program has ended; gives its exit code. However this ends, the program's group ends with it.

    Raises:
        RemoteAway: it makes no progress, or takes too long.
    """
    try:
        with terminable():
            while True:
                try:
                    return process.wait(guard and watchdog.LOOK)
                except subprocess.TimeoutExpired:
                    complaint = guard.look()
                if complaint:
                    patience = LEAVING
                    raise RemoteAway(f"`{name}` {complaint}: what it waits for does not answer.")
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


def _name_of(command: Sequence[str]) -> str:
    """A command's first words, as messages name it."""
    return " ".join(command[2:5] if command[:2] == (sys.executable, "-m") else command[:3])


def _text_of(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "replace")


def _ssh_of(command: Sequence[str]) -> dict[str, str]:
    """How git is to call SSH for this command: without questions, and not for ever, unless its user says how."""
    if "GIT_SSH_COMMAND" in os.environ or "GIT_SSH" in os.environ:
        return {}
    place = command[1:3] if command[1:2] == ("-C",) else ()
    try:
        is_set = bool(output_of(command[0], *place, "config", "core.sshCommand"))
    except ProgramFailed:  # it has no such setting
        is_set = False
    return {} if is_set else {"GIT_SSH_COMMAND": SSH.format(seconds=CONNECTING)}


@contextmanager
def masked_output() -> Iterator[dict[str, int]]:
    """Standard output and error for a program, whose lines reach this process's own without credentials.

    A separate process copies the lines. It outlives this process for as long as a program writes. Its environment is
    empty, because :func:`end_leftovers` finds the processes of a run by their environment.
    """
    targets = (1,) if _is_same(1, 2) else (1, 2)
    sources, outputs = zip(*map(_channel, targets), strict=True)
    pairs = [f"{source}:{target}" for source, target in zip(sources, targets, strict=True)]
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with suppress(OSError, ValueError):  # a broken pipe, or a closed file
            stream.flush()
    copying = None
    try:
        try:
            copying = _start([sys.executable, "-I", "-S", credentials.__file__, *pairs], env={}, pass_fds=sources)
        finally:
            for source in sources:
                os.close(source)
        yield {"stdout": outputs[0], "stderr": outputs[-1]}
    finally:
        for output in outputs:
            os.close(output)
        if copying is not None:
            with suppress(subprocess.TimeoutExpired):  # something else still writes
                copying.wait(DRAINING)


def _is_same(first: int, second: int) -> bool:
    """Whether two open files are one, whose lines keep their order only if one channel carries them."""
    with suppress(OSError):
        return os.path.sameopenfile(first, second)
    return False


def _channel(target: int) -> tuple[int, int]:
    """Two ends to read from and to write to: a terminal as wide as the target if that is one, else a pipe."""
    if not os.isatty(target):
        return os.pipe()
    source, output = pty.openpty()
    attributes = termios.tcgetattr(output)
    attributes[1] &= ~termios.OPOST  # the target ends lines as terminals do
    termios.tcsetattr(output, termios.TCSANOW, attributes)
    termios.tcsetwinsize(output, termios.tcgetwinsize(target))
    return source, output


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
