"""Fitting a model to encoded rows with transformers' Trainer.

Used for the tiny base model, where every weight is trained, and for adapters, where the base is
frozen. The loop is transformers' own; what stands here feeds it and listens to it.
"""

import contextlib
import importlib.util
import logging
import math
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

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


class CountingTrainer(Trainer):
    """Trainer that counts the tokens it is fed, padding left out, without waiting for the device at every step."""

    tokens: torch.Tensor | int = 0

    def training_step(self, model, inputs, num_items_in_batch=None):
        self.tokens = self.tokens + inputs["attention_mask"].sum()
        return super().training_step(model, inputs, num_items_in_batch)


class ProgressLine(TrainerCallback):
    """A log line at every logging step: where it stands, how fast, how long still."""

    def __init__(self, trainer: CountingTrainer):
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

    def on_train_begin(self, args, state, control, **kwargs):
        self.started = time.monotonic()

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

    Raises:
        UserError: a loss is NaN or infinite.
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
            output_dir=scratch,
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
            save_strategy="no",
            remove_unused_columns=False,
            train_sampling_strategy="group_by_length" if pack_tokens is None else "random",
            label_names=["labels"],
            dataloader_pin_memory=torch.cuda.is_available(),
            report_to=[],
            logging_nan_inf_filter=False,  # which would log a loss that is no number as 0
            disable_tqdm=not sys.stderr.isatty(),
        )
        arguments._n_gpu = min(arguments.n_gpu, 1)  # never DataParallel, Trainer's way with several visible GPUs
        trainer = CountingTrainer(
            model=model,
            args=arguments,
            data_collator=collate,
            train_dataset=train_rows,
            eval_dataset=eval_rows or None,
            callbacks=[listener, *callbacks],
        )
        trainer.add_callback(ProgressLine(trainer))
        trainer.remove_callback(PrinterCallback)
        if trainer.pop_callback(ProgressCallback) is not None:
            trainer.add_callback(Bar())
        started = time.monotonic()
        # Log lines go around the bar; where there is no bar they would only be written twice.
        with contextlib.nullcontext() if arguments.disable_tqdm else logging_redirect_tqdm():
            trainer.train()
        seconds = time.monotonic() - started
    state = trainer.state
    return Fitted(listener.history, state.global_step, round(seconds, 3), int(trainer.tokens))
