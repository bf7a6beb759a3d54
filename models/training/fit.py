"""A complete training run: from rows to fitted weights."""

import contextlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch.amp import GradScaler
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import DefaultFlowCallback, TrainerCallback

from models.training import devices
from models.training.batches import TrainingData, prepare_data
from models.training.callbacks import BestWeights, DivergenceGuard, EarlyStopping, LossHistory, ProgressBar
from models.training.checkpointing import (
    CheckpointCompletion,
    EpochRestorer,
    StopOnSigterm,
    load_final_checkpoint,
    load_latest_state,
)
from models.training.compiling import compile_blocks
from models.training.loss_scaling import make_grad_scaler, needs_loss_scaling
from models.training.train_config import TrainConfig, build_arguments
from models.training.trainer import AdapterTrainer, StepStatistics


@dataclass(frozen=True)
class TrainResult:
    """Outcome of :func:`fit`.

    Attributes:
        history: losses as ``{step, seconds, split, loss}``, where split is ``train`` or ``eval``.
        steps: optimizer steps.
        kept_step: step whose weights the model has now.
        seconds: wall-clock time of the training loop, evaluations included.
        tokens: tokens trained on, on all devices, without padding.
        padding: fraction of token slots that were padding.
        device: name of the devices.
        watt_hours: energy of this rank's GPU, if its driver reports it; after a resume, of the last process alone.
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
        """Return the last training loss, or the evaluation loss of the kept weights; None without one."""
        losses = [
            record["loss"]
            for record in self.history
            if record["split"] == split and (split == "train" or record["step"] <= self.kept_step)
        ]
        return losses[-1] if losses else None


def fit(
    model,
    train_rows: Sequence[dict],
    eval_rows: Sequence[dict],
    config: TrainConfig,
    *,
    on_record: Callable[[dict], None] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    checkpoint_folder: Path | None = None,
) -> TrainResult:
    """Train the weights of ``model`` that require gradients.

    Args:
        train_rows, eval_rows: samples with ``input_ids`` and ``labels``, and with ``id`` to be named when training
            diverges; ``eval_rows`` may be empty.
        on_record: see :class:`LossHistory`.
        callbacks: further callbacks, which run last.
        checkpoint_folder: writes a checkpoint at every evaluation, and resumes from the latest one; None for neither.

    Raises:
        Diverged: see :class:`DivergenceGuard`.
        Stopped: SIGTERM arrived, with a ``checkpoint_folder``.
    """
    if config.gradient_checkpointing:
        # Not through TrainingArguments, and after attaching the adapter: peft refuses to attach a prefix to a model
        # with checkpointing, but a model with a prefix may enable it (blocks do not modify a given past).
        model.gradient_checkpointing_enable({"use_reentrant": False})
    with tempfile.TemporaryDirectory(prefix="tuneline-trainer-") as scratch:
        folder, save = checkpoint_folder or Path(scratch), checkpoint_folder is not None
        arguments = build_arguments(config, folder, evaluate=bool(eval_rows), save=save)
        if config.pack_tokens is not None:
            compile_blocks(model)
        data = prepare_data(model.config, train_rows, eval_rows, config)
        grad_scaler = None
        if needs_loss_scaling(model, config.autocast, config.sharded):
            grad_scaler = make_grad_scaler(arguments.device, data.train_rows, config.rows_per_update)

        statistics = StepStatistics(arguments.device)
        run_callbacks = _RunCallbacks(
            statistics, grad_scaler, model.config.vocab_size, data, config, on_record, checkpoint_folder
        )
        trainer = AdapterTrainer(
            model,
            arguments,
            data,
            statistics,
            callbacks=run_callbacks.in_order(show_progress=not arguments.disable_tqdm, further=callbacks),
            grad_scaler=grad_scaler,
            shard_dtype=config.autocast if config.sharded else None,
        )

        with _log_around_progress_bar(arguments), devices.translate_device_errors(), devices.abort_with_peers():
            latest = load_latest_state(folder, run_callbacks.states) if save else None
            if latest is not None and run_callbacks.early_stopping.is_exhausted():
                load_final_checkpoint(trainer, latest)
            else:
                _train(trainer, latest, run_callbacks.stop, handle_signal=save)
            if config.keep_best:
                run_callbacks.best.restore(model)
            num_tokens, num_slots = statistics.totals()
    history = run_callbacks.history
    best_evaluation = history.best_evaluation() if config.keep_best else None
    return _build_result(history, best_evaluation, trainer.state.global_step, num_tokens, num_slots)


class _RunCallbacks:
    """The callbacks of a training run.

    Attributes:
        states: objects whose state a checkpoint keeps, by name.
    """

    def __init__(
        self,
        statistics: StepStatistics,
        grad_scaler: GradScaler | None,
        vocab_size: int,
        data: TrainingData,
        config: TrainConfig,
        on_record: Callable[[dict], None] | None,
        checkpoint_folder: Path | None,
    ):
        self.guard = DivergenceGuard(statistics, grad_scaler, vocab_size, data.sample_ids_of_step)
        self.history = LossHistory(statistics, on_record)
        self.best = BestWeights(self.history, checkpoint_folder)
        self.early_stopping = EarlyStopping(self.history, config.patience)
        self.stop = StopOnSigterm()
        self.states = {"statistics": statistics, "guard": self.guard, "history": self.history}
        self._has_checkpoints, self._keep_best = checkpoint_folder is not None, config.keep_best
        self._order = data.order

    def in_order(self, *, show_progress: bool, further: Sequence[TrainerCallback]) -> list[TrainerCallback]:
        """Return the callbacks in the order in which they run."""
        callbacks = [DefaultFlowCallback()]  # decides in each step whether to log, evaluate and save
        if self._has_checkpoints:
            # A checkpoint must be complete before BestWeights removes files that no complete checkpoint needs.
            callbacks += [self.stop, CheckpointCompletion(self.states, self.history), EpochRestorer(self._order)]
        callbacks.append(self.guard)  # before the history, so that a diverged loss is not recorded
        if show_progress:
            callbacks.append(ProgressBar())
        callbacks.append(self.history)
        if self._keep_best:
            callbacks.append(self.best)
        return [*callbacks, self.early_stopping, *further]


def _train(trainer: AdapterTrainer, latest: Path | None, stop: StopOnSigterm, *, handle_signal: bool) -> None:
    """Train from the latest checkpoint, or from the start without one.

    Raises:
        Stopped: SIGTERM arrived.
    """
    with stop.handle_signal() if handle_signal else contextlib.nullcontext():
        trainer.train(resume_from_checkpoint=latest and str(latest))
    stop.raise_if_terminated(trainer.state.global_step)


def _build_result(
    history: LossHistory, best_evaluation: dict | None, steps: int, num_tokens: int, num_slots: int
) -> TrainResult:
    return TrainResult(
        history=history.losses(),
        steps=steps,
        kept_step=best_evaluation["step"] if best_evaluation else steps,
        seconds=history.clock.seconds(),
        tokens=num_tokens,
        padding=round(1 - num_tokens / max(num_slots, 1), 4),
        device=devices.describe_devices(),
        watt_hours=history.meter.watt_hours(),
    )


def _log_around_progress_bar(arguments):
    """Return a context in which log lines do not break the bar; without a bar they would be written twice."""
    return contextlib.nullcontext() if arguments.disable_tqdm else logging_redirect_tqdm()
