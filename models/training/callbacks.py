"""What is told while a model trains, and what ends the training."""

import contextlib
import logging
import math
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from transformers import TrainerCallback
from transformers.trainer_callback import ProgressCallback

from models import checkpoints
from models.errors import UserError
from models.training import devices, sharding
from models.training.trainer import AdapterTrainer, keep, restore, trained

log = logging.getLogger("tuneline.training")


POINT = ("step", "seconds", "split", "loss")


class Diverged(UserError):
    """The loss is no number any more, or worse than knowing nothing would make it."""


class Stopped(UserError):
    """SIGTERM ended the training after a checkpoint; the exit code is that of a program that SIGTERM ended."""

    exit_code = 128 + signal.SIGTERM


class Bar(ProgressCallback):
    """Trainer's progress bar without its dump of raw figures."""

    def on_log(self, *args, **kwargs):
        pass


class History(TrainerCallback):
    """Keeps every loss and hands it on, with the figures of the moment.

    Attributes:
        points: ``{step, seconds, split, loss}``, split being ``train`` or ``eval``.
        on_point: called with each of them, those of training with ``learning_rate``, ``gradient_norm``,
            ``tokens_per_second``, ``padding`` (share of places), ``memory_gib`` (peak),
            ``progress`` (share of the steps) and ``utilization`` (from 0 to 1, where it is known) besides.
    """

    def __init__(self, trainer: AdapterTrainer, on_point: Callable[[dict], None] | None):
        self.trainer, self.on_point = trainer, on_point
        self.points: list[dict] = []
        self.told: list[dict] = []  # the same with those figures
        self.clock, self.meter = devices.Clock(), devices.Meter()
        self._before = (0, 0, 0.0)

    def on_train_begin(self, args, state, control, **kwargs):
        self.clock.begin(self._before[2])

    def go_on(self, progress: dict) -> None:
        """Take over what an earlier process told."""
        self.told = list(progress["told"])
        self.points = [{key: point[key] for key in POINT} for point in self.told]
        self._before = (progress["tokens"], progress["places"], progress["seconds"])
        self.clock.begin(progress["seconds"])
        for point in self.told if self.on_point is not None else ():
            self.on_point(point)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "eval_loss" in (logs or {}):
            self._tell("eval", state, logs["eval_loss"], {})
        elif "loss" in (logs or {}):
            self._tell("train", state, logs["loss"], self._of_the_moment(state, logs))

    def _tell(self, split: str, state, loss: float, more: dict) -> None:
        point = {"step": state.global_step, "seconds": self.clock.seconds(), "split": split, "loss": loss}
        full = point | {name: value for name, value in more.items() if value is not None}
        self.points.append(point)
        self.told.append(full)
        if not state.is_world_process_zero:
            return
        if more:
            log.info(_line(state, loss, more, point["seconds"]))
        if self.on_point is not None:
            self.on_point(full)

    def _of_the_moment(self, state, logs: dict) -> dict:
        tokens, places = self.trainer.fed()
        seconds = self.clock.seconds()
        before, self._before = self._before, (tokens, places, seconds)
        lately = tokens - before[0]
        return {
            "learning_rate": logs["learning_rate"],
            "gradient_norm": logs.get("grad_norm"),
            "tokens_per_second": round(lately / max(seconds - before[2], 1e-9), 1),
            "padding": round(1 - lately / max(places - before[1], 1), 4),
            "memory_gib": round(devices.peak_memory_gib(), 3),
            "progress": round(state.global_step / state.max_steps, 4),
            "utilization": self.meter.utilization(),
        }

    def losses(self, split: str) -> list[float]:
        return [point["loss"] for point in self.points if point["split"] == split]

    def best(self) -> dict | None:
        """The evaluation with the lowest loss, the first of several."""
        evaluations = [point for point in self.points if point["split"] == "eval"]
        return min(evaluations, key=lambda point: point["loss"], default=None)

    def evaluations_since_the_best(self) -> int:
        losses = self.losses("eval")
        return len(losses) - 1 - losses.index(min(losses)) if losses else 0


