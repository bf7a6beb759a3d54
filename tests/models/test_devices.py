"""Several processes over gloo on the CPU: what one device would have done, and an end when one of them dies."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from shared_data import ROOT

PROGRAM = """
import json, os, sys, threading
from pathlib import Path
import torch
from transformers import TrainerCallback
from models import adapters, base, training
from models.command_line import entry_point
from models.training import devices

class Stuck(TrainerCallback):
    "Waits for ever, as for the device; a signal's handler runs, and it waits on."

    def __init__(self, sign):
        self.sign = sign

    def on_step_end(self, args, state, control, **kwargs):
        if devices.rank() == 0 and state.global_step == 40:
            self.sign.touch()
            lock = threading.Lock()
            lock.acquire()
            lock.acquire()

@entry_point
def main():
    base_folder, folder, how = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    devices.take()
    model = base.load_model(base.read_record(base_folder), "float32")
    torch.manual_seed(0)
    if how.pop("full", False):
        tuned = adapters.attach(model, "full")
    else:
        tuned = adapters.attach(model, "lora", rank=4, alpha=8, target_modules=["query_key_value", "dense"])
    gmask, sop = model.config.gmask_token_id, model.config.bos_token_id
    rows = [
        {"input_ids": [40 + i] * (1 + i % 5) + [gmask, sop, 60 + i], "labels": [-100] * (3 + i % 5) + [60 + i]}
        for i in range(23)
    ]
    how = {"learning_rate": 0.01} | how
    callbacks = [Stuck(folder / "waits")] if how.pop("stuck", False) else []
    settings = training.TrainConfig(evaluations=4, seed=3, logs=200, **how)
    kept = folder / "checkpoints"
    fitted = training.fit(tuned, rows[:19], rows[19:], settings, checkpoint_folder=kept, callbacks=callbacks)
    if devices.rank() == 0:
        if not settings.sharded:
            tuned.save_pretrained(folder / "adapter")
        losses = [(point["step"], point["split"], point["loss"]) for point in fitted.history]
        (folder / "fitted.json").write_text(json.dumps({"losses": losses, "tokens": fitted.tokens}))

main()
"""
LAUNCHER = """
import sys
from models.command_line import entry_point
from models.launch import launch

@entry_point
def main():
    launch("program", sys.argv[2:], int(sys.argv[1]))

main()
"""


@pytest.fixture
def start(tmp_path, base_folder):
    (tmp_path / "program.py").write_text(PROGRAM)

    def begin(processes: int, name: str, **how) -> subprocess.Popen:
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = f"{ROOT}:{tmp_path}"
        (tmp_path / name).mkdir(exist_ok=True)
        arguments = [str(processes), str(base_folder), str(tmp_path / name), json.dumps(how)]
        return subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, *arguments], env=environment, stderr=subprocess.PIPE, text=True
        )

    return begin


def end(process: subprocess.Popen) -> str:
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors
    return errors


def losses_of(folder) -> dict:
    return {(step, split): loss for step, split, loss in json.loads((folder / "fitted.json").read_text())["losses"]}


@pytest.mark.integration
@pytest.mark.parametrize("how", [{"pack_tokens": None}, {"pack_tokens": 32}], ids=["padded", "packed"])
def test_two_devices_lose_as_much_as_one_at_an_equal_global_batch(start, tmp_path, how):
    alone = start(1, "alone", batch_size=4, gradient_accumulation=2, epochs=4, **how)
    end(alone)
    end(start(2, "two", batch_size=2, gradient_accumulation=2, epochs=4, **how))
    expected, found = losses_of(tmp_path / "alone"), losses_of(tmp_path / "two")
    assert expected.keys() == found.keys()
    assert len(expected) >= 8
    assert found == pytest.approx(expected, rel=2e-4)


@pytest.mark.integration
@pytest.mark.parametrize("method", ["lora", "full"])
def test_spread_over_two_devices_it_loses_as_much_and_goes_on_with_another_number(start, tmp_path, method):
    how = {"epochs": 6, "keep_best": True, "full": method == "full", "learning_rate": 0.001}
    end(start(1, "alone", batch_size=4, **how))
    process = start(2, "spread", batch_size=2, sharded=True, **how)
    wait_for_checkpoint(tmp_path / "spread", process)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "going on from checkpoint" in end(start(1, "spread", batch_size=4, sharded=True, **how))
    expected, found = losses_of(tmp_path / "alone"), losses_of(tmp_path / "spread")
    common = expected.keys() & found.keys()  # where SIGTERM stopped it, there is one loss more
    assert len(common) == len(expected)
    assert {key: found[key] for key in common} == pytest.approx(expected, rel=5e-4)


def processes_below(process: subprocess.Popen) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    return [int(each) for each in found]


def wait_for(folder, pattern: str, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 90
    while not list(folder.glob(pattern)):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def wait_for_checkpoint(folder, process: subprocess.Popen) -> None:
    wait_for(folder, "checkpoints/checkpoint-*/progress.json", process)


def kill(process: subprocess.Popen, victim: int) -> str:
    """Kill one of its processes: all must end at once, with a sentence; gives all that they said."""
    os.kill(victim, signal.SIGKILL)
    began = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - began < 20
    assert process.returncode == 1
    assert "was ended by signal 9" in errors
    return errors


@pytest.mark.integration
def test_one_of_two_killed_ends_both_at_once_and_the_next_run_goes_on(start, tmp_path):
    how = {"batch_size": 2, "epochs": 25}
    end(start(2, "undisturbed", **how))
    process = start(2, "killed", **how)
    wait_for_checkpoint(tmp_path / "killed", process)
    errors = kill(process, processes_below(process)[1])
    assert "Traceback" not in errors
    assert "going on from checkpoint" in end(start(2, "killed", **how))
    adapter = "adapter/adapter_model.safetensors"
    assert (tmp_path / "killed" / adapter).read_bytes() == (tmp_path / "undisturbed" / adapter).read_bytes()


@pytest.mark.integration
def test_a_process_that_waits_for_a_dead_one_and_hears_no_signal_is_ended_too(start, tmp_path):
    process = start(2, "deaf", batch_size=2, epochs=25, stuck=True)
    wait_for(tmp_path / "deaf", "waits", process)
    waits, victim = processes_below(process)
    kill(process, victim)
    with pytest.raises(ProcessLookupError):
        os.kill(waits, 0)


@pytest.mark.integration
def test_sigterm_reaches_both_and_saves_once(start, tmp_path):
    process = start(2, "stopped", batch_size=2, epochs=25)
    wait_for_checkpoint(tmp_path / "stopped", process)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert errors.count("Stopped by SIGTERM after step") == 1
    assert "Traceback" not in errors
    assert "going on from checkpoint" in end(start(2, "stopped", batch_size=2, epochs=25))
