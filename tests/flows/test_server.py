"""A site on one machine: login, port, locks, and supervisord's configuration."""

import configparser
import os
import socket
import stat
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest
from shared_data import ROOT

from flows import gpus, server
from models.errors import UserError


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.2", "::", "gpu-host"])
def test_public_server_needs_a_login(host, monkeypatch):
    monkeypatch.delenv("PREFECT_SERVER_API_AUTH_STRING", raising=False)
    with pytest.raises(UserError, match="PREFECT_SERVER_API_AUTH_STRING"):
        server.require_login_if_public(host)
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", "user:secret")
    server.require_login_if_public(host)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_loopback_needs_no_login_from_the_user(host, monkeypatch):
    monkeypatch.delenv("PREFECT_SERVER_API_AUTH_STRING", raising=False)
    server.require_login_if_public(host)


LISTEN = "import socket, time; s = socket.create_server(('127.0.0.1', 0)); print('listens', flush=True); time.sleep(60)"


@pytest.fixture
def neighbour():
    """PID of another program that listens on some port."""
    process = subprocess.Popen([sys.executable, "-c", LISTEN], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "listens\n"
    yield process.pid
    process.kill()
    process.wait()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_port_in_use_is_reported_with_its_process(host, neighbour):
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(UserError, match=rf"port {port} .*; process {os.getpid()}\)") as error:
            server.check_port_is_free(host, port)
        assert str(neighbour) not in str(error.value)
    server.check_port_is_free(host, port)


def test_processes_without_known_pid_are_left_out(monkeypatch):
    address = SimpleNamespace(ip="127.0.0.1", port=4200)
    connections = [SimpleNamespace(laddr=address, pid=pid) for pid in (None, 12)] + [SimpleNamespace(laddr=(), pid=13)]
    monkeypatch.setattr(psutil, "net_connections", lambda kind: connections)
    assert server._describe_holders(4200) == "; process 12"


def test_supervisord_runs_server_keeper_and_agents(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", "user:secret")
    path = server.write_supervisor_config(tmp_path, server.list_programs("127.0.0.1", 4200, ["0", "1,2"]))
    config = configparser.RawConfigParser()
    config.read(path, encoding="utf-8")
    names = {name.partition(":")[2] for name in config.sections() if name.startswith("program:")}
    assert names == {"server", "keeper", "cpu", "gpu-0", "gpu-1-2", "deployments"}
    assert '"--gpus" "1,2"' in config["program:gpu-1-2"]["command"]
    assert '"flows.api_server"' in config["program:server"]["command"]  # Prefect's own server checks no Origin
    assert all(config[f"program:{name}"]["killasgroup"] == "true" for name in names)
    assert "secret" not in path.read_text(encoding="utf-8")


def test_path_with_percent_sign_is_rejected(tmp_path):
    with pytest.raises(UserError, match="100%"):
        server.refuse_percent_signs(tmp_path, tmp_path / "100%")
    server.refuse_percent_signs(tmp_path)


def test_gpu_named_for_two_agents_is_rejected(monkeypatch):
    available = [gpus.Gpu("0", "GPU-aa"), gpus.Gpu("1", "GPU-bb")]
    monkeypatch.setattr(gpus, "list_gpus", lambda: available)
    assert server.choose_gpu_sets(["0", "1"]) == ["0", "1"]
    for gpu_sets in (["0", "GPU-aa"], ["0,1", "1"], ["none", "none"]):
        with pytest.raises(UserError, match="two agents"):
            server.choose_gpu_sets(gpu_sets)
    with pytest.raises(UserError, match="choose from 0, 1"):
        server.choose_gpu_sets(["2"])


@pytest.fixture
def start(tmp_path, monkeypatch, capfd):
    """Start a site up to exec of supervisord; return its output, and the environment of its programs."""

    def start_site(*arguments: str, **environment: str) -> tuple[str, dict[str, str]]:
        variables = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        variables |= {"TUNELINE_HOME": str(tmp_path / "a home"), "TUNELINE_REPOSITORY": str(tmp_path)} | environment
        monkeypatch.setattr(os, "environ", variables)
        monkeypatch.setattr(server, "exec_module", lambda *command: None)
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            port = str(unused.getsockname()[1])
        monkeypatch.setattr("sys.argv", ["server", "--gpus", "none", "--port", port, *arguments])
        server.main.__wrapped__()
        return capfd.readouterr().out, variables

    return start_site


def test_generated_password_is_only_in_its_file_and_the_environment(start, tmp_path):
    output, environment = start()
    path = tmp_path / "a home/server/login"
    login = path.read_text().strip()
    assert environment["PREFECT_SERVER_API_AUTH_STRING"] == environment["PREFECT_API_AUTH_STRING"] == login
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    password = login.partition(":")[2]
    assert password not in output
    assert password not in (path.parent / "supervisord.conf").read_text()
    # The printed line sets up a shell, with a blank in the path.
    (line,) = (line for line in output.splitlines() if "PREFECT_API_AUTH_STRING" in line)
    done = subprocess.run(
        ["sh", "-c", f'{line}; printf %s "$PREFECT_API_AUTH_STRING"'], capture_output=True, text=True, env={}
    )
    assert done.stdout == login


def test_password_from_the_environment_replaces_the_generated_one(start, tmp_path):
    output, environment = start(PREFECT_SERVER_API_AUTH_STRING="user:own", PREFECT_API_AUTH_STRING="user:former")
    assert "AUTH_STRING" not in output
    assert environment["PREFECT_SERVER_API_AUTH_STRING"] == environment["PREFECT_API_AUTH_STRING"] == "user:own"
    assert not (tmp_path / "a home/server/login").exists()


@pytest.mark.parametrize(
    "environment", [{"PREFECT_SERVER_API_AUTH_STRING": "secret"}, {"TUNELINE_ORIGINS": "gpu-host:4200"}]
)
def test_invalid_environment_is_reported_before_anything_starts(start, environment):
    with pytest.raises(UserError, match=next(iter(environment))) as error:
        start(**environment)
    assert "secret" not in str(error.value)


def test_site_folder_is_made_private(tmp_path):
    (tmp_path / "server").mkdir(mode=0o755)
    assert stat.S_IMODE(server.make_private_folder(tmp_path / "server").stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_folder_of_another_user_is_rejected(tmp_path):
    os.chown(tmp_path, 12345, -1)
    with pytest.raises(UserError, match="another user"):
        server.make_private_folder(tmp_path)


def test_second_site_in_one_folder_is_rejected(start, tmp_path):
    start()
    configuration = tmp_path / "a home/server/supervisord.conf"
    before = configuration.read_text()
    with pytest.raises(UserError, match=f"process {os.getpid()}.*`kill {os.getpid()}`"):
        start()  # on another port
    assert configuration.read_text() == before


def test_lock_file_contains_only_the_pid(start, tmp_path):
    configuration = server.make_private_folder(tmp_path / "a home/server") / "supervisord.conf"
    (configuration.parent / "lock").write_text("9" * 12)  # of an earlier site
    start()
    assert (configuration.parent / "lock").read_text() == str(os.getpid())


HOLDER = """
import sys
from pathlib import Path
from flows import server
server.lock_site(Path(sys.argv[1]))
server.exec_module("timeit", "-n", "1", "-r", "1", "import subprocess, time; "
    "subprocess.Popen(['sleep', '60']); print('locked', flush=True); time.sleep(60)")
"""


def test_site_lock_survives_exec_but_is_not_inherited_by_children(tmp_path):
    """supervisord replaces the process; its programs survive when it is killed."""
    environment = os.environ | {server.SITE_VARIABLE: str(tmp_path), "PYTHONPATH": str(ROOT)}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "locked\n"
    (child,) = psutil.Process(holder.pid).children()
    with pytest.raises(UserError, match=f"process {holder.pid}"):
        server.lock_site(tmp_path)
    holder.kill()
    holder.wait()
    assert child.is_running()
    os.close(server.lock_site(tmp_path))
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_processes_of_a_killed_site_are_ended(tmp_path, capsys):
    mine, other = (
        subprocess.Popen(["sleep", "60"], env={**os.environ, server.SITE_VARIABLE: str(folder)})
        for folder in (tmp_path, tmp_path / "other")
    )
    try:
        os.close(server.lock_site(tmp_path))
        assert mine.poll() is not None
        assert other.poll() is None
        assert "Ended 1 processes of a killed site" in capsys.readouterr().out
        os.close(server.lock_site(tmp_path))
        assert capsys.readouterr().out == ""
    finally:
        mine.kill()
        other.kill()


@pytest.mark.parametrize(("name", "is_site"), [("supervisor.supervisord", True), ("another.program", False)])
def test_running_supervisor_without_its_lock_is_not_ended(tmp_path, name, is_site):
    command = [sys.executable, "-c", "import time; time.sleep(60)", name]
    process = subprocess.Popen(command, env={**os.environ, server.SITE_VARIABLE: str(tmp_path)})
    (tmp_path / "supervisord.pid").write_text(f"{process.pid}\n")
    try:
        if is_site:
            with pytest.raises(UserError, match=f"process {process.pid}"):
                server.lock_site(tmp_path)
            assert process.poll() is None
        else:
            os.close(server.lock_site(tmp_path))
            assert process.poll() is not None
    finally:
        process.kill()
    another = subprocess.Popen(command, env={**os.environ, server.SITE_VARIABLE: "another"})  # a reused PID
    (tmp_path / "supervisord.pid").write_text(str(another.pid))
    try:
        os.close(server.lock_site(tmp_path))
        assert another.poll() is None
    finally:
        another.kill()
    (tmp_path / "supervisord.pid").write_text("damaged")
    os.close(server.lock_site(tmp_path))


def test_programs_of_a_site_are_marked_in_their_environment(start, tmp_path):
    assert start()[1][server.SITE_VARIABLE] == str(tmp_path / "a home/server")
