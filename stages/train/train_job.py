"""The inputs of a training run, with the memory check before anything loads and the key of its checkpoints."""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from formats import params_schema, receipt, training_params
from models import memory_estimate, provenance
from models.base_model import Base
from models.errors import UserError
from models.families import family_of
from models.model_loading import load_config
from models.prompt import IGNORED_LABEL, label_parts
from models.storage import sha256_of_json
from models.training import devices
from stages.train.attachment import resolve_attachment
from stages.train.warm_start import StartFolders, WarmStart, find_warm_start

log = logging.getLogger("tuneline.train")
# Settings that change neither the adapter nor the meaning of a checkpoint, while an update has the same rows.
SETTINGS_WITHOUT_EFFECT = {"devices", "logs", "report_to"}
UPDATE_SETTINGS = {"batch_size", "gradient_accumulation"}
CUDA_CONTEXT = 0.75 * memory_estimate.GIB  # memory of the CUDA context, outside torch's allocator
FRAGMENTATION = 0.03  # fraction of the remaining memory that torch's allocator loses between blocks


@dataclass(frozen=True)
class TrainJob:
    """Inputs and outputs of the training of one adapter.

    Attributes:
        name: key of the adapter under ``adapters:``.
        train_rows, eval_rows: samples with ``input_ids``, ``labels`` and ``id``.
        receipt_sha256: of the checked data.
        planned_gib: estimated peak memory of a device.
        out, log, checkpoints: folders of the adapter, of DVCLive's log, and of this training's checkpoints.
        start: the adapter whose weights the training starts from; None for new weights.
    """

    name: str
    params: params_schema.Params
    base: Base
    train_rows: Sequence[dict]
    eval_rows: Sequence[dict]
    receipt_sha256: str
    planned_gib: float
    out: Path
    log: Path
    checkpoints: Path
    start: WarmStart | None = None

    @property
    def adapter(self) -> training_params.Adapter:
        return self.params.adapters[self.name]


def build_train_job(
    arguments: argparse.Namespace, params: params_schema.Params, base: Base, encoded: receipt.VerifiedFolder
) -> TrainJob:
    """Return the job for the adapter that the arguments name.

    Raises:
        DataBlocked: the encoded rows do not match the receipt.
        UserError: the base cannot be trained with these settings, the training does not fit into the device's memory,
            or cannot start from the named adapter.
    """
    name = arguments.adapter
    family_of(base).check_training(params.adapters[name].method, params.adapters[name].gradient_checkpointing)
    folders = StartFolders(arguments.champion, arguments.versions)
    start = find_warm_start(name, params.adapters[name], base, folders)
    train_rows, eval_rows = (read_rows(encoded, split) for split in receipt.ENCODED_SPLITS)
    spec = memory_spec(params.adapters[name], params, base, train_rows, eval_rows)
    key = checkpoint_key(name, params, base, encoded, start)
    return TrainJob(
        name=name,
        params=params,
        base=base,
        train_rows=train_rows,
        eval_rows=eval_rows,
        receipt_sha256=encoded.receipt.checked_sha256,
        planned_gib=check_memory(name, spec),
        out=arguments.out,
        log=arguments.dvclive,
        checkpoints=arguments.checkpoints / f"{name}.{key[:16]}",
        start=start,
    )


def read_rows(encoded: receipt.VerifiedFolder, split: str) -> list[dict]:
    """Return the samples of a split with ``input_ids``, ``labels`` and ``id``.

    Raises:
        DataBlocked: the rows do not match the receipt.
    """
    return [label_parts(row["parts"]) | {"id": row["id"]} for row in encoded.rows(split)]


def checkpoint_key(
    name: str,
    params: params_schema.Params,
    base: Base,
    encoded: receipt.VerifiedFolder,
    start: WarmStart | None = None,
) -> str:
    """Return the hash of everything that the training of an adapter depends on, including code and libraries."""
    adapter = params.adapters[name]
    inputs = {
        "encoded": encoded.sha256,
        "code": provenance.code_sha256("stages.train"),
        "libraries": provenance.library_versions(),
        "base": base.identity,
        "dtype": params.base.dtype,
        "train": params.train.model_dump(mode="json", exclude=SETTINGS_WITHOUT_EFFECT),
        "prompt": family_of(base).prompt_version(base),
        "adapter": adapter.model_dump(mode="json", exclude=UPDATE_SETTINGS),
        "start": start and start.lineage,
        "update": adapter.batch_size * adapter.gradient_accumulation * devices.world_size(),
    }
    return sha256_of_json(inputs)


# Memory --------------------------------------------------------------------------------------------


def check_memory(name: str, spec: memory_estimate.TrainingSpec) -> float:
    """Log the estimated memory, compare it with the free memory, and return it in GiB.

    Raises:
        UserError: it does not fit; the message has numbers and settings that fit.
    """
    estimate = memory_estimate.estimate(spec)
    log.info("train: estimated memory of each device: %s", estimate)
    if problem := memory_estimate.explain_misfit(spec, free_memory()):
        raise UserError(f"adapters.{name} does not fit into memory. {problem}")
    return estimate.total / memory_estimate.GIB


def memory_spec(
    adapter: training_params.Adapter,
    params: params_schema.Params,
    base: Base,
    train_rows: Sequence[dict],
    eval_rows: Sequence[dict],
) -> memory_estimate.TrainingSpec:
    """Return the memory-relevant properties of a training run, whose largest step has the longest rows."""
    rows = [*train_rows, *eval_rows]
    longest = max(len(row["input_ids"]) for row in rows)
    most_labels = max(sum(label != IGNORED_LABEL for label in row["labels"]) for row in rows)
    batch_size = min(adapter.batch_size, len(rows))
    return memory_estimate.TrainingSpec(
        config=load_config(base),
        method=adapter.method,
        attachment=resolve_attachment(adapter, base),
        dtype=params.base.dtype,
        rows=batch_size,
        length=adapter.pack_tokens or longest,
        labelled=batch_size * (adapter.pack_tokens or most_labels),
        quantization=adapter.quantization,
        fp8=params.train.precision == "fp8",
        gradient_checkpointing=adapter.gradient_checkpointing,
        packed=adapter.pack_tokens is not None,
        gpu=torch.cuda.is_available(),
        shards=devices.world_size() if params.train.strategy == "fsdp" else 1,
    )


def free_memory() -> float:
    """Return the bytes of this rank's device that a training run may use."""
    if torch.cuda.is_available():
        return (torch.cuda.mem_get_info()[0] - CUDA_CONTEXT) * (1 - FRAGMENTATION)
    return psutil.virtual_memory().available / devices.world_size()
