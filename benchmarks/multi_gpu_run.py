"""One training of :mod:`benchmarks.multi_gpu`, on one device or several.

``python -m benchmarks.multi_gpu_run --run JSON --checkpoint FOLDER --out FILE`` launches the ranks. Rank 0 writes the
figures.
"""

import argparse
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
import torch.distributed as dist

from benchmarks.random_checkpoint import read_checkpoint
from benchmarks.training_speed import ADAPTERS, ROW, StepTimes, make_rows
from models import adapters, model_loading, training
from models.command_line import entry_point
from models.launch import launch
from models.storage import write_json
from models.training import devices

ALL_LINEAR = {"rank": 16, "alpha": 32, "target_modules": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]}
ROWS_PER_UPDATE = 8
WARM_UP, STEPS = 2, 6
ANSWER_TOKENS = 64  # distinct tokens in the answers of learnable samples


@dataclass(frozen=True)
class Run:
    """A training run on several devices.

    Attributes:
        rows: packed rows per update, on all devices.
        rows_per_step: rows per step and device.
        row_tokens: tokens per packed row.
        sample_tokens: tokens per sample.
        steps: optimizer steps.
        timed: measure the steps after the first two; otherwise return losses.
        learnable: samples follow a rule, so that the loss can fall.
        checkpoints: folder for checkpoints; None for no checkpoints.
        num_checkpoints: number of checkpoints of the run.
    """

    method: str
    devices: int
    rows: int = ROWS_PER_UPDATE
    rows_per_step: int = 1
    row_tokens: int = ROW
    sample_tokens: int = 528
    steps: int = WARM_UP + STEPS
    timed: bool = True
    learnable: bool = False
    gradient_checkpointing: bool = False
    sharded: bool = False
    learning_rate: float = 1e-4
    checkpoints: str | None = None
    num_checkpoints: int = 4

    @property
    def tokens(self) -> int:
        """Tokens per update, without padding."""
        return self.rows * (self.row_tokens // self.sample_tokens) * self.sample_tokens


def train(checkpoint: Path, run: Run) -> dict:
    """Return the figures of one rank; the losses are those of all ranks."""
    process_started = psutil.Process().create_time()
    devices.set_device()
    full = run.method == "full"
    model = model_loading.load_model(read_checkpoint(checkpoint), "float32" if full else "bfloat16")
    torch.manual_seed(0)
    settings = ALL_LINEAR if run.learnable and not full else ADAPTERS.get(run.method, {})
    adapted = adapters.attach_adapter(model, run.method, **settings)
    load_seconds, times = time.time() - process_started, StepTimes(WARM_UP)
    records = []
    training.fit(
        adapted,
        make_samples(model.config, run),
        [],
        make_config(run),
        on_record=records.append,
        callbacks=[times] if run.timed else [],
        checkpoint_folder=run.checkpoints and Path(run.checkpoints),
    )
    figures = {"seconds_to_load": round(load_seconds, 1), "peak_memory_gib": round(training.peak_memory_gib(), 2)}
    if run.timed:
        seconds = times.median_seconds()
        figures |= {"step_seconds": round(seconds, 4), "tokens_per_second": round(run.tokens / seconds)}
    else:
        for name, key in (("losses", "loss"), ("gradient_norms", "gradient_norm")):
            figures[name] = {record["step"]: record.get(key) for record in records}
    return figures


def make_config(run: Run) -> training.TrainConfig:
    return training.TrainConfig(
        batch_size=run.rows_per_step,
        gradient_accumulation=run.rows // (run.rows_per_step * run.devices),
        pack_tokens=run.row_tokens,
        max_steps=run.steps,
        learning_rate=run.learning_rate,
        gradient_checkpointing=run.gradient_checkpointing,
        autocast="bfloat16" if run.method == "full" else "float32",
        sharded=run.sharded,
        evaluations=run.num_checkpoints,
        logs=2 if run.timed else run.steps,
    )


def make_samples(config, run: Run) -> list[dict]:
    samples = make_rows(config, run.sample_tokens, run.rows * run.steps * (run.row_tokens // run.sample_tokens))
    for sample in samples if run.learnable else ():
        ids, first = sample["input_ids"], sample["input_ids"][0]
        # The answer counts up from the first token, cyclically.
        for index in range(run.sample_tokens // 2, run.sample_tokens - 1):
            ids[index] = sample["labels"][index] = 1000 + (first + index) % ANSWER_TOKENS
    return samples


def with_largest_memory(figures: dict) -> dict:
    """Return the figures of this rank with the largest peak memory of all ranks."""
    if devices.world_size() > 1:
        peaks = [None] * devices.world_size()
        dist.all_gather_object(peaks, figures["peak_memory_gib"])
        figures["peak_memory_gib"] = max(peaks)
    return figures


@entry_point
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=json.loads, required=True, help="attributes of Run, as JSON")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    run = Run(**arguments.run)
    if "RANK" not in os.environ:
        launch("benchmarks.multi_gpu_run", sys.argv[1:], run.devices)
        return
    figures = with_largest_memory(train(arguments.checkpoint, run))
    if devices.rank() == 0:
        write_json(arguments.out, figures)


if __name__ == "__main__":
    main()
