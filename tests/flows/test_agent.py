"""Agents: whose GPUs are whose, and what one that died left behind."""

import os
import subprocess
import sys

import psutil
import pytest
from given import ROOT

from flows import agent
from models.errors import UserError
from pipelines.programs import end_leftovers


def test_of_one_name_there_is_one_agent(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNELINE_HOME", str(tmp_path))
    agent.serve_alone("host-cpu")
    with pytest.raises(UserError, match="Another agent on this host is host-cpu"):
        agent.serve_alone("host-cpu")
    agent.serve_alone("host-gpu-0")


def test_a_program_that_does_not_end_when_told_is_killed_with_all_that_it_started(tmp_path):
    ignore = "import signal, subprocess, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    deaf = f"{ignore}subprocess.Popen(['sleep', '60'])\nprint('deaf', flush=True)\ntime.sleep(60)\n"
    (tmp_path / "deaf.py").write_text(deaf)
    code = "import sys; from pipelines.programs import run_module; sys.exit(run_module('deaf', patience=0.5))"
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
        assert end_leftovers("TUNELINE_TEST_MARK", "mine", patience=0.5) == 1
        assert not psutil.pid_exists(mine.pid)
        assert other.poll() is None
    finally:
        other.kill()


def test_whoever_looks_for_leftovers_does_not_end_itself_or_its_parents():
    code = "from pipelines.programs import end_leftovers as e; print(e('TUNELINE_TEST_MARK', 'x'))"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}], check=True)"
    marked = {**os.environ, "TUNELINE_TEST_MARK": "x"}
    done = subprocess.run([sys.executable, "-c", outer], cwd=ROOT, env=marked, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


@pytest.mark.parametrize(
    ("address", "said"), [("", "names no server"), ("http://127.0.0.1:9/api", "No Prefect server answers at")]
)
def test_without_a_server_it_ends_with_a_sentence(tmp_path, address, said):
    code = "from flows import agent; agent.PATIENCE = 1; agent.main()"
    environment = {**os.environ, "TUNELINE_HOME": str(tmp_path), "PREFECT_API_URL": address}
    done = subprocess.run(
        [sys.executable, "-c", code, "--gpus", "none"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
