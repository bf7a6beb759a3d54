"""Query, key and value from their joint projection, rotated, in one pass over memory each way.

torch.compile makes one kernel of the backward pass of splitting and rotating too, but one that computes
12 masked addresses an element: 0.9 ms a layer for 8,192 tokens of ChatGLM-6B on an H200, of 12.6 ms in all.
Here it is a copy with a rotation. Shapes: B rows, L tokens, H heads, D channels a head.
"""

import torch
import triton
import triton.language as tl
from torch.library import triton_op, wrap_triton


def is_supported(head_dim: int) -> bool:
    """Whether heads of so many channels suit the kernels, whose tiles have sides of powers of two."""
    return head_dim % 4 == 0 and (head_dim & (head_dim - 1)) == 0


@triton.jit
def _rotated(low, high, cos, sin):
    return low * cos - high * sin, high * cos + low * sin


@triton.jit
def _split(mixed, query, key, value, cos, sin, length, heads: tl.constexpr, tile: tl.constexpr, quarter: tl.constexpr):
    """One token: (H, 3D) of ``mixed`` to (B, H, L, D) of the others."""
    token = tl.program_id(0).to(tl.int64)
    row, place = token // length, token % length
    head = tl.arange(0, tile)[:, None]
    pair = tl.arange(0, 2 * quarter)[None, :]
    there = head < heads
    low = (
        pair // quarter * 2 * quarter + pair % quarter
    )  # in each half of a head, the first quarter pairs with the next
    width: tl.constexpr = 4 * quarter
    angle_cos = tl.load(cos + token * 2 * quarter + pair).to(tl.float32)
    angle_sin = tl.load(sin + token * 2 * quarter + pair).to(tl.float32)
    source = mixed + (token * heads + head) * 3 * width + low
    target = ((row * heads + head) * length + place) * width + low
    for part in tl.static_range(3):
        first = tl.load(source + part * width, mask=there)
        second = tl.load(source + part * width + quarter, mask=there)
        if part == 0:
            turned, turned_too = _rotated(first.to(tl.float32), second.to(tl.float32), angle_cos, angle_sin)
            tl.store(query + target, turned, mask=there)
            tl.store(query + target + quarter, turned_too, mask=there)
        elif part == 1:
            turned, turned_too = _rotated(first.to(tl.float32), second.to(tl.float32), angle_cos, angle_sin)
            tl.store(key + target, turned, mask=there)
            tl.store(key + target + quarter, turned_too, mask=there)
        else:
            tl.store(value + target, first, mask=there)
            tl.store(value + target + quarter, second, mask=there)


@triton.jit
def _join(
    query, key, value, mixed, cos, sin, length,
    query_row, query_head, query_token, key_row, key_head, key_token, value_row, value_head, value_token,
    heads: tl.constexpr, tile: tl.constexpr, quarter: tl.constexpr,
):  # fmt: skip
    """The way back, for gradients: rotated the other way, whatever the strides they come with."""
    token = tl.program_id(0).to(tl.int64)
    row, place = token // length, token % length
    head = tl.arange(0, tile)[:, None]
    pair = tl.arange(0, 2 * quarter)[None, :]
    there = head < heads
    low = pair // quarter * 2 * quarter + pair % quarter
    width: tl.constexpr = 4 * quarter
    angle_cos = tl.load(cos + token * 2 * quarter + pair).to(tl.float32)
    angle_sin = -tl.load(sin + token * 2 * quarter + pair).to(tl.float32)
    target = mixed + (token * heads + head) * 3 * width + low

    source = query + row * query_row + head * query_head + place * query_token + low
    first, second = tl.load(source, mask=there).to(tl.float32), tl.load(source + quarter, mask=there).to(tl.float32)
    first, second = _rotated(first, second, angle_cos, angle_sin)
    tl.store(target, first, mask=there)
    tl.store(target + quarter, second, mask=there)

    source = key + row * key_row + head * key_head + place * key_token + low
    first, second = tl.load(source, mask=there).to(tl.float32), tl.load(source + quarter, mask=there).to(tl.float32)
    first, second = _rotated(first, second, angle_cos, angle_sin)
    tl.store(target + width, first, mask=there)
    tl.store(target + width + quarter, second, mask=there)

    source = value + row * value_row + head * value_head + place * value_token + low
    tl.store(target + 2 * width, tl.load(source, mask=there), mask=there)
    tl.store(target + 2 * width + quarter, tl.load(source + quarter, mask=there), mask=there)


@triton_op("tuneline::split_and_rotate", mutates_args={})
def split_and_rotate(
    mixed: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rotated query and key, and the value: (B, H, L, D) each.

    Args:
        mixed: (B, L, H, 3D), contiguous.
        cos, sin: (B, L, D / 2): of the angles of each half's pairs, one half after the other.
    """
    batch, length, heads, width = mixed.shape
    query, key, value = (mixed.new_empty(batch, heads, length, width // 3) for _ in range(3))
    sizes = {"heads": heads, "tile": triton.next_power_of_2(heads), "quarter": width // 12}
    wrap_triton(_split)[(batch * length,)](mixed, query, key, value, cos, sin, length, **sizes)
    return query, key, value


@triton_op("tuneline::rotate_back_and_join", mutates_args={})
def rotate_back_and_join(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> torch.Tensor:
    """The gradient of ``mixed`` from those of the others."""
    batch, heads, length, dim = query.shape
    query, key, value = (each if each.stride(-1) == 1 else each.contiguous() for each in (query, key, value))
    mixed = query.new_empty(batch, length, heads, 3 * dim)
    strides = [stride for each in (query, key, value) for stride in each.stride()[:3]]
    sizes = {"heads": heads, "tile": triton.next_power_of_2(heads), "quarter": dim // 4}
    wrap_triton(_join)[(batch * length,)](query, key, value, mixed, cos, sin, length, *strides, **sizes)
    return mixed


def _keep(ctx, inputs, output):
    ctx.save_for_backward(inputs[1], inputs[2])


def _backward(ctx, query, key, value):
    return rotate_back_and_join(query, key, value, *ctx.saved_tensors), None, None


split_and_rotate.register_autograd(_backward, setup_context=_keep)
