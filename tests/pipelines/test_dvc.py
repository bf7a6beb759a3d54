"""pipelines.dvc with a real DVC: its stages end with it, and its errors are reported."""

import os
import signal
import subprocess
import sys
import time

import pytest
from shared_data import ROOT

from models.errors import UserError
from pipelines import dvc

STAGE = """\
stages:
  slow:
    cmd: {python} -c "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(60)"
    outs: [pid]
"""


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_to_the_pipeline_terminates_the_stage(tmp_path, number):
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], cwd=tmp_path, check=True)
    (tmp_path / "dvc.yaml").write_text(STAGE.format(python=sys.executable))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    # A shell without job control makes background programs ignore SIGINT, which this test would inherit.
    reset = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    program = f"{reset}; from pipelines import dvc; dvc.run('repro')"
    process = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, env=environment, stderr=subprocess.PIPE)
    path, deadline = tmp_path / "pid", time.monotonic() + 600
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    pid = int(path.read_text())
    process.send_signal(number)
    assert process.wait(timeout=600) != 0
    deadline = time.monotonic() + 600
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_running(pid)


def test_failure_names_the_command(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="dvc repro nowhere"):
        dvc.run("repro", "nowhere")


FAILING = """\
from models.command_line import entry_point
from models.errors import UserError
import subprocess, sys

@entry_point
def main():
    if len(sys.argv) == 1:
        raise UserError("Training diverged: the loss of step 3 is nan.")
    subprocess.run([sys.executable, __file__], check=False)
    raise UserError("A process of the training failed.")

main()
"""


def test_error_is_the_first_message_of_the_stage(tmp_path, monkeypatch, capfd):
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], cwd=tmp_path, check=True)
    (tmp_path / "fail.py").write_text(FAILING)
    (tmp_path / "dvc.yaml").write_text(f"stages:\n  train:\n    cmd: {sys.executable} fail.py with-child\n")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^Training diverged: the loss of step 3 is nan\.$"):
        dvc.run_with_stage_error("repro")
    with pytest.raises(UserError, match="dvc repro nowhere"):  # no stage has written an error
        dvc.run_with_stage_error("repro", "nowhere")
    assert "A process of the training failed." in capfd.readouterr().err


def test_invalid_config_is_reported_and_not_saved(tmp_path):
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], cwd=tmp_path, check=True)
    (tmp_path / ".dvc/config.local").write_text("[cache]\ndir = here\n")
    with pytest.raises(UserError, match="cannot be used"), dvc.edit_local_config(tmp_path) as config:
        config["cache"]["type"] = "teleport"
    assert dvc.load_config(tmp_path)["cache"]["dir"] == str(tmp_path / ".dvc/here")
    (tmp_path / ".dvc/config").write_text("[remote\n")
    with pytest.raises(UserError, match="cannot be used"):
        dvc.load_config(tmp_path)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_stages_get_the_language_of_the_terminal_and_dvc_the_locale_c(tmp_path, monkeypatch, capfd, language):
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], cwd=tmp_path, check=True)
    (tmp_path / "dvc.yaml").write_text("stages:\n  a:\n    cmd: echo language $TUNELINE_LANG locale $LC_ALL\n")
    monkeypatch.delenv("TUNELINE_LANG", raising=False)
    monkeypatch.delenv("LANGUAGE", raising=False)
    monkeypatch.setenv("LC_ALL", {"en": "en_US.UTF-8", "zh": "zh_CN.UTF-8"}[language])
    dvc.run("repro", folder=tmp_path)
    assert f"language {language} locale C\n" in capfd.readouterr().out
