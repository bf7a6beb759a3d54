"""What each row costs a model, token by token of its answer, and how far an adapter moves from its base."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from tqdm import tqdm

from models.adapters import without_adapter
from models.prompt import label
from models.training import PaddingCollator

ANSWER_TOKENS = 2048  # at once: 1 GiB of float32 logits over ChatGLM-6B's vocabulary


def row_losses(model, rows: Sequence[dict], batch_size: int) -> list[float]:
    """Mean loss over the answer of each encoded row; in the order of the rows, each of which has an answer."""

    def cost(logits, batch):
        return F.cross_entropy(logits(model), batch["targets"], reduction="none")

    return _of_each_row(cost, model, rows, batch_size, "loss · 损失")


def row_divergences(model, rows: Sequence[dict], batch_size: int) -> list[float] | None:
    """Mean over the answer of each row of the KL divergence from the base's prediction to the adapted model's.

    In nats a token, along the row's own answer. None for a model that has no base below it.
    """

    def divergence(logits, batch):
        adapted = logits(model).log_softmax(dim=-1)
        with without_adapter(model):
            base = logits(model).log_softmax(dim=-1)
        return F.kl_div(adapted, base, reduction="none", log_target=True).sum(dim=-1)

    if without_adapter(model) is None:
        return None
    return _of_each_row(divergence, model, rows, batch_size, "divergence · 偏离")


def batches_of(rows: Sequence[dict], batch_size: int) -> list[list[int]]:
    """Indices of rows of similar length, at most so many together, nor more answers than :data:`ANSWER_TOKENS`."""
    batches: list[list[int]] = []
    for index in sorted(range(len(rows)), key=lambda index: len(rows[index]["prompt"]) + len(rows[index]["answer"])):
        tokens = sum(len(rows[each]["answer"]) for each in [*batches[-1], index]) if batches else 0
        if not batches or len(batches[-1]) == batch_size or tokens > ANSWER_TOKENS:
            batches.append([])
        batches[-1].append(index)
    return batches


def _of_each_row(measure: Callable, model, rows: Sequence[dict], batch_size: int, what: str) -> list[float]:
    """Mean over the labelled tokens of each row of what ``measure`` gives for them, (N,)."""
    labelled_rows = [label(row["prompt"], row["answer"]) for row in rows]
    collate = PaddingCollator(model.config.pad_token_id)
    means = [0.0] * len(rows)
    for chosen in tqdm(batches_of(rows, batch_size), desc=what, unit="batch", delay=2):
        batch = {k: v.to(model.device) for k, v in collate([labelled_rows[index] for index in chosen]).items()}
        places = batch["label_indices"]
        batch["targets"] = batch["labels"].flatten()[places + 1]

        def logits(one, batch=batch):
            inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "label_indices")}
            return one(**inputs).logits[0].float()

        with torch.inference_mode():
            values = measure(logits, batch).double()
        row_of = places // batch["labels"].shape[1]
        sums = values.new_zeros(len(chosen)).index_add(0, row_of, values)
        for index, mean in zip(chosen, (sums / torch.bincount(row_of, minlength=len(chosen))).tolist(), strict=True):
            means[index] = mean
    return means
