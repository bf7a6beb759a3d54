"""Which rows a step takes, and how they become tensors."""

from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from models.chatglm.modeling_chatglm import find_label_indices
from models.packing import pack
from models.prompt import IGNORED_LABEL

NOTHING = {"input_ids": [0], "labels": [IGNORED_LABEL]}  # a sample from which nothing is learnt


class PaddingCollator:
    """Collate rows of ``input_ids`` and ``labels`` into one right-padded batch of (B, L) tensors.

    ``labelled`` are the places before labels, as the model takes them.
    """

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id

    def __call__(self, rows: Sequence[dict]) -> dict[str, torch.Tensor]:
        length = max(len(row["input_ids"]) for row in rows)
        labels = self._pad(rows, "labels", length, IGNORED_LABEL)
        return {
            "input_ids": self._pad(rows, "input_ids", length, self.pad_token_id),
            "labels": labels,
            "attention_mask": torch.tensor(
                [[1] * len(row["input_ids"]) + [0] * (length - len(row["input_ids"])) for row in rows]
            ),
            "label_indices": find_label_indices(labels),
        }

    @staticmethod
    def _pad(rows, key, length, value):
        return torch.tensor([row[key] + [value] * (length - len(row[key])) for row in rows])


def packed(rows: Sequence[dict], capacity: int, seed: int) -> list[list[dict]]:
    """Samples put together to rows of at most ``capacity`` tokens."""
    return [[rows[i] for i in row] for row in pack([len(row["input_ids"]) for row in rows], capacity, seed)]


class EpochOrder(Sampler):
    """The order of rows in an epoch, as a function of seed and epoch alone.

    Trainer's own, by length, draws from the global random state, of which a training that goes on in the
    middle of an epoch no longer knows what it was at its beginning.

    Args:
        lengths: of the rows, so that a batch takes rows of about one length; None to shuffle only.
        update_size: rows that an update takes, on all devices.
        fill: an epoch ends with the index ``count``, which stands for a row of nothing, until its length
            is a multiple of this: so many rows all devices together take at once.
    """

    def __init__(self, count: int, lengths: Sequence[int] | None, update_size: int, seed: int, fill: int = 1):
        self.count, self.lengths, self.update_size, self.seed, self.epoch = count, lengths, update_size, seed, 0
        self.filling = -count % fill

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count + self.filling

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices(self.epoch))

    @lru_cache(maxsize=2)  # noqa: B019 (it lives as long as the training)
    def indices(self, epoch: int) -> tuple[int, ...]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        if self.lengths is None:
            order = torch.randperm(self.count, generator=generator).tolist()
        else:
            order = get_length_grouped_indices(self.lengths, self.update_size, generator=generator)
        return (*order, *[self.count] * self.filling)

    def place_of(self, step: int) -> tuple[int, int]:
        """Epoch and number within it of an update, all counted from 0."""
        return divmod(step, -(-len(self) // self.update_size))

    def of_step(self, step: int) -> list[int]:
        """The rows that an update took, counted from 1."""
        epoch, update = self.place_of(step - 1)
        taken = self.indices(epoch)[update * self.update_size : (update + 1) * self.update_size]
        return [index for index in taken if index < self.count]
