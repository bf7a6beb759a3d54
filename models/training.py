"""Fitting a model to encoded rows with transformers' Trainer.

Used for the tiny base model, where every weight is trained, and for adapters, where the base is
frozen. The loop is transformers' own; what stands here feeds it and listens to it.
"""

import contextlib
import importlib.util
import logging
import math
import resource
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.utils.data import Sampler
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_pt_utils import get_length_grouped_indices

from models import checkpoints
from models.chatglm.modeling_chatglm import ChatGLMBlock, ChatGLMModel
from models.errors import UserError
from models.packing import PackedRows, pack
from models.prompt import IGNORED_LABEL

log = logging.getLogger("tuneline.training")


class RightPadding:
    """Collate rows of ``input_ids`` and ``labels`` into one right-padded batch of (B, L) tensors."""

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id

    def __call__(self, rows: Sequence[dict]) -> dict[str, torch.Tensor]:
        length = max(len(row["input_ids"]) for row in rows)
        return {
            "input_ids": self._pad(rows, "input_ids", length, self.pad_token_id),
            "labels": self._pad(rows, "labels", length, IGNORED_LABEL),
            "attention_mask": torch.tensor(
                [[1] * len(row["input_ids"]) + [0] * (length - len(row["input_ids"])) for row in rows]
            ),
        }

    @staticmethod
    def _pad(rows, key, length, value):
        return torch.tensor([row[key] + [value] * (length - len(row[key])) for row in rows])


class Bar(ProgressCallback):
    """Trainer's progress bar without its dump of raw figures."""

    def on_log(self, *args, **kwargs):
        pass


class EpochOrder(Sampler):
    """The order of rows in an epoch, as a function of seed and epoch alone.

    Trainer's own, by length, draws from the global random state, of which a training that goes on in the
    middle of an epoch no longer knows what it was at its beginning.

    Args:
        lengths: of the rows, so that a batch takes rows of about one length; None to shuffle only.
    """

    def __init__(self, count: int, lengths: Sequence[int] | None, batch_size: int, seed: int):
        self.count, self.lengths, self.batch_size, self.seed, self.epoch = count, lengths, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        if self.lengths is None:
            return iter(torch.randperm(self.count, generator=generator).tolist())
        return iter(get_length_grouped_indices(self.lengths, self.batch_size, generator=generator))


class Stopped(UserError):
    """SIGTERM ended the training after a checkpoint; the exit code is that of a program that SIGTERM ended."""

    exit_code = 128 + signal.SIGTERM


class AdapterTrainer(Trainer):
    """Trainer whose checkpoints hold what is trained and nothing else, and which counts the tokens it is fed.

    peft would save a prefix without the layers that made it, and could not go on with them.
    """

    order: EpochOrder
    tokens: torch.Tensor | int = 0  # padding left out; on the device, which is not waited for at every step

    def _get_train_sampler(self, train_dataset=None):
        return self.order

    def training_step(self, model, inputs, num_items_in_batch=None):
        self.tokens = self.tokens + inputs["attention_mask"].sum()
        return super().training_step(model, inputs, num_items_in_batch)

    def _save_checkpoint(self, model, trial):
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise UserError(
                f"The checkpoint of step {self.state.global_step} cannot be written ({str(error).splitlines()[0]}); "
                "free some space in models/checkpoints and run it again: it goes on from the one before."
            ) from None

    def _save(self, output_dir=None, state_dict=None):
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        save_file(_trained(self.model), Path(output_dir) / TRAINED)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        weights = load_file(Path(resume_from_checkpoint) / TRAINED)
        for name, parameter in _trained(self.model).items():
            parameter.copy_(weights[name])


TRAINED = "trained.safetensors"


def _trained(model) -> dict[str, torch.Tensor]:
    return {name: each.data for name, each in model.named_parameters() if each.requires_grad}


class Checkpointing(TrainerCallback):
    """Completes each checkpoint with how far it is, goes on from there, and saves one more when SIGTERM comes."""

    def __init__(self, trainer: AdapterTrainer, listener: "LossListener"):
        self.trainer, self.listener, self.terminated = trainer, listener, False

    def on_save(self, args, state, control, **kwargs):
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        seconds = round(time.monotonic() - self.listener.started, 3)
        progress = {"history": self.listener.history, "seconds": seconds, "tokens": int(self.trainer.tokens)}
        checkpoints.complete(checkpoint, progress)

    def on_step_end(self, args, state, control, **kwargs):
        if self.terminated:
            control.should_save = control.should_training_stop = True

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
            step = self.trainer.state.global_step
            raise Stopped(f"Stopped by SIGTERM after step {step}, which is saved; run it again to go on from there.")


