"""One adapter, from the loaded base to the folder on disk."""

import logging
import subprocess
from dataclasses import asdict
from pathlib import Path

import torch
from dvclive import Live

from formats import params_schema
from models import adapter_files, adapters, model_loading, precision, training
from models.errors import UserError
from models.manifest import Manifest
from models.program_environment import program_environment
from models.prompt import PROMPT_VERSION
from models.training import devices
from stages.train.train_job import TrainJob

log = logging.getLogger("tuneline.train")


def make(order: TrainJob) -> None:
    """Load the base, fit the adapter, and save it with its manifest; on several devices, once."""
    model = load(order)
    before = last_logits(model, order.eval_rows[0])
    fitted = fit(model, order)
    spread = training.trainable_state_dict(model) if order.knobs.train.strategy == "fsdp" else None
    if devices.rank() > 0:
        return
    if spread is not None:
        del model  # of which this process has a part
        model = load(order)
        training.load_trainable_state_dict(model, spread)
    manifest = describe(order, fitted, adapters.count_parameters(model))
    adapter_files.save_adapter(model, order.out, manifest, check=lambda folder: prove(model, folder, order, before))
    log.info("train: %s done: %s", order.name, _resources(manifest.training))


def load(order: TrainJob):
    """The base with a fresh adapter."""
    full = order.adapter.method == "full"
    dtype = "float32" if full else order.knobs.base.dtype
    model = model_loading.load_model(order.base, dtype, order.adapter.quantization)
    torch.manual_seed(order.knobs.train.seed)
    model = adapters.attach_adapter(model, order.adapter.method, **order.adapter.attachment())
    if order.knobs.train.precision == "fp8":
        precision.convert_frozen_layers_to_fp8(adapters.get_base_model(model).transformer.layers)
    return model


def fit(model, order: TrainJob) -> training.TrainResult:
    """Fit the adapter; every loss goes to DVCLive as it comes."""
    shared = order.knobs.train
    settings = training.TrainConfig(
        **order.adapter.model_dump(include=set(params_schema.Hyperparameters.model_fields) - {"quantization"}),
        evaluations=shared.evaluations,
        logs=shared.logs,
        keep_best=shared.keep == "best",
        patience=shared.patience,
        seed=shared.seed,
        sharded=shared.strategy == "fsdp",
        autocast=order.knobs.base.dtype if order.adapter.method == "full" else "float32",
    )
    rows, folder = (order.train_rows, order.eval_rows), order.checkpoints
    if devices.rank() > 0:
        return training.fit(model, *rows, settings, checkpoint_folder=folder)
    with Live(str(order.log), save_dvc_exp=False, dvcyaml=None, monitor_system=False) as live:
        return training.fit(
            model, *rows, settings, checkpoint_folder=folder, on_point=lambda point: log_point(live, point)
        )


def log_point(live: Live, point: dict) -> None:
    live.step = point["step"]
    for name, value in point.items():
        if name not in ("step", "split"):
            live.log_metric(name if name == "seconds" else f"{point['split']}/{name}", value)
    live.make_summary()


# The proof -----------------------------------------------------------------------------------------

COMPARED = 16  # tokens


def last_logits(model, row: dict):
    """Logits of a row's last tokens, (COMPARED, vocab_size) in float32, without compiled code."""
    batch = training.PaddingCollator(adapters.get_base_model(model).config.pad_token_id)([row])
    inputs = {name: batch[name].to(adapters.get_base_model(model).device) for name in ("input_ids", "attention_mask")}
    was_training = model.training
    model.eval()
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        logits = model(**inputs, logits_to_keep=COMPARED).logits[0].float()
    model.train(was_training)
    return logits


def prove(model, folder: Path, order: TrainJob, before: torch.Tensor) -> None:
    """Load the adapter again from disk: it must answer as the one in memory, and otherwise than before training.

    Raises:
        UserError: it does not.
    """
    row = order.eval_rows[0]
    trained = last_logits(model, row)
    if torch.equal(trained, before):
        raise UserError("The training changed nothing: the logits are those from before it; raise learning_rate.")
    with adapter_files.reloaded_adapter(model, folder) as again:
        difference = float((last_logits(again, row) - trained).abs().max() / trained.abs().max())
    if not difference <= (1e-4 if order.knobs.base.dtype == "float32" else 2e-2):
        raise UserError(
            f"The adapter as written does not answer as the one in memory: logits differ by {difference:.2g} of the "
            "largest. It was not kept; check the disk, and run it again: it goes on from its last checkpoint."
        )
    log.info("train: loaded again from disk, it gives the same logits (largest difference %.1g)", difference)


# The manifest --------------------------------------------------------------------------------------


CODE = (":(glob)models/**/*.py", ":(glob)stages/**/*.py")


def code_commit() -> str | None:
    """The git commit that last changed the code of models and stages, with ``+`` if it was changed since."""

    def git(*arguments: str) -> str:
        command = ["git", *arguments, "--", *CODE]
        return subprocess.run(command, env=program_environment(), capture_output=True, text=True).stdout.strip()

    try:
        commit = git("log", "-1", "--format=%H")
        return commit + ("+" if git("status", "--porcelain") else "") if commit else None
    except OSError:  # there is no git that could be run
        return None


def describe(order: TrainJob, fitted: training.TrainResult, parameters: tuple[int, int]) -> Manifest:
    """The manifest; ``parameters`` are how many are trained, and how many there are in all."""
    shared = {name: getattr(order.knobs.train, name) for name in ("seed", "precision", "keep", "replay")}
    summary = asdict(fitted) | {
        "tokens_per_second": round(fitted.tokens / fitted.seconds, 1),
        "peak_memory_gib": round(devices.peak_memory_gib(), 3),
        "planned_memory_gib": round(order.planned_gib, 3),
        "train_loss": fitted.loss("train"),
        "eval_loss": fitted.loss("eval"),
        "trainable_parameters": parameters[0],
        "all_parameters": parameters[1],
    }
    return Manifest(
        name=order.name,
        method=order.adapter.method,
        settings=order.adapter.model_dump(mode="json") | shared,
        base=order.base.name,
        base_identity=order.base.identity,
        tokenizer_sha256=order.base.tokenizer_sha256,
        prompt_version=PROMPT_VERSION,
        quantization=order.adapter.quantization,
        dtype=order.knobs.base.dtype,
        receipt_sha256=order.receipt_sha256,
        code_commit=code_commit(),
        training=summary,
    )


def _resources(summary: dict) -> str:
    energy = "" if summary["watt_hours"] is None else f", {summary['watt_hours']:.1f} Wh"
    return (
        f"{summary['device']}, {summary['seconds']:.0f} s, {summary['tokens_per_second']:.0f} tokens/s, "
        f"peak {summary['peak_memory_gib']:.1f} GiB{energy}"
    )
