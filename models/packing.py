"""Packing: several samples per row, without padding between them and without attention across them.

In a padded batch, short samples waste most of a GPU: a sample of 100 tokens costs as much as the longest row. Packed
rows have one length, which also gives a compiled model the same shapes in every step. A sample's result does not depend
on its neighbours: attention stays within its segment, and its positions start anew.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence

import torch

from models.errors import UserError
from models.families import family_of_config
from models.labels import find_label_indices
from models.prompt import IGNORED_LABEL

PADDING_SEGMENT = -1


def pack_samples(lengths: Sequence[int], capacity: int, seed: int) -> list[list[int]]:
    """Distribute samples to rows by best-fit decreasing (Johnson 1974: at most 22 % more rows than necessary).

    Args:
        lengths: tokens of each sample.
        capacity: tokens of a row.
        seed: shuffles samples of equal length, and the rows.

    Returns:
        Indices of the samples in each row.

    Raises:
        UserError: a sample is longer than a row.
    """
    if lengths and max(lengths) > capacity:
        raise UserError(
            f"pack_tokens is {capacity}, but a sample has {max(lengths)} tokens. Raise pack_tokens, "
            "or lower encode.max_prompt_tokens or encode.max_answer_tokens."
        )
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(lengths), generator=generator).tolist()
    rows: list[list[int]] = []
    open_rows: list[tuple[int, int]] = []  # free tokens and index of each row with space, sorted
    for sample in sorted(shuffled, key=lambda index: -lengths[index]):
        position = bisect_left(open_rows, (lengths[sample], 0))
        free, row = open_rows.pop(position) if position < len(open_rows) else (capacity, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(sample)
        if free > lengths[sample]:
            insort(open_rows, (free - lengths[sample], row))
    return [rows[row] for row in torch.randperm(len(rows), generator=generator).tolist()]


class PackingCollator:
    """Collate B rows of samples with ``input_ids`` and ``labels`` into tensors of one length.

    Args:
        capacity: tokens of a row, C.

    Returns:
        ``input_ids`` and ``labels`` (B, C); ``segment_ids`` (B, C), the number of each token's sample in its row,
        ``PADDING_SEGMENT`` at padding; ``attention_mask`` (B, C), 0 at padding, used for token counts only;
        ``label_indices`` (N,), see :func:`models.labels.find_label_indices`; and the columns of the family, see
        :meth:`models.families.family.Family.packed_columns`.
    """

    def __init__(self, capacity: int, config):
        self.capacity, self.config, self.family = capacity, config, family_of_config(config)

    def __call__(self, rows: Sequence[Sequence[dict]]) -> dict[str, torch.Tensor]:
        columns = [self._collate_row(samples) for samples in rows]
        batch = {name: torch.stack([column[name] for column in columns]) for name in columns[0]}
        return batch | {"label_indices": find_label_indices(batch["labels"])}

    def _collate_row(self, samples: Sequence[dict]) -> dict[str, torch.Tensor]:
        """Concatenate samples and pad the row; the label mask (``IGNORED_LABEL``) covers prompts and padding."""
        lengths = [len(sample["input_ids"]) for sample in samples]
        segments = self._pad(
            torch.repeat_interleave(torch.arange(len(samples)), torch.tensor(lengths)), PADDING_SEGMENT
        )
        input_ids = [token_id for sample in samples for token_id in sample["input_ids"]]
        labels = [label for sample in samples for label in sample["labels"]]
        return {
            "input_ids": self._pad(input_ids, self.config.pad_token_id),
            "labels": self._pad(labels, IGNORED_LABEL),
            "segment_ids": segments,
            "attention_mask": (segments != PADDING_SEGMENT).long(),
            **self.family.packed_columns(samples, self.config, self.capacity),
        }

    def _pad(self, values, padding: int) -> torch.Tensor:
        values = torch.as_tensor(values)
        return torch.nn.functional.pad(values, (0, self.capacity - len(values)), value=padding)
