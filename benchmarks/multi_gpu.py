"""Speed and fault tolerance of training on several GPUs, at ChatGLM-6B's size, with random weights.

``python -m benchmarks.multi_gpu --out benchmarks/results/devices.json [PART …]`` on a machine with several NVIDIA GPUs,
14 GB of free disk (100 for ``resumed``) and 64 GiB of memory; ``--small`` runs a toy model, on CPU processes without a
GPU. Runs are started as stage train starts its ranks, by :func:`models.launch.launch`. The parts:

``speed_on_1``, ``speed_on_2``, ``speed_on_4``, …
    DDP: LoRA of rank 4 on query_key_value, of rank 16 on all linear layers, both also with fp8, and P-Tuning v2. An
    update takes 8 packed rows of 8,448 tokens, one per device and step, so that the update and the batch of a device
    are the same for every number of devices. Then the same with one row per device and update, where gradients are
    all-reduced in every step.
``curve``
    Training losses on 1 device and on several, over the same updates; and on 1 device with two rows per step, which
    changes the order of summation, as a scale for the difference.
``killed``
    LoRA on a model with four layers, whose last rank is killed by SIGKILL after a checkpoint: seconds until all ranks
    have ended, their message, and the losses after resuming on all devices and on one less.
``full``
    Full fine-tuning with FSDP, which does not fit on one H100.
``resumed``
    Full fine-tuning of the model with four layers on all devices, stopped by SIGTERM and resumed on half as many, on a
    quarter, … and on one.
"""

import argparse
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path

import psutil
import torch

from benchmarks.multi_gpu_run import EVERYWHERE, ROWS_PER_UPDATE, Run
from benchmarks.random_checkpoint import SMALL, describe_machine, make_checkpoint
from models import memory_estimate
from models.chatglm import ChatGLMConfig
from models.command_line import entry_point
from models.errors import UserError
from models.storage import read_json, write_json

FOUR_LAYERS = {"num_layers": 4, "vocab_size": 16_384}
FOUR_LAYERS |= {f"{name}_token_id": 16_380 + number for number, name in enumerate(("bos", "eos", "mask", "gmask"))}
CURVE_STEPS = 24
QUARTER_ROW = 2176  # tokens: about a quarter of the usual row, in whole blocks of attention
BY_STEP = ("losses", "gradient_norms")  # not printed
SPEED_CASES = {  # adapter and fp8 by name
    "lora": ("lora", False),
    EVERYWHERE: (EVERYWHERE, False),
    "ptuning_v2": ("ptuning_v2", False),
    "lora_fp8": ("lora", True),
    f"{EVERYWHERE}_fp8": (EVERYWHERE, True),
}


# Starting runs -------------------------------------------------------------------------------------


