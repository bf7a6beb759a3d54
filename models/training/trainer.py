"""transformers' Trainer, told what to do otherwise where a frozen base or an exact continuation needs it."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from models.errors import UserError
from models.prompt import IGNORED_LABEL
from models.training import devices, sharding
from models.training.batches import EpochOrder

TRAINED = "trained.safetensors"


def trained(model) -> dict[str, torch.Tensor]:
    """What is trained, by name."""
    return {name: each.data for name, each in model.named_parameters() if each.requires_grad}


def trainable_state_dict(model) -> dict[str, torch.Tensor]:
    """The same on the CPU, put together from all processes, which must all ask for it."""
    return {name: sharding.whole(each).cpu().contiguous() for name, each in trained(model).items()}


def load_trainable_state_dict(model, weights: dict[str, torch.Tensor]) -> None:
    """Put whole weights into a model, of which each process may hold a part."""
    for name, parameter in trained(model).items():
        sharding.put(parameter, weights[name])


def keep(model, path: Path) -> None:
    """Write what is trained, in the first process; all must call it."""
    weights = trainable_state_dict(model)
    if devices.rank() == 0:
        save_file(weights, path)


def restore(model, path: Path) -> None:
    """Put weights that :func:`keep` wrote back into a model."""
    load_trainable_state_dict(model, load_file(path))


class AdapterTrainer(Trainer):
    """Trainer whose checkpoints hold what is trained and nothing else, and which counts what it is fed.

    peft would save a prefix without the layers that made it, and could not go on with them.

    Attributes:
        order: of the rows in every epoch.
        tokens: fed so far by this process, padding left out; on the device, which is not waited for.
        places: the same with padding.
        losses: of the steps since they were last taken, on the device.
        eval_rows: rows of the evaluation loss.
        nothing: a row that fills up a batch.
        one_shape: whether every batch must have as many rows as any other.
    """

    order: EpochOrder
    eval_rows: Sequence
    nothing: object
    one_shape: bool

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.tokens: torch.Tensor | int = 0
        self.places = 0
        self.losses: list[tuple[int, torch.Tensor]] = []
        self.unscales_gradients = False

    def _get_train_sampler(self, train_dataset=None):
        return self.order

    def training_step(self, model, inputs, num_items_in_batch=None):
        self.tokens = self.tokens + inputs["attention_mask"].sum()
        self.places += inputs["attention_mask"].numel()
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.losses.append((self.state.global_step + 1, loss))
        return loss

    def _clip_grad_norm(self, model):
        # accelerate unscales gradients only under its own autocast, which a float16 base does not use.
        if self.unscales_gradients:
            self.accelerator.scaler.unscale_(self.optimizer.optimizer)
        return super()._clip_grad_norm(model)

    def use_grad_scaler(self, scaler: torch.amp.GradScaler) -> None:
        """Scale the loss of every step, and unscale the gradients before they are clipped.

        The optimizer's wrapper of accelerate skips updates that overflow, and Trainer's checkpoints keep the scale.
        """
        self.accelerator.scaler, self.unscales_gradients = scaler, True

    def loss_scale(self) -> float:
        """The factor by which the loss is multiplied before the backward pass; waits for the device."""
        return self.accelerator.scaler.get_scale() if self.unscales_gradients else 1.0

    def take_losses(self) -> dict[int, float]:
        """The loss of each step since the last call, for which the device is waited for; the same on all devices."""
        steps = [step for step, _ in self.losses]
        values = devices.total(torch.stack([loss for _, loss in self.losses]).float()) / devices.world_size()
        self.losses.clear()
        of_step = dict.fromkeys(steps, 0.0)
        for step, value in zip(steps, values.tolist(), strict=True):
            of_step[step] += value  # an update's loss is the sum over its batches
        return of_step

    def fed(self) -> tuple[int, int]:
        """Tokens and places so far, on all devices."""
        tokens, places = devices.total(torch.tensor([int(self.tokens), self.places], device=self.args.device)).tolist()
        return tokens, places

    # Evaluation --------------------------------------------------------------------------------------

    def evaluation_loop(self, dataloader, description, *args, metric_key_prefix="eval", **kwargs):
        """The mean loss over labelled tokens, where Trainer has the mean over batches; each device takes its share."""
        self.model.eval()
        size = self.args.per_device_eval_batch_size
        batches = [self.eval_rows[start : start + size] for start in range(0, len(self.eval_rows), size)]
        batches += [[]] * (-len(batches) % devices.world_size())  # where weights are spread, all must take part
        sums = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        for rows in batches[devices.rank() :: devices.world_size()]:
            filling = size - len(rows) if self.one_shape else int(not rows)
            batch = self._prepare_inputs(self.data_collator([*rows, *[self.nothing] * filling]))
            labelled = int((batch["labels"][:, 1:] != IGNORED_LABEL).sum())
            with torch.no_grad():
                sums += torch.stack((self.model(**batch).loss.double() * labelled, sums.new_tensor(labelled)))
        total, count = devices.total(sums).tolist()
        metrics = {f"{metric_key_prefix}_loss": total / max(count, 1)}
        return EvalLoopOutput(None, None, metrics, len(self.eval_rows))

    # Checkpoints -------------------------------------------------------------------------------------

    def _save_checkpoint(self, model, trial):
        self.write(super()._save_checkpoint, model, trial)

    def write(self, save: Callable, *arguments) -> None:
        """Call what writes a part of a checkpoint; what the disk refuses is one sentence.

        Raises:
            UserError: it cannot be written.
        """
        try:
            save(*arguments)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise UserError(
                f"The checkpoint of step {self.state.global_step} cannot be written ({str(error).splitlines()[0]}); "
                "free some space in models/checkpoints and run it again: it goes on from the one before."
            ) from None

    def save_model(self, output_dir=None, _internal_call=False):
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        keep(self.model, Path(output_dir) / TRAINED)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        restore(self.model, Path(resume_from_checkpoint) / TRAINED)

    def _save_optimizer_and_scheduler(self, output_dir):
        if not sharding.is_sharded(self.model):
            super()._save_optimizer_and_scheduler(output_dir)
            return
        sharding.save_optimizer(self.model, self.optimizer.optimizer, self.lr_scheduler, Path(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint):
        if not sharding.is_sharded(self.model):
            super()._load_optimizer_and_scheduler(checkpoint)
        elif checkpoint is not None:
            sharding.load_optimizer(self.model, self.optimizer.optimizer, self.lr_scheduler, Path(checkpoint))
