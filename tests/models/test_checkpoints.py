"""A killed training resumes as if it had not been interrupted: the adapter has the same bytes."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from shared_data import ROOT

from models import checkpoints
from models.errors import UserError
from models.storage import sha256_of

WEIGHTS = "adapter_model.safetensors"
PROGRAM = """
import sys
from pathlib import Path
import torch
from models import adapters, base_model, model_loading, training
from models.command_line import entry_point

@entry_point
def main():
    base_folder, checkpoint_folder, out, method = sys.argv[1:]
    torch.manual_seed(0)
    model = model_loading.load_model(base_model.read_record(Path(base_folder)), "float32")
    settings = {
        "lora": {"rank": 4, "alpha": 8, "dropout": 0.2, "target_modules": ["query_key_value", "dense"]},
        "ptuning_v2": {"prefix_tokens": 3, "projection": True},
    }[method]
    adapted = adapters.attach_adapter(model, method, **settings)
    gmask, sop = model.config.gmask_token_id, model.config.bos_token_id
    rows = [
        {"input_ids": [40 + i] * (1 + i % 5) + [gmask, sop, 50 + i], "labels": [-100] * (3 + i % 5) + [50 + i]}
        for i in range(23)
    ]
    config = training.TrainConfig(
        batch_size=3, gradient_accumulation=2, learning_rate=0.01, epochs=40, evaluations=8, seed=3, warmup=0.1,
        schedule="cosine", keep_best=True,
    )
    result = training.fit(
        adapted, rows[:20], rows[20:], config, checkpoint_folder=Path(checkpoint_folder), callbacks=CALLBACKS
    )
    adapted.save_pretrained(out)
    losses = [(record["step"], record["loss"]) for record in result.history]
    print(result.steps, result.kept_step, result.tokens, losses)

main()
"""
NO_CALLBACKS = "CALLBACKS = []\n"
FILE_SIZE_LIMIT = """
import resource
from transformers import TrainerCallback

class LimitFileSize(TrainerCallback):
    "Limits files to 20 kB from step 60 on; the optimizer's state is larger."

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 60:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))