class Bench:
    """Starts runs on a checkpoint and reads their figures."""

    def __init__(self, folder: Path, small: bool):
        self.folder, self.small = folder, small

    @cached_property
    def checkpoint(self) -> Path:
        make_checkpoint(self.folder / "base", self.small)
        return self.folder / "base"

    @cached_property
    def four_layer_checkpoint(self) -> Path:
        """Four layers and a smaller vocabulary: all weights fit on one device, and many checkpoints on a disk."""
        make_checkpoint(self.folder / "four_layers", self.small, **SMALL if self.small else FOUR_LAYERS)
        return self.folder / "four_layers"

    def scale(self, run: Run) -> Run:
        """Return a run with shorter rows for the toy model."""
        if not self.small:
            return run
        return replace(run, row_tokens=run.row_tokens // 16, sample_tokens=run.sample_tokens // 8)

    def start(self, *runs: Run, checkpoint: Path | None = None, device: int | None = None) -> subprocess.Popen:
        """Start a process that trains runs one after another.

        Args:
            device: GPU of runs on one device; by default the first ones.
        """
        out = self._figures_path(device)
        out.unlink(missing_ok=True)
        attributes = json.dumps([asdict(run) for run in runs])
        options = {"--runs": attributes, "--checkpoint": checkpoint or self.checkpoint, "--out": out}
        arguments = [str(argument) for option in options.items() for argument in option]
        variables = {}
        if device is not None and torch.cuda.is_available():
            variables = {"CUDA_VISIBLE_DEVICES": str(device)}
        return subprocess.Popen(
            [sys.executable, "-m", "benchmarks.multi_gpu_run", *arguments],
            env=os.environ | variables,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _figures_path(self, device: int | None) -> Path:
        return self.folder / f"figures-{device}.json"

    def run(self, run: Run, checkpoint: Path | None = None) -> dict:
        """Train a run that must succeed, and return its figures."""
        (figures,) = self.wait(self.start(run, checkpoint=checkpoint))
        return figures

    def wait(self, process: subprocess.Popen, device: int | None = None) -> list[dict]:
        """Return the figures of the runs of a process.

        Raises:
            UserError: a run failed.
        """
        errors = process.communicate()[1]
        if process.returncode != 0:
            raise UserError(f"Training ended with exit code {process.returncode}:\n{errors}")
        return read_json(self._figures_path(device))

    def run_in_parallel(self, *runs: Run) -> list[dict]:
        """Return the figures of runs on one device each, in parallel if there are several; their speed is not valid."""
        if device_counts()[-1] == 1:
            return [self.run(run) for run in runs]
        processes = [self.start(run, device=device) for device, run in enumerate(runs)]
        return [figures for device, process in enumerate(processes) for figures in self.wait(process, device)]


def device_counts() -> list[int]:
    """Return 1, 2, 4, … up to the number of devices."""
    available = torch.cuda.device_count() if torch.cuda.is_available() else 2
    return [count for count in (1, 2, 4, 8) if count <= available]


# Parts: each yields names and figures --------------------------------------------------------------


def speed(bench: Bench, count: int) -> Iterator[tuple[str, dict]]:
    """Tokens per second on ``count`` devices, for a constant update and for one row per device (weak scaling)."""
    cases = {
        f"{name}, {scaling}": bench.scale(Run(adapter, count, fp8, rows))
        for name, (adapter, fp8) in SPEED_CASES.items()
        for scaling, rows in (("constant update", ROWS_PER_UPDATE), ("one row per device", count))
    }
    all_figures = bench.wait(bench.start(*cases.values()))
    for (name, run), figures in zip(cases.items(), all_figures, strict=True):
        figures = {"case": name.partition(",")[0], "devices": count, "rows_per_update": run.rows, **figures}
        yield name, figures


def learnable_run(bench: Bench, count: int, **options) -> Run:
    """Return the run whose losses are compared."""
    defaults = {"row_tokens": QUARTER_ROW, "steps": CURVE_STEPS, "learning_rate": 2e-4}
    return bench.scale(Run(EVERYWHERE, count, timed=False, learnable=True, **defaults | options))


def curve(bench: Bench) -> Iterator[tuple[str, dict]]:
    """Losses on one device, and the difference of other losses from them."""
    single, two_rows = bench.run_in_parallel(learnable_run(bench, 1), learnable_run(bench, 1, rows_per_step=2))
    yield "1", single
    yield "1, two rows per step", with_difference(two_rows, single)
    for count in device_counts()[1:]:
        yield str(count), with_difference(bench.run(learnable_run(bench, count)), single)


def with_difference(figures: dict, reference: dict) -> dict:
    return figures | {"relative_difference": relative_difference(figures["losses"], reference["losses"])}


def relative_difference(losses: dict, reference: dict) -> dict:
    """Return mean and maximum relative difference of losses from those of the same steps in ``reference``."""
    differences = [abs(losses[step] / loss - 1) for step, loss in reference.items()]
    return {"mean": round(statistics.mean(differences), 6), "largest": round(max(differences), 6)}


def killed(bench: Bench) -> Iterator[tuple[str, dict]]:
    """End of a training run whose last rank is killed, and losses after resuming."""
    count, folder = device_counts()[-1], bench.folder / "killed"
    fewer = max(count - 1, 1)
    run = learnable_run(bench, count, rows=math.lcm(count, fewer) * math.ceil(ROWS_PER_UPDATE / math.lcm(count, fewer)))
    uninterrupted = bench.run(run, bench.four_layer_checkpoint)["losses"]
    process = bench.start(replace(run, checkpoints=str(folder)), checkpoint=bench.four_layer_checkpoint)
    wait_for_checkpoint(folder, process)
    pid = pid_of_rank(process, count - 1)
    time.sleep(0.5)  # into the steps after the checkpoint
    started = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    figures = exit_figures(process)
    seconds = round(time.monotonic() - started, 2)
    yield "killed", {"devices": count, **figures, "seconds_until_exit": seconds}
    yield from resume(bench, run, folder, uninterrupted, (count, fewer))


def resumed(bench: Bench) -> Iterator[tuple[str, dict]]:
    """Full fine-tuning that SIGTERM stopped, resumed on fewer devices."""
    count, folder = device_counts()[-1], bench.folder / "resumed"
    run = replace(learnable_run(bench, count), adapter="full", sharded=True, learning_rate=1e-4, num_checkpoints=2)
    figures = bench.run(run, bench.four_layer_checkpoint)
    yield "uninterrupted", figures
    process = bench.start(replace(run, checkpoints=str(folder)), checkpoint=bench.four_layer_checkpoint)
    wait_for_checkpoint(folder, process)
    process.terminate()
    yield "stopped", {"devices": count, **exit_figures(process)}
    yield from resume(bench, run, folder, figures["losses"], tuple(reversed(device_counts()[:-1])) or (1,))


def exit_figures(process: subprocess.Popen) -> dict:
    """Wait for a process, and return its last line of standard error and its exit code."""
    lines = process.communicate()[1].strip().splitlines()
    return {"last_message": lines[-1], "exit_code": process.returncode}


def resume(
    bench: Bench, run: Run, folder: Path, uninterrupted: dict, counts: tuple[int, ...]
) -> Iterator[tuple[str, dict]]:
    """Resume from the latest complete checkpoint on several numbers of devices, and compare losses."""
    latest = max(int(progress.parent.name.split("-")[1]) for progress in folder.glob("checkpoint-*/progress.json"))
    reference = {step: loss for step, loss in uninterrupted.items() if int(step) > latest}
    for count in counts:
        checkpoints = folder
        if count != counts[-1]:  # the last run may use the original: all weights take tens of GB
            checkpoints = Path(shutil.copytree(folder, folder.with_name(f"{folder.name}-{count}")))
        resumed_run = replace(run, devices=count, checkpoints=str(checkpoints))
        difference = relative_difference(bench.run(resumed_run, bench.four_layer_checkpoint)["losses"], reference)
        yield f"resumed on {count}", {"from_step": latest, "relative_difference": difference}


def wait_for_checkpoint(folder: Path, process: subprocess.Popen) -> None:
    """Wait for the first complete checkpoint."""
    while process.poll() is None:
        if any(folder.glob("checkpoint-*/progress.json")):
            return
        time.sleep(0.05)
    raise UserError(f"The training ended before its first checkpoint:\n{process.communicate()[1]}")


def pid_of_rank(process: subprocess.Popen, rank: int) -> int:
    for child in psutil.Process(process.pid).children(recursive=True):
        if child.environ().get("RANK") == str(rank):
            return child.pid
    raise UserError(f"There is no process of rank {rank}.")


def full(bench: Bench) -> Iterator[tuple[str, dict]]:
    """Full fine-tuning on all devices, and the estimated memory on one device and on all."""
    count = device_counts()[-1]
    run = bench.scale(Run("full", count, rows=count, gradient_checkpointing=True, sharded=True))
    yield f"on {count}", {"devices": count, "rows_per_update": count, **bench.run(run)}
    for shards in (1, count):
        spec = memory_estimate.TrainingSpec(
            ChatGLMConfig(**(SMALL if bench.small else {})),
            "full",
            {},
            "bfloat16",
            rows=1,
            length=run.row_tokens,
            labelled=run.row_tokens // run.sample_tokens * run.sample_tokens // 2,
            gradient_checkpointing=True,
            packed=True,
            shards=shards,
            gpu=torch.cuda.is_available(),
        )
        memory_gib = memory_estimate.estimate(spec).total / memory_estimate.GIB
        yield f"estimated on {shards}", {"memory_gib": round(memory_gib, 2)}


# Table for the documentation -----------------------------------------------------------------------

HEADERS = {
    "en": "| method | rows per update | GPUs | tokens/s | efficiency | peak memory of a GPU |",
    "zh": "| 方法 | 每次更新的行数 | GPU 数 | 词元/秒 | 效率 | 每个 GPU 的显存峰值 |",
}


def table(results: dict, language: str) -> str:
    """Return the speeds as a Markdown table."""
    lines = [HEADERS[language], "|---|---|---|---|---|---|"]
    parts = [results[f"speed_on_{count}"]["results"] for count in (1, 2, 4, 8) if f"speed_on_{count}" in results]
    for name, single in parts[0].items():
        for case in (part[name] for part in parts):
            efficiency = case["tokens_per_second"] / (case["devices"] * single["tokens_per_second"])
            cells = (
                f"`{case['case']}`",
                case["rows_per_update"],
                case["devices"],
                f"{case['tokens_per_second']:,}",
                f"{efficiency:.1%}" if case["devices"] > 1 else "–",
                f"{case['peak_memory_gib']:.1f} GiB",
            )
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


# The program ---------------------------------------------------------------------------------------

PARTS = {f"speed_on_{count}": partial(speed, count=count) for count in device_counts()}
PARTS |= {"curve": curve, "killed": killed, "full": full, "resumed": resumed}


@entry_point
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--commit", help="commit of the code, outside a git repository")
    arguments = parser.parse_args()
    machine = describe_machine(arguments.commit) | {"devices": device_counts()[-1]}
    results, failures = read_json(arguments.out) if arguments.out.exists() else {}, []
    with tempfile.TemporaryDirectory(dir=arguments.out.parent) as scratch:
        bench = Bench(Path(scratch), arguments.small)
        for part in arguments.parts or PARTS:
            results[part] = {"machine": machine, "results": {}}
            try:
                for name, figures in PARTS[part](bench):
                    results[part]["results"][name] = figures
                    shown = {key: value for key, value in figures.items() if key not in BY_STEP}
                    print(part, name, json.dumps(shown), flush=True)
                    write_json(arguments.out, results)
            except UserError as error:  # continue with the other parts
                failures.append(f"{part}: {error}")
                print(failures[-1], file=sys.stderr, flush=True)
    if failures:
        raise UserError("Failed: " + "; ".join(failure.splitlines()[0] for failure in failures))


if __name__ == "__main__":
    main()
