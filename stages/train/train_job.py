"""What to make: everything that a training needs to know, checked before anything loads."""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from formats import params_schema, receipt
from models import memory_estimate, provenance
from models.base_model import Base, load_config
from models.errors import UserError
from models.prompt import PROMPT_VERSION, label
from models.storage import sha256_of_json
from models.training import devices

log = logging.getLogger("tuneline.train")
# What changes neither the adapter nor the meaning of a checkpoint, as long as an update takes as many rows.
WITHOUT_EFFECT = {"devices", "logs"}
AN_UPDATE = {"batch_size", "gradient_accumulation"}
CUDA_CONTEXT = 0.75 * memory_estimate.GIB  # what CUDA takes beside what it is asked for
FRAGMENTS = 0.03  # share of the rest that the allocator loses between blocks


@dataclass(frozen=True)
class TrainJob:
    """One adapter to make.

    Attributes:
        name: of the adapter, its key under ``adapters:``.
        train_rows, eval_rows: ``input_ids`` and ``labels``, with ``id``.
        receipt_sha256: of the checked data.
        planned_gib: predicted peak memory on a device.
        out, log, checkpoints: folders for the adapter, DVCLive's log, and this training's checkpoints.
    """

    name: str
    knobs: params_schema.Params
    base: Base
    train_rows: Sequence[dict]
    eval_rows: Sequence[dict]
    receipt_sha256: str
    planned_gib: float
    out: Path
    log: Path
    checkpoints: Path

    @property
    def adapter(self) -> params_schema.Adapter:
        return self.knobs.adapters[self.name]


def build_train_job(
    arguments: argparse.Namespace, knobs: params_schema.Params, found: Base, encoded: receipt.Verified
) -> TrainJob:
    """The order for the adapter that the arguments name.

    Raises:
        DataBlocked: the encoded rows are not those of the receipt.
        UserError: the training does not fit into the device's memory.
    """
    name = arguments.adapter
    rows = [read_rows(encoded, split) for split in receipt.SPLITS]
    planned = check_memory(name, memory_spec(knobs.adapters[name], knobs, found, *rows))
    folder = arguments.checkpoints / f"{name}.{checkpoint_key(name, knobs, found, encoded)[:16]}"
    checked_sha256 = encoded.receipt.checked_sha256
    return TrainJob(name, knobs, found, *rows, checked_sha256, planned, arguments.out, arguments.dvclive, folder)


def read_rows(encoded: receipt.Verified, split: str) -> list[dict]:
    """Rows of ``input_ids``, ``labels`` and ``id``; raises DataBlocked if they are not those of the receipt."""
    return [label(row["prompt"], row["answer"]) | {"id": row["id"]} for row in encoded.rows(split)]


def checkpoint_key(name: str, knobs: params_schema.Params, found: Base, encoded: receipt.Verified) -> str:
    """Hash of everything that the training of an adapter depends on, code and libraries included."""
    adapter = knobs.adapters[name]
    inputs = {
        "encoded": encoded.sha256,
        "code": provenance.code_sha256("stages.train"),
        "libraries": provenance.library_versions(),
        "base": found.identity,
        "dtype": knobs.base.dtype,
        "train": knobs.train.model_dump(mode="json", exclude=WITHOUT_EFFECT),
        "prompt": PROMPT_VERSION,
        "adapter": adapter.model_dump(mode="json", exclude=AN_UPDATE),
        "update": adapter.batch_size * adapter.gradient_accumulation * devices.world_size(),
    }
    return sha256_of_json(inputs)


# Memory --------------------------------------------------------------------------------------------


def check_memory(name: str, wanted: memory_estimate.Training) -> float:
    """Print the plan of an adapter's training and compare it with what is free; gives the predicted GiB.

    Raises:
        UserError: it does not fit, with numbers and what would.
    """
    plan = memory_estimate.plan(wanted)
    log.info("train: planned memory on each device: %s", plan)
    if problem := memory_estimate.refusal(wanted, free_memory()):
        raise UserError(f"adapters.{name} does not fit. {problem}")
    return plan.total / memory_estimate.GIB


def memory_spec(
    adapter: params_schema.Adapter,
    knobs: params_schema.Params,
    found: Base,
    train_rows: Sequence[dict],
    eval_rows: Sequence[dict],
) -> memory_estimate.Training:
    """The longest rows make the largest step."""
    rows = [*train_rows, *eval_rows]
    longest = max(len(row["input_ids"]) for row in rows)
    labelled = max(sum(place >= 0 for place in row["labels"]) for row in rows)
    at_once = min(adapter.batch_size, len(rows))
    return memory_estimate.Training(
        config=load_config(found),
        method=adapter.method,
        attachment=adapter.attachment(),
        dtype=knobs.base.dtype,
        rows=at_once,
        length=adapter.pack_tokens or longest,
        labelled=at_once * (adapter.pack_tokens or labelled),
        quantization=adapter.quantization,
        fp8=knobs.train.precision == "fp8",
        checkpointing=adapter.gradient_checkpointing,
        packed=adapter.pack_tokens is not None,
        gpu=torch.cuda.is_available(),
        shards=devices.world_size() if knobs.train.strategy == "fsdp" else 1,
    )


def free_memory() -> float:
    """Bytes that a training may take on this process's device."""
    if torch.cuda.is_available():
        return (torch.cuda.mem_get_info()[0] - CUDA_CONTEXT) * (1 - FRAGMENTS)
    return psutil.virtual_memory().available / devices.world_size()
