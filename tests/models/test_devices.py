"""Several ranks over gloo on the CPU: the losses of one device, and a prompt end when a rank dies."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from shared_data import ROOT

from models.training import devices

PROGRAM = """
import json, sys, threading
from pathlib import Path
import torch
from transformers import TrainerCallback
from models import adapters, base_model, model_loading, training
from models.command_line import entry_point
from models.training import devices

class BlockRank0(TrainerCallback):
    "Blocks forever, like a rank that waits for the device: a signal handler runs, and the wait continues."

    def __init__(self, marker):
        self.marker = marker

    def on_step_end(self, args, state, control, **kwargs):
        if devices.rank() == 0 and state.global_step == 40:
            self.marker.touch()
            lock = threading.Lock()
            lock.acquire()
            lock.acquire()

@entry_point
def main():
    base_folder, folder, settings = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    devices.set_device()
    model = model_loading.load_model(base_model.read_record(base_folder), "float32")
    torch.manual_seed(0)
    if settings.pop("full", False):
        adapted = adapters.attach_adapter(model, "full")
    else:
        adapted = adapters.attach_adapter(model, "lora", rank=4, alpha=8, target_modules=["query_key_value", "dense"])
    gmask, sop = model.config.gmask_token_id, model.config.bos_token_id
    rows = [
        {"input_ids": [40 + i] * (1 + i % 5) + [gmask, sop, 60 + i], "labels": [-100] * (3 + i % 5) + [60 + i]}
        for i in range(23)
    ]
    callbacks = [BlockRank0(folder / "blocked")] if settings.pop("block", False) else []
    config = training.TrainConfig(evaluations=4, seed=3, logs=200, **{"learning_rate": 0.01} | settings)
    result = training.fit(
        adapted, rows[:19], rows[19:], config, checkpoint_folder=folder / "checkpoints", callbacks=callbacks
    )
    if devices.rank() == 0:
        if not config.sharded:
            adapted.save_pretrained(folder / "adapter")
        losses = [(record["step"], record["split"], record["loss"]) for record in result.history]
        (folder / "result.json").write_text(json.dumps({"losses": losses, "tokens": result.tokens}))

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
    """A function that starts a training run with some ranks, in a folder of its own."""
    (tmp_path / "program.py").write_text(PROGRAM)

    def start_training(ranks: int, name: str, **settings) -> subprocess.Popen:
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = f"{ROOT}:{tmp_path}"
        (tmp_path / name).mkdir(exist_ok=True)
        arguments = [str(ranks), str(base_folder), str(tmp_path / name), json.dumps(settings)]
        return subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, *arguments], env=environment, stderr=subprocess.PIPE, text=True
        )

    return start_training


def wait_until_finished(process: subprocess.Popen) -> str:
    """Wait for a training run that must succeed, and return its log."""
    _, log = process.communicate(timeout=600)
    assert process.returncode == 0, log
    return log


def read_losses(folder) -> dict:
    losses = json.loads((folder / "result.json").read_text())["losses"]
    return {(step, split): loss for step, split, loss in losses}


def child_pids(process: subprocess.Popen) -> list[int]:
    output = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout
    return [int(pid) for pid in output.split()]


def wait_for_file(folder, pattern: str, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 600
    while not list(folder.glob(pattern)):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def wait_for_checkpoint(folder, process: subprocess.Popen) -> None:
    wait_for_file(folder, "checkpoints/checkpoint-*/progress.json", process)


def kill_rank(process: subprocess.Popen, pid: int) -> str:
    """Kill a rank, wait for the end of all, which must come at once, and return the log."""
    os.kill(pid, signal.SIGKILL)
    started = time.monotonic()
    _, log = process.communicate(timeout=600)
    assert time.monotonic() - started < 20
    assert process.returncode == 1
    assert "was killed by signal 9" in log
    return log


def test_collectives_of_a_single_rank_return_their_input():
    assert devices.any_rank(True)
    assert not devices.any_rank(False)
    assert devices.all_reduce_sum(torch.tensor([2, 3])).tolist() == [2, 3]
    devices.barrier()


@pytest.mark.integration
@pytest.mark.parametrize("settings", [{"pack_tokens": None}, {"pack_tokens": 32}], ids=["padded", "packed"])
def test_two_devices_have_the_losses_of_one_with_the_same_global_batch(start, tmp_path, settings):
    wait_until_finished(start(1, "single", batch_size=4, gradient_accumulation=2, epochs=4, **settings))
    wait_until_finished(start(2, "two", batch_size=2, gradient_accumulation=2, epochs=4, **settings))
    expected, losses = read_losses(tmp_path / "single"), read_losses(tmp_path / "two")
    assert expected.keys() == losses.keys()
    assert len(expected) >= 8
    assert losses == pytest.approx(expected, rel=2e-4)


@pytest.mark.integration
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_sharded_training_has_the_losses_of_one_device_and_resumes_on_another_number(start, tmp_path, method):
    settings = {"epochs": 6, "keep_best": True, "full": method == "full", "learning_rate": 0.001}
    wait_until_finished(start(1, "single", batch_size=4, **settings))
    process = start(2, "sharded", batch_size=2, sharded=True, **settings)
    wait_for_checkpoint(tmp_path / "sharded", process)
    process.terminate()
    _, log = process.communicate(timeout=600)
    assert process.returncode == 128 + signal.SIGTERM, log
    assert "resuming from checkpoint" in wait_until_finished(
        start(1, "sharded", batch_size=4, sharded=True, **settings)
    )
    expected, losses = read_losses(tmp_path / "single"), read_losses(tmp_path / "sharded")
    common = expected.keys() & losses.keys()  # SIGTERM adds a loss at the step where it stopped
    assert len(common) == len(expected)
    assert {key: losses[key] for key in common} == pytest.approx(expected, rel=5e-4)


@pytest.mark.integration
def test_killing_one_of_two_ranks_ends_both_at_once_and_the_next_run_resumes(start, tmp_path):
    settings = {"batch_size": 2, "epochs": 25}
    wait_until_finished(start(2, "undisturbed", **settings))
    process = start(2, "killed", **settings)
    wait_for_checkpoint(tmp_path / "killed", process)
    log = kill_rank(process, child_pids(process)[1])
    assert "Traceback" not in log
    assert "resuming from checkpoint" in wait_until_finished(start(2, "killed", **settings))
    adapter = "adapter/adapter_model.safetensors"
    assert (tmp_path / "killed" / adapter).read_bytes() == (tmp_path / "undisturbed" / adapter).read_bytes()


@pytest.mark.integration
def test_a_blocked_rank_that_waits_for_a_dead_one_is_aborted(start, tmp_path):
    process = start(2, "blocked", batch_size=2, epochs=25, block=True)
    wait_for_file(tmp_path / "blocked", "blocked", process)
    blocked, other = child_pids(process)
    kill_rank(process, other)
    with pytest.raises(ProcessLookupError):
        os.kill(blocked, 0)


@pytest.mark.integration
def test_sigterm_stops_both_ranks_and_saves_one_checkpoint(start, tmp_path):
    process = start(2, "stopped", batch_size=2, epochs=25)
    wait_for_checkpoint(tmp_path / "stopped", process)
    process.terminate()
    _, log = process.communicate(timeout=600)
    assert process.returncode == 128 + signal.SIGTERM, log
    assert log.count("Stopped by SIGTERM after step") == 1
    assert "Traceback" not in log
    assert "resuming from checkpoint" in wait_until_finished(start(2, "stopped", batch_size=2, epochs=25))
