"""Padding: rows of different length as one batch; :mod:`models.packing` is the alternative without padding."""

from collections.abc import Sequence

import torch

from models.labels import find_label_indices
from models.prompt import IGNORED_LABEL


class PaddingCollator:
    """Collate rows of ``input_ids`` and ``labels`` into right-padded tensors, for B rows of at most L tokens.

    Returns:
        ``input_ids``, ``labels`` and ``attention_mask`` (0 at padding), (B, L) each; ``label_indices`` (N,), see
        :func:`models.labels.find_label_indices`.
    """

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id

    def __call__(self, rows: Sequence[dict]) -> dict[str, torch.Tensor]:
        length = max(len(row["input_ids"]) for row in rows)
        labels = self._pad([row["labels"] for row in rows], length, IGNORED_LABEL)
        return {
            "input_ids": self._pad([row["input_ids"] for row in rows], length, self.pad_token_id),
            "labels": labels,
            "attention_mask": self._pad([[1] * len(row["input_ids"]) for row in rows], length, 0),
            "label_indices": find_label_indices(labels),
        }

    @staticmethod
    def _pad(rows: Sequence[list[int]], length: int, value: int) -> torch.Tensor:
        return torch.tensor([row + [value] * (length - len(row)) for row in rows])
