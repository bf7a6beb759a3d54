"""git and DVC as programs: their language, silent servers, the reasons of their failures, and their masked output."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from shared_data import ROOT

from models.errors import UserError
from models.program_environment import program_environment
from pipelines import dvc, processes, watchdog
from pipelines.clone import open_clone
from pipelines.processes import ProgramFailed, RemoteUnavailable, failure_reason, output_of, run_module

SSH_VARIABLES = ("GIT_SSH_COMMAND", "GIT_SSH", "SSH_ASKPASS", "SSH_ASKPASS_REQUIRE")


@pytest.fixture(autouse=True)
def empty_home(tmp_path, monkeypatch):
    """Set an empty home folder: without git settings, and with a folder for clones."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TUNELINE_HOME", str(tmp_path / "home"))
    for name in SSH_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def short_idle_timeout(monkeypatch):
    monkeypatch.setattr(watchdog, "POLL_SECONDS", 0.2)
    monkeypatch.setattr(watchdog, "MAX_IDLE_SECONDS", 1.0)


class Server:
    """A server that accepts connections, sends some bytes, optionally trickles more, and never ends."""

    def __init__(self, first: bytes = b"", trickle: bytes = b"", pause: float = 0.05):
        self.first, self.trickle, self.pause = first, trickle, pause
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        try:
            connection.sendall(self.first)
            while self.trickle:
                connection.sendall(self.trickle)
                time.sleep(self.pause)
            time.sleep(60)
        except OSError:
            pass

    def close(self) -> None:
        self.socket.close()


# Language, and no prompts ---------------------------------------------------------------------------


@pytest.mark.parametrize("language", ["zh_CN", "zh_CN:zh", "de"])
def test_mistyped_repository_is_refused_without_a_retry_in_any_locale(tmp_path, monkeypatch, language):
    monkeypatch.delenv("LC_ALL", raising=False)
    monkeypatch.setenv("LANG", "C.UTF-8")  # with it, glibc uses LANGUAGE
    monkeypatch.setenv("LANGUAGE", language)
    (tmp_path / "nothing").mkdir()
    for address in (f"file://{tmp_path}/nowhere", f"file://{tmp_path}/nothing", "htp://host/x", f"{tmp_path}/nowhere"):
        with pytest.raises(UserError) as error:
            open_clone("run", "HEAD", address)
        assert not isinstance(error.value, RemoteUnavailable)
        assert not any("\u4e00" <= letter <= "\u9fff" for letter in str(error.value))


@pytest.mark.parametrize(
    ("lines", "is_unavailable"),
    [
        ("git@host: Permission denied (publickey).\nfatal: Could not read from remote repository.", False),
        ("ERROR: Repository not found.\nfatal: Could not read from remote repository.", False),
        ("Host key verification failed.\nfatal: Could not read from remote repository.", False),
        ("fatal: could not read Username for 'https://host': terminal prompts disabled", False),
        ("fatal: unable to access 'https://host/': The requested URL returned error: 403", False),
        ("fatal: unable to access 'https://host/': The requested URL returned error: 429", True),
        ("fatal: unable to access 'https://host/': The requested URL returned error: 503", True),
        ("ssh: connect to host h port 22: Connection refused\nfatal: Could not read from remote repository.", True),
        ("fatal: unable to access 'https://host/': Could not resolve host: host", True),
    ],
)
def test_permanent_errors_of_git_are_found_in_its_whole_output(tmp_path, monkeypatch, lines, is_unavailable):
    fake_git(tmp_path, monkeypatch, f"cat >&2 <<'END'\n{lines}\nPlease make sure that it exists.\nEND\nexit 128")
    with pytest.raises(UserError) as error:
        open_clone("run", "HEAD", "ssh://host/x")
    assert isinstance(error.value, RemoteUnavailable) == is_unavailable


def fake_git(folder: Path, monkeypatch, script: str) -> None:
    """Replace ``git`` by a shell script."""
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "bin/git").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "bin/git").chmod(0o755)
    # The interpreter's folder, which comes first, has no git.
    monkeypatch.setenv("PATH", f"{folder}/bin:{os.environ['PATH']}")


