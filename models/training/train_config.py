"""Hyperparameters of a training run, and the TrainingArguments of transformers made from them."""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import TrainingArguments

from models.training import devices


@dataclass(frozen=True)
class TrainConfig:
    """Hyperparameters of a training run.

    Attributes:
        batch_size: rows per step and device; an update takes ``batch_size * gradient_accumulation * devices`` rows.
        epochs, max_steps: length of the training; a positive ``max_steps`` overrides ``epochs``.
        schedule: learning rate schedule, by its name in transformers.
        warmup: warmup steps, or a fraction of all steps if below 1.
        pack_tokens: pack samples into rows of this many tokens, which ``batch_size`` then counts; on a GPU the blocks
            are compiled for rows of this length. None pads each batch to its longest row.
        evaluations: evaluations per training run, evenly spaced; at least 2.
        logs: minimum number of log entries per training run; each waits for the device.
        keep_best: end with the weights of the lowest evaluation loss instead of the last ones.
        patience: evaluations without a lower loss before early stopping; None disables it.
        autocast: compute dtype where the weights are float32.
        sharded: shard weights, gradients and optimizer state across devices (FSDP) instead of replicating them (DDP).
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

    @property
    def rows_per_step(self) -> int:
        """Rows that all devices together take in one forward and backward pass."""
        return self.batch_size * devices.world_size()

    @property
    def rows_per_update(self) -> int:
        """Rows that all devices together take between two optimizer steps."""
        return self.rows_per_step * self.gradient_accumulation


def build_arguments(config: TrainConfig, folder: Path, *, evaluate: bool, save: bool) -> TrainingArguments:
    """Return transformers' arguments; with several ranks, this initializes the process group.

    Args:
        folder: receives the checkpoints.
        evaluate: whether there are evaluation rows.
        save: whether to write checkpoints, one at every evaluation.
    """
    cuda, interval = torch.cuda.is_available(), 1 / config.evaluations
    arguments = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        learning_rate=config.learning_rate,
        num_train_epochs=config.epochs,
        max_steps=config.max_steps,
        lr_scheduler_type=config.schedule,
        warmup_steps=config.warmup,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        seed=config.seed,
        data_seed=config.seed,
        use_cpu=not cuda,
        bf16=config.autocast == "bfloat16" and not config.sharded,
        fp16=config.autocast == "float16" and not config.sharded,
        ddp_backend="gloo" if devices.world_size() > 1 and not cuda else None,
        ddp_find_unused_parameters=False,
        # Layers in fp8 keep their frozen weights in buffers: DDP would send them to all ranks in every update.
        ddp_broadcast_buffers=False,
        # One all-reduce after the backward pass, not one beside it for every 25 MB: adapters have few gradients, and an
        # all-reduce shares the multiprocessors with the products of the backward pass.
        ddp_bucket_cap_mb=1024,
        logging_steps=min(1 / config.logs, interval),
        eval_strategy="steps" if evaluate else "no",
        eval_steps=interval,
        save_strategy="steps" if save else "no",
        save_steps=interval,
        save_total_limit=2,
        remove_unused_columns=False,
        dataloader_pin_memory=cuda,
        # A blocking copy waits for the step before it and leaves the device idle meanwhile.
        accelerator_config={"non_blocking": True},
        report_to=[],
        logging_nan_inf_filter=False,  # the filter logs a NaN loss as 0
        disable_tqdm=not sys.stderr.isatty() or devices.rank() > 0,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # Trainer would use DataParallel with several visible GPUs
    return arguments
