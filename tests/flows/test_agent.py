"""Agents: whose GPUs are whose, and what one that died left behind."""

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


def test_of_one_name_there_is_one_agent(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNELINE_HOME", str(tmp_path))
    agent.lock_agent_name("host-cpu")
    with pytest.raises(UserError, match="Another agent on this host is host-cpu"):
        agent.lock_agent_name("host-cpu")
    agent.lock_agent_name("host-gpu-0")


def test_a_program_that_does_not_end_when_told_is_killed_with_all_that_it_started(tmp_path):
    ignore = "import signal, subprocess, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    deaf = f"{ignore}subprocess.Popen(['sleep', '60'])\nprint('deaf', flush=True)\ntime.sleep(60)\n"
    (tmp_path / "deaf.py").write_text(deaf)
    code = "import sys; from pipelines.processes import run_module; sys.exit(run_module('deaf', grace=0.5))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    outer = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
    assert outer.stdout.readline() == "deaf\n"
    below = psutil.Process(outer.pid).children(recursive=True)
    assert len(below) == 3  # the program, its own, and what copies their output
    outer.terminate()
    outer.wait(10)
    assert not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in below)


def test_leftovers_are_ended_even_deaf_ones_and_others_are_not():
    marked = {**os.environ, "TUNELINE_TEST_MARK": "mine"}
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); signal.pause()"
    mine = subprocess.Popen([sys.executable, "-c", deaf], env=marked, stdout=subprocess.PIPE, text=True)
    assert mine.stdout.readline() == "deaf\n"
    other = subprocess.Popen(["sleep", "60"], env=marked | {"TUNELINE_TEST_MARK": "another's"})
    try:
        assert terminate_by_environment("TUNELINE_TEST_MARK", "mine", grace=0.5) == 1
        assert not psutil.pid_exists(mine.pid)
        assert other.poll() is None
    finally:
        other.kill()


def test_whoever_looks_for_leftovers_does_not_end_itself_or_its_parents():
    code = "from pipelines.processes import terminate_by_environment as e; print(e('TUNELINE_TEST_MARK', 'x'))"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}], check=True)"
    marked = {**os.environ, "TUNELINE_TEST_MARK": "x"}
    done = subprocess.run([sys.executable, "-c", outer], cwd=ROOT, env=marked, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


@pytest.mark.parametrize(
    ("address", "said"), [("", "names no server"), ("http://127.0.0.1:9/api", "No Prefect server answers at")]
)
def test_without_a_server_it_ends_with_a_sentence(tmp_path, address, said):
    code = "from flows import agent; agent.SERVER_TIMEOUT = 1; agent.main()"
    environment = {**os.environ, "TUNELINE_HOME": str(tmp_path), "PREFECT_API_URL": address}
    done = subprocess.run(
        [sys.executable, "-c", code, "--gpus", "none"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def answers():
    """A server that answers with ``server.status``, and keeps what it was asked."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked.append((self.path, self.headers["Authorization"]))
            self.send_response(self.server.status.pop(0) if len(self.server.status) > 1 else self.server.status[0])
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("status", "said"), [(401, "PREFECT_API_AUTH_STRING"), (400, "TUNELINE_ORIGINS")])
def test_a_server_that_refuses_a_program_is_not_waited_for(answers, status, said):
    answers.status = [status]
    address = f"http://127.0.0.1:{answers.server_port}/api"
    with temporary_settings({PREFECT_API_URL: address}), pytest.raises(UserError, match=said):
        agent.wait_for_server()
    assert len(answers.asked) == 1


def test_a_server_that_starts_is_waited_for_and_asked_with_the_password(answers, monkeypatch):
    monkeypatch.setattr(agent.time, "sleep", lambda _: None)
    answers.status = [503, 200]
    address = f"http://127.0.0.1:{answers.server_port}/api"
    with temporary_settings({PREFECT_API_URL: address, PREFECT_API_AUTH_STRING: "user:a:password"}):
        agent.wait_for_server()
    login = f"Basic {base64.b64encode(b'user:a:password').decode()}"
    assert answers.asked == [("/api/version", login)] * 2  # /health answers whoever asks