def _line(state, loss: float, more: dict, seconds: float) -> str:
    left = seconds / state.global_step * (state.max_steps - state.global_step)
    busy = "" if more["utilization"] is None else f" {more['utilization']:.0%} busy"
    norm = "" if more["gradient_norm"] is None else f"  gradient {more['gradient_norm']:.3g}"
    return (
        f"step {state.global_step}/{state.max_steps} ({100 * state.global_step // state.max_steps}%)"
        f"  epoch {state.epoch:.1f}  loss {loss:.4f}{norm}  rate {more['learning_rate']:.2g}"
        f"  {more['tokens_per_second']:.0f} tokens/s  padding {more['padding']:.0%}"
        f"  {more['memory_gib']:.1f} GiB{busy}  {round(left) // 60}:{round(left) % 60:02d} left"
    )


class Watch(TrainerCallback):
    """Ends a training that diverged, with the step, the rows of that step and what to try.

    A loss has exploded when for ``IN_A_ROW`` steps it lies above the lowest so far by more than
    ``ln(vocabulary)``, which is what an even guess among all tokens costs. One step may have met a hard row.
    Loss scaling skips an update whose gradients overflow and halves the scale; a scale that has sunk to
    ``LOWEST_SCALE`` of the first means that the gradients overflow at any scale.
    """

    IN_A_ROW = 5
    LOWEST_SCALE = 2.0**-24

    def __init__(self, trainer: AdapterTrainer, row_names: Callable[[int], list[str]]):
        self.trainer, self.row_names = trainer, row_names
        self.lowest = math.inf
        self.margin = math.log(trainer.model.config.vocab_size)
        self.above: list[tuple[int, float]] = []  # the last steps, as long as they lie that far above
        self.first_scale = trainer.loss_scale()

    def memory(self) -> dict:
        """What a process that goes on from here must know, so that a training that diverges still does."""
        return {"lowest": self.lowest if math.isfinite(self.lowest) else None, "above": self.above}

    def go_on(self, memory: dict) -> None:
        self.lowest = math.inf if memory["lowest"] is None else memory["lowest"]
        self.above = [tuple(each) for each in memory["above"]]

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "eval_loss" in (logs or {}) and not math.isfinite(logs["eval_loss"]):
            self._end(state.global_step, logs["eval_loss"], "evaluation ", args)
        if "loss" not in (logs or {}):
            return
        if not math.isfinite(logs.get("grad_norm", 0.0)):  # clipped by it, the update is nothing, or no number
            log.warning("step %d: the norm of the gradient is %s", state.global_step, logs["grad_norm"])
        if self.trainer.loss_scale() < self.first_scale * self.LOWEST_SCALE:
            self._end(state.global_step, math.inf, "gradient of the ", args)
        for step, loss in self.trainer.take_losses().items():
            if not math.isfinite(loss):
                self._end(step, loss, "", args)
            self.above = [*self.above, (step, loss)] if loss > self.lowest + self.margin else []
            if len(self.above) == self.IN_A_ROW:
                self._end(*self.above[0], "", args)
            self.lowest = min(self.lowest, loss)

    def _end(self, step: int, loss: float, kind: str, args) -> None:
        names = self.row_names(step)
        rows = f"{', '.join(names[:8])}{' …' if len(names) > 8 else ''}"
        raise Diverged(
            f"Training diverged: the {kind}loss of step {step} is {loss:.4g} (lowest so far {self.lowest:.4g}). "
            f"The rows of that step: {rows}. Nothing was saved. Try a learning_rate below {args.learning_rate:g}, "
            f"a longer warmup or a smaller max_grad_norm; if it stops at the same rows, read them in data/checked."
        )


