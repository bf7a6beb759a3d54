"""Mean token loss of each row's answer, and mean KL divergence of an adapted model from its base."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from tqdm import tqdm

from models.adapters import disable_adapter
from models.padding import PaddingCollator
from models.prompt import label_sample

MAX_ANSWER_TOKENS = 2048  # per batch: 1 GiB of float32 logits over ChatGLM-6B's vocabulary


def mean_row_losses(model, rows: Sequence[dict], batch_size: int) -> list[float]:
    """Return the mean cross-entropy per answer token of each row, in nats.

    Args:
        model: in evaluation mode.
        rows: token ids of ``prompt`` and ``answer``.
        batch_size: rows per batch at most.
    """

    def token_losses(logits_of, batch):
        return F.cross_entropy(logits_of(model), batch["targets"], reduction="none")

    return _mean_over_answer_tokens(token_losses, model, rows, batch_size, "loss")


def mean_row_divergences(model, rows: Sequence[dict], batch_size: int) -> list[float] | None:
    """Return each row's mean KL divergence KL(base ‖ adapted model) over its answer tokens, in nats per token.

    Args:
        model: with an adapter that can be disabled.
        rows: token ids of ``prompt`` and ``answer``.
        batch_size: rows per batch at most.

    Returns:
        None if the model has no adapter to disable.
    """

    def token_divergences(logits_of, batch):
        adapted = logits_of(model).log_softmax(dim=-1)
        with disable_adapter(model):
            base = logits_of(model).log_softmax(dim=-1)
        return F.kl_div(adapted, base, reduction="none", log_target=True).sum(dim=-1)

    if disable_adapter(model) is None:
        return None
    return _mean_over_answer_tokens(token_divergences, model, rows, batch_size, "divergence")


def batch_by_length(rows: Sequence[dict], batch_size: int) -> list[list[int]]:
    """Return batches of row indices of similar length, each with at most :data:`MAX_ANSWER_TOKENS` answer tokens."""
    batches: list[list[int]] = []
    answer_tokens = 0
    for index in sorted(range(len(rows)), key=lambda index: len(rows[index]["prompt"]) + len(rows[index]["answer"])):
        answer_tokens += len(rows[index]["answer"])
        if not batches or len(batches[-1]) == batch_size or answer_tokens > MAX_ANSWER_TOKENS:
            batches.append([])
            answer_tokens = len(rows[index]["answer"])
        batches[-1].append(index)
    return batches


def _mean_over_answer_tokens(
    measure: Callable, model, rows: Sequence[dict], batch_size: int, description: str
) -> list[float]:
    """Return the mean of a measure over each row's answer tokens.

    Args:
        measure: called with ``logits_of`` and a batch; returns one value per answer token of the batch, (N,).
            ``logits_of(model)`` computes the float32 logits that predict those tokens, (N, V).
        model: in evaluation mode.
        rows: token ids of ``prompt`` and ``answer``.
        batch_size: rows per batch at most.
        description: of the progress bar.
    """
    labelled_rows = [label_sample(row["prompt"], row["answer"]) for row in rows]
    collate = PaddingCollator(model.config.pad_token_id)
    means = [0.0] * len(rows)
    for indices in tqdm(batch_by_length(rows, batch_size), desc=description, unit="batch", delay=2):
        batch = collate([labelled_rows[index] for index in indices])
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        # Flat indices of the positions whose next token is labelled.
        label_indices = batch["label_indices"]
        batch["targets"] = batch["labels"].flatten()[label_indices + 1]

        def logits_of(model, batch=batch):
            inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "label_indices")}
            return model(**inputs).logits[0].float()

        with torch.inference_mode():
            values = measure(logits_of, batch).double()
        row_numbers = label_indices // batch["labels"].shape[1]
        sums = values.new_zeros(len(indices)).index_add(0, row_numbers, values)
        tokens = torch.bincount(row_numbers, minlength=len(indices))
        for index, mean in zip(indices, (sums / tokens).tolist(), strict=True):
            means[index] = mean
    return means
