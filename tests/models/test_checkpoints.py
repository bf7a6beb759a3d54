"""A training that is killed goes on as if it had not been: the adapter is the same, bit for bit."""

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

PROGRAM = """
import sys
from pathlib import Path
import torch
from models import adapters, base, training
from models.command_line import entry_point

@entry_point
def main():
    base_folder, checkpoint_folder, out, method = sys.argv[1:]
    torch.manual_seed(0)
    model = base.load_model(base.read_record(Path(base_folder)), "float32")
    how = {
        "lora": {"rank": 4, "alpha": 8, "dropout": 0.2, "target_modules": ["query_key_value", "dense"]},
        "ptuning_v2": {"prefix_tokens": 3, "projection": True},
    }[method]
    tuned = adapters.attach(model, method, **how)
    gmask, sop = model.config.gmask_token_id, model.config.bos_token_id
    rows = [
        {"input_ids": [40 + i] * (1 + i % 5) + [gmask, sop, 50 + i], "labels": [-100] * (3 + i % 5) + [50 + i]}
        for i in range(23)
    ]
    settings = training.TrainConfig(
        batch_size=3, gradient_accumulation=2, learning_rate=0.01, epochs=40, evaluations=8, seed=3, warmup=0.1,
        schedule="cosine", keep_best=True,
    )
    fitted = training.fit(tuned, rows[:20], rows[20:], settings, checkpoint_folder=Path(checkpoint_folder))
    tuned.save_pretrained(out)
    print(fitted.steps, fitted.kept_step, fitted.tokens, [(p["step"], p["loss"]) for p in fitted.history])

main()
"""


FULL_DISK = """
import resource
from transformers import TrainerCallback
from models.training import fitting

class Fill(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 60:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))

usual = fitting._trainer
def filling(*arguments):
    trainer = usual(*arguments)
    trainer.add_callback(Fill())
    return trainer
fitting._trainer = filling
"""


def start(*arguments, program: str = PROGRAM) -> subprocess.Popen:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process: subprocess.Popen) -> str:
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return out


