"""Run programs: process groups that end with this process, captured or masked output, timeouts for hanging servers."""

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

AGENT_VARIABLE = "TUNELINE_AGENT"  # environment variable of all processes that an agent starts
NETWORK_COMMANDS = frozenset({"clone", "fetch", "ls-remote", "pull", "push"})  # git subcommands that wait for a server
SSH_CONNECT_SECONDS = 30
SSH = "ssh -o BatchMode=yes -o ConnectTimeout={seconds} -o ServerAliveInterval=15 -o ServerAliveCountMax=4"
DRAIN_SECONDS = 2.0  # for the last lines of a program; a background process of it may hold the output open for longer
TERMINATE_SECONDS = 5.0  # from SIGTERM to SIGKILL


class RemoteUnavailable(UserError):
    """DVC's remote or the git repository is unreachable or full; a retry may succeed."""


class ProgramFailed(UserError):
    """A program exited with a code other than 0.

    Attributes:
        output: everything that the program printed, credentials masked; the message has only the reason.
    """

    def __init__(self, message: str, output: str):
        super().__init__(message)
        self.output = mask_credentials(output)


def run_module(
    name: str,
    *arguments: str,
    grace: float | None = None,
    files: Sequence[int] = (),
    environment: Mapping[str, str] | None = None,
    needs_network: bool = False,
) -> int:
    """Run ``python -m name`` with this interpreter and return its exit code. Its output goes to the terminal, masked.

    The program runs in a process group of its own, which is terminated with this process (unless by SIGKILL):
    terminating the program alone would leave its children running. Standard input is empty, since an agent has no
    terminal.

    Args:
        grace: seconds between SIGTERM and SIGKILL for the group; None waits without a limit.
        files: open file descriptors that the program inherits, such as locks that it holds while it runs.
        environment: replaces this process's environment.
        needs_network: terminate the program when it makes no progress and runs no other program.

    Raises:
        RemoteUnavailable: the program made no progress.
    """
    if environment is None:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        environment = {**os.environ, **QUIET, "PATH": path}
    command = [sys.executable, "-m", name, *arguments]
    with masked_output() as outputs:
        process = _start(command, env=environment, pass_fds=files, **outputs)
        guard = watchdog.Watchdog(process.pid, waits_for_children=True) if needs_network else None
        return _wait(process, _short_command(command), grace, guard)


def output_of(*command: str, **environment: str) -> str:
    """Run git or DVC and return its standard output, stripped.

    Args:
        environment: additional environment variables.

    Raises:
        RemoteUnavailable: the program waited for a server that does not answer.
        ProgramFailed: the program failed; the message has the line with the reason, see :func:`failure_reason`.
        UserError: the program is not installed or cannot be started.
    """
    is_dvc = command[:3] == (sys.executable, "-m", "dvc")
    is_transfer = not is_dvc and not NETWORK_COMMANDS.isdisjoint(command)
    variables = program_environment(**(_ssh_environment(command) if is_transfer else {}), **environment)
    # Files instead of pipes: a background process of the program, such as an SSH master, would hold a pipe open.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        process = _start(command, env=variables, stdout=out, stderr=errors)
        guard = None
        if is_dvc:
            guard = watchdog.Watchdog(process.pid, waits_for_children=True)
        elif is_transfer:
            guard = watchdog.Watchdog(process.pid, max_seconds=watchdog.MAX_TRANSFER_SECONDS)
        code = _wait(process, _short_command(command), TERMINATE_SECONDS, guard)
        output, error_output = (_read_text(file).strip() for file in (out, errors))
    if code != 0:
        reason = failure_reason(error_output or output)
        raise ProgramFailed(f"`{_short_command(command)}` failed: {reason}", f"{error_output}\n{output}")
    return output


def failure_reason(output: str) -> str:
    """Return the line of git's or DVC's output with the reason of the failure, which is rarely the last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["no output"]
    for mark in ("rejected]", "fatal: ", "ERROR: ", "is not a git command"):
        for number, line in enumerate(lines):
            if mark in line:
                return " ".join(lines[number : number + 2]) if line.endswith(":") else line
    return lines[-1]


def _start(command: Sequence[str], **options) -> subprocess.Popen:
    """Start a program in a new session: without a controlling terminal it cannot prompt.

    Raises:
        UserError: the program is not installed, or cannot be started.
    """
    try:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, **options)
    except FileNotFoundError:
        raise UserError(f"`{command[0]}` is not installed here.") from None
    except OSError as error:
        raise UserError(f"`{command[0]}` cannot be run here ({error.strerror}).") from None
    except ValueError as error:  # e.g. a revision with a NUL byte
        raise UserError(f"`{_short_command(command)}` cannot be run with such arguments ({error}).") from None


def _wait(process: subprocess.Popen, name: str, grace: float | None, guard: watchdog.Watchdog | None) -> int:
    """Wait for a program and return its exit code. On any exception the program's process group is terminated.

    Raises:
        RemoteUnavailable: the watchdog found no progress, or the time limit has passed.
    """
    try:
        with sigterm_as_exit():
            while True:
                try:
                    return process.wait(guard and watchdog.POLL_SECONDS)
                except subprocess.TimeoutExpired:
                    reason = guard.check_progress()
                if reason:
                    grace = TERMINATE_SECONDS
                    raise RemoteUnavailable(f"`{name}` {reason}: its server does not answer.")
    finally:
        if process.poll() is None:
            _terminate_group(process, grace)


def _terminate_group(process: subprocess.Popen, grace: float | None) -> None:
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(grace)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _short_command(command: Sequence[str]) -> str:
    """Return a command's first three words, for messages; the folder of git and DVC is left out."""
    words = list(command[2:] if tuple(command[:2]) == (sys.executable, "-m") else command)
    if words[1:2] in (["-C"], ["--cd"]):
        del words[1:3]
    return " ".join(words[:3])


