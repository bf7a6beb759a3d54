"""The training of one adapter: from the loaded base to the verified folder on disk."""

import logging
import subprocess
from dataclasses import asdict, fields
from pathlib import Path

import torch
from dvclive import Live

from models import adapter_files, adapters, model_loading, precision, training
from models.errors import UserError
from models.families import family_of
from models.manifest import Manifest
from models.padding import PaddingCollator
from models.peak_memory import peak_memory_gib
from models.program_environment import program_environment
from models.training import devices
from stages.train.attachment import resolve_attachment
from stages.train.trackers import build_trackers
from stages.train.train_job import TrainJob

log = logging.getLogger("tuneline.train")


def train_adapter(job: TrainJob) -> None:
    """Load the base, fit the adapter, and save it with its manifest; with several ranks, rank 0 saves it."""
    model = load_model(job)
    untrained_logits = last_logits(model, job.eval_rows[0])
    result = fit_adapter(model, job)
    if job.params.train.strategy == "fsdp":
        weights = training.trainable_state_dict(model)
        if devices.rank() == 0:
            del model  # holds a shard
            model = load_model(job)
            training.load_trainable_state_dict(model, weights)
    if devices.rank() > 0:
        return
    manifest = build_manifest(job, result, adapters.count_parameters(model))
    adapter_files.save_adapter(
        model, job.out, manifest, check=lambda folder: verify_saved_adapter(model, folder, job, untrained_logits)
    )
    log.info("train: %s done: %s", job.name, _format_resources(manifest.training))


def load_model(job: TrainJob):
    """Return the base with an adapter: with the weights to start from, or with new ones that depend on the seed."""
    dtype = "float32" if job.adapter.method == "full" else job.params.base.dtype
    model = model_loading.load_model(job.base, dtype, job.adapter.quantization)
    torch.manual_seed(job.params.train.seed)
    model = adapters.attach_adapter(model, job.adapter.method, **resolve_attachment(job.adapter, job.base))
    if job.start is not None:
        adapter_files.copy_adapter_weights(model, job.start.folder, job.start.manifest)
    if job.params.train.precision == "fp8":
        precision.convert_frozen_layers_to_fp8(adapters.get_base_model(model).blocks)
    return model


def fit_adapter(model, job: TrainJob) -> training.TrainResult:
    """Fit the adapter, and log every loss to DVCLive from rank 0."""
    shared = job.params.train
    config = training.TrainConfig(
        **job.adapter.model_dump(include={field.name for field in fields(training.TrainConfig)}),
        evaluations=shared.evaluations,
        logs=shared.logs,
        keep_best=shared.keep == "best",
        patience=shared.patience,
        seed=shared.seed,
        sharded=shared.strategy == "fsdp",
        autocast=job.params.base.dtype if job.adapter.method == "full" else "float32",
    )
    rows, folder = (job.train_rows, job.eval_rows), job.checkpoints
    if devices.rank() > 0:
        return training.fit(model, *rows, config, checkpoint_folder=folder)
    trackers = build_trackers(shared.report_to, folder)
    with Live(str(job.log), save_dvc_exp=False, dvcyaml=None, monitor_system=False) as live:
        return training.fit(
            model,
            *rows,
            config,
            checkpoint_folder=folder,
            on_record=lambda record: log_record(live, record),
            callbacks=trackers,
        )


def log_record(live: Live, record: dict) -> None:
    """Log a record of :class:`models.training.callbacks.LossHistory` to DVCLive."""
    live.step = record["step"]
    for name, value in record.items():
        if name not in ("step", "split"):
            live.log_metric(name if name == "seconds" else f"{record['split']}/{name}", value)
    live.make_summary()


# Verification --------------------------------------------------------------------------------------

COMPARED_TOKENS = 16


