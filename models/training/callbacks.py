"""Callbacks of a training run: loss history, divergence guard, best weights, early stopping, progress bar."""

import logging
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch.amp import GradScaler
from transformers import TrainerCallback
from transformers.trainer_callback import ProgressCallback

from models import checkpoints
from models.errors import UserError
from models.peak_memory import peak_memory_gib
from models.training import devices, sharding
from models.training.trainer import (
    StepStatistics,
    explain_write_errors,
    load_trainable,
    save_trainable,
    trainable_parameters,
)

log = logging.getLogger("tuneline.training")

HISTORY_KEYS = ("step", "seconds", "split", "loss")


class ProgressBar(ProgressCallback):
    """Trainer's progress bar, without its printout of every log entry."""

    def on_log(self, *args, **kwargs):
        pass


# Loss history --------------------------------------------------------------------------------------


class LossHistory(TrainerCallback):
    """Records every logged loss, writes the log line, and passes the record on.

    Args:
        on_record: called on rank 0 with each record, after a resume also with those of the earlier process.

    Attributes:
        records: ``{step, seconds, split, loss}``, where split is ``train`` or ``eval``. Records of training also have
            ``learning_rate``, ``gradient_norm``, ``tokens_per_second``, ``padding`` (fraction of slots),
            ``memory_gib`` (peak), ``progress`` (fraction of all steps) and ``utilization`` (from 0 to 1, if known).
    """

    def __init__(self, statistics: StepStatistics, on_record: Callable[[dict], None] | None):
        self.statistics, self.on_record = statistics, on_record
        self.records: list[dict] = []
        self.clock, self.meter = devices.TrainingClock(), devices.DeviceMeter()
        self._previous = (0, 0, 0.0)  # tokens, slots and seconds at the previous training record

    def on_train_begin(self, args, state, control, **kwargs):
        self.clock.start(self._previous[2])

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "eval_loss" in (logs or {}):
            self._add("eval", state, logs["eval_loss"], {})
        elif "loss" in (logs or {}):
            self._add("train", state, logs["loss"], self._measure(state, logs))

    def _add(self, split: str, state, loss: float, measurements: dict) -> None:
        record = {"step": state.global_step, "seconds": self.clock.seconds(), "split": split, "loss": loss}
        record |= {name: value for name, value in measurements.items() if value is not None}
        self.records.append(record)
        if not state.is_world_process_zero:
            return
        if split == "train":
            log.info(_format_log_line(state, record))
        if self.on_record is not None:
            self.on_record(record)

    def _measure(self, state, logs: dict) -> dict:
        num_tokens, num_slots = self.statistics.totals()
        seconds = self.clock.seconds()
        previous, self._previous = self._previous, (num_tokens, num_slots, seconds)
        new_tokens = num_tokens - previous[0]
        return {
            "learning_rate": logs["learning_rate"],
            "gradient_norm": logs.get("grad_norm"),
            "tokens_per_second": round(new_tokens / max(seconds - previous[2], 1e-9), 1),
            "padding": round(1 - new_tokens / max(num_slots - previous[1], 1), 4),
            "memory_gib": round(peak_memory_gib(), 3),
            "progress": round(state.global_step / state.max_steps, 4),
            "utilization": self.meter.utilization(),
        }

    def losses(self) -> list[dict]:
        """Return step, seconds, split and loss of every record."""
        return [{key: record[key] for key in HISTORY_KEYS} for record in self.records]

    def eval_losses(self) -> list[float]:
        return [record["loss"] for record in self.records if record["split"] == "eval"]

    def best_evaluation(self) -> dict | None:
        """Return the record with the lowest evaluation loss, the first of equal ones; None before an evaluation."""
        evaluations = [record for record in self.records if record["split"] == "eval"]
        return min(evaluations, key=lambda record: record["loss"], default=None)

    def state_dict(self) -> dict:
        num_tokens, num_slots = self.statistics.totals()
        previous = [num_tokens, num_slots, self.clock.seconds()]
        return {"records": self.records, "previous": previous}

    def load_state_dict(self, state: dict) -> None:
        self.records, self._previous = list(state["records"]), tuple(state["previous"])
        self.clock.start(self._previous[2])
        for record in self.records if self.on_record is not None else ():
            self.on_record(record)


