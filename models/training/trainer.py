"""transformers' Trainer with token counts, an exact evaluation loss, and checkpoints of trained weights only."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.amp import GradScaler
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from models.errors import UserError
from models.prompt import IGNORED_LABEL
from models.training import devices, sharding
from models.training.batches import EpochOrder, TrainingData

WEIGHTS = "trained.safetensors"

# Trained weights -----------------------------------------------------------------------------------


def trainable_parameters(model) -> dict[str, torch.Tensor]:
    """Return this rank's part of every parameter that requires gradients, by name."""
    return {name: parameter.data for name, parameter in model.named_parameters() if parameter.requires_grad}


def trainable_state_dict(model) -> dict[str, torch.Tensor]:
    """Return the full trained weights on the CPU, by name; all ranks must call it if the model is sharded."""
    parameters = trainable_parameters(model)
    return {name: sharding.full_tensor(values).cpu().contiguous() for name, values in parameters.items()}


def load_trainable_state_dict(model, weights: dict[str, torch.Tensor]) -> None:
    """Copy full weights into a model, of which each rank may hold a shard."""
    for name, values in trainable_parameters(model).items():
        sharding.copy_full(values, weights[name])


def save_trainable(model, path: Path) -> None:
    """Write the full trained weights from rank 0; all ranks must call it."""
    weights = trainable_state_dict(model)
    if devices.rank() == 0:
        save_file(weights, path)


def load_trainable(model, path: Path) -> None:
    """Load the weights that :func:`save_trainable` wrote."""
    load_trainable_state_dict(model, load_file(path))


@contextmanager
def explain_write_errors(step: int) -> Iterator[None]:
    """Turn errors while writing the checkpoint of ``step`` into a message.

    Raises:
        UserError: the disk refused the write.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"The checkpoint of step {step} cannot be written ({str(error).splitlines()[0]}). "
            "Free space in models/checkpoints and run the command again: training resumes from the checkpoint before."
        ) from None


# Training ------------------------------------------------------------------------------------------


class StepStatistics:
    """Token counts and losses of training steps, accumulated on the device so that no step waits for it.

    Attributes:
        num_tokens: tokens that this rank has trained on, without padding.
        num_slots: the same with padding.
        losses: step and loss of every batch since the last :meth:`pop_losses`.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.num_tokens: torch.Tensor | int = 0
        self.num_slots = 0
        self.losses: list[tuple[int, torch.Tensor]] = []

    def count_tokens(self, attention_mask: torch.Tensor) -> None:
        self.num_tokens = self.num_tokens + attention_mask.sum()
        self.num_slots += attention_mask.numel()

    def add_loss(self, step: int, loss: torch.Tensor) -> None:
        self.losses.append((step, loss))

    def totals(self) -> tuple[int, int]:
        """Return tokens and slots summed over all ranks; all ranks must call it."""
        counts = torch.tensor([int(self.num_tokens), self.num_slots], device=self.device)
        num_tokens, num_slots = devices.all_reduce_sum(counts).tolist()
        return num_tokens, num_slots

    def pop_losses(self) -> dict[int, float]:
        """Return the loss of each step since the last call, mean over ranks; waits for the device."""
        steps = [step for step, _ in self.losses]
        losses = torch.stack([loss for _, loss in self.losses]).float()
        self.losses.clear()
        mean_over_ranks = devices.all_reduce_sum(losses) / devices.world_size()
        loss_by_step = dict.fromkeys(steps, 0.0)
        for step, loss in zip(steps, mean_over_ranks.tolist(), strict=True):
            loss_by_step[step] += loss  # the loss of an update is the sum over its batches
        return loss_by_step

    def state_dict(self) -> dict:
        num_tokens, num_slots = self.totals()
        return {"num_tokens": num_tokens, "num_slots": num_slots}

    def load_state_dict(self, state: dict) -> None:
        if devices.rank() == 0:  # totals are sums over ranks
            self.num_tokens, self.num_slots = state["num_tokens"], state["num_slots"]


