"""Loss scaling, without which float16 gradients underflow.

The loss is the mean over the N labelled tokens of an update, so every gradient carries a factor 1/N. In float16,
whose smallest normal number is 6e-5, most of them become subnormal or zero: at ChatGLM-6B's width the cosine with the
float32 gradient is 0.83 at N = 8,448 and 0.14 at N = 67,584. Multiplied by a scale, they stay in range; the scale is
divided out of the float32 gradients of the trained weights (Micikevicius et al., arXiv:1710.03740).

torch's ``GradScaler`` adapts the scale: it halves the scale and skips the update when a gradient overflows, and doubles
the scale after 2,000 updates without overflow.
"""

import torch
from torch.amp import GradScaler

from models.prompt import IGNORED_LABEL
from models.training.batches import flatten_samples

SCALE_PER_TOKEN = 16.0  # first scale / N: gradients of a token's own loss times 16, far from both ends of float16


def needs_loss_scaling(model: torch.nn.Module, compute_dtype: str, sharded: bool) -> bool:
    """Return whether gradients flow through float16 activations and nothing else scales the loss.

    Args:
        compute_dtype: autocast dtype of float32 weights. Trainer scales the loss by itself under its own autocast,
            which sharded training replaces by FSDP's mixed precision.
    """
    if compute_dtype == "float16":
        return sharded
    return any(parameter.dtype == torch.float16 for parameter in model.parameters() if not parameter.requires_grad)


def make_grad_scaler(device: torch.device, rows: list, rows_per_update: int) -> GradScaler:
    """Return a scaler that starts at :data:`SCALE_PER_TOKEN` times the labelled tokens of a mean update.

    Args:
        rows: samples with ``labels``, or lists of such samples where rows are packed.
        rows_per_update: on all devices.
    """
    samples = flatten_samples(rows)
    num_labelled = sum(label != IGNORED_LABEL for sample in samples for label in sample["labels"])
    tokens_per_update = max(num_labelled * rows_per_update / max(len(rows), 1), 1.0)
    return GradScaler(device.type, init_scale=SCALE_PER_TOKEN * tokens_per_update)