def _format_log_line(state, record: dict) -> str:
    remaining = round(record["seconds"] / state.global_step * (state.max_steps - state.global_step))
    norm = f"  gradient norm {record['gradient_norm']:.3g}" if "gradient_norm" in record else ""
    utilization = f"  {record['utilization']:.0%} utilization" if "utilization" in record else ""
    return (
        f"step {state.global_step}/{state.max_steps} ({100 * state.global_step // state.max_steps}%)"
        f"  epoch {state.epoch:.1f}  loss {record['loss']:.4f}{norm}  learning rate {record['learning_rate']:.2g}"
        f"  {record['tokens_per_second']:.0f} tokens/s  padding {record['padding']:.0%}"
        f"  {record['memory_gib']:.1f} GiB{utilization}  {remaining // 60}:{remaining % 60:02d} left"
    )


# Divergence ----------------------------------------------------------------------------------------


class Diverged(UserError):
    """Loss is NaN or infinite, or stayed above its minimum by more than ln(vocab_size) for five steps."""


class DivergenceGuard(TrainerCallback):
    """Stops a diverged training run; the error names the step, its rows, and settings to try.

    A training run has diverged when its loss or evaluation loss is NaN or infinite, or when the loss stays above its
    minimum by more than ``ln(vocab_size)``, the loss of a uniform guess, for :data:`MAX_HIGH_LOSS_STEPS` consecutive
    steps; a single step may be a hard row. With loss scaling, a scale below :data:`MIN_SCALE` of the first one means
    that the gradients overflow at every scale.

    Args:
        grad_scaler: None without loss scaling.
        sample_ids_of_step: returns the ids of the samples in a step.
    """

    MAX_HIGH_LOSS_STEPS = 5
    MIN_SCALE = 2.0**-24

    def __init__(
        self,
        statistics: StepStatistics,
        grad_scaler: GradScaler | None,
        vocab_size: int,
        sample_ids_of_step: Callable[[int], list[str]],
    ):
        self.statistics, self.grad_scaler, self.sample_ids_of_step = statistics, grad_scaler, sample_ids_of_step
        self.margin = math.log(vocab_size)
        self.first_scale = self._loss_scale()
        self.lowest_loss = math.inf
        self.high_losses: list[tuple[int, float]] = []  # step and loss of the last consecutive steps above the margin

    def _loss_scale(self) -> float:
        return 1.0 if self.grad_scaler is None else self.grad_scaler.get_scale()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "eval_loss" in (logs or {}) and not math.isfinite(logs["eval_loss"]):
            self._raise(state.global_step, logs["eval_loss"], "evaluation loss", args)
        if "loss" not in (logs or {}):
            return
        if not math.isfinite(logs.get("grad_norm", 0.0)):  # clipping by it makes the update zero or NaN
            log.warning("step %d: gradient norm is %s", state.global_step, logs["grad_norm"])
        if self._loss_scale() < self.first_scale * self.MIN_SCALE:
            self._raise(state.global_step, math.inf, "gradient of the loss", args)
        for step, loss in self.statistics.pop_losses().items():
            if not math.isfinite(loss):
                self._raise(step, loss, "loss", args)
            self.high_losses = [*self.high_losses, (step, loss)] if loss > self.lowest_loss + self.margin else []
            if len(self.high_losses) == self.MAX_HIGH_LOSS_STEPS:
                self._raise(*self.high_losses[0], "loss", args)
            self.lowest_loss = min(self.lowest_loss, loss)

    def _raise(self, step: int, value: float, quantity: str, args) -> None:
        ids = self.sample_ids_of_step(step)
        listed_ids = f"{', '.join(ids[:8])}{' …' if len(ids) > 8 else ''}"
        raise Diverged(
            f"Training diverged: the {quantity} of step {step} is {value:.4g} (lowest loss so far "
            f"{self.lowest_loss:.4g}). Rows of that step: {listed_ids}. No adapter was saved. "
            f"Try a learning_rate below {args.learning_rate:g}, a longer warmup or a smaller max_grad_norm. "
            "If training stops at the same rows again, read them in data/checked."
        )

    def state_dict(self) -> dict:
        """Return the state that makes a resumed training run diverge at the same step."""
        lowest_loss = self.lowest_loss if math.isfinite(self.lowest_loss) else None
        return {"lowest_loss": lowest_loss, "high_losses": self.high_losses}

    def load_state_dict(self, state: dict) -> None:
        self.lowest_loss = math.inf if state["lowest_loss"] is None else state["lowest_loss"]
        self.high_losses = [tuple(entry) for entry in state["high_losses"]]


