"""Number formats of training: float32 adapters on a base in half precision, and frozen layers in fp8."""

import logging

import torch
import torch.nn.functional as F
from torch import nn

from models.errors import UserError

log = logging.getLogger("tuneline.precision")
_FP8_MAX = 448.0  # of float8_e4m3fn


class Float32Weight(nn.Linear):
    """A linear layer without bias that has a float32 weight and computes in the dtype of its input.

    Trained weights need float32, because updates are much smaller than the weights. peft would therefore cast the
    input, as wide as the base, to float32 for every LoRA layer; this class casts the weight, as wide as the rank,
    instead. Gradients are float32 again.

    Half-precision matrix products need sizes that are multiples of 8, so a lower rank is padded with zeros: ``lora_A``
    returns more columns, and ``lora_B`` takes them.
    """

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return F.linear(states, self.padded_weight(states))

    def padded_weight(self, states: torch.Tensor) -> torch.Tensor:
        """Return the weight padded to the width of ``states`` (…, in), and cast to their dtype."""
        rows = 0 if states.dtype == torch.float32 else -self.out_features % 8
        columns = states.shape[-1] - self.in_features
        padded = F.pad(self.weight, (0, columns, 0, rows)) if rows or columns else self.weight
        return padded.to(states.dtype)


def has_8bit_layers(model: nn.Module) -> bool:
    """Return whether a model has LLM.int8() layers of bitsandbytes.

    They inspect activations at run time, so they cannot be compiled or captured in a CUDA graph.
    """
    return any(type(module).__name__ == "Linear8bitLt" for module in model.modules())


# fp8 -----------------------------------------------------------------------------------------------


def scale_rows(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize a matrix to fp8 (e4m3) with one scale per row, which maps the row's maximum to the maximum of fp8.

    Args:
        values: (rows, columns).

    Returns:
        float8_e4m3fn (rows, columns) and float32 (rows, 1), whose product approximates ``values``.
    """
    scale = values.abs().amax(dim=-1, keepdim=True).float().clamp(min=1e-12) / _FP8_MAX
    return (values.float() / scale).to(torch.float8_e4m3fn), scale


class _Fp8Linear(torch.autograd.Function):
    """``states @ weight.T + bias`` with inputs in fp8; the weight has no gradient."""

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
    """A frozen linear layer in fp8, for the forward pass and the gradient of its input.

    The weight is stored twice, scaled by its rows and by its columns, since the two products sum over different
    dimensions. Both copies take the memory of one in half precision.
    """

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        weight = layer.weight.detach()
        # Not named "weight": peft would create adapter weights in its dtype.
        for name, matrix in (("rows", weight), ("columns", weight.t().contiguous())):
            scaled, scale = scale_rows(matrix)
            self.register_buffer(name, scaled)
            self.register_buffer(f"{name}_scale", scale)
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach())

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return _Fp8Linear.apply(states, self.rows, self.rows_scale, self.columns, self.columns_scale, self.bias)


def convert_frozen_layers_to_fp8(module: nn.Module) -> int:
    """Replace the frozen linear layers in a module by :class:`FrozenFloat8Linear`, and return their number.

    Layers whose sizes are not multiples of 16, as fp8 products need, are kept. Without an fp8 GPU all layers are kept,
    with a log message.

    Raises:
        UserError: the layers are float32; torch has no fp8 product with bias and float32 output.
    """
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9):
        log.info("train.precision: no GPU with fp8 (compute capability 8.9 or higher); training continues without fp8")
        return 0
    num_replaced, frozen = 0, set(_frozen_layers(module))
    if any(layer.weight.dtype == torch.float32 for layer in frozen):
        raise UserError("train.precision: fp8 needs a base in 16 bits. Set base.dtype: bfloat16, or precision: base.")
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if child in frozen and child.in_features % 16 == child.out_features % 16 == 0:
                setattr(parent, name, FrozenFloat8Linear(child))
                num_replaced += 1
    return num_replaced


def _frozen_layers(module: nn.Module) -> list[nn.Linear]:
    return [layer for layer in module.modules() if type(layer) is nn.Linear and not layer.weight.requires_grad]