def _read_text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "replace")


def _ssh_environment(command: Sequence[str]) -> dict[str, str]:
    """Return GIT_SSH_COMMAND without prompts and with timeouts, unless the user configures SSH for git."""
    if "GIT_SSH_COMMAND" in os.environ or "GIT_SSH" in os.environ:
        return {}
    repository = command[1:3] if command[1:2] == ("-C",) else ()
    try:
        is_set = bool(output_of(command[0], *repository, "config", "core.sshCommand"))
    except ProgramFailed:  # git fails for a key that is not set
        is_set = False
    return {} if is_set else {"GIT_SSH_COMMAND": SSH.format(seconds=SSH_CONNECT_SECONDS)}


@contextmanager
def masked_output() -> Iterator[dict[str, int]]:
    """Yield ``stdout`` and ``stderr`` for a program; its lines reach this process's own with credentials masked.

    A separate process copies the lines. It outlives this process for as long as a program writes. Its environment is
    empty, because :func:`terminate_by_environment` finds the processes of a run by their environment.
    """
    targets = (1,) if _is_same_file(1, 2) else (1, 2)
    sources, outputs = zip(*map(_open_channel, targets), strict=True)
    pairs = [f"{source}:{target}" for source, target in zip(sources, targets, strict=True)]
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with suppress(OSError, ValueError):  # a broken pipe, or a closed file
            stream.flush()
    copier = None
    try:
        try:
            copier = _start([sys.executable, "-I", "-S", credentials.__file__, *pairs], env={}, pass_fds=sources)
        finally:
            for source in sources:
                os.close(source)
        yield {"stdout": outputs[0], "stderr": outputs[-1]}
    finally:
        for output in outputs:
            os.close(output)
        if copier is not None:
            with suppress(subprocess.TimeoutExpired):  # a background process still writes
                copier.wait(DRAIN_SECONDS)


def _is_same_file(first: int, second: int) -> bool:
    """Return whether two descriptors are the same file: one channel for both then keeps the order of the lines."""
    with suppress(OSError):
        return os.path.sameopenfile(first, second)
    return False


def _open_channel(target: int) -> tuple[int, int]:
    """Return the read and the write end of a pipe, or of a pseudo-terminal as wide as the target if that is one."""
    if not os.isatty(target):
        return os.pipe()
    source, output = pty.openpty()
    attributes = termios.tcgetattr(output)
    attributes[1] &= ~termios.OPOST  # the target itself translates line ends
    termios.tcsetattr(output, termios.TCSANOW, attributes)
    termios.tcsetwinsize(output, termios.tcgetwinsize(target))
    return source, output


def run_with_input(text: str, seconds: float, *command: str) -> None:
    """Run a program with a text as its standard input.

    Args:
        seconds: timeout.

    Raises:
        UserError: the program cannot be run, failed, or did not end in time.
    """
    try:
        subprocess.run(command, input=text, text=True, timeout=seconds, check=True, capture_output=True)
    except OSError as error:
        raise UserError(f"`{command[0]}` cannot be run here ({error.strerror}).") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"`{command[0]}` did not end within {seconds:.0f} s.") from None
    except subprocess.CalledProcessError as error:
        raise UserError(f"`{command[0]}` failed with exit code {error.returncode}.") from None


def run_in_terminal(*command: str) -> int:
    """Run an interactive program, such as an editor, in this terminal and return its exit code.

    Raises:
        UserError: the program cannot be run.
    """
    try:
        return subprocess.run(command, check=False).returncode
    except OSError as error:
        raise UserError(f"`{command[0]}` cannot be run here ({error.strerror}).") from None


def exec_module(name: str, *arguments: str) -> NoReturn:
    """Replace this process by ``python -m name``."""
    os.execv(sys.executable, [sys.executable, "-m", name, *arguments])


def terminate_by_environment(variable: str, value: str, grace: float = 10.0) -> int:
    """Terminate all processes of this user with this environment variable, except this process and its parents.

    The children of a killed program keep running; they inherit its environment, which identifies them.

    Args:
        grace: seconds between SIGTERM and SIGKILL.

    Returns:
        The number of these processes.
    """
    psutil.process_iter.cache_clear()  # a cached process may have ended, and its PID may be reused
    excluded = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    matches = [
        process
        for process in psutil.process_iter()
        if process.pid not in excluded and _read_variable(process, variable) == value
    ]
    terminate_all(matches, grace)
    return len(matches)


def terminate_all(processes: Sequence[psutil.Process], grace: float = 10.0) -> None:
    """Send SIGTERM to processes, and SIGKILL to those that still run after ``grace`` seconds."""
    for process in processes:
        with suppress(psutil.Error):
            process.terminate()
    _, running = psutil.wait_procs(processes, timeout=grace)
    for process in running:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(running, timeout=grace)


def _read_variable(process: psutil.Process, variable: str) -> str | None:
    try:
        return process.environ().get(variable)
    except (psutil.Error, OSError):  # the process has ended, or belongs to another user
        return None


@contextmanager
def sigterm_as_exit() -> Iterator[None]:
    """Make SIGTERM raise SystemExit in this process, so that ``finally`` blocks terminate its programs.

    A handler that is already installed stays, such as Prefect's in a flow.
    """
    # Python handles signals in the main thread only.
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
