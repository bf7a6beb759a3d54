"""Speed and memory of training at ChatGLM-6B's size, with random weights, through the code that stage train runs.

``python -m benchmarks.training_speed --out benchmarks/results/training.json [CASE …]`` on a machine with an NVIDIA
GPU and 14 GB of free disk; ``--small`` runs the same on a toy of that layout, on any machine, and leaves out what
needs a GPU where there is none. Every case has a process of its own, which loads the base from disk, trains
through :func:`models.training.fit`, and gives the median time of a step after the first ones, between events on
the device. Compiling once more after these is an error. Tokens are those of samples, padding left out; memory is
PyTorch's ``max_memory_allocated`` over loading and training, without a GPU the process's own.

The cases named ``usual_loop`` are the reference: what scripts for this model do, written plainly. Attention
computes its scores, logits are float32 and for all tokens, rows are padded to one length, everything is
under float16 autocast and every block is checkpointed.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import TrainerCallback

from benchmarks.random_checkpoint import SMALL, base_of, machine, make_checkpoint
from models import adapters, memory_estimate, model_loading, precision, training
from models.chatglm import ChatGLMConfig
from models.storage import read_json, write_json

ROW = 8448  # tokens: 33 × 256, with which the products of an H100 or H200 fill its 132 processors in whole waves
LORA = {"rank": 4, "alpha": 32, "target_modules": ["query_key_value"]}
EVERYWHERE = {"dropout": 0.1, "target_modules": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]}
PREFIX = {"prefix_tokens": 128}
METHODS = {"lora": LORA, "ptuning_v2": PREFIX}
WARM_UP, STEPS = 4, 12


@dataclass(frozen=True)
class Case:
    """What is trained on what.

    Attributes:
        sample: tokens of each sample, half of which is its answer.
        samples: how many an update takes; with ``pack``, as many as fit into ``batch_size`` such rows.
        pad_to: length that the usual loop pads rows to.
        attachment: of the adapter, where it is not the usual one.
    """

    method: str
    sample: int
    batch_size: int = 1
    pack: int | None = None
    fp8: bool = False
    bits: int | None = None
    checkpointing: bool = False
    pad_to: int | None = None
    attachment: dict = field(default_factory=dict)
    targets: dict = field(default_factory=dict)


CASES = {
    "usual_loop_short": Case("lora", 100, batch_size=2, pad_to=460, checkpointing=True),
    "usual_loop": Case("lora", 460, batch_size=2, pad_to=460, checkpointing=True),
    "lora": Case("lora", 528, pack=ROW, targets={"tokens_per_second": 23_500, "peak_memory_gib": 40}),
    "lora_short": Case("lora", 100, pack=ROW, targets={"tokens_per_second": 23_000}),
    "lora_fp8": Case("lora", 528, pack=ROW, fp8=True, targets={"tokens_per_second": 32_000}),
    "lora_fp8_short": Case("lora", 100, pack=ROW, fp8=True, targets={"tokens_per_second": 32_000}),
    "ptuning_v2": Case("ptuning_v2", 528, pack=ROW, targets={"tokens_per_second": 20_000}),
    "ptuning_v2_short": Case("ptuning_v2", 100, pack=ROW, targets={"tokens_per_second": 20_000}),
    "lora_checkpointing_2x460": Case("lora", 460, batch_size=2, checkpointing=True, targets={"peak_memory_gib": 16}),
    "lora_checkpointing": Case(
        "lora", 528, batch_size=2, pack=ROW, checkpointing=True,
        targets={"tokens_per_second": 10_000, "peak_memory_gib": 24},
    ),
    "lora_4bit_1x600": Case("lora", 600, bits=4, checkpointing=True, targets={"peak_memory_gib": 6.0}),
    "ptuning_v2_4bit_1x600": Case("ptuning_v2", 600, bits=4, checkpointing=True, targets={"peak_memory_gib": 6.0}),
    "lora_4bit": Case("lora", 528, pack=ROW, bits=4, targets={"tokens_per_second": 8_000}),
    "ptuning_v2_8bit": Case("ptuning_v2", 528, pack=ROW // 2, bits=8),
    "lora_8bit_everywhere": Case("lora", 528, pack=ROW // 2, bits=8, attachment=EVERYWHERE),
    "lora_padded_everywhere": Case("lora", 512, batch_size=8, attachment=EVERYWHERE),
    "ptuning_v2_4bit": Case("ptuning_v2", 528, pack=ROW, bits=4, targets={"tokens_per_second": 8_000}),
}  # fmt: skip


# Measuring -----------------------------------------------------------------------------------------


class StepTimes(TrainerCallback):
    """When each update ended, by the device's own clock where it has one; the first ``warm_up`` do not count."""

    def __init__(self, warm_up: int = WARM_UP):
        self.marks, self.warm_up = [], warm_up

    def on_step_end(self, args, state, control, **kwargs):
        self.marks.append(_mark())
        if state.global_step == self.warm_up:
            torch._dynamo.config.error_on_recompile = True

    def median_seconds(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        marks = self.marks[self.warm_up - 1 :]
        return statistics.median(_between(one, other) for one, other in pairwise(marks))


def _mark():
    if not torch.cuda.is_available():
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _between(one, other) -> float:
    return other - one if isinstance(one, float) else one.elapsed_time(other) / 1000


def rows_of(config, tokens: int, count: int) -> list[dict]:
    """Samples of random tokens: half context, half answer."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for ids in torch.randint(1000, min(60_000, config.vocab_size - 4), (count, tokens), generator=generator):
        context = tokens // 2
        ids[context - 2], ids[context - 1], ids[-1] = config.gmask_token_id, config.bos_token_id, config.eos_token_id
        labels = ids.clone()
        labels[:context] = -100
        rows.append({"input_ids": ids.tolist(), "labels": labels.tolist()})
    return rows


def measure(checkpoint: Path, case: Case, small: bool) -> dict:
    found = base_of(checkpoint)
    model = model_loading.load_model(found, "bfloat16", case.bits)
    torch.manual_seed(0)
    tuned = adapters.attach_adapter(model, case.method, **METHODS[case.method] | case.attachment)
    if case.fp8:
        precision.convert_frozen_layers_to_fp8(model.transformer.layers)
    if case.pad_to is not None:
        seconds = usual_loop(tuned, case)
        per_step = case.batch_size * case.sample
    else:
        pack = case.pack and (case.pack // 16 if small else case.pack)
        per_row = pack // case.sample if pack else 1
        per_step = per_row * case.batch_size * case.sample
        times = StepTimes()
        training.fit(
            tuned,
            rows_of(model.config, case.sample, per_row * case.batch_size * (WARM_UP + STEPS)),
            [],
            training.TrainConfig(
                batch_size=case.batch_size,
                pack_tokens=pack,
                learning_rate=1e-4,
                gradient_checkpointing=case.checkpointing,
                evaluations=2,
                logs=2,
            ),
            callbacks=[times],
        )
        seconds = times.median_seconds()
    planned = (
        None if case.pad_to else round(memory_estimate.plan(expectation(case, small)).total / memory_estimate.GIB, 2)
    )
    figures = {
        "planned_memory_gib": planned,
        "tokens_per_second": round(per_step / seconds),
        "peak_memory_gib": round(training.peak_memory_gib(), 2),
        "step_seconds": round(seconds, 4),
        "tokens_per_step": per_step,
    }
    targets = case.targets.items()
    if small:  # to which the targets do not apply
        return {**asdict(case), **figures}
    return {**asdict(case), **figures, "met": {name: _meets(name, figures[name], each) for name, each in targets}}


def expectation(case: Case, small: bool = False) -> memory_estimate.Training:
    """What decides a case's memory, as stage train would plan it."""
    length = case.pack // (16 if small else 1) if case.pack else case.sample
    samples = case.batch_size * (length // case.sample if case.pack else 1)
    return memory_estimate.Training(
        ChatGLMConfig(**(SMALL if small else {})),
        case.method,
        {"dropout": 0.0} | METHODS[case.method] | case.attachment,
        "bfloat16",
        rows=case.batch_size,
        length=length,
        labelled=samples * case.sample // 2,
        quantization=case.bits,
        fp8=case.fp8,
        checkpointing=case.checkpointing,
        packed=case.pack is not None,
        gpu=torch.cuda.is_available() or not small,
    )


def _meets(name: str, seen: float, target: float) -> bool:
    return seen <= target if name == "peak_memory_gib" else seen >= target


# The reference -------------------------------------------------------------------------------------


def usual_loop(tuned, case: Case) -> float:
    """Seconds a step of the plain loop described above."""
    from models.chatglm import modeling_chatglm

    device = next(tuned.parameters()).device
    modeling_chatglm.F.scaled_dot_product_attention = plain_attention
    tuned.gradient_checkpointing_enable({"use_reentrant": False})
    config = tuned.get_base_model().config
    rows = rows_of(config, case.sample, case.batch_size)
    padded = training.PaddingCollator(config.pad_token_id)([*rows, {"input_ids": [0] * case.pad_to, "labels": []}])
    batch = {name: values[:-1].to(device) for name, values in padded.items()}
    del batch["label_indices"]  # by which it would get no logits
    labels = batch.pop("labels")[:, 1:].flatten()
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=1e-4)
    marks = []
    for _ in range(WARM_UP + STEPS):
        with torch.autocast(device.type, torch.float16 if device.type == "cuda" else torch.bfloat16):
            logits = tuned(**batch).logits.float()
        F.cross_entropy(logits[:, :-1].flatten(0, 1), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        marks.append(_mark())
    times = StepTimes()
    times.marks = marks
    return times.median_seconds()


def plain_attention(query, key, value, attn_mask=None):
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    scores = scores.float().masked_fill(~attn_mask, torch.finfo(torch.float32).min)
    return scores.softmax(dim=-1).to(value.dtype) @ value


# The program ---------------------------------------------------------------------------------------

HEADERS = {
    "en": "| case | samples of | tokens/s | peak memory | as planned |",
    "zh": "| 情形 | 样本长度 | 词元/秒 | 显存峰值 | 事先估计 |",
}


def table(results: dict, language: str) -> str:
    """The figures as the READMEs show them."""
    lines = [HEADERS[language], "|---|---|---|---|---|"]
    for name, one in results["cases"].items():
        speed, peak = f"{one['tokens_per_second']:,}", f"{one['peak_memory_gib']:.1f} GiB"
        planned = "–" if one["planned_memory_gib"] is None else f"{one['planned_memory_gib']:.1f} GiB"
        lines.append(f"| `{name}` | {one['sample']} | {speed} | {peak} | {planned} |")
    return "\n".join(lines)


def cases_of_this_machine() -> list[str]:
    return [name for name, case in CASES.items() if torch.cuda.is_available() or not (case.fp8 or case.bits)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--commit", help="of the code, where git does not know it")
    parser.add_argument("--checkpoint", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.checkpoint:
        write_json(arguments.out, measure(arguments.checkpoint, CASES[arguments.cases[0]], arguments.small))
        return
    known = machine()
    commit = arguments.commit or known.pop("commit")
    results = {"machine": {name: value for name, value in known.items() if name != "commit"}, "cases": {}}
    with tempfile.TemporaryDirectory(dir=arguments.out.parent) as scratch:
        checkpoint, one = Path(scratch) / "base", Path(scratch) / "one.json"
        make_checkpoint(checkpoint, arguments.small)
        for name in arguments.cases or cases_of_this_machine():
            command = [sys.executable, "-m", "benchmarks.training_speed", name, "--out", str(one)]
            options = ["--checkpoint", str(checkpoint), *(["--small"] if arguments.small else [])]
            if subprocess.run([*command, *options], check=False).returncode != 0:
                results["cases"][name] = {"failed": True}
                continue
            results["cases"][name] = read_json(one) | {"commit": commit}
            print(name, json.dumps({k: results["cases"][name].get(k) for k in SHOWN}), flush=True)
            write_json(arguments.out, results)
    if failed := [name for name, one in results["cases"].items() if one.get("failed")]:
        sys.exit(f"failed: {', '.join(failed)}")


SHOWN = ("tokens_per_second", "peak_memory_gib", "planned_memory_gib", "step_seconds", "met")

if __name__ == "__main__":
    main()