class Best(TrainerCallback):
    """Keeps the weights of the evaluation with the lowest loss, and ends the training when none is lower for long.

    They are written beside the checkpoints, under the step's number; those of former best steps go when no
    checkpoint is left that needs them.

    Args:
        folder: of the checkpoints; None keeps the weights in memory.
        patience: evaluations without a lower loss after which the training ends; None for no end.
    """

    def __init__(self, trainer: AdapterTrainer, history: History, folder: Path | None, patience: int | None):
        self.trainer, self.history, self.folder, self.patience = trainer, history, folder, patience
        self.weights = None

    def on_evaluate(self, args, state, control, **kwargs):
        if self.history.best()["step"] == state.global_step:
            if self.folder is None:
                self.weights = {name: each.clone() for name, each in trained(self.trainer.model).items()}
            else:
                self._write(state.global_step)
        control.should_training_stop |= self.out_of_patience()

    def _write(self, step: int) -> None:
        path = self._path(step)
        self.trainer.write(keep, self.trainer.model, path.with_suffix(".tmp"))
        if devices.rank() == 0:
            checkpoints.fsync_path(path.with_suffix(".tmp"))
            path.with_suffix(".tmp").replace(path)
        devices.wait_for_all()

    def on_save(self, args, state, control, **kwargs):
        if self.folder is not None and state.is_world_process_zero:
            needed = {path for each in checkpoints.complete_checkpoints(self.folder) for path in checkpoints.list_files(each)}
            for path in set(self.folder.glob("best-*")) - needed:
                path.unlink(missing_ok=True)

    def out_of_patience(self) -> bool:
        return self.patience is not None and self.history.evaluations_since_the_best() >= self.patience

    def restore(self) -> None:
        best, spread = self.history.best(), sharding.is_sharded(self.trainer.model)
        if best is None or (devices.rank() > 0 and not spread):
            return
        log.info("keeping the weights of step %d, evaluation loss %.4f", best["step"], best["loss"])
        if self.folder is not None:
            restore(self.trainer.model, self._path(best["step"]))
        elif self.weights is not None:
            for name, parameter in trained(self.trainer.model).items():
                parameter.copy_(self.weights[name])

    def _path(self, step: int) -> Path:
        return best_path(self.folder, step)


def best_path(folder: Path, step: int) -> Path:
    """Where the weights of the best step so far lie, beside the checkpoints."""
    return folder / f"best-{step}.safetensors"


class Checkpointing(TrainerCallback):
    """Completes each checkpoint with how far it is, and saves one more when SIGTERM comes."""

    def __init__(self, trainer: AdapterTrainer, history: History, watch: Watch):
        self.trainer, self.history, self.watch, self.terminated = trainer, history, watch, False

    def on_save(self, args, state, control, **kwargs):
        tokens, places = self.trainer.fed()
        progress = {"told": self.history.told, "seconds": self.history.clock.seconds(), "watch": self.watch.memory()}
        devices.wait_for_all()  # each writes its own random states
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            progress |= {"tokens": tokens, "places": places}
            self.trainer.write(checkpoints.mark_complete, folder, progress, self.best_weights(folder.parent))
        devices.wait_for_all()

    def best_weights(self, folder: Path) -> Path | None:
        """Those that the training would end with if no evaluation were better, if they are kept."""
        best = self.history.best()
        path = best and best_path(folder, best["step"])
        return path if path and path.is_file() else None

    def on_epoch_begin(self, args, state, control, **kwargs):
        # What accelerate wraps around a sampler to go on in the middle keeps the epoch from it.
        self.trainer.order.set_epoch(self.trainer.order.place_of(state.global_step)[0])

    def on_step_end(self, args, state, control, **kwargs):
        if devices.any_of(self.terminated):
            control.should_save = control.should_training_stop = self.terminated = True
        # The mean loss that is logged never spans a checkpoint, so that going on from one gives the same means.
        if control.should_save or control.should_evaluate:
            control.should_log = True

    @contextlib.contextmanager
    def until_terminated(self):
        """SIGTERM lets the step in progress end instead of the process.

        Raises:
            Stopped: it came.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(*_):
            self.terminated = True

        previous = signal.signal(signal.SIGTERM, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous)
        if self.terminated:
            if devices.rank() > 0:
                sys.exit(Stopped.exit_code)  # the first process says it
            step = self.trainer.state.global_step
            raise Stopped(f"Stopped by SIGTERM after step {step}, which is saved; run it again to go on from there.")
