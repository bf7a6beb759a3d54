"""Number formats of training: adapters in float32 beside a base in half precision, and frozen layers in fp8."""

import logging

import torch
import torch.nn.functional as F
from torch import nn

from models.errors import UserError

log = logging.getLogger("tuneline.precision")
_LARGEST = 448.0  # of float8_e4m3fn


class Float32Weight(nn.Linear):
    """A linear layer with a float32 weight that computes in the type of its input.

    What is trained needs float32, for updates much smaller than the weight to count. peft would therefore
    turn the input, of the base's width, into float32 for every LoRA layer; here the weight, of LoRA's rank, is
    turned instead. Gradients are float32 again.

    Half-precision products want sides that are multiples of 8, so a lower rank is filled up with zeros:
    ``lora_A`` gives more columns, and ``lora_B`` takes them.
    """

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return F.linear(states, self.padded_weight(states))

    def padded_weight(self, states: torch.Tensor) -> torch.Tensor:
        """The weight, filled up and turned into the type of the states, as it multiplies them."""
        rows = 0 if states.dtype == torch.float32 else -self.out_features % 8
        columns = states.shape[-1] - self.in_features
        filled = F.pad(self.weight, (0, columns, 0, rows)) if rows or columns else self.weight
        return filled.to(states.dtype)


def has_8bit_layers(model: nn.Module) -> bool:
    """Whether some layers are bitsandbytes' in 8 bits, which look at what comes in and so stay out of what is fixed
    beforehand, compiled or recorded."""
    return any(type(module).__name__ == "Linear8bitLt" for module in model.modules())


# fp8 -----------------------------------------------------------------------------------------------


def scale_rows(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix in fp8 (e4m3) with a scale a row, such that the largest value of a row is the largest of fp8.

    Args:
        values: (rows, columns).

    Returns:
        float8_e4m3fn (rows, columns) and float32 (rows, 1), whose product is ``values``.
    """
    scale = values.abs().amax(dim=-1, keepdim=True).float().clamp(min=1e-12) / _LARGEST
    return (values.float() / scale).to(torch.float8_e4m3fn), scale


class _Product(torch.autograd.Function):
    """``states @ weight.T + bias`` with everything but the result in fp8; the weight has no gradient."""

    @staticmethod
    def forward(ctx, states, weight, weight_scale, transposed, transposed_scale, bias):
        ctx.save_for_backward(transposed, transposed_scale)
        return _multiply(states, weight, weight_scale, bias)

    @staticmethod
    def backward(ctx, gradient):
        transposed, transposed_scale = ctx.saved_tensors
        return _multiply(gradient, transposed, transposed_scale, None), None, None, None, None, None


def _multiply(states, weight, weight_scale, bias):
    rows, scale = scale_rows(states.flatten(0, -2))
    product = torch._scaled_mm(
        rows, weight.t(), scale, weight_scale.t(), bias=bias, out_dtype=states.dtype, use_fast_accum=True
    )
    return product.unflatten(0, states.shape[:-1])


class FrozenFloat8Linear(nn.Module):
    """A frozen linear layer in fp8, for the forward pass and for the gradient of its input.

    The weight is kept twice, scaled by its rows and by its columns, since each product sums over another of
    them; both together take the memory of one in half precision.
    """

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        weight = layer.weight.detach()
        # Not called weight: peft takes the type of that for an adapter's.
        for name, matrix in (("rows", weight), ("columns", weight.t().contiguous())):
            scaled, scale = scale_rows(matrix)
            self.register_buffer(name, scaled)
            self.register_buffer(f"{name}_scale", scale)
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach())

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return _Product.apply(states, self.rows, self.rows_scale, self.columns, self.columns_scale, self.bias)


def convert_frozen_layers_to_fp8(module: nn.Module) -> int:
    """Replace the frozen linear layers below a module by :class:`FrozenFloat8Linear`; gives how many.

    Layers whose sides are no multiples of 16, which fp8 products need, stay as they are; all do where the GPU
    has no fp8, with a line in the log.

    Raises:
        UserError: the layers are in float32, which products in fp8 with a bias do not give.
    """
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9):
        log.info("train.precision: no GPU with fp8 here (compute capability 8.9 or more); training goes on without it")
        return 0
    replaced, frozen = 0, set(_frozen_layers(module))
    if any(layer.weight.dtype == torch.float32 for layer in frozen):
        raise UserError("train.precision fp8 needs a base in 16 bits; set base.dtype to bfloat16, or precision: base.")
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if child in frozen and child.in_features % 16 == child.out_features % 16 == 0:
                setattr(parent, name, FrozenFloat8Linear(child))
                replaced += 1
    return replaced


def _frozen_layers(module: nn.Module) -> list[nn.Linear]:
    return [layer for layer in module.modules() if type(layer) is nn.Linear and not layer.weight.requires_grad]
