"""Labelled tokens of a batch: their indices, and their states. Shapes: B rows, L tokens, N labelled tokens."""

import torch
import torch.nn.functional as F

from models.prompt import IGNORED_LABEL


def find_label_indices(labels: torch.Tensor) -> torch.Tensor:
    """Return the tokens whose successor in the row has a label, as (N,) indices into the B · L tokens of ``labels``."""
    return F.pad(labels[:, 1:] != IGNORED_LABEL, (0, 1)).flatten().nonzero().squeeze(-1)


class _GatherTokens(torch.autograd.Function):
    """Distinct rows of a matrix. Its gradient copies rows instead of accumulating them, which is faster."""

    @staticmethod
    def forward(ctx, states, token_indices):
        ctx.save_for_backward(token_indices)
        ctx.rows = states.shape[0]
        return states[token_indices]

    @staticmethod
    def backward(ctx, gradient):
        (token_indices,) = ctx.saved_tensors
        return gradient.new_zeros(ctx.rows, gradient.shape[1]).index_copy(0, token_indices, gradient), None


def gather_tokens(states: torch.Tensor, token_indices: torch.Tensor | None) -> torch.Tensor:
    """Return the states of some tokens, (1, N, width); all states without indices.

    Args:
        states: (B, L, width).
        token_indices: (N,) distinct indices into the B · L tokens, or None.
    """
    return states if token_indices is None else _GatherTokens.apply(states.flatten(0, 1), token_indices)[None]
