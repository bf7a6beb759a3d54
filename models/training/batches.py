"""Rows to batches: row order of an epoch, padding, packing."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from models.packing import PackingCollator, pack_samples
from models.padding import PaddingCollator
from models.prompt import IGNORED_LABEL
from models.training import devices
from models.training.train_config import TrainConfig

PADDING_SAMPLE = {"input_ids": [0], "labels": [IGNORED_LABEL]}  # has no label, so it adds nothing to the loss


class EpochOrder(Sampler):
    """Row order of each epoch, determined by seed and epoch alone.

    Trainer's own length-grouped sampler draws from the global random state. A training run that resumes within an epoch
    cannot restore the state of that epoch's beginning.

    Args:
        count: number of rows.
        lengths: tokens of each row, to batch rows of similar length; None only shuffles.
        rows_per_update: rows of one update, on all devices.
        pad_to_multiple_of: rows that all devices take in one step. An epoch is padded to a multiple of this with the
            index ``count``, where the dataset holds a padding row.
    """

    def __init__(
        self, count: int, lengths: Sequence[int] | None, rows_per_update: int, seed: int, pad_to_multiple_of: int = 1
    ):
        self.count, self.lengths, self.rows_per_update, self.seed, self.epoch = count, lengths, rows_per_update, seed, 0
        self.num_padding_rows = -count % pad_to_multiple_of

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count + self.num_padding_rows

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices(self.epoch))

    @lru_cache(maxsize=2)  # noqa: B019 (the sampler lives as long as the training run)
    def indices(self, epoch: int) -> tuple[int, ...]:
        """Return the row indices of an epoch, counted from 0, in order."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        if self.lengths is None:
            order = torch.randperm(self.count, generator=generator).tolist()
        else:
            order = get_length_grouped_indices(self.lengths, self.rows_per_update, generator=generator)
        return (*order, *[self.count] * self.num_padding_rows)

    def locate_update(self, update: int) -> tuple[int, int]:
        """Return the epoch of an update and the update's number in it, all counted from 0."""
        return divmod(update, -(-len(self) // self.rows_per_update))

    def indices_of_step(self, step: int) -> list[int]:
        """Return the row indices of an optimizer step, counted from 1, without padding rows."""
        epoch, update = self.locate_update(step - 1)
        start = update * self.rows_per_update
        return [index for index in self.indices(epoch)[start : start + self.rows_per_update] if index < self.count]


@dataclass(frozen=True)
class TrainingData:
    """Rows of a training run, their order and their collation.

    Attributes:
        train_rows, eval_rows: samples; where they are packed, lists of samples.
        padding_row: row without labels that fills a batch; a list of one sample where rows are packed.
        fixed_batch_size: whether all evaluation batches need the same number of rows, as compiled blocks do.
        order: of the training rows.
        collate: rows to a batch of tensors.
    """

    train_rows: list
    eval_rows: list
    padding_row: dict | list[dict]
    fixed_batch_size: bool
    order: EpochOrder
    collate: PaddingCollator | PackingCollator

    def sample_ids_of_step(self, step: int) -> list[str]:
        """Return the ``id`` of every sample in an optimizer step, counted from 1."""
        rows = [self.train_rows[index] for index in self.order.indices_of_step(step)]
        return [sample.get("id", "without id") for sample in flatten_samples(rows)]


def prepare_data(
    model_config, train_rows: Sequence[dict], eval_rows: Sequence[dict], config: TrainConfig
) -> TrainingData:
    """Return the :class:`TrainingData` of samples, packed if ``config.pack_tokens`` is set."""
    packed = config.pack_tokens is not None
    if packed:
        train_rows, eval_rows = (pack_rows(rows, config.pack_tokens, config.seed) for rows in (train_rows, eval_rows))
    order = EpochOrder(
        len(train_rows),
        None if packed else [len(row["input_ids"]) for row in train_rows],
        config.rows_per_update,
        config.seed,
        # With one device the last batch of an epoch may be smaller.
        pad_to_multiple_of=config.rows_per_step if devices.world_size() > 1 else 1,
    )
    return TrainingData(
        list(train_rows),
        list(eval_rows),
        padding_row=[PADDING_SAMPLE] if packed else PADDING_SAMPLE,
        fixed_batch_size=packed,
        order=order,
        collate=PackingCollator(config.pack_tokens, model_config)
        if packed
        else PaddingCollator(model_config.pad_token_id),
    )


def pack_rows(samples: Sequence[dict], capacity: int, seed: int) -> list[list[dict]]:
    """Return rows of samples with at most ``capacity`` tokens each."""
    lengths = [len(sample["input_ids"]) for sample in samples]
    return [[samples[index] for index in row] for row in pack_samples(lengths, capacity, seed)]


def flatten_samples(rows: Sequence[dict | list[dict]]) -> list[dict]:
    """Return the samples of rows, packed or not."""
    return [sample for row in rows for sample in (row if isinstance(row, list) else [row])]