def last_logits(model, row: dict) -> torch.Tensor:
    """Return the logits of a row's last tokens, (COMPARED_TOKENS, vocab_size) in float32, without compiled code."""
    base = adapters.get_base_model(model)
    batch = PaddingCollator(base.config.pad_token_id)([row])
    inputs = {name: batch[name].to(base.device) for name in ("input_ids", "attention_mask")}
    was_training = model.training
    model.eval()
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        logits = model(**inputs, logits_to_keep=COMPARED_TOKENS).logits[0].float()
    model.train(was_training)
    return logits


def verify_saved_adapter(model, folder: Path, job: TrainJob, untrained_logits: torch.Tensor) -> None:
    """Reload the adapter from disk, and compare its logits with those in memory and those before training.

    Raises:
        UserError: training changed no logits, or the reloaded adapter's logits differ from those in memory.
    """
    row = job.eval_rows[0]
    logits = last_logits(model, row)
    if torch.equal(logits, untrained_logits):
        raise UserError("Training did not change the model's logits. Raise learning_rate.")
    with adapter_files.reloaded_adapter(model, folder) as reloaded:
        difference = float((last_logits(reloaded, row) - logits).abs().max() / logits.abs().max())
    if not difference <= (1e-4 if job.params.base.dtype == "float32" else 2e-2):
        raise UserError(
            f"The reloaded adapter's logits differ from those in memory (largest difference {difference:.2g} of the "
            "largest logit). The adapter was not kept. Check the disk and run the command again: training resumes from "
            "its latest checkpoint."
        )
    log.info("train: the reloaded adapter has the same logits (largest difference %.1g)", difference)


# Manifest ------------------------------------------------------------------------------------------


CODE = (":(glob)models/**/*.py", ":(glob)stages/**/*.py")


def code_commit() -> str | None:
    """Return the git commit that last changed models and stages, with ``+`` after it if they have changed since.

    None outside a repository or without git.
    """

    def git(*arguments: str) -> str:
        command = ["git", *arguments, "--", *CODE]
        return subprocess.run(command, env=program_environment(), capture_output=True, text=True).stdout.strip()

    try:
        commit = git("log", "-1", "--format=%H")
        return commit + ("+" if git("status", "--porcelain") else "") if commit else None
    except OSError:  # git is not installed
        return None


def build_manifest(job: TrainJob, result: training.TrainResult, num_parameters: tuple[int, int]) -> Manifest:
    """Return the manifest of a trained adapter.

    Args:
        num_parameters: trainable ones, and all.
    """
    shared = {name: getattr(job.params.train, name) for name in ("seed", "precision", "keep", "learn", "replay")}
    summary = asdict(result) | {
        "tokens_per_second": round(result.tokens / result.seconds, 1),
        "peak_memory_gib": round(peak_memory_gib(), 3),
        "planned_memory_gib": round(job.planned_gib, 3),
        "train_loss": result.loss("train"),
        "eval_loss": result.loss("eval"),
        "trainable_parameters": num_parameters[0],
        "all_parameters": num_parameters[1],
    }
    return Manifest(
        name=job.name,
        method=job.adapter.method,
        settings=job.adapter.model_dump(mode="json") | resolve_attachment(job.adapter, job.base) | shared,
        base=job.base.name,
        base_identity=job.base.identity,
        tokenizer_sha256=job.base.tokenizer_sha256,
        prompt_version=family_of(job.base).prompt_version(job.base),
        quantization=job.adapter.quantization,
        dtype=job.params.base.dtype,
        receipt_sha256=job.receipt_sha256,
        code_commit=code_commit(),
        training=summary,
        started_from=job.start and job.start.lineage,
    )


def _format_resources(summary: dict) -> str:
    energy = "" if summary["watt_hours"] is None else f", {summary['watt_hours']:.1f} Wh"
    return (
        f"{summary['device']}, {summary['seconds']:.0f} s, {summary['tokens_per_second']:.0f} tokens/s, "
        f"peak memory {summary['peak_memory_gib']:.1f} GiB{energy}"
    )
