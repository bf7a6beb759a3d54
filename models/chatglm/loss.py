"""Cross-entropy through a frozen language-model head, without logits for all tokens at once.

ChatGLM-6B's vocabulary of 130,528 makes the float32 logits of 4,096 tokens and their gradient 4.3 GB. As
the head is frozen, the gradient of its input is all that the backward pass needs, and the forward pass
can compute it chunk by chunk (as Liger Kernel does, Hsu et al., arXiv:2410.10989). Torch has this as
``linear_cross_entropy`` from 2.13 on; Tuneline runs on 2.11 too.
"""

from functools import lru_cache

import torch

CHUNK = 1024  # tokens: 267 MB of logits in half precision


class FrozenHeadLoss(torch.autograd.Function):
    """The sum of cross-entropies over tokens, in float32."""

    @staticmethod
    def forward(ctx, hidden_states: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Args: hidden_states (N, hidden_size); weight (vocab_size, hidden_size), frozen; targets (N,)."""
        wanted = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden_states) if wanted else None
        total = torch.zeros((), dtype=torch.float32, device=hidden_states.device)
        for start in range(0, len(targets), CHUNK):
            chunk = slice(start, start + CHUNK)
            logits = hidden_states[chunk] @ weight.T
            loss, slope = _entropy_of(logits.is_cuda)(logits, targets[chunk], wanted)
            total += loss
            if wanted:
                torch.matmul(slope, weight, out=gradient[chunk])
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx, upstream: torch.Tensor):
        (gradient,) = ctx.saved_tensors
        return gradient * upstream.to(gradient.dtype), None, None


@lru_cache
def _entropy_of(compiled: bool):
    return torch.compile(_entropy, dynamic=True) if compiled else _entropy


def _entropy(logits: torch.Tensor, targets: torch.Tensor, wanted: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The sum of cross-entropies, and its derivative by the logits if wanted; in float32 inside."""
    scores = logits.float()
    normalizer = scores.logsumexp(dim=-1)
    loss = (normalizer - scores.gather(-1, targets[:, None]).squeeze(-1)).sum()
    if not wanted:
        return loss, None
    at_target = torch.arange(scores.shape[-1], device=scores.device) == targets[:, None]
    return loss, ((scores - normalizer[:, None]).exp() - at_target.float()).to(logits.dtype)