class ProgressLine(TrainerCallback):
    """A log line at every logging step: where it stands, how fast, how long still."""

    def __init__(self, trainer: AdapterTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.started = time.monotonic()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or "loss" not in (logs or {}):
            return
        elapsed = time.monotonic() - self.started
        steps_per_second = state.global_step / elapsed
        left = (state.max_steps - state.global_step) / steps_per_second
        log.info(
            "step %d/%d (%d%%)  epoch %.1f  loss %.4f  %.1f steps/s  %d tokens/s  %d:%02d left",
            state.global_step,
            state.max_steps,
            100 * state.global_step // state.max_steps,
            state.epoch,
            logs["loss"],
            steps_per_second,
            int(self.trainer.tokens) / elapsed,
            *divmod(round(left), 60),
        )


class LossListener(TrainerCallback):
    """Hands every training and evaluation loss on, and keeps them; a loss that is no number ends the run."""

    def __init__(self, on_loss: Callable[[dict], None] | None):
        self.on_loss = on_loss
        self.history: list[dict] = []
        self.before = 0.0  # seconds of training before this process

    def on_train_begin(self, args, state, control, **kwargs):
        self.started = time.monotonic() - self.before

    def go_on(self, history: list[dict], seconds: float) -> None:
        """Take over what an earlier process told."""
        self.history, self.before = list(history), seconds
        for point in history if self.on_loss is not None else ():
            self.on_loss(point)

    def on_log(self, args, state, control, logs=None, **kwargs):
        for key, split in (("loss", "train"), ("eval_loss", "eval")):
            if key in (logs or {}):
                if not math.isfinite(logs[key]):
                    raise UserError(
                        f"Training diverged: the {split} loss at step {state.global_step} is {logs[key]}. "
                        "Nothing was saved; try a lower learning_rate or more warmup."
                    )
                point = {
                    "step": state.global_step,
                    "seconds": round(time.monotonic() - self.started, 3),
                    "split": split,
                    "loss": logs[key],
                }
                self.history.append(point)
                if self.on_loss is not None:
                    self.on_loss(point)


@dataclass(frozen=True)
class Fitted:
    """What a run of :func:`fit` amounted to.

    Attributes:
        history: losses as ``{step, seconds, split, loss}``, split being ``train`` or ``eval``.
        steps: optimizer steps.
        seconds: wall-clock time of the training loop, evaluations included.
        tokens: tokens fed, padding left out.
    """

    history: list[dict]
    steps: int
    seconds: float
    tokens: int

    def last_loss(self, split: str) -> float | None:
        losses = [point["loss"] for point in self.history if point["split"] == split]
        return losses[-1] if losses else None


def _train_from_the_last_checkpoint(trainer: AdapterTrainer, listener: LossListener, folder: Path) -> None:
    checkpointing = Checkpointing(trainer, listener)
    trainer.add_callback(checkpointing)
    last = checkpoints.last_whole(folder)
    if last is not None:
        progress = checkpoints.progress_of(last)
        log.info("going on from %s", last.name.replace("-", " of step "))
        listener.go_on(progress["history"], progress["seconds"])
        trainer.tokens = progress["tokens"]
    with checkpointing.until_terminated():
        trainer.train(resume_from_checkpoint=str(last) if last else None)


def packed(rows: Sequence[dict], capacity: int, seed: int) -> list[list[dict]]:
    """Samples put together to rows of at most ``capacity`` tokens."""
    return [[rows[i] for i in row] for row in pack([len(row["input_ids"]) for row in rows], capacity, seed)]


def compile_blocks(model) -> None:
    """Compile every block for the GPU, and let rows of several samples go through FlexAttention.

    All rows must have one length: another length is another compilation, and past its limit of those torch
    would fall back to FlexAttention unfused, at a sixth of the speed and three times the memory. It raises
    instead. On a machine without a compiler for its GPU the model stays as it is, with SDPA and a mask.
    """
    if not torch.cuda.is_available():
        return
    if (reason := _cannot_compile()) is not None:
        log.info("train: blocks are not compiled: %s", reason)
        return
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    for module in model.modules():
        if isinstance(module, ChatGLMBlock):
            module.compile(dynamic=False)
        elif isinstance(module, ChatGLMModel):
            module.flex_attention = True


def _cannot_compile() -> str | None:
    major, minor = torch.cuda.get_device_capability()
    if major < 8:
        return f"this GPU has compute capability {major}.{minor}, and FlexAttention needs 8.0"
    return None if importlib.util.find_spec("triton") else "the package triton is missing"


def peak_memory_gib() -> float:
    """Peak memory of this process in GiB: the GPU's where there is one, else resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def fit(
    model,
    train_rows: Sequence[dict],
    eval_rows: Sequence[dict],
    *,
    pad_token_id: int,
    batch_size: int,
    learning_rate: float,
    epochs: float = 1,
    max_steps: int = -1,
    gradient_accumulation: int = 1,
    schedule: str = "linear",
    warmup: float = 0.0,
    weight_decay: float = 0.0,
    max_grad_norm: float = 1.0,
    gradient_checkpointing: bool = False,
    pack_tokens: int | None = None,
    evaluations: int = 10,
    logs: int = 50,
    seed: int = 0,
    on_loss: Callable[[dict], None] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    checkpoint_folder: Path | None = None,
) -> Fitted:
    """Train the weights of ``model`` that require gradients.

    Args:
        train_rows, eval_rows: rows of ``input_ids`` and ``labels``; ``eval_rows`` may be empty.
        batch_size: rows a step and device; times ``gradient_accumulation`` for an update.
        pack_tokens: put samples end to end into rows of so many tokens, which ``batch_size`` then counts; on a
            GPU the blocks of the model are compiled for rows of that length.
        epochs, max_steps: how long; ``max_steps`` wins if it is positive.
        warmup: steps, or a share of all steps if below 1.
        evaluations: how many times to compute the loss on ``eval_rows``, spread evenly; at least 2.
        logs: how many times at least to tell the training loss, for which the device is waited for.
        on_loss: called with every point of the history as it comes.
        callbacks: Trainer's, beside those that log.
        checkpoint_folder: where checkpoints are kept, at every evaluation, and gone on from; None for none.

    Raises:
        UserError: a loss is NaN or infinite.
        Stopped: SIGTERM came, with a ``checkpoint_folder``.
    """
    listener = LossListener(on_loss)
    share = 1 / evaluations
    if gradient_checkpointing:
        # Not through TrainingArguments, and after the adapter is on: peft refuses to put a prefix on a
        # model that checkpoints, but a model with a prefix may start to (its blocks leave the cache alone).
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if pack_tokens is None:
        collate, train_rows, eval_rows = RightPadding(pad_token_id), list(train_rows), list(eval_rows)
    else:
        compile_blocks(model)
        collate = PackedRows(pack_tokens, model.config)
        train_rows, eval_rows = (packed(rows, pack_tokens, seed) for rows in (train_rows, eval_rows))
    with tempfile.TemporaryDirectory(prefix="tuneline-trainer-") as scratch:
        arguments = TrainingArguments(
            output_dir=checkpoint_folder or scratch,
            per_device_train_batch_size=batch_size,
            per_device_eval_batch_size=max(batch_size, 8) if pack_tokens is None else batch_size,
            gradient_accumulation_steps=gradient_accumulation,
            learning_rate=learning_rate,
            num_train_epochs=epochs,
            max_steps=max_steps,
            lr_scheduler_type=schedule,
            warmup_steps=warmup,
            weight_decay=weight_decay,
            max_grad_norm=max_grad_norm,
            seed=seed,
            data_seed=seed,
            use_cpu=not torch.cuda.is_available(),
            logging_steps=min(1 / logs, share),
            eval_strategy="steps" if eval_rows else "no",
            eval_steps=share,
            prediction_loss_only=True,
            save_strategy="steps" if checkpoint_folder else "no",
            save_steps=share,
            save_total_limit=2,
            remove_unused_columns=False,
            label_names=["labels"],
            dataloader_pin_memory=torch.cuda.is_available(),
            report_to=[],
            logging_nan_inf_filter=False,  # which would log a loss that is no number as 0
            disable_tqdm=not sys.stderr.isatty(),
        )
        arguments._n_gpu = min(arguments.n_gpu, 1)  # never DataParallel, Trainer's way with several visible GPUs
        trainer = AdapterTrainer(
            model=model,
            args=arguments,
            data_collator=collate,
            train_dataset=train_rows,
            eval_dataset=eval_rows or None,
            callbacks=[listener, *callbacks],
        )
        lengths = [len(row["input_ids"]) for row in train_rows] if pack_tokens is None else None
        trainer.order = EpochOrder(len(train_rows), lengths, batch_size * gradient_accumulation, seed)
        trainer.add_callback(ProgressLine(trainer))
        trainer.remove_callback(PrinterCallback)
        if trainer.pop_callback(ProgressCallback) is not None:
            trainer.add_callback(Bar())
        # Log lines go around the bar; where there is no bar they would only be written twice.
        with contextlib.nullcontext() if arguments.disable_tqdm else logging_redirect_tqdm():
            if checkpoint_folder is None:
                trainer.train()
            else:
                _train_from_the_last_checkpoint(trainer, listener, checkpoint_folder)
        seconds = time.monotonic() - listener.started
    state = trainer.state
    return Fitted(listener.history, state.global_step, round(seconds, 3), int(trainer.tokens))
