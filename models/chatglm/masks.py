"""Positions and attention mask of a prefix language model, in ChatGLM-6B's conventions.

The context of a row comes first and attends to itself in both directions; the rest attends to the context and to what
precedes it. Samples packed into one row do not attend to each other. This is the mask of two samples, with contexts
``a1 a2 M`` and ``b1 M``, answers ``A1`` and ``B1``, and of a padding token ``-``. M is ``[gMASK]``, S is ``<sop>``, and
``x`` means that the query attends to the key::

    query / key     a1 a2  M  S A1 b1  M  S B1  -
                a1   x  x  x  .  .  .  .  .  .  .
                a2   x  x  x  .  .  .  .  .  .  .
                 M   x  x  x  .  .  .  .  .  .  .
                 S   x  x  x  x  .  .  .  .  .  .
                A1   x  x  x  x  x  .  .  .  .  .
                b1   .  .  .  .  .  x  x  .  .  .
                 M   .  .  .  .  .  x  x  .  .  .
                 S   .  .  .  .  .  x  x  x  .  .
                B1   .  .  .  .  .  x  x  x  x  .
                 -   .  .  .  .  .  .  .  .  .  x

    segment          0  0  0  0  0  1  1  1  1 -1
    position         0  1  2  2  2  0  1  1  1  0
    block position   0  0  0  1  2  0  0  1  2  1

Positions count in the context; from ``<sop>`` on, block positions count and the position stays at that of ``[gMASK]``.
Each query's keys form one interval (:func:`attended_intervals`), which the mask for FlexAttention relies on. Shapes: B
rows, L tokens, P cached tokens.
"""

import torch
from torch.nn.attention.flex_attention import BlockMask

from models.chatglm.configuration_chatglm import ChatGLMConfig

BLOCK = 128  # queries and keys per block of FlexAttention


def _first_true(mask: torch.Tensor, default: torch.Tensor | int) -> torch.Tensor:
    """Return the index of the first True in each row of a (B, L) mask, ``default`` for rows without one."""
    return torch.where(mask.any(dim=-1), mask.int().argmax(dim=-1), default)


def derive_position_ids(
    input_ids: torch.Tensor, config: ChatGLMConfig, attention_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Return position and block position of every token, as the published code derives them.

    In the context, positions count from 0 and the block position is 0. From ``<sop>`` on, the position stays at that of
    ``[gMASK]`` (`` MASK]`` if there is none), and the block position counts from 1. Left padding takes up no position.
    A row without ``<sop>`` is all context.

    Args:
        input_ids: (B, L).
        attention_mask: (B, P + L), nonzero at tokens, 0 at padding; or None.

    Returns:
        (B, 2, L) integers.
    """
    length = input_ids.shape[-1]
    index = torch.arange(length, device=input_ids.device)
    context_length = _first_true(input_ids == config.bos_token_id, default=length)
    mask_position = _first_true(input_ids == config.mask_token_id, default=context_length - 1)
    mask_position = _first_true(input_ids == config.gmask_token_id, default=mask_position)
    left_padding = torch.zeros_like(context_length)
    if attention_mask is not None:
        left_padding = _first_true(attention_mask[:, -length:] != 0, default=0)
    in_context = index < context_length[:, None]
    position = torch.where(in_context, index, mask_position[:, None]) - left_padding[:, None]
    block_position = index - context_length[:, None] + 1
    return torch.stack((position, block_position), dim=1).clamp(min=0)


def prefix_lm_mask(
    block_position: torch.Tensor,
    past_length: int,
    attention_mask: torch.Tensor | None,
    segment_ids: torch.Tensor | None = None,
) -> torch.Tensor | None:
    """Return the dense mask for SDPA, see the picture above.

    Args:
        block_position: (B, L), 0 in the context.
        past_length: P, keys in the cache. All queries attend to them, except to padding.
        attention_mask: (B, P + L), 0 at padding, or None.
        segment_ids: (B, L), the number of each token's sample in its row, or None for one sample per row.

    Returns:
        (B, 1, L, P + L) booleans, True where the query attends to the key; None where every query attends to all keys.
        Padding attends to padding, so that no query is left without keys: a softmax over no keys is NaN, and NaN
        spreads through the gradients.
    """
    batch, length = block_position.shape
    if length == 1 and attention_mask is None:
        return None
    index = torch.arange(length, device=block_position.device)
    mask = (index[:, None] >= index) | (block_position == 0)[:, None, :]
    past_mask = mask.new_ones((batch, length, past_length))
    if segment_ids is not None:
        mask = mask & (segment_ids[:, :, None] == segment_ids[:, None, :])
    elif attention_mask is not None:
        is_token = attention_mask != 0
        mask = mask & (is_token[:, None, past_length:] | ~is_token[:, past_length:, None])
        past_mask = past_mask & is_token[:, None, :past_length]
    return torch.cat((past_mask, mask), dim=-1)[:, None]


def attended_intervals(block_position: torch.Tensor, segment_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the interval of keys that each query attends to, as first key and end (exclusive).

    The interval starts with the sample. It ends before the next token that is not context or starts another sample:
    after the context for queries of the context, after the query itself for those of the answer.

    Args:
        block_position, segment_ids: (B, L), see :func:`prefix_lm_mask`; samples start with their context.

    Returns:
        Two (B, L) integers, both ascending along L.
    """
    length = segment_ids.shape[-1]
    index = torch.arange(length, device=segment_ids.device).expand_as(segment_ids)
    starts_sample = torch.nn.functional.pad(segment_ids[:, 1:] != segment_ids[:, :-1], (1, 0), value=True)
    first = torch.where(starts_sample, index, 0).cummax(dim=-1).values
    interval_ends = torch.where(starts_sample | (block_position != 0), index, length)
    end = torch.nn.functional.pad(interval_ends[:, 1:], (0, 1), value=length).flip(-1).cummin(dim=-1).values.flip(-1)
    return first, end


def prefix_lm_block_mask(block_position: torch.Tensor, past_length: int, segment_ids: torch.Tensor) -> BlockMask:
    """Return :func:`prefix_lm_mask` for FlexAttention, which skips blocks of 128 × 128 without an attended key.

    The blocks to compute follow from the intervals of the first and last query of a block. Without cached tokens they
    are contiguous along keys and along queries, which a kernel option relies on (``BLOCKS_ARE_CONTIGUOUS``). All are
    computed with the token-level mask: a separate list of full blocks, as ``create_block_mask`` makes it, would leave
    the partial blocks not contiguous.

    Args:
        block_position, segment_ids: (B, L); padding has a separate segment.
    """
    length = segment_ids.shape[-1]
    first, end = (bound + past_length for bound in attended_intervals(block_position, segment_ids))

    def attends(row, head, query, key):
        in_interval = (key >= first[row, query]) & (key < end[row, query])
        return in_interval | (key < past_length) if past_length else in_interval

    key_starts = torch.arange(0, past_length + length, BLOCK, device=segment_ids.device)
    query_starts = torch.arange(0, length, BLOCK, device=segment_ids.device)
    first_of_block, end_of_block = first[:, query_starts], end[:, (query_starts + BLOCK - 1).clamp(max=length - 1)]
    needed = (first_of_block[:, :, None] < key_starts + BLOCK) & (key_starts < end_of_block[:, :, None])
    needed = (needed | (key_starts < past_length))[:, None].int()
    return BlockMask.from_kv_blocks(
        needed.sum(dim=-1).int(),
        needed.argsort(dim=-1, descending=True, stable=True).int(),
        BLOCK_SIZE=BLOCK,
        mask_mod=attends,
        seq_lengths=(length, past_length + length),
    )
