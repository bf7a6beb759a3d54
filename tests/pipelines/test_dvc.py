"""pipelines.dvc with a real child that outlives its parent unless the whole session is ended."""

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


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_ending_the_pipeline_ends_the_stage(tmp_path, how):
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], cwd=tmp_path, check=True)
    (tmp_path / "dvc.yaml").write_text(STAGE.format(python=sys.executable))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    # A shell without job control starts what runs in the background deaf to Ctrl-C, and this would inherit it.
    hearing = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    program = f"{hearing}; from pipelines import dvc; dvc.run('repro')"
    process = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, env=environment, stderr=subprocess.PIPE)
    path, deadline = tmp_path / "pid", time.monotonic() + 60
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    pid = int(path.read_text())
    process.send_signal(how)
    assert process.wait(timeout=30) != 0
    deadline = time.monotonic() + 10
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(pid)


def test_a_failure_is_one_sentence(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="dvc repro nowhere"):
        dvc.run("repro", "nowhere")


SAYING = """\
from models.command_line import entry_point
from models.errors import UserError
import subprocess, sys

@entry_point
def main():
    if len(sys.argv) == 1:
        raise UserError("Training diverged: the loss of step 3 is nan.")
    subprocess.run([sys.executable, __file__], check=False)
    raise UserError("A process of the training ended.")

main()
"""


def test_the_error_is_what_the_stage_ended_with_and_of_several_processes_the_first(tmp_path, monkeypatch, capfd):
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], cwd=tmp_path, check=True)
    (tmp_path / "say.py").write_text(SAYING)
    (tmp_path / "dvc.yaml").write_text(f"stages:\n  train:\n    cmd: {sys.executable} say.py for-another\n")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^Training diverged: the loss of step 3 is nan\.$"):
        dvc.tell("repro")
    with pytest.raises(UserError, match="dvc repro nowhere"):  # where no stage of ours spoke
        dvc.tell("repro", "nowhere")
    assert "A process of the training ended." in capfd.readouterr().err


def test_settings_that_cannot_be_used_are_one_sentence_and_stay_as_they_were(tmp_path):
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], cwd=tmp_path, check=True)
    (tmp_path / ".dvc/config.local").write_text("[cache]\ndir = here\n")
    with pytest.raises(UserError, match="cannot be used"), dvc.own_settings(tmp_path) as ours:
        ours["cache"]["type"] = "teleport"
    assert dvc.settings(tmp_path)["cache"]["dir"] == str(tmp_path / ".dvc/here")
    (tmp_path / ".dvc/config").write_text("[remote\n")
    with pytest.raises(UserError, match="cannot be used"):
        dvc.settings(tmp_path)
