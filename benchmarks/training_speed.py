"""Speed and memory of training at ChatGLM-6B's size, with random weights, through the code of stage train.

``python -m benchmarks.training_speed --out benchmarks/results/training.json [CASE …]`` on a machine with an NVIDIA GPU
and 14 GB of free disk; ``--small`` runs a toy model on any machine, without the cases that need a GPU if there is none.
Each case is a process that loads the base from disk and trains through :func:`models.training.fit`. Its time is the
median step after the first ones, measured with events on the device; a recompilation after these is an error. Tokens
are those of samples, without padding. Memory is PyTorch's ``max_memory_allocated`` over loading and training, or the
resident memory of the process without a GPU.

The cases named ``usual_loop`` are the reference: a plain training loop, as in published scripts for this model. It
materializes attention scores and the float32 logits of all tokens, pads rows to one length, and uses float16 autocast
and gradient checkpointing in every block.
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

from benchmarks.random_checkpoint import SMALL, describe_machine, make_checkpoint, read_checkpoint
from models import adapters, memory_estimate, model_loading, precision, training
from models.chatglm import ChatGLMConfig
from models.padding import PaddingCollator
from models.peak_memory import peak_memory_gib
from models.prompt import IGNORED_LABEL
from models.storage import read_json, write_json

ROW = 8448  # tokens: 33 × 256, for which matrix products fill the 132 multiprocessors of an H100 or H200 in full waves
LORA = {"rank": 4, "alpha": 32, "target_modules": ["query_key_value"]}
ALL_LINEAR = {"dropout": 0.1, "target_modules": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]}
ADAPTERS = {"lora": LORA, "ptuning_v2": {"prefix_tokens": 128}}
WARM_UP, STEPS = 4, 12


@dataclass(frozen=True)
class Case:
    """A training run to measure.

    Attributes:
        sample: tokens per sample, half of which are its answer.
        pack: tokens per packed row; None for one sample per row.
        bits: of a quantized base.
        pad_to: row length of the usual loop; None trains with our code.
        attachment: settings of the adapter that differ from :data:`ADAPTERS`.
        targets: required figures.
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
    "lora_8bit_everywhere": Case("lora", 528, pack=ROW // 2, bits=8, attachment=ALL_LINEAR),
    "lora_padded_everywhere": Case("lora", 512, batch_size=8, attachment=ALL_LINEAR),
    "ptuning_v2_4bit": Case("ptuning_v2", 528, pack=ROW, bits=4, targets={"tokens_per_second": 8_000}),
}  # fmt: skip


# Measuring -----------------------------------------------------------------------------------------


class StepTimes(TrainerCallback):
    """Records when each step ends, on the device's clock if it has one.

    Args:
        warm_up: number of first steps to leave out.
    """

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
        return statistics.median(_seconds_between(start, end) for start, end in pairwise(marks))


def _mark():
    if not torch.cuda.is_available():
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _seconds_between(start, end) -> float:
    return end - start if isinstance(start, float) else start.elapsed_time(end) / 1000