CALLBACKS = [LimitFileSize()]
"""


def start(*arguments, setup: str = NO_CALLBACKS) -> subprocess.Popen:
    """Start a training run.

    Args:
        arguments: folders of base, checkpoints and adapter, and the method.
        setup: code that defines CALLBACKS.
    """
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", setup + PROGRAM, *map(str, arguments)],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_until_finished(process: subprocess.Popen) -> str:
    """Wait for a training run that must succeed, and return its output."""
    output, log = process.communicate(timeout=600)
    assert process.returncode == 0, log
    return output


def latest_step(folder: Path) -> int:
    """Return the step of the latest checkpoint, complete or not."""
    return max((int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*")), default=0)


def wait_for_step(folder: Path, process: subprocess.Popen, step: int) -> None:
    """Wait for a new checkpoint at ``step`` or later."""
    deadline, before = time.monotonic() + 60, latest_step(folder)
    while time.monotonic() < deadline and process.poll() is None and latest_step(folder) < max(step, before + 1):
        time.sleep(0.002)


def assert_same_weights(tmp_path: Path, name: str) -> None:
    assert sha256_of(tmp_path / name / WEIGHTS) == sha256_of(tmp_path / "undisturbed" / WEIGHTS)


@pytest.mark.integration
@pytest.mark.parametrize("method", ["lora", "ptuning_v2"])
def test_a_training_killed_at_random_gives_the_same_bytes(base_folder, tmp_path, method):
    undisturbed = wait_until_finished(start(base_folder, tmp_path / "a", tmp_path / "undisturbed", method))
    generator = random.Random(method)
    kills = 0
    for step in (1, 40, 75):
        # The first checkpoint may be killed while it is written.
        has_checkpoint = any((tmp_path / "b").glob("checkpoint-*/progress.json"))
        process = start(base_folder, tmp_path / "b", tmp_path / "killed", method)
        wait_for_step(tmp_path / "b", process, step)
        time.sleep(generator.uniform(0, 0.15))
        process.kill()
        _, log = process.communicate()
        kills += process.returncode == -signal.SIGKILL
        assert ("resuming from checkpoint" in log) == has_checkpoint
    assert has_checkpoint
    assert kills >= 2
    assert wait_until_finished(start(base_folder, tmp_path / "b", tmp_path / "killed", method)) == undisturbed
    assert_same_weights(tmp_path, "killed")


@pytest.mark.integration
def test_sigterm_saves_a_checkpoint_and_exits_with_143(base_folder, tmp_path):
    undisturbed = wait_until_finished(start(base_folder, tmp_path / "a", tmp_path / "undisturbed", "lora"))
    process = start(base_folder, tmp_path / "b", tmp_path / "stopped", "lora")
    wait_for_step(tmp_path / "b", process, 1)
    process.terminate()
    _, log = process.communicate(timeout=600)
    assert process.returncode == 128 + signal.SIGTERM
    assert "Stopped by SIGTERM after step" in log
    assert "Traceback" not in log
    assert wait_until_finished(start(base_folder, tmp_path / "b", tmp_path / "stopped", "lora")) == undisturbed
    assert_same_weights(tmp_path, "stopped")


@pytest.mark.integration
def test_a_full_disk_while_saving_costs_only_that_checkpoint(base_folder, tmp_path):
    undisturbed = wait_until_finished(start(base_folder, tmp_path / "a", tmp_path / "undisturbed", "lora"))
    process = start(base_folder, tmp_path / "b", tmp_path / "full", "lora", setup=FILE_SIZE_LIMIT)
    _, log = process.communicate(timeout=600)
    assert process.returncode == 1
    assert re.search(r"error: The checkpoint of step \d+ cannot be written \(.+\). Free space in", log), log
    assert "Traceback" not in log
    assert any((tmp_path / "b").glob("*/progress.json"))
    assert wait_until_finished(start(base_folder, tmp_path / "b", tmp_path / "full", "lora")) == undisturbed
    assert_same_weights(tmp_path, "full")


# Completeness --------------------------------------------------------------------------------------


def test_an_incomplete_checkpoint_is_removed(tmp_path):
    for step in (5, 10, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}/a").write_text("x")
    checkpoints.mark_complete(tmp_path / "checkpoint-5", {"tokens": 1})
    checkpoints.mark_complete(tmp_path / "checkpoint-10", {"tokens": 2})
    assert checkpoints.latest_complete(tmp_path) == tmp_path / "checkpoint-10"
    assert not (tmp_path / "checkpoint-100").exists()
    assert checkpoints.read_progress(tmp_path / "checkpoint-10")["tokens"] == 2


@pytest.mark.parametrize("damage", ["truncated file", "missing file", "damaged progress"])
def test_the_previous_checkpoint_replaces_a_damaged_one(tmp_path, damage):
    for step in (5, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}/a").write_text("content")
        checkpoints.mark_complete(tmp_path / f"checkpoint-{step}", {"tokens": step})
    file = tmp_path / "checkpoint-10" / ("progress.json" if damage == "damaged progress" else "a")
    file.unlink() if damage == "missing file" else file.write_text("{")
    assert checkpoints.latest_complete(tmp_path) == tmp_path / "checkpoint-5"


@pytest.mark.parametrize(
    "progress", ["[]", "3", "{}", '{"sizes": []}', '{"sizes": {"a": "x"}}', '{"sizes": 3}', '{"sizes": {"\\u0000": 1}}']
)
def test_a_checkpoint_with_invalid_progress_or_name_is_not_complete(tmp_path, progress):
    for name in ("checkpoint-5", "checkpoint-x", "checkpoint-"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text("content")
    (tmp_path / "checkpoint-5/progress.json").write_text(progress)
    (tmp_path / "checkpoint-x/progress.json").write_text('{"sizes": {}}')
    assert checkpoints.complete_checkpoints(tmp_path) == []


def test_another_key_removes_the_checkpoints_of_the_same_adapter_only(tmp_path):
    first, other, second = (tmp_path / name for name in ("lora.aaaa", "lora_wide.aaaa", "lora.bbbb"))
    for folder in (first, other, first):
        checkpoints.prepare_folder(folder)
    assert first.is_dir()
    checkpoints.prepare_folder(second)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["lora.bbbb", "lora_wide.aaaa"]


# Lock ----------------------------------------------------------------------------------------------


def test_the_lock_excludes_another_training_of_the_same_adapter(tmp_path):
    with checkpoints.exclusive_lock(tmp_path, "lora"):
        with (
            pytest.raises(UserError, match="Another process on this host trains 'lora'"),
            checkpoints.exclusive_lock(tmp_path, "lora"),
        ):
            pass
        assert checkpoints.was_killed(tmp_path, "lora")  # the attempt kept the holder's process id
        with checkpoints.exclusive_lock(tmp_path, "ptuning_v2"):
            pass
    with checkpoints.exclusive_lock(tmp_path, "lora"):
        pass


@pytest.mark.parametrize(
    ("end", "killed"), [("", False), ("raise SystemExit(1)", False), ("os.kill(os.getpid(), 9)", True)]
)
def test_the_lock_file_shows_whether_its_holder_was_killed(tmp_path, end, killed):
    code = "import os, sys; from pathlib import Path; from models.checkpoints import exclusive_lock\n"
    code += f"with exclusive_lock(Path(sys.argv[1]), 'a'):\n    pass; {end}"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stderr=subprocess.DEVNULL)
    assert checkpoints.was_killed(tmp_path, "a") == killed
    with checkpoints.exclusive_lock(tmp_path, "a"):
        pass
    assert not checkpoints.was_killed(tmp_path, "a")