def test_programs_run_in_english_and_cannot_prompt(tmp_path, monkeypatch):
    for name, value in (("LC_ALL", "zh_CN.UTF-8"), ("LANGUAGE", "zh_CN"), ("SSH_ASKPASS", "/bin/window")):
        monkeypatch.setenv(name, value)
    variables = program_environment()
    assert (variables["LC_ALL"], variables["LANGUAGE"], variables["GIT_TERMINAL_PROMPT"]) == ("C", "C", "0")
    assert float(variables["GIT_HTTP_LOW_SPEED_LIMIT"]) > 0 < float(variables["GIT_HTTP_LOW_SPEED_TIME"])
    assert "SSH_ASKPASS" not in variables
    monkeypatch.setenv("SSH_ASKPASS_REQUIRE", "force")
    monkeypatch.setenv("GIT_ASKPASS", "answers")
    monkeypatch.setenv("GIT_HTTP_LOW_SPEED_TIME", "7")
    variables = program_environment(MORE="1")
    assert (variables["SSH_ASKPASS"], variables["GIT_ASKPASS"], variables["MORE"]) == ("/bin/window", "answers", "1")
    assert variables["GIT_HTTP_LOW_SPEED_TIME"] == "7"
    fake_git(
        tmp_path,
        monkeypatch,
        'read line && echo typed; tty; (: </dev/tty) 2>/dev/null && echo terminal; echo "$LC_ALL"',
    )
    assert output_of("git", "status") == "not a tty\nC"


def test_ssh_of_git_cannot_prompt_unless_the_user_configures_it(tmp_path, monkeypatch):
    def ssh_command(*command: str) -> str:
        fake_git(
            tmp_path, monkeypatch, f'case "$*" in *core.sshCommand) exec {GIT} "$@";; esac; echo "$GIT_SSH_COMMAND"'
        )
        return output_of(*command)

    fetch = ("git", "-C", str(tmp_path), "fetch")
    assert "BatchMode=yes" in ssh_command(*fetch)
    assert "ConnectTimeout=" in ssh_command("git", "clone", "x")
    assert ssh_command("git", "status") == ""
    output_of(GIT, "init", "--quiet", str(tmp_path))
    output_of(GIT, "-C", str(tmp_path), "config", "core.sshCommand", "own")
    assert ssh_command(*fetch) == ""
    monkeypatch.setenv("GIT_SSH_COMMAND", "ssh -i key")
    assert ssh_command("git", "clone", "x") == "ssh -i key"


GIT = "/usr/bin/git"


# Silent servers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["http", "git", "ssh", "http, half an answer"])
def test_repository_that_never_answers_is_unavailable(tmp_path, monkeypatch, short_idle_timeout, scheme):
    header = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-git-upload-pack-advertisement\r\n\r\n001e#"
    with closing(Server(header if "half" in scheme else b"")) as server:
        began = time.monotonic()
        with pytest.raises(RemoteUnavailable, match="does not answer"):
            open_clone("run", "HEAD", f"{scheme.split(',')[0]}://127.0.0.1:{server.port}/repository")
        assert time.monotonic() - began < 10
    assert not any((tmp_path / "home/runs").iterdir())
    assert not [process for process in psutil.Process().children(recursive=True) if "git" in process.name()]


def test_repository_that_answers_byte_by_byte_is_unavailable_after_the_time_limit(monkeypatch, short_idle_timeout):
    monkeypatch.setattr(watchdog, "MAX_TRANSFER_SECONDS", 2.0)
    line = b"003a" + b"a" * 40 + b" refs/heads/a\n"
    with closing(Server(line, line, 0.1)) as server, pytest.raises(RemoteUnavailable, match="did not end within 2 s"):
        output_of("git", "ls-remote", f"git://127.0.0.1:{server.port}/repository")


def test_dvc_remote_that_never_answers_is_unavailable(tmp_path, monkeypatch, short_idle_timeout):
    monkeypatch.setattr(watchdog, "MAX_IDLE_SECONDS", 1.5)
    (tmp_path / "data").write_text("data")
    (tmp_path / "dvc.yaml").write_text("stages:\n  slow:\n    cmd: sleep 3\n")
    with closing(Server()) as server:
        use_dvc(tmp_path, monkeypatch, f"http://127.0.0.1:{server.port}/x")
        dvc.capture("add", "data")
        with pytest.raises(RemoteUnavailable, match=r"dvc push.* made no progress for \d s"):
            dvc.capture("push")
        with pytest.raises(RemoteUnavailable, match="made no progress"):
            dvc.run_with_stage_error("push")
    dvc.run("repro", "slow")  # a stage may be idle


