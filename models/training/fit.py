"""A whole training: from rows to fitted weights."""

import contextlib
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from models import checkpoints
from models.packing import PackingCollator
from models.training import devices, sharding
from models.training.batches import NOTHING, EpochOrder, PaddingCollator, packed
from models.training.callbacks import Bar, Best, Checkpointing, History, Watch, log
from models.training.compiling import compile_blocks
from models.training.loss_scaling import make_grad_scaler, needs_loss_scaling
from models.training.trainer import AdapterTrainer


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        batch_size: rows a step and device; times ``gradient_accumulation`` and devices for an update.
        pack_tokens: put samples end to end into rows of so many tokens, which ``batch_size`` then counts; on a
            GPU the blocks of the model are compiled for rows of that length.
        epochs, max_steps: how long; ``max_steps`` wins if it is positive.
        schedule: of the learning rate, by transformers' names.
        warmup: steps, or a share of all steps if below 1.
        evaluations: how many times to compute the loss on the evaluation rows, spread evenly; at least 2.
        logs: how many times at least to tell the training loss, for which the device is waited for.
        keep_best: end with the weights of the lowest evaluation loss, not with the last.
        patience: evaluations without a lower loss after which to end; None for never.
        autocast: type to compute in where the weights are float32.
        sharded: spread weights, gradients and optimizer over the devices; else each has all of them.
    """

    batch_size: int
    learning_rate: float
    epochs: float = 1
    max_steps: int = -1
    gradient_accumulation: int = 1
    schedule: str = "linear"
    warmup: float = 0.0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    gradient_checkpointing: bool = False
    pack_tokens: int | None = None
    evaluations: int = 10
    logs: int = 200
    keep_best: bool = False
    patience: int | None = None
    autocast: str = "float32"
    sharded: bool = False
    seed: int = 0


@dataclass(frozen=True)
class TrainResult:
    """What a run of :func:`fit` amounted to.

    Attributes:
        history: losses as ``{step, seconds, split, loss}``, split being ``train`` or ``eval``.
        steps: optimizer steps.
        kept_step: the step whose weights the model now has.
        seconds: wall-clock time of the training loop, evaluations included.
        tokens: tokens fed on all devices, padding left out.
        padding: share of places that were padding.
        device: what it ran on.
        watt_hours: energy that this process's GPU took, where its driver tells; of the last process alone,
            where the training was killed in between.
    """

    history: list[dict]
    steps: int
    kept_step: int
    seconds: float
    tokens: int
    padding: float
    device: str
    watt_hours: float | None

    def loss(self, split: str) -> float | None:
        """The last training loss, or the evaluation loss of the weights kept."""
        losses = [point["loss"] for point in self.history if point["split"] == split]
        if split == "eval":
            losses = [p["loss"] for p in self.history if p["split"] == split and p["step"] <= self.kept_step]
        return losses[-1] if losses else None


def fit(
    model,
    train_rows: Sequence[dict],
    eval_rows: Sequence[dict],
    settings: TrainConfig,
    *,
    on_point: Callable[[dict], None] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    checkpoint_folder: Path | None = None,
) -> TrainResult:
    """Train the weights of ``model`` that require gradients.

    Args:
        train_rows, eval_rows: rows of ``input_ids`` and ``labels``, and ``id`` where it shall be named when the
            training diverges; ``eval_rows`` may be empty.
        on_point: see :class:`History`.
        callbacks: Trainer's, beside those that listen.
        checkpoint_folder: where checkpoints are kept, at every evaluation, and gone on from; None for none.

    Raises:
        Diverged: a loss is NaN, infinite or exploded.
        Stopped: SIGTERM came, with a ``checkpoint_folder``.
    """
    if settings.gradient_checkpointing:
        # Not through TrainingArguments, and after the adapter is on: peft refuses to put a prefix on a
        # model that checkpoints, but a model with a prefix may start to (its blocks leave the cache alone).
        model.gradient_checkpointing_enable({"use_reentrant": False})
    with tempfile.TemporaryDirectory(prefix="tuneline-trainer-") as scratch:
        arguments = _arguments(settings, checkpoint_folder or Path(scratch), bool(eval_rows), bool(checkpoint_folder))
        trainer = _trainer(model, train_rows, eval_rows, settings, arguments)
        history = History(trainer, on_point)
        best = Best(trainer, history, checkpoint_folder, settings.patience)
        for callback in (history, *([best] if settings.keep_best or settings.patience else []), *callbacks):
            trainer.add_callback(callback)
        # Log lines go around the bar; where there is no bar they would only be written twice.
        with (
            contextlib.nullcontext() if arguments.disable_tqdm else logging_redirect_tqdm(),
            devices.telling_what_ended_it(),
            devices.ending_together(),
        ):
            _train(trainer, history, best, checkpoint_folder)
            if settings.keep_best:
                best.restore()
            tokens, places = trainer.fed()
    steps = trainer.state.global_step
    kept = history.best() if settings.keep_best else None
    return TrainResult(
        history=history.points,
        steps=steps,
        kept_step=kept["step"] if kept else steps,
        seconds=history.clock.seconds(),
        tokens=tokens,
        padding=round(1 - tokens / max(places, 1), 4),
        device=devices.name(),
        watt_hours=history.meter.watt_hours(),
    )


def _arguments(settings: TrainConfig, folder: Path, evaluates: bool, saves: bool) -> TrainingArguments:
    cuda, share = torch.cuda.is_available(), 1 / settings.evaluations
    arguments = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        learning_rate=settings.learning_rate,
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps,
        lr_scheduler_type=settings.schedule,
        warmup_steps=settings.warmup,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        seed=settings.seed,
        data_seed=settings.seed,
        use_cpu=not cuda,
        bf16=settings.autocast == "bfloat16" and not settings.sharded,
        fp16=settings.autocast == "float16" and not settings.sharded,
        ddp_backend="gloo" if devices.world_size() > 1 and not cuda else None,
        ddp_find_unused_parameters=False,
        logging_steps=min(1 / settings.logs, share),
        eval_strategy="steps" if evaluates else "no",
        eval_steps=share,
        save_strategy="steps" if saves else "no",
        save_steps=share,
        save_total_limit=2,
        remove_unused_columns=False,
        dataloader_pin_memory=cuda,
        # A copy that blocks would wait for the step before, and leave the device idle meanwhile.
        accelerator_config={"non_blocking": True},
        report_to=[],
        logging_nan_inf_filter=False,  # which would log a loss that is no number as 0
        disable_tqdm=not sys.stderr.isatty() or devices.rank() > 0,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # never DataParallel, Trainer's way with several visible GPUs
    return arguments


def _trainer(model, train_rows, eval_rows, settings: TrainConfig, arguments: TrainingArguments) -> AdapterTrainer:
    if settings.pack_tokens is None:
        collate, nothing = PaddingCollator(model.config.pad_token_id), NOTHING
        train_rows, eval_rows = list(train_rows), list(eval_rows)
        lengths = [len(row["input_ids"]) for row in train_rows]
    else:
        compile_blocks(model)
        collate, nothing = PackingCollator(settings.pack_tokens, model.config), [NOTHING]
        train_rows, eval_rows = (packed(rows, settings.pack_tokens, settings.seed) for rows in (train_rows, eval_rows))
        lengths = None
    trainer = AdapterTrainer(
        model=model,
        args=arguments,
        data_collator=collate,
        train_dataset=[*train_rows, nothing],
        eval_dataset=eval_rows or None,
    )
    if settings.sharded:
        sharding.shard(model, settings.autocast)
    at_once = settings.batch_size * devices.world_size()
    if needs_loss_scaling(model, settings.autocast, settings.sharded):
        rows_per_update = at_once * settings.gradient_accumulation
        trainer.use_grad_scaler(make_grad_scaler(arguments.device, train_rows, rows_per_update))
    trainer.order = EpochOrder(
        len(train_rows),
        lengths,
        at_once * settings.gradient_accumulation,
        settings.seed,
        fill=at_once if devices.world_size() > 1 else 1,
    )
    trainer.eval_rows, trainer.nothing, trainer.one_shape = eval_rows, nothing, settings.pack_tokens is not None
    trainer.watch = Watch(trainer, lambda step: _names(train_rows, trainer.order.of_step(step)))
    trainer.add_callback(trainer.watch)
    trainer.remove_callback(PrinterCallback)
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(Bar())
    return trainer


def _names(rows: Sequence, indices: Sequence[int]) -> list[str]:
    """What the samples of some rows are called, packed or not."""
    samples = [sample for i in indices for sample in (rows[i] if isinstance(rows[i], list) else [rows[i]])]
    return [sample.get("id", "without id") for sample in samples]


def _last_whole(folder: Path) -> Path | None:
    """The same in all processes, of which one clears away what was not written to its end."""
    if devices.rank() > 0:
        devices.wait_for_all()
    last = checkpoints.latest_complete(folder)
    if devices.rank() == 0:
        devices.wait_for_all()
    return last


def _train(trainer: AdapterTrainer, history: History, best: Best, folder: Path | None) -> None:
    """Train from the beginning, or from the last checkpoint."""
    if folder is None:
        trainer.train()
        return
    checkpointing = Checkpointing(trainer, history, trainer.watch)
    # Behind Trainer's own, which says when to save; before the others, which take a saved checkpoint for whole.
    trainer.callback_handler.callbacks.insert(1, checkpointing)
    last = _last_whole(folder)
    if last is not None:
        progress = checkpoints.read_progress(last)
        log.info("going on from %s", last.name.replace("-", " of step "))
        history.go_on(progress)
        trainer.watch.go_on(progress["watch"])
        if devices.rank() == 0:
            trainer.tokens, trainer.places = progress["tokens"], progress["places"]
        if best.out_of_patience():
            trainer._load_from_checkpoint(last)
            trainer.state.global_step = int(last.name.split("-")[1])
            return
    with checkpointing.until_terminated():
        trainer.train(resume_from_checkpoint=str(last) if last else None)