def last_begun(folder: Path) -> int:
    """The step of the last checkpoint, whole or not."""
    return max((int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*")), default=0)


def wait_for(folder: Path, process: subprocess.Popen, count: int) -> None:
    """Until so many checkpoints were begun, counting those that were pruned, and one of this process at least."""
    deadline, before = time.monotonic() + 60, last_begun(folder)
    while time.monotonic() < deadline and process.poll() is None and last_begun(folder) < max(count, before + 1):
        time.sleep(0.002)


@pytest.mark.integration
@pytest.mark.parametrize("method", ["lora", "ptuning_v2"])
def test_killed_at_random_the_adapter_is_the_same_bit_for_bit(base_folder, tmp_path, method):
    undisturbed = finish(start(base_folder, tmp_path / "a", tmp_path / "undisturbed", method))
    draw = random.Random(method)
    kills = 0
    for step in (1, 40, 75):
        whole = any((tmp_path / "b").glob("checkpoint-*/progress.json"))  # the first may be killed in its writing
        process = start(base_folder, tmp_path / "b", tmp_path / "killed", method)
        wait_for(tmp_path / "b", process, step)
        time.sleep(draw.uniform(0, 0.15))
        process.kill()
        _, errors = process.communicate()
        kills += process.returncode == -signal.SIGKILL
        assert ("going on from checkpoint" in errors) == whole
    assert whole
    assert kills >= 2
    assert finish(start(base_folder, tmp_path / "b", tmp_path / "killed", method)) == undisturbed
    name = "adapter_model.safetensors"
    assert sha256_of(tmp_path / "killed" / name) == sha256_of(tmp_path / "undisturbed" / name)


@pytest.mark.integration
def test_sigterm_saves_and_ends_in_a_way_that_a_scheduler_can_tell(base_folder, tmp_path):
    undisturbed = finish(start(base_folder, tmp_path / "a", tmp_path / "undisturbed", "lora"))
    process = start(base_folder, tmp_path / "b", tmp_path / "stopped", "lora")
    wait_for(tmp_path / "b", process, 1)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "Stopped by SIGTERM after step" in errors
    assert "Traceback" not in errors
    assert finish(start(base_folder, tmp_path / "b", tmp_path / "stopped", "lora")) == undisturbed
    name = "adapter_model.safetensors"
    assert sha256_of(tmp_path / "stopped" / name) == sha256_of(tmp_path / "undisturbed" / name)


@pytest.mark.integration
def test_a_disk_that_fills_up_in_the_middle_of_a_save_costs_no_more_than_that_checkpoint(base_folder, tmp_path):
    """From step 60 on no file may grow beyond 20 kB, which is less than a checkpoint's optimizer has."""
    undisturbed = finish(start(base_folder, tmp_path / "a", tmp_path / "undisturbed", "lora"))
    process = start(base_folder, tmp_path / "b", tmp_path / "full", "lora", program=FULL_DISK + PROGRAM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert re.search(r"error: The checkpoint of step \d+ cannot be written \(.+\); free some space", errors), errors
    assert "Traceback" not in errors
    whole = {path.parent.name for path in (tmp_path / "b").glob("*/progress.json")}
    assert whole
    process = start(base_folder, tmp_path / "b", tmp_path / "full", "lora")
    assert finish(process) == undisturbed
    name = "adapter_model.safetensors"
    assert sha256_of(tmp_path / "full" / name) == sha256_of(tmp_path / "undisturbed" / name)


def test_a_checkpoint_counts_once_it_is_whole(tmp_path):
    for step in (5, 10, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}/a").write_text("x")
    checkpoints.mark_complete(tmp_path / "checkpoint-5", {"tokens": 1})
    checkpoints.mark_complete(tmp_path / "checkpoint-10", {"tokens": 2})
    assert checkpoints.latest_complete(tmp_path) == tmp_path / "checkpoint-10"
    assert not (tmp_path / "checkpoint-100").exists()
    assert checkpoints.read_progress(tmp_path / "checkpoint-10")["tokens"] == 2


@pytest.mark.parametrize("damage", ["cut off", "lost", "progress"])
def test_a_checkpoint_that_was_damaged_later_gives_way_to_the_one_before(tmp_path, damage):
    for step in (5, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}/a").write_text("whole")
        checkpoints.mark_complete(tmp_path / f"checkpoint-{step}", {"tokens": step})
    file = tmp_path / "checkpoint-10" / ("progress.json" if damage == "progress" else "a")
    file.unlink() if damage == "lost" else file.write_text("{")
    assert checkpoints.latest_complete(tmp_path) == tmp_path / "checkpoint-5"


@pytest.mark.parametrize(
    "progress", ["[]", "3", "{}", '{"sizes": []}', '{"sizes": {"a": "x"}}', '{"sizes": 3}', '{"sizes": {"\\u0000": 1}}']
)
def test_a_checkpoint_that_says_nonsense_of_itself_counts_as_none(tmp_path, progress):
    for name in ("checkpoint-5", "checkpoint-x", "checkpoint-"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text("whole")
    (tmp_path / "checkpoint-5/progress.json").write_text(progress)
    (tmp_path / "checkpoint-x/progress.json").write_text('{"sizes": {}}')
    assert checkpoints.complete_checkpoints(tmp_path) == []


def test_other_inputs_start_anew_and_other_adapters_are_left_alone(tmp_path):
    first, other, second = (tmp_path / name for name in ("lora.aaaa", "lora_wide.aaaa", "lora.bbbb"))
    for folder in (first, other, first):
        checkpoints.prepare_folder(folder)
    assert first.is_dir()
    checkpoints.prepare_folder(second)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["lora.bbbb", "lora_wide.aaaa"]


def test_two_trainings_of_one_adapter_exclude_each_other(tmp_path):
    with checkpoints.exclusive_lock(tmp_path, "lora"):
        with pytest.raises(UserError, match="Another process is training 'lora'"), checkpoints.exclusive_lock(tmp_path, "lora"):
            pass
        with checkpoints.exclusive_lock(tmp_path, "ptuning_v2"):
            pass
    with checkpoints.exclusive_lock(tmp_path, "lora"):
        pass


@pytest.mark.parametrize(
    ("ending", "killed"), [("", False), ("raise SystemExit(1)", False), ("os.kill(os.getpid(), 9)", True)]
)
def test_whoever_was_killed_is_known_by_the_lock(tmp_path, ending, killed):
    code = "import os, sys; from pathlib import Path; from models.checkpoints import exclusive_lock\n"
    code += f"with exclusive_lock(Path(sys.argv[1]), 'a'):\n    pass; {ending}"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stderr=subprocess.DEVNULL)
    assert checkpoints.was_killed(tmp_path, "a") == killed
    with checkpoints.exclusive_lock(tmp_path, "a"):
        pass
    assert not checkpoints.was_killed(tmp_path, "a")