def make_rows(config, tokens: int, count: int) -> list[dict]:
    """Return samples of random tokens: half context, half answer."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for ids in torch.randint(1000, min(60_000, config.vocab_size - 4), (count, tokens), generator=generator):
        context = tokens // 2
        ids[context - 2], ids[context - 1], ids[-1] = config.gmask_token_id, config.bos_token_id, config.eos_token_id
        labels = ids.clone()
        labels[:context] = IGNORED_LABEL
        rows.append({"input_ids": ids.tolist(), "labels": labels.tolist()})
    return rows


def measure(checkpoint: Path, case: Case, small: bool) -> dict:
    """Return the figures of a case."""
    model = model_loading.load_model(read_checkpoint(checkpoint), "bfloat16", case.bits)
    torch.manual_seed(0)
    adapted = adapters.attach_adapter(model, case.method, **ADAPTERS[case.method] | case.attachment)
    if case.fp8:
        precision.convert_frozen_layers_to_fp8(model.transformer.layers)
    if case.pad_to is not None:
        planned_gib = None
        tokens_per_step = case.batch_size * case.sample
        seconds = time_usual_loop(adapted, case)
    else:
        planned_gib = round(memory_estimate.estimate(memory_spec(case, small)).total / memory_estimate.GIB, 2)
        pack = case.pack and (case.pack // 16 if small else case.pack)
        samples_per_step = case.batch_size * (pack // case.sample if pack else 1)
        tokens_per_step = samples_per_step * case.sample
        seconds = time_training(adapted, case, pack, samples_per_step)
    figures = {
        "planned_memory_gib": planned_gib,
        "tokens_per_second": round(tokens_per_step / seconds),
        "peak_memory_gib": round(peak_memory_gib(), 2),
        "step_seconds": round(seconds, 4),
        "tokens_per_step": tokens_per_step,
    }
    if not small:  # targets are for the full size
        figures["met"] = {name: _is_met(name, figures[name], target) for name, target in case.targets.items()}
    return {**asdict(case), **figures}


def time_training(adapted, case: Case, pack: int | None, samples_per_step: int) -> float:
    """Return the median seconds per step of our training."""
    times = StepTimes()
    training.fit(
        adapted,
        make_rows(adapted.config, case.sample, samples_per_step * (WARM_UP + STEPS)),
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
    return times.median_seconds()


def memory_spec(case: Case, small: bool = False) -> memory_estimate.TrainingSpec:
    """Return the properties of a case that determine its memory, as stage train does."""
    length = case.pack // (16 if small else 1) if case.pack else case.sample
    samples = case.batch_size * (length // case.sample if case.pack else 1)
    return memory_estimate.TrainingSpec(
        ChatGLMConfig(**(SMALL if small else {})),
        case.method,
        {"dropout": 0.0} | ADAPTERS[case.method] | case.attachment,
        "bfloat16",
        rows=case.batch_size,
        length=length,
        labelled=samples * case.sample // 2,
        quantization=case.bits,
        fp8=case.fp8,
        gradient_checkpointing=case.checkpointing,
        packed=case.pack is not None,
        gpu=torch.cuda.is_available() or not small,
    )


def _is_met(name: str, figure: float, target: float) -> bool:
    return figure <= target if name == "peak_memory_gib" else figure >= target


# The reference -------------------------------------------------------------------------------------


def time_usual_loop(adapted, case: Case) -> float:
    """Return the median seconds per step of the plain loop described above."""
    from models.chatglm import modeling_chatglm

    device = next(adapted.parameters()).device
    modeling_chatglm.F.scaled_dot_product_attention = plain_attention
    adapted.gradient_checkpointing_enable({"use_reentrant": False})
    config = adapted.get_base_model().config
    rows = make_rows(config, case.sample, case.batch_size)
    collate = PaddingCollator(config.pad_token_id)
    padded = collate([*rows, {"input_ids": [0] * case.pad_to, "labels": []}])  # the last row sets the length
    batch = {name: values[:-1].to(device) for name, values in padded.items()}
    del batch["label_indices"]  # with it there would be no logits
    labels = batch.pop("labels")[:, 1:].flatten()
    optimizer = torch.optim.AdamW([weight for weight in adapted.parameters() if weight.requires_grad], lr=1e-4)
    times = StepTimes()
    for _ in range(WARM_UP + STEPS):
        with torch.autocast(device.type, torch.float16 if device.type == "cuda" else torch.bfloat16):
            logits = adapted(**batch).logits.float()
        F.cross_entropy(logits[:, :-1].flatten(0, 1), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        times.marks.append(_mark())
    return times.median_seconds()


def plain_attention(query, key, value, attn_mask=None):
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    scores = scores.float().masked_fill(~attn_mask, torch.finfo(torch.float32).min)
    return scores.softmax(dim=-1).to(value.dtype) @ value


# The program ---------------------------------------------------------------------------------------

HEADERS = {
    "en": "| case | tokens per sample | tokens/s | peak memory | estimated memory |",
    "zh": "| 情形 | 每个样本的词元数 | 词元/秒 | 显存峰值 | 事先估计 |",
}
SHOWN = ("tokens_per_second", "peak_memory_gib", "planned_memory_gib", "step_seconds", "met")


def table(results: dict, language: str) -> str:
    """Return the figures as a Markdown table for the documentation."""
    lines = [HEADERS[language], "|---|---|---|---|---|"]
    for name, case in results["cases"].items():
        speed, peak = f"{case['tokens_per_second']:,}", f"{case['peak_memory_gib']:.1f} GiB"
        planned = "–" if case["planned_memory_gib"] is None else f"{case['planned_memory_gib']:.1f} GiB"
        lines.append(f"| `{name}` | {case['sample']} | {speed} | {peak} | {planned} |")
    return "\n".join(lines)


def supported_cases() -> list[str]:
    """Return the cases that this machine can run."""
    return [name for name, case in CASES.items() if torch.cuda.is_available() or not (case.fp8 or case.bits)]


def run_case(name: str, checkpoint: Path, out: Path, small: bool) -> dict:
    """Measure a case in a process of its own, and return its figures."""
    command = [sys.executable, "-m", "benchmarks.training_speed", name, "--out", str(out)]
    options = ["--checkpoint", str(checkpoint), *(["--small"] if small else [])]
    if subprocess.run([*command, *options], check=False).returncode != 0:
        return {"failed": True}
    return read_json(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--commit", help="commit of the code, outside a git repository")
    parser.add_argument("--checkpoint", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.checkpoint:
        write_json(arguments.out, measure(arguments.checkpoint, CASES[arguments.cases[0]], arguments.small))
        return
    machine = describe_machine(arguments.commit)
    commit = machine.pop("commit")  # stored per case, because cases are also measured one by one
    results = {"machine": machine, "cases": {}}
    with tempfile.TemporaryDirectory(dir=arguments.out.parent) as scratch:
        checkpoint = Path(scratch) / "base"
        make_checkpoint(checkpoint, arguments.small)
        for name in arguments.cases or supported_cases():
            figures = run_case(name, checkpoint, Path(scratch) / "figures.json", arguments.small)
            results["cases"][name] = figures if "failed" in figures else figures | {"commit": commit}
            print(name, json.dumps({key: figures.get(key) for key in SHOWN}), flush=True)
            write_json(arguments.out, results)
    if failed := [name for name, case in results["cases"].items() if case.get("failed")]:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
