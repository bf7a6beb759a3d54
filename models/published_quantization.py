"""Weights of ChatGLM-6B that its authors quantized to 8 or 4 bits: the releases -int8, -int4 and -int4-qe.

A quantized matrix is stored as ``X.weight``, int8 codes, and ``X.weight_scale``, half precision, one for each row. With
4 bits a byte holds two columns, the first in its high half::

    row of codes        c0  c1  c2  c3          -7 … 7, two's complement
    row of bytes       c0c1   c2c3

The weight is code × scale. Source: the C and CUDA kernels that the releases embed.
"""

from collections.abc import Iterator
from pathlib import Path

import torch

from models.errors import UserError
from models.schemas import to_printable

SCALE_SUFFIX = "_scale"


def unpack_codes(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """Return the int8 codes of a matrix, (rows, columns).

    Args:
        packed: int8, (rows, columns) with 8 bits, (rows, columns / 2) with 4 bits.
    """
    if bits == 8:
        return packed
    high, low = packed >> 4, (packed << 4) >> 4  # arithmetic shifts keep the sign
    return torch.stack((high, low), dim=-1).flatten(-2)


def dequantize(packed: torch.Tensor, scale: torch.Tensor, bits: int, dtype: torch.dtype) -> torch.Tensor:
    """Return the weight, (rows, columns).

    The product is exact in float32, so that rounding it to ``dtype`` gives the product of the published GPU kernel in
    half precision too.

    Args:
        packed: see :func:`unpack_codes`.
        scale: (rows,).
    """
    return (unpack_codes(packed, bits).float() * scale.float()[:, None]).to(dtype)


def dequantize_weights(
    tensors: Iterator[tuple[Path, str, torch.Tensor]], bits: int, dtype: torch.dtype
) -> Iterator[tuple[Path, str, torch.Tensor]]:
    """Replace codes and scales of weight files by weights, and pass on all other tensors.

    Args:
        tensors: path, name and tensor, as from :func:`models.tensor_files.read_weight_files`; the scale of a matrix may
            come before or after its codes, and from another file.

    Raises:
        UserError: codes and scale of a matrix do not belong together, or one of them is missing.
    """
    waiting: dict[str, tuple[Path, torch.Tensor]] = {}  # halves of pairs, by name
    for path, name, tensor in tensors:
        is_scale = name.endswith(f".weight{SCALE_SUFFIX}")
        if not is_scale and tensor.dtype != torch.int8:
            yield path, name, tensor
            continue
        waiting[name] = (path, tensor)
        weight = name.removesuffix(SCALE_SUFFIX)
        if weight in waiting and f"{weight}{SCALE_SUFFIX}" in waiting:
            (path, codes), (_, scale) = waiting.pop(weight), waiting.pop(f"{weight}{SCALE_SUFFIX}")
            _check_pair(path, weight, codes, scale)
            yield path, weight, dequantize(codes, scale, bits, dtype)
    for name, (path, _) in waiting.items():
        other = name.removesuffix(SCALE_SUFFIX) if name.endswith(SCALE_SUFFIX) else f"{name}{SCALE_SUFFIX}"
        raise UserError(f"{path} holds {to_printable(name)} without {to_printable(other)}; fetch the checkpoint again.")


def _check_pair(path: Path, weight: str, codes: torch.Tensor, scale: torch.Tensor) -> None:
    if codes.dim() != 2 or scale.shape != codes.shape[:1] or not scale.is_floating_point():
        raise UserError(
            f"{path}: {to_printable(weight)} has codes of type {codes.dtype} and shape {list(codes.shape)}, and scales "
            f"of type {scale.dtype} and shape {list(scale.shape)}, which do not belong together; fetch the checkpoint "
            "again."
        )