def use_dvc(folder: Path, monkeypatch, remote: str) -> None:
    """Make a folder a DVC repository without git, with a remote, and the working directory."""
    (folder / ".dvc").mkdir()
    settings = f"[core]\nno_scm = true\nremote = far\n['remote \"far\"']\nurl = {remote}\n"
    (folder / ".dvc/config").write_text(settings)
    monkeypatch.chdir(folder)


WORK = {
    "computes": "while True: pass",
    "reads": "file = open('/dev/zero', 'rb', 0)\nwhile True: file.read(99); time.sleep(0.1)",
    "writes": "file = open('/dev/null', 'wb', 0)\nwhile True: file.write(bytes(99)); time.sleep(0.1)",
    "sends": "to = socket.create_connection(('127.0.0.1', int(sys.argv[1])))\nwhile True: to.send(bytes(90_000_000))",
    "runs a child that computes": "subprocess.run([sys.executable, '-c', 'while True: pass'])",
    "nothing": "time.sleep(60)",
}


def test_programs_with_progress_are_not_terminated(monkeypatch):
    monkeypatch.setattr(watchdog, "MAX_IDLE_SECONDS", 1.5)
    slow = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=receive_slowly, args=[slow], daemon=True).start()
    started = {
        kind: subprocess.Popen(
            [sys.executable, "-c", f"import socket, subprocess, sys, time\n{code}", str(slow.getsockname()[1])],
            start_new_session=True,
        )
        for kind, code in WORK.items()
    }
    try:
        time.sleep(0.5)
        guards = {kind: watchdog.Watchdog(process.pid) for kind, process in started.items()}
        complaints = dict.fromkeys(WORK)
        for _ in range(6):
            for kind, guard in guards.items():
                complaints[kind] = complaints[kind] or guard.check_progress()
            time.sleep(0.4)
    finally:
        slow.close()
        for process in started.values():
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert "made no progress" in complaints.pop("nothing")
    assert set(complaints.values()) == {None}, complaints


def test_idle_program_is_terminated_with_its_children(short_idle_timeout):
    process = subprocess.Popen(["sh", "-c", "sleep 60; :"], start_new_session=True)
    child = wait_for_child(process)
    with pytest.raises(RemoteUnavailable, match="`sh` made no progress"):
        processes._wait(process, "sh", None, watchdog.Watchdog(process.pid))
    assert process.returncode == -signal.SIGTERM
    assert psutil.wait_procs([child], timeout=5)[1] == []


def wait_for_child(process: subprocess.Popen) -> psutil.Process:
    """Wait until a program has a child, and return it."""
    while not (children := psutil.Process(process.pid).children()):
        time.sleep(0.01)
    return children[0]


def receive_slowly(server: socket.socket) -> None:
    try:
        connection, _ = server.accept()
        while connection.recv(20_000):
            time.sleep(0.05)
    except OSError:
        pass


def test_children_count_as_progress_for_dvc_only(monkeypatch):
    monkeypatch.setattr(watchdog, "MAX_IDLE_SECONDS", 0.1)
    process = subprocess.Popen(["sh", "-c", "sleep 20; :"], start_new_session=True)
    try:
        for waits_for_children in (True, False):
            guard = watchdog.Watchdog(process.pid, waits_for_children)
            guard.check_progress()  # the program and its child are new
            time.sleep(0.3)
            assert (guard.check_progress() is None) == waits_for_children
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_background_processes_do_not_delay_the_end_of_a_program(tmp_path, monkeypatch):
    """Such as an SSH master, which keeps git's standard error open."""
    fake_git(tmp_path, monkeypatch, "sleep 20 & echo done")
    began = time.monotonic()
    assert output_of("git", "fetch") == "done"
    assert run_module("timeit", "-n1", "-r1", "import os; os.system('sleep 20 &')") == 0
    assert time.monotonic() - began < 10


# Reasons of failures ---------------------------------------------------------------------------------


