"""Cross-entropy through a frozen language-model head, without materializing the logits of all tokens.

With ChatGLM-6B's vocabulary of 130,528, the float32 logits of 4,096 tokens and their gradient take 4.3 GB. The head is
frozen, so the backward pass needs only the gradient of its input, and the forward pass can compute that gradient chunk
by chunk (as Liger Kernel does, Hsu et al., arXiv:2410.10989).

torch has this as ``torch.nn.functional.linear_cross_entropy`` since 2.13. Tuneline supports torch 2.11, which lacks it;
when 2.13 becomes the minimum, compare both in ``benchmarks/training_speed.py`` and remove this file.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import nn

CHUNK = 1024  # tokens: 267 MB of logits in half precision


class FrozenHeadLoss(torch.autograd.Function):
    """Sum of cross-entropies over tokens, in float32."""

    @staticmethod
    def forward(ctx, hidden_states: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the loss, a float32 scalar.

        Args:
            hidden_states: (N, hidden_size).
            weight: (vocab_size, hidden_size), frozen.
            targets: (N,) token ids.
        """
        needs_gradient = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden_states) if needs_gradient else None
        total = torch.zeros((), dtype=torch.float32, device=hidden_states.device)
        for start in range(0, len(targets), CHUNK):
            chunk = slice(start, start + CHUNK)
            logits = hidden_states[chunk] @ weight.T
            loss, logits_gradient = _cross_entropy(logits.is_cuda)(logits, targets[chunk], needs_gradient)
            total += loss
            if needs_gradient:
                torch.matmul(logits_gradient, weight, out=gradient[chunk])
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx, loss_gradient: torch.Tensor):
        (gradient,) = ctx.saved_tensors
        return gradient * loss_gradient.to(gradient.dtype), None, None


def mean_loss(
    head: nn.Linear, hidden_states: torch.Tensor, targets: torch.Tensor, num_items: torch.Tensor | int | None
) -> torch.Tensor:
    """Return the sum of cross-entropies of a head's logits over tokens, divided by a number of tokens, in float32.

    Args:
        head: without bias; its weight may be frozen.
        hidden_states: (N, hidden_size).
        targets: (N,) token ids.
        num_items: tokens that the loss is averaged over; None for N.
    """
    if head.weight.requires_grad:
        total = F.cross_entropy(head(hidden_states).float(), targets, reduction="sum")
    else:
        total = FrozenHeadLoss.apply(hidden_states, head.weight, targets)
    return total / (max(len(targets), 1) if num_items is None else num_items)


@lru_cache
def _cross_entropy(compiled: bool):
    return torch.compile(_compute_cross_entropy, dynamic=True) if compiled else _compute_cross_entropy


def _compute_cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, needs_gradient: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the sum of cross-entropies in float32, and its gradient by the logits in their dtype, or None."""
    scores = logits.float()
    normalizer = scores.logsumexp(dim=-1)
    loss = (normalizer - scores.gather(-1, targets[:, None]).squeeze(-1)).sum()
    if not needs_gradient:
        return loss, None
    is_target = torch.arange(scores.shape[-1], device=scores.device) == targets[:, None]
    return loss, ((scores - normalizer[:, None]).exp() - is_target.float()).to(logits.dtype)
