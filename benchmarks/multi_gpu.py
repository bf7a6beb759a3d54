"""Training on several GPUs at ChatGLM-6B's size, with random weights, through the code that stage train runs.

``python -m benchmarks.multi_gpu --out benchmarks/results/devices.json [PART …]`` on a machine with several NVIDIA GPUs,
14 GB of free disk (100 for ``resumed``) and 64 GiB of memory; ``--small`` runs a toy of that layout, on CPU processes
where there is no GPU. Every run is started as stage train starts its own, by :func:`models.launch.launch`. The parts:

``speed_lora``, ``speed_ptuning_v2``
    Training under DDP on 1, 2, 4, … devices. An update takes 8 packed rows of 8,448 tokens and a device
    one of them at a time, so that both the update and a device's batch are the same for every number of devices.
    Then the same with one row a device and update, where gradients are exchanged at every step.
``curve``
    The training loss on 1 device and on several, step by step over the same updates; and on 1 device with the rows
    of an update taken two at a time, which sums in another order: what bfloat16 alone changes.
``killed``
    Of a LoRA on a model with four layers, the last device's process is killed with -9 after a checkpoint: how long
    until all have ended and with what words, and where the loss goes when the training goes on, on all devices and
    on half as many.
``full``
    All weights trained under FSDP, which on one device takes more memory than an H100 has.
``resumed``
    All weights of that model, spread over all devices, stopped by SIGTERM and gone on with on half as many.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import psutil
import torch
import torch.distributed as dist

from benchmarks.random_checkpoint import SMALL, base_of, machine, make_checkpoint
from benchmarks.training_speed import METHODS, ROW, StepTimes, rows_of
from models import adapters, memory_estimate, model_loading, training
from models.chatglm import ChatGLMConfig
from models.command_line import entry_point
from models.errors import UserError
from models.launch import launch
from models.storage import read_json, write_json
from models.training import devices

EVERYWHERE = {"rank": 16, "alpha": 32, "target_modules": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]}
UPDATE = 8  # rows
FEW = {"num_layers": 4, "vocab_size": 16_384}
FEW |= {f"{name}_token_id": 16_380 + number for number, name in enumerate(("bos", "eos", "mask", "gmask"))}
WARM_UP, STEPS = 2, 6
ANSWER_TOKENS, CURVE_STEPS = 64, 24
QUARTER = 2176  # tokens of a row that holds a quarter of ROW, in whole blocks of attention
BY_STEP = ("losses", "gradient_norms")  # too many to print
TARGETS = {2: 0.92, 8: 0.88}  # least efficiency by number of devices


@dataclass(frozen=True)
class Run:
    """A training in a group of processes.

    Attributes:
        rows: packed rows an update on all devices together; ``at_once``: of these on a device.
        row: tokens of a packed row; ``sample``: of a sample in it.
        steps: updates; ``timed``: whether their times are the figures, but for the first two, or else their losses.
        learnable: whether the samples follow a rule, by which the loss can fall.
        checkpoints: where to keep them, ``saved`` times on the way.
    """

    method: str
    devices: int
    rows: int = UPDATE
    at_once: int = 1
    row: int = ROW
    sample: int = 528
    steps: int = WARM_UP + STEPS
    timed: bool = True
    learnable: bool = False
    checkpointing: bool = False
    sharded: bool = False
    learning_rate: float = 1e-4
    checkpoints: str | None = None
    saved: int = 4

    @property
    def tokens(self) -> int:
        """Of an update, padding left out."""
        return self.rows * (self.row // self.sample) * self.sample


# In the processes of a group -----------------------------------------------------------------------


def train(checkpoint: Path, run: Run) -> dict:
    """What one process sees of a run; the losses are those of all."""
    begun = psutil.Process().create_time()
    devices.set_device()
    full = run.method == "full"
    model = model_loading.load_model(base_of(checkpoint), "float32" if full else "bfloat16")
    torch.manual_seed(0)
    how = EVERYWHERE if run.learnable and not full else METHODS.get(run.method, {})
    tuned = adapters.attach_adapter(model, run.method, **how)
    loaded, times = time.time() - begun, StepTimes(WARM_UP)
    points = []
    training.fit(
        tuned,
        samples(model.config, run),
        [],
        settings(run),
        on_point=points.append,
        callbacks=[times] if run.timed else [],
        checkpoint_folder=run.checkpoints and Path(run.checkpoints),
    )
    figures = {"seconds_to_load": round(loaded, 1), "peak_memory_gib": round(training.peak_memory_gib(), 2)}
    if run.timed:
        seconds = times.median_seconds()
        figures |= {"step_seconds": round(seconds, 4), "tokens_per_second": round(run.tokens / seconds)}
    else:
        for name, key in (("losses", "loss"), ("gradient_norms", "gradient_norm")):
            figures[name] = {point["step"]: point.get(key) for point in points}
    return figures


def settings(run: Run) -> training.TrainConfig:
    return training.TrainConfig(
        batch_size=run.at_once,
        gradient_accumulation=run.rows // (run.at_once * run.devices),
        pack_tokens=run.row,
        max_steps=run.steps,
        learning_rate=run.learning_rate,
        gradient_checkpointing=run.checkpointing,
        autocast="bfloat16" if run.method == "full" else "float32",
        sharded=run.sharded,
        evaluations=run.saved,
        logs=2 if run.timed else run.steps,
    )


def samples(config, run: Run) -> list[dict]:
    rows = rows_of(config, run.sample, run.rows * run.steps * (run.row // run.sample))
    for row in rows if run.learnable else ():
        ids, first = row["input_ids"], row["input_ids"][0]
        for place in range(run.sample // 2, run.sample - 1):  # the answer counts on from the first token, in a circle
            ids[place] = row["labels"][place] = 1000 + (first + place) % ANSWER_TOKENS
    return rows


def largest(figures: dict) -> dict:
    """The figures of this process, with the peak memory of the process that took most."""
    if devices.world_size() > 1:
        peaks = [None] * devices.world_size()
        dist.all_gather_object(peaks, figures["peak_memory_gib"])
        figures["peak_memory_gib"] = max(peaks)
    return figures


# Starting them -------------------------------------------------------------------------------------


class Bench:
    """Starts runs on a checkpoint and reads what they measured."""

    def __init__(self, folder: Path, small: bool):
        self.folder, self.small = folder, small

    @cached_property
    def whole(self) -> Path:
        make_checkpoint(self.folder / "base", self.small)
        return self.folder / "base"

    @cached_property
    def few_layers(self) -> Path:
        """The same with four layers and fewer tokens, so that all weights fit on one device, and often on a disk."""
        make_checkpoint(self.folder / "few_layers", self.small, **SMALL if self.small else FEW)
        return self.folder / "few_layers"

    def sized(self, run: Run) -> Run:
        return replace(run, row=run.row // 16, sample=run.sample // 8) if self.small else run

    def start(self, run: Run, checkpoint: Path | None = None, device: int | None = None) -> subprocess.Popen:
        """Begin a run; on one ``device``, if not on as many as it wants."""
        given = {"--run": json.dumps(asdict(run)), "--checkpoint": checkpoint or self.whole}
        given["--out"] = self.out(device)
        self.out(device).unlink(missing_ok=True)
        arguments = [str(each) for pair in given.items() for each in pair]
        seen = {} if device is None or not torch.cuda.is_available() else {"CUDA_VISIBLE_DEVICES": str(device)}
        return subprocess.Popen(
            [sys.executable, "-m", "benchmarks.multi_gpu", *arguments],
            env=os.environ | seen,
            stderr=subprocess.PIPE,
            text=True,
        )

    def out(self, device: int | None) -> Path:
        return self.folder / f"figures-{device}.json"

    def of(self, run: Run, checkpoint: Path | None = None) -> dict:
        """Figures of a run that must end well."""
        return self.end(run, self.start(run, checkpoint))

    def end(self, run: Run, process: subprocess.Popen, device: int | None = None) -> dict:
        errors = process.communicate()[1]
        if process.returncode != 0:
            raise UserError(f"{run} ended with {process.returncode}:\n{errors}")
        return read_json(self.out(device))

    def side_by_side(self, *runs: Run) -> list[dict]:
        """Figures of two runs on one device each, at once where there are two; their speed is not to be trusted."""
        if numbers_of_devices()[-1] == 1:
            return [self.of(run) for run in runs]
        processes = [self.start(run, device=device) for device, run in enumerate(runs)]
        return [self.end(run, processes[device], device) for device, run in enumerate(runs)]


def numbers_of_devices() -> list[int]:
    """1, 2, 4, … of what is there."""
    there = torch.cuda.device_count() if torch.cuda.is_available() else 2
    return [count for count in (1, 2, 4, 8) if count <= there]


# The parts, which yield what they found by name -----------------------------------------------------


def speed(bench: Bench, method: str) -> Iterator[tuple[str, dict]]:
    """Tokens a second by number of devices, and whether an update grows with that."""
    for grows in (False, True):
        alone = None
        for count in numbers_of_devices():
            run = bench.sized(Run(method, count, rows=count if grows else UPDATE))
            figures = {"method": method, "devices": count, "rows_of_an_update": run.rows, **bench.of(run)}
            alone = alone or figures["tokens_per_second"]
            figures["efficiency"] = round(figures["tokens_per_second"] / (count * alone), 4)
            if count in TARGETS and not bench.small:
                figures |= {"target": TARGETS[count], "met": figures["efficiency"] >= TARGETS[count]}
            yield f"{method}, {run.rows} rows on {count}", figures


def learning(bench: Bench, count: int, **how) -> Run:
    """The run whose losses are compared."""
    usual = {"row": QUARTER, "steps": CURVE_STEPS, "timed": False, "learnable": True, "learning_rate": 2e-4}
    return bench.sized(Run("lora", count, **usual | how))


def curve(bench: Bench) -> Iterator[tuple[str, dict]]:
    """The losses on one device, and how far those of the others lie from them."""
    alone, otherwise = bench.side_by_side(learning(bench, 1), learning(bench, 1, at_once=2))
    yield "1", alone
    yield "1, two rows at a time", beside(alone, otherwise)
    for count in numbers_of_devices()[1:]:
        yield str(count), beside(alone, bench.of(learning(bench, count)))


def beside(alone: dict, other: dict) -> dict:
    return other | {"apart": apart_from(alone["losses"], other["losses"])}


def apart_from(usual: dict, other: dict) -> dict:
    """How far losses lie from others of the same steps, relatively."""
    differences = [abs(other[step] / loss - 1) for step, loss in usual.items()]
    return {"mean": round(statistics.mean(differences), 6), "largest": round(max(differences), 6)}


def killed(bench: Bench) -> Iterator[tuple[str, dict]]:
    """How a training ends whose last process is killed, and how it goes on."""
    count, folder = numbers_of_devices()[-1], bench.folder / "killed"
    run = learning(bench, count)
    unbroken = bench.of(run, bench.few_layers)["losses"]
    process = bench.start(replace(run, checkpoints=str(folder)), bench.few_layers)
    wait_for_checkpoint(folder, process)
    victim = process_of_rank(process, count - 1)
    time.sleep(0.5)  # into the steps behind it
    began = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    yield "killed", {"devices": count, **ended(process), "seconds_to_the_end": round(time.monotonic() - began, 2)}
    yield from gone_on(bench, run, folder, unbroken, (count, max(count // 2, 1)))


def resumed(bench: Bench) -> Iterator[tuple[str, dict]]:
    """How a training of all weights goes on, with half as many devices, that SIGTERM stopped."""
    count, folder = numbers_of_devices()[-1], bench.folder / "resumed"
    run = replace(learning(bench, count), method="full", sharded=True, learning_rate=1e-4, saved=2)
    figures = bench.of(run, bench.few_layers)
    yield "unbroken", figures
    unbroken = figures["losses"]
    process = bench.start(replace(run, checkpoints=str(folder)), bench.few_layers)
    wait_for_checkpoint(folder, process)
    process.terminate()
    yield "stopped", {"devices": count, **ended(process)}
    yield from gone_on(bench, run, folder, unbroken, (max(count // 2, 1),))


def ended(process: subprocess.Popen) -> dict:
    told = process.communicate()[1].strip().splitlines()
    return {"told": told[-1], "exit_code": process.returncode}


def gone_on(bench: Bench, run: Run, folder: Path, unbroken: dict, numbers: tuple[int, ...]):
    """What comes of going on from the last whole checkpoint with these numbers of devices."""
    begun = max(int(each.parent.name.split("-")[1]) for each in folder.glob("checkpoint-*/progress.json"))
    for count in numbers:
        kept = folder
        if count != numbers[-1]:  # the last may use it up: with all weights it is tens of GB
            kept = Path(shutil.copytree(folder, folder.with_name(f"{folder.name}-{count}")))
        losses = bench.of(replace(run, devices=count, checkpoints=str(kept)), bench.few_layers)["losses"]
        apart = apart_from({step: loss for step, loss in unbroken.items() if int(step) > begun}, losses)
        yield f"gone on with {count}", {"from_step": begun, "apart": apart}


def wait_for_checkpoint(folder: Path, process: subprocess.Popen) -> int:
    """The step of the first whole one."""
    while process.poll() is None:
        for found in folder.glob("checkpoint-*/progress.json"):
            return int(found.parent.name.split("-")[1])
        time.sleep(0.05)
    raise UserError(f"It ended before its first checkpoint:\n{process.communicate()[1]}")


def process_of_rank(process: subprocess.Popen, rank: int) -> int:
    for child in psutil.Process(process.pid).children(recursive=True):
        if child.environ().get("RANK") == str(rank):
            return child.pid
    raise UserError(f"There is no process of rank {rank}.")


def full(bench: Bench) -> Iterator[tuple[str, dict]]:
    """All weights over all devices; how much one would need stands in the plan."""
    count = numbers_of_devices()[-1]
    run = bench.sized(Run("full", count, rows=count, checkpointing=True, sharded=True))
    yield f"on {count}", {"devices": count, "rows_of_an_update": count, **bench.of(run)}
    labelled = run.row // run.sample * run.sample // 2
    for shards in (1, count):
        wanted = memory_estimate.TrainingSpec(
            ChatGLMConfig(**(SMALL if bench.small else {})), "full", {}, "bfloat16", rows=1, length=run.row,
            labelled=labelled, checkpointing=True, packed=True, shards=shards, gpu=torch.cuda.is_available(),
        )  # fmt: skip
        yield f"planned on {shards}", {"memory_gib": round(memory_estimate.estimate(wanted).total / memory_estimate.GIB, 2)}


# The table of the READMEs --------------------------------------------------------------------------

HEADERS = {
    "en": "| method | rows of an update | GPUs | tokens/s | efficiency | peak memory of a GPU |",
    "zh": "| 方法 | 每次更新的行数 | GPU 数 | 词元/秒 | 效率 | 每个 GPU 的显存峰值 |",
}


def table(results: dict, language: str) -> str:
    """The speeds as the READMEs show them."""
    lines = [HEADERS[language], "|---|---|---|---|---|---|"]
    for one in (each for method in METHODS for each in results[f"speed_{method}"]["found"].values()):
        speed, peak = f"{one['tokens_per_second']:,}", f"{one['peak_memory_gib']:.1f} GiB"
        share = f"{one['efficiency']:.1%}" if one["devices"] > 1 else "–"
        lines.append(
            f"| `{one['method']}` | {one['rows_of_an_update']} | {one['devices']} | {speed} | {share} | {peak} |"
        )
    return "\n".join(lines)


# The program ---------------------------------------------------------------------------------------

PARTS = {f"speed_{method}": partial(speed, method=method) for method in METHODS}
PARTS |= {"curve": curve, "killed": killed, "full": full, "resumed": resumed}


@entry_point
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--commit", help="of the code, where git does not know it")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--checkpoint", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        in_a_group(Run(**json.loads(arguments.run)), arguments)
        return
    known = machine()
    known |= {"commit": arguments.commit or known["commit"], "devices": numbers_of_devices()[-1]}
    results, failed = read_json(arguments.out) if arguments.out.exists() else {}, []
    with tempfile.TemporaryDirectory(dir=arguments.out.parent) as scratch:
        bench = Bench(Path(scratch), arguments.small)
        for part in arguments.parts or PARTS:
            results[part] = {"machine": known, "found": {}}
            try:
                for name, figures in PARTS[part](bench):
                    results[part]["found"][name] = figures
                    shown = {key: value for key, value in figures.items() if key not in BY_STEP}
                    print(part, name, json.dumps(shown), flush=True)
                    write_json(arguments.out, results)
            except UserError as error:  # the other parts may still do
                failed.append(f"{part}: {error}")
                print(failed[-1], file=sys.stderr, flush=True)
    if failed:
        raise UserError("Failed: " + "; ".join(each.splitlines()[0] for each in failed))


def in_a_group(run: Run, arguments: argparse.Namespace) -> None:
    if "RANK" not in os.environ:
        launch("benchmarks.multi_gpu", sys.argv[1:], run.devices)
        return
    figures = largest(train(arguments.checkpoint, run))
    if devices.rank() == 0:
        write_json(arguments.out, figures)


if __name__ == "__main__":
    main()
