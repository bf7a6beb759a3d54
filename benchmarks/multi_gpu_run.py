"""Trainings of :mod:`benchmarks.multi_gpu`, one after another, on one device or several.

``python -m benchmarks.multi_gpu_run --runs JSON --checkpoint FOLDER --out FILE`` launches the ranks. All runs have the
same number of devices and share a base that is loaded once. Rank 0 writes the list of their figures.
"""

import argparse
import copy
import gc
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
import torch.distributed as dist

from benchmarks.random_checkpoint import read_checkpoint
from benchmarks.training_speed import ADAPTERS, ALL_LINEAR, ROW, StepTimes, make_rows
from models import adapters, model_loading, precision, training
from models.command_line import entry_point
from models.launch import launch
from models.peak_memory import peak_memory_gib
from models.storage import write_json
from models.training import devices

EVERYWHERE = "lora_everywhere"  # LoRA of rank 16 on all linear layers
SETTINGS = ADAPTERS | {EVERYWHERE: ALL_LINEAR | {"rank": 16, "alpha": 32, "dropout": 0.0}, "full": {}}
ROWS_PER_UPDATE = 8
WARM_UP, STEPS = 2, 4
ANSWER_TOKENS = 64  # distinct tokens in the answers of learnable samples


@dataclass(frozen=True)
class Run:
    """A training run on several devices.

    Attributes:
        adapter: key of :data:`SETTINGS`.
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

    adapter: str
    devices: int
    fp8: bool = False
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


def train_all(checkpoint: Path, runs: Sequence[Run]) -> Iterator[dict]:
    """Yield the figures of this rank for each run; the losses are those of all ranks."""
    process_started = psutil.Process().create_time()
    devices.set_device()
    base = model_loading.load_model(read_checkpoint(checkpoint), "float32" if runs[0].adapter == "full" else "bfloat16")
    load_seconds = round(time.time() - process_started, 1)
    if len(runs) > 1:
        base.cpu()  # each adapter gets a copy, as fp8 and compilation change the model
    for (adapter, fp8), group in itertools.groupby(runs, key=lambda run: (run.adapter, run.fp8)):
        model = adapt(copy.deepcopy(base).to(training_device()) if len(runs) > 1 else base, adapter, fp8)
        for run in group:
            yield {"seconds_to_load": load_seconds, **train(model, run)}


def training_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def adapt(model, adapter: str, fp8: bool):
    """Attach a new adapter, and convert frozen layers to fp8 on request."""
    torch.manual_seed(0)
    adapted = adapters.attach_adapter(model, adapter.removesuffix("_everywhere"), **SETTINGS[adapter])
    if fp8:
        precision.convert_frozen_layers_to_fp8(model.transformer.layers)
    return adapted


def train(adapted, run: Run) -> dict:
    """Return the figures of a run on this rank."""
    release_memory()
    times, records = StepTimes(WARM_UP), []
    training.fit(
        adapted,
        make_samples(adapted.config, run),
        [],
        make_config(run),
        on_record=records.append,
        callbacks=[times] if run.timed else [],
        checkpoint_folder=run.checkpoints and Path(run.checkpoints),
    )
    figures = {"peak_memory_gib": round(peak_memory_gib(), 2)}
    if run.timed:
        seconds = times.median_seconds()
        return figures | {"step_seconds": round(seconds, 4), "tokens_per_second": round(run.tokens / seconds)}
    for name, key in (("losses", "loss"), ("gradient_norms", "gradient_norm")):
        figures[name] = {record["step"]: record.get(key) for record in records}
    return figures


def release_memory() -> None:
    """Free the earlier run's memory, and allow the compilations of the next run."""
    torch._dynamo.config.error_on_recompile = False
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def make_config(run: Run) -> training.TrainConfig:
    return training.TrainConfig(
        batch_size=run.rows_per_step,
        gradient_accumulation=run.rows // (run.rows_per_step * run.devices),
        pack_tokens=run.row_tokens,
        max_steps=run.steps,
        learning_rate=run.learning_rate,
        gradient_checkpointing=run.gradient_checkpointing,
        autocast="bfloat16" if run.adapter == "full" else "float32",
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
    parser.add_argument("--runs", type=json.loads, required=True, help="attributes of each Run, as a JSON list")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    runs = [Run(**attributes) for attributes in arguments.runs]
    if "RANK" not in os.environ:
        launch("benchmarks.multi_gpu_run", sys.argv[1:], runs[0].devices)
        return
    figures = [with_largest_memory(run_figures) for run_figures in train_all(arguments.checkpoint, runs)]
    if devices.rank() == 0:
        write_json(arguments.out, figures)


if __name__ == "__main__":
    main()