# Best weights and early stopping -------------------------------------------------------------------


class BestWeights(TrainerCallback):
    """Keeps the trained weights of the lowest evaluation loss.

    They are written next to the checkpoints, with the step in the file's name. Files of earlier best steps are removed
    when no checkpoint needs them.

    Args:
        folder: of the checkpoints; None keeps the weights in memory.
    """

    def __init__(self, history: LossHistory, folder: Path | None):
        self.history, self.folder = history, folder
        self.weights: dict[str, torch.Tensor] = {}

    def on_evaluate(self, args, state, control, model=None, **kwargs):
        if self.history.best_evaluation()["step"] != state.global_step:
            return
        if self.folder is None:
            self.weights = {name: values.clone() for name, values in trainable_parameters(model).items()}
            return
        path = best_weights_path(self.folder, state.global_step)
        with explain_write_errors(state.global_step):
            save_trainable(model, path.with_suffix(".tmp"))
            if devices.rank() == 0:
                checkpoints.fsync_path(path.with_suffix(".tmp"))
                path.with_suffix(".tmp").replace(path)
        devices.barrier()

    def on_save(self, args, state, control, **kwargs):
        if self.folder is None or not state.is_world_process_zero:
            return
        complete = checkpoints.complete_checkpoints(self.folder)
        needed = {path for checkpoint in complete for path in checkpoints.list_files(checkpoint)}
        for path in set(self.folder.glob("best-*")) - needed:
            path.unlink(missing_ok=True)

    def restore(self, model) -> None:
        """Load the best weights into the model on rank 0, or on all ranks if it is sharded."""
        best = self.history.best_evaluation()
        if best is None or (devices.rank() > 0 and not sharding.is_sharded(model)):
            return
        log.info("restoring the weights of step %d, evaluation loss %.4f", best["step"], best["loss"])
        if self.folder is not None:
            load_trainable(model, best_weights_path(self.folder, best["step"]))
        elif self.weights:
            for name, values in trainable_parameters(model).items():
                values.copy_(self.weights[name])


def best_weights_path(folder: Path, step: int) -> Path:
    """Return the file of the best weights, beside the checkpoints in ``folder``."""
    return folder / f"best-{step}.safetensors"


class EarlyStopping(TrainerCallback):
    """Stops training after ``patience`` evaluations without a lower loss; None never stops it.

    transformers' EarlyStoppingCallback does not resume exactly. Killed after its last evaluation but before the adapter
    is saved, a training run would resume until the next evaluation and stop with other weights. It also needs
    ``metric_for_best_model``, with which Trainer keeps the best checkpoint instead of the second newest, the fallback
    for a damaged one.
    """

    def __init__(self, history: LossHistory, patience: int | None):
        self.history, self.patience = history, patience

    def on_evaluate(self, args, state, control, **kwargs):
        control.should_training_stop |= self.is_exhausted()

    def is_exhausted(self) -> bool:
        losses = self.history.eval_losses()
        if self.patience is None or not losses:
            return False
        return len(losses) - 1 - losses.index(min(losses)) >= self.patience
