"""Several samples in one row, without padding between them and without their seeing one another.

A padded batch computes padding; short samples of 100 tokens in a batch cut to the longest row waste
most of a GPU. Here samples are put end to end into rows of one length, which also gives a compiled model
the same shape at every step. What a sample computes does not depend on its neighbours: attention stays
within its segment, and positions are its own.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence

import torch

from models.chatglm.configuration_chatglm import ChatGLMConfig
from models.chatglm.masks import derive_position_ids
from models.chatglm.modeling_chatglm import find_label_indices
from models.errors import UserError
from models.prompt import IGNORED_LABEL

PADDING = -1  # its segment


def pack(lengths: Sequence[int], capacity: int, seed: int) -> list[list[int]]:
    """Put samples into rows: best fit, the longest first (Johnson 1974: at most 22 % more rows than needed).

    Args:
        lengths: tokens of each sample.
        capacity: tokens a row.
        seed: shuffles samples of one length, and the rows.

    Returns:
        The samples of each row, by their index.

    Raises:
        UserError: a sample is longer than a row.
    """
    if lengths and max(lengths) > capacity:
        raise UserError(
            f"pack_tokens is {capacity}, but a sample has {max(lengths)} tokens; raise it, "
            "or lower encode.max_prompt_tokens or encode.max_answer_tokens."
        )
    draw = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(lengths), generator=draw).tolist()
    rows: list[list[int]] = []
    open_rows: list[tuple[int, int]] = []  # tokens free, and the row, in order
    for sample in sorted(shuffled, key=lambda one: -lengths[one]):
        at = bisect_left(open_rows, (lengths[sample], 0))
        free, row = open_rows.pop(at) if at < len(open_rows) else (capacity, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(sample)
        if free > lengths[sample]:
            insort(open_rows, (free - lengths[sample], row))
    return [rows[row] for row in torch.randperm(len(rows), generator=draw).tolist()]


class PackingCollator:
    """Collate rows of samples, each with ``input_ids`` and ``labels``, into (B, capacity) tensors.

    Beside these, ``segment_ids`` number the samples of a row; ``position_ids_2d`` (B, 2, capacity) are
    what each sample has by itself; ``attention_mask`` is zero at padding, for those who count tokens; ``labelled``
    are the places before labels, as the model takes them.
    """

    def __init__(self, capacity: int, config: ChatGLMConfig):
        self.capacity, self.config = capacity, config

    def __call__(self, rows: Sequence[Sequence[dict]]) -> dict[str, torch.Tensor]:
        columns = [self._row(samples) for samples in rows]
        batch = {name: torch.stack([column[name] for column in columns]) for name in columns[0]}
        return batch | {"label_indices": find_label_indices(batch["labels"])}

    def _row(self, samples: Sequence[dict]) -> dict[str, torch.Tensor]:
        lengths = [len(sample["input_ids"]) for sample in samples]
        segments = torch.repeat_interleave(torch.arange(len(samples)), torch.tensor(lengths))
        row = {
            "input_ids": self._filled([i for sample in samples for i in sample["input_ids"]], self.config.pad_token_id),
            "labels": self._filled([i for sample in samples for i in sample["labels"]], IGNORED_LABEL),
            "segment_ids": self._filled(segments, PADDING),
        }
        padded = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(sample["input_ids"]) for sample in samples], batch_first=True
        )
        positions = derive_position_ids(padded, self.config).transpose(1, 2)
        own = torch.cat([each[:length] for each, length in zip(positions, lengths, strict=True)])
        row["position_ids_2d"] = torch.stack([self._filled(own[:, 0], 0), self._filled(own[:, 1], 1)])
        row["attention_mask"] = (row["segment_ids"] != PADDING).long()
        return row

    def _filled(self, values, filling: int) -> torch.Tensor:
        values = torch.as_tensor(values)
        return torch.nn.functional.pad(values, (0, self.capacity - len(values)), value=filling)
