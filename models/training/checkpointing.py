"""Checkpoints during a training run: complete them, resume from the latest, save one on SIGTERM."""

import contextlib
import logging
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from transformers import TrainerCallback

from models import checkpoints
from models.errors import UserError
from models.training import devices
from models.training.callbacks import LossHistory, best_weights_path
from models.training.trainer import AdapterTrainer, explain_write_errors

log = logging.getLogger("tuneline.training")


class Stateful(Protocol):
    """An object whose state is part of a checkpoint."""

    def state_dict(self) -> dict:
        """Return the state as JSON; all ranks call it."""

    def load_state_dict(self, state: dict) -> None: ...


class Stopped(UserError):
    """SIGTERM stopped training after a checkpoint; exit code 143, as of a program that SIGTERM ended."""

    exit_code = 128 + signal.SIGTERM


class StopOnSigterm(TrainerCallback):
    """On SIGTERM, finishes the current step, saves a checkpoint and stops training on all ranks."""

    def __init__(self):
        self.terminated = False

    def on_step_end(self, args, state, control, **kwargs):
        if devices.any_rank(self.terminated):
            control.should_save = control.should_training_stop = self.terminated = True

    @contextlib.contextmanager
    def handle_signal(self) -> Iterator[None]:
        """Install the signal handler; does nothing outside the main thread, where Python allows no handlers."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def on_sigterm(*_):
            self.terminated = True

        previous = signal.signal(signal.SIGTERM, on_sigterm)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous)

    def raise_if_terminated(self, step: int) -> None:
        """Raise after a training run that SIGTERM stopped.

        Raises:
            Stopped: on rank 0, which reports it.
            SystemExit: on other ranks.
        """
        if not self.terminated:
            return
        if devices.rank() > 0:
            sys.exit(Stopped.exit_code)
        raise Stopped(f"Stopped by SIGTERM after step {step}, which is saved. Run the command again to resume from it.")


class CheckpointCompletion(TrainerCallback):
    """Adds progress and state to each checkpoint of Trainer, and marks it as complete.

    Args:
        states: objects whose state a checkpoint keeps, by the name of their entry.
        history: decides which best weights the checkpoint needs.
    """

    def __init__(self, states: dict[str, Stateful], history: LossHistory):
        self.states, self.history = states, history

    def on_step_end(self, args, state, control, **kwargs):
        # Logging at every checkpoint keeps the averages of the training loss identical after a resume.
        if control.should_save or control.should_evaluate:
            control.should_log = True

    def on_save(self, args, state, control, **kwargs):
        progress = {name: stateful.state_dict() for name, stateful in self.states.items()}
        devices.barrier()  # every rank has written its random state
        if state.is_world_process_zero:
            folder = Path(args.output_dir)
            with explain_write_errors(state.global_step):
                checkpoint = folder / f"checkpoint-{state.global_step}"
                checkpoints.mark_complete(checkpoint, progress, self._best_weights(folder))
        devices.barrier()

    def _best_weights(self, folder: Path) -> Path | None:
        best = self.history.best_evaluation()
        path = best and best_weights_path(folder, best["step"])
        return path if path and path.is_file() else None  # they are kept only with keep: best


class EpochRestorer(TrainerCallback):
    """Sets the epoch of the row order: accelerate's wrapper for resuming inside an epoch hides the sampler."""

    def __init__(self, order):
        self.order = order

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.order.set_epoch(self.order.locate_update(state.global_step)[0])


def load_latest_state(folder: Path, states: dict[str, Stateful]) -> Path | None:
    """Restore ``states`` from the latest complete checkpoint in a folder, and return it; None without one.

    All ranks must call it: rank 0 removes incomplete checkpoints before the other ranks list them.
    """
    if devices.rank() > 0:
        devices.barrier()
    latest = checkpoints.latest_complete(folder)
    if devices.rank() == 0:
        devices.barrier()
    if latest is not None:
        log.info("resuming from %s", latest.name.replace("-", " of step "))
        progress = checkpoints.read_progress(latest)
        for name, stateful in states.items():
            stateful.load_state_dict(progress[name])
    return latest


def load_final_checkpoint(trainer: AdapterTrainer, checkpoint: Path) -> None:
    """Load weights and number of steps of a process that was killed after its last training step."""
    trainer._load_from_checkpoint(checkpoint)
    trainer.state.global_step = checkpoints.step_from_name(checkpoint.name)