FULL = "ERROR: it is full"
TARGETS = "ERROR: Checkout failed for following targets:"


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (f"WARNING: a\n{FULL}\nERROR: failed to push\n\nHaving any troubles? Hit us up", FULL),
        (f"{TARGETS}\nb\nIs your cache up to date?", f"{TARGETS} b"),
        (" ! [rejected] a -> a (fetch first)\nerror: failed\nhint: x", "! [rejected] a -> a (fetch first)"),
        ("warning: x\nfatal: no such ref\nhint: y", "fatal: no such ref"),
        ("not today", "not today"),
        ("", "no output"),
    ],
)
def test_failure_reason_is_the_line_with_the_error(output, reason):
    assert failure_reason(output) == reason


def test_error_of_dvc_is_reported_without_the_password_of_its_remote(tmp_path, monkeypatch):
    use_dvc(tmp_path, monkeypatch, "http://team:s3cret@127.0.0.1:9/x")
    with pytest.raises(ProgramFailed, match=r"`dvc list \.` failed: ERROR: .*nowhere"):
        dvc.capture("list", ".", "nowhere")
    with pytest.raises(ProgramFailed) as error:
        dvc.capture("get", "http://team:s3cret@127.0.0.1:9/x", "y")
    assert "s3cret" not in str(error.value) + error.value.output
    assert "http://127.0.0.1:9/x" in str(error.value)


def test_program_that_cannot_be_run_is_reported(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="cannot be run with such arguments"):
        output_of("git", "rev-parse", "a\0b")
    with pytest.raises(UserError, match="cannot be run"):
        output_of("git", "rev-parse", "\ud800")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/git").write_text("no program")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(UserError, match="`git` cannot be run here"):
        output_of("git", "status")
    (tmp_path / "bin/git").unlink()
    for command in (("status",), ("fetch",)):
        with pytest.raises(UserError, match="`git` is not installed here"):
            output_of("git", *command)


# Output ---------------------------------------------------------------------------------------------

PRINTING = """\
import os, subprocess, sys
print("out http://team:s3cret@host/x", flush=True)
print("err http://team:s3cret@host/y", file=sys.stderr, flush=True)
subprocess.run(["sh", "-c", "echo below http://team:s3cret@host/z; echo 中文 >&2"])
print(sys.stdin.read(), os.isatty(1), os.isatty(2), end="")
"""


def test_output_of_a_program_is_masked_and_keeps_its_order(tmp_path, monkeypatch, capfd):
    (tmp_path / "printing.py").write_text(PRINTING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert run_module("printing") == 0
    output = capfd.readouterr()
    assert output.out == "out http://host/x\nbelow http://host/z\n False False"
    assert output.err == "err http://host/y\n中文\n"
    code = "from pipelines.processes import run_module; run_module('printing')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.stdout == "out http://host/x\nerr http://host/y\nbelow http://host/z\n中文\n False False"


def test_program_gets_a_terminal_of_the_same_width(tmp_path, monkeypatch):
    import pty
    import termios

    (tmp_path / "printing.py").write_text(PRINTING + "print(os.get_terminal_size().columns)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    reader, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 77))
    code = "from pipelines.processes import run_module; run_module('printing')"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=terminal, stdout=terminal, stderr=terminal)
    os.close(terminal)
    output = b""
    with pytest.raises(OSError, match="Input/output"):
        while chunk := os.read(reader, 1000):
            output += chunk
    os.close(reader)
    assert process.wait(10) == 0
    lines = ["out http://host/x", "err http://host/y", "below http://host/z", "中文", " True True77", ""]
    assert output.decode() == "\r\n".join(lines)


def test_output_of_dvc_is_masked(tmp_path, monkeypatch, capfd):
    use_dvc(tmp_path, monkeypatch, "http://team:s3cret@127.0.0.1:9/x")
    (tmp_path / "dvc.yaml").write_text("stages:\n  a:\n    cmd: echo ran\n")
    dvc.run("repro", "--pull")
    output = capfd.readouterr()
    assert "http://127.0.0.1:9/x" in output.err
    assert "ran" in output.out
    assert "s3cret" not in output.out + output.err


def test_output_is_copied_after_the_parent_was_killed(tmp_path, monkeypatch):
    """A training run whose flow was killed must neither lose its output nor fail at a write."""
    sleeping = "import time; print('first', flush=True); time.sleep(2); print('https://a:b@last', flush=True)"
    (tmp_path / "sleeping.py").write_text(sleeping)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    code = "from pipelines.processes import run_module; run_module('sleeping')"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "first\n"
    process.kill()
    process.wait()
    assert process.stdout.read() == "https://last\n"
