"""Agents: locks, processes that outlive an agent, and the wait for the server."""

import base64
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import psutil
import pytest
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from shared_data import ROOT

from flows import agent
from models.errors import UserError
from pipelines.processes import terminate_by_environment


def test_agent_name_is_locked(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNELINE_HOME", str(tmp_path))
    agent.lock_agent_name("host-cpu")
    with pytest.raises(UserError, match="Agent host-cpu already runs"):
        agent.lock_agent_name("host-cpu")
    agent.lock_agent_name("host-gpu-0")


def test_program_that_ignores_sigterm_is_killed_with_its_children(tmp_path):
    ignore_sigterm = "import signal, subprocess, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    script = f"{ignore_sigterm}subprocess.Popen(['sleep', '60'])\nprint('started', flush=True)\ntime.sleep(60)\n"
    (tmp_path / "stubborn.py").write_text(script)
    code = "import sys; from pipelines.processes import run_module; sys.exit(run_module('stubborn', grace=0.5))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    outer = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
    assert outer.stdout.readline() == "started\n"
    descendants = psutil.Process(outer.pid).children(recursive=True)
    assert len(descendants) == 3  # the program, its child, and the process that masks their output
    outer.terminate()
    outer.wait(10)
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in descendants)


def test_marked_processes_are_killed_and_others_are_not():
    marked = {**os.environ, "TUNELINE_TEST_MARK": "mine"}
    script = (
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('started', flush=True); signal.pause()"
    )
    mine = subprocess.Popen([sys.executable, "-c", script], env=marked, stdout=subprocess.PIPE, text=True)
    assert mine.stdout.readline() == "started\n"
    other = subprocess.Popen(["sleep", "60"], env=marked | {"TUNELINE_TEST_MARK": "another's"})
    try:
        assert terminate_by_environment("TUNELINE_TEST_MARK", "mine", grace=0.5) == 1
        assert not psutil.pid_exists(mine.pid)
        assert other.poll() is None
    finally:
        other.kill()


def test_marked_process_does_not_terminate_itself_or_its_parents():
    code = "from pipelines.processes import terminate_by_environment as e; print(e('TUNELINE_TEST_MARK', 'x'))"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}], check=True)"
    marked = {**os.environ, "TUNELINE_TEST_MARK": "x"}
    done = subprocess.run([sys.executable, "-c", outer], cwd=ROOT, env=marked, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


@pytest.mark.parametrize(
    ("address", "message"),
    [("", "PREFECT_API_URL is not set"), ("http://127.0.0.1:9/api", "No Prefect server answers at")],
)
def test_missing_server_gives_one_sentence(tmp_path, address, message):
    code = "from flows import agent; agent.SERVER_TIMEOUT = 1; agent.main()"
    environment = {**os.environ, "TUNELINE_HOME": str(tmp_path), "PREFECT_API_URL": address}
    done = subprocess.run(
        [sys.executable, "-c", code, "--gpus", "none"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def server():
    """A server that answers with each of ``server.statuses``, and records the requests."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.requests.append((self.path, self.headers["Authorization"]))
            statuses = self.server.statuses
            self.send_response(statuses.pop(0) if len(statuses) > 1 else statuses[0])
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.requests = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("status", "message"), [(401, "PREFECT_API_AUTH_STRING"), (400, "TUNELINE_ORIGINS")])
def test_rejection_by_the_server_is_not_retried(server, status, message):
    server.statuses = [status]
    address = f"http://127.0.0.1:{server.server_port}/api"
    with temporary_settings({PREFECT_API_URL: address}), pytest.raises(UserError, match=message):
        agent.wait_for_server()
    assert len(server.requests) == 1


def test_starting_server_is_polled_with_the_password(server, monkeypatch):
    monkeypatch.setattr(agent.time, "sleep", lambda _: None)
    server.statuses = [503, 200]
    address = f"http://127.0.0.1:{server.server_port}/api"
    with temporary_settings({PREFECT_API_URL: address, PREFECT_API_AUTH_STRING: "user:a:password"}):
        agent.wait_for_server()
    login = f"Basic {base64.b64encode(b'user:a:password').decode()}"
    assert server.requests == [("/api/version", login)] * 2  # /health needs no password