class AdapterTrainer(Trainer):
    """Trainer for the weights that require gradients, which its checkpoints hold alone.

    Trainer would have peft save a prefix without the projection that produces it, and could not resume from that.

    Args:
        data: rows, order and collation.
        statistics: receives token counts and losses of all steps.
        callbacks: all callbacks in the order in which they run, ``DefaultFlowCallback`` included.
        grad_scaler: scales the loss of every step, and unscales gradients before they are clipped. accelerate's
            optimizer skips updates that overflow, and Trainer's checkpoints keep the scale.
        shard_dtype: compute dtype of a model to shard over all ranks; None replicates the model.
    """

    def __init__(
        self,
        model,
        arguments: TrainingArguments,
        data: TrainingData,
        statistics: StepStatistics,
        callbacks: Sequence[TrainerCallback],
        grad_scaler: GradScaler | None = None,
        shard_dtype: str | None = None,
    ):
        super().__init__(
            model=model,
            args=arguments,
            data_collator=data.collate,
            train_dataset=[*data.train_rows, data.padding_row],  # EpochOrder pads with the last index
            eval_dataset=data.eval_rows or None,
        )
        self.data, self.statistics, self.grad_scaler = data, statistics, grad_scaler
        self.callback_handler.callbacks = list(callbacks)  # Trainer would put its own before and after them
        if grad_scaler is not None:
            self.accelerator.scaler = grad_scaler
        if shard_dtype is not None:
            sharding.shard_model(model, shard_dtype)

    def _get_train_sampler(self, train_dataset=None) -> EpochOrder:
        return self.data.order

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        self.statistics.count_tokens(inputs["attention_mask"])
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.statistics.add_loss(self.state.global_step + 1, loss)
        return loss

    def _clip_grad_norm(self, model):
        # accelerate unscales gradients only under its own autocast, which a float16 base does not use.
        if self.grad_scaler is not None:
            self.grad_scaler.unscale_(self.optimizer.optimizer)
        return super()._clip_grad_norm(model)

    # Evaluation ------------------------------------------------------------------------------------

    def evaluation_loop(self, dataloader, description, *args, metric_key_prefix="eval", **kwargs) -> EvalLoopOutput:
        """Return the mean loss over labelled tokens (Trainer's is the mean over batches); ranks share the batches."""
        self.model.eval()
        loss_and_count = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        for rows in self._eval_batches()[devices.rank() :: devices.world_size()]:
            batch = self._prepare_inputs(self.data_collator(rows))
            num_labelled = int((batch["labels"][:, 1:] != IGNORED_LABEL).sum())
            with torch.no_grad():
                loss = self.model(**batch).loss.double()
                loss_and_count += torch.stack((loss * num_labelled, loss_and_count.new_tensor(num_labelled)))
        loss_sum, count = devices.all_reduce_sum(loss_and_count).tolist()
        metrics = {f"{metric_key_prefix}_loss": loss_sum / max(count, 1)}
        return EvalLoopOutput(None, None, metrics, len(self.data.eval_rows))

    def _eval_batches(self) -> list[list]:
        """Return the evaluation rows in batches, the same number for every rank: FSDP's all-gathers need all ranks."""
        size, rows = self.args.per_device_eval_batch_size, self.data.eval_rows
        batches = [rows[start : start + size] for start in range(0, len(rows), size)]
        batches += [[]] * (-len(batches) % devices.world_size())
        least_rows = size if self.data.fixed_batch_size else 1
        return [[*batch, *[self.data.padding_row] * (least_rows - len(batch))] for batch in batches]

    # Checkpoints -----------------------------------------------------------------------------------

    def _save_checkpoint(self, model, trial) -> None:
        with explain_write_errors(self.state.global_step):
            super()._save_checkpoint(model, trial)

    def save_model(self, output_dir=None, _internal_call=False) -> None:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        save_trainable(self.model, Path(output_dir) / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None) -> None:
        load_trainable(self.model, Path(resume_from_checkpoint) / WEIGHTS)

    def _save_optimizer_and_scheduler(self, output_dir) -> None:
        if sharding.is_sharded(self.model):
            sharding.save_optimizer(self.model, self.optimizer.optimizer, self.lr_scheduler, Path(output_dir))
        else:
            super()._save_optimizer_and_scheduler(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint) -> None:
        if not sharding.is_sharded(self.model):
            super()._load_optimizer_and_scheduler(checkpoint)
        elif checkpoint is not None:
            sharding.load_optimizer(self.model, self.optimizer.optimizer, self.lr_scheduler, Path(checkpoint))
