"""Positions of a prefix language model's tokens, and which keys each query sees: ChatGLM-6B's conventions.

Shapes: B rows, L tokens, P cached tokens. The context of a row comes first and sees itself both ways; the
answer sees the context and what precedes it.
"""

import torch
from torch.nn.attention.flex_attention import BlockMask

from models.chatglm.configuration_chatglm import ChatGLMConfig

BLOCK = 128  # queries or keys that FlexAttention takes or leaves together


def _first(found: torch.Tensor, otherwise: torch.Tensor | int) -> torch.Tensor:
    """Index of the first True in each row of a (B, L) mask, or ``otherwise`` where there is none."""
    return torch.where(found.any(dim=-1), found.int().argmax(dim=-1), otherwise)


def derive_position_ids(
    input_ids: torch.Tensor, config: ChatGLMConfig, attention_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Position and block position of every token, as the published code derives them.

    The context counts positions from 0 with block position 0. From ``<sop>`` on, the position
    stays at that of ``[gMASK]`` (or ``[MASK]`` where there is none) and the block position counts
    from 1. Padding on the left takes up no position. A row without ``<sop>`` is all context.

    Args:
        input_ids: (B, L).
        attention_mask: (B, P + L), nonzero at tokens, zero at padding; or None.

    Returns:
        (B, 2, L) integers.
    """
    length = input_ids.shape[-1]
    index = torch.arange(length, device=input_ids.device)
    context_length = _first(input_ids == config.bos_token_id, otherwise=length)
    mask_position = _first(input_ids == config.mask_token_id, otherwise=context_length - 1)
    mask_position = _first(input_ids == config.gmask_token_id, otherwise=mask_position)
    left_padding = torch.zeros_like(context_length)
    if attention_mask is not None:
        left_padding = _first(attention_mask[:, -length:] != 0, otherwise=0)
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
    """Which keys each query sees: the context sees itself both ways, the rest is causal.

    Args:
        block_position: (B, L); zero marks the context.
        past_length: P, keys in the cache. All queries see them, but for padding.
        attention_mask: (B, P + L), zero at padding, or None.
        segment_ids: (B, L), one number for each of several samples in a row, which do not see one another.

    Returns:
        (B, 1, L, P + L) booleans, True where a key is seen; None where every query sees all.
        Padding sees padding, so that no query is left without a key: a softmax over nothing
        would be NaN, and NaN spreads through the gradients.
    """
    batch, length = block_position.shape
    if length == 1 and attention_mask is None:
        return None
    index = torch.arange(length, device=block_position.device)
    seen = (index[:, None] >= index) | (block_position == 0)[:, None, :]
    past = seen.new_ones((batch, length, past_length))
    if segment_ids is not None:
        seen = seen & (segment_ids[:, :, None] == segment_ids[:, None, :])
    elif attention_mask is not None:
        valid = attention_mask != 0
        seen = seen & (valid[:, None, past_length:] | ~valid[:, past_length:, None])
        past = past & valid[:, None, :past_length]
    return torch.cat((past, seen), dim=-1)[:, None]


def seen_intervals(block_position: torch.Tensor, segment_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The keys that each query sees, which follow one another: the first of them, and the first behind them.

    They begin with the sample and end, for the context, with the context, for the answer with the query itself:
    that is, before the next token that is no context or begins another sample.

    Args:
        block_position, segment_ids: (B, L), as for :func:`prefix_lm_mask`; samples begin with their context.

    Returns:
        Two (B, L) integers, both ascending in L.
    """
    length = segment_ids.shape[-1]
    index = torch.arange(length, device=segment_ids.device).expand_as(segment_ids)
    begins = torch.nn.functional.pad(segment_ids[:, 1:] != segment_ids[:, :-1], (1, 0), value=True)
    first = torch.where(begins, index, 0).cummax(dim=-1).values
    ends = torch.where(begins | (block_position != 0), index, length)
    behind = torch.nn.functional.pad(ends[:, 1:], (0, 1), value=length).flip(-1).cummin(dim=-1).values.flip(-1)
    return first, behind


def prefix_lm_block_mask(block_position: torch.Tensor, past_length: int, segment_ids: torch.Tensor) -> BlockMask:
    """:func:`prefix_lm_mask` for FlexAttention, which leaves out blocks of 128 × 128 where nothing is seen.

    Those that are seen follow from the intervals of the first and the last query of a block; without a past they
    follow one another, for queries and for keys. All of them are looked at token by token: with whole blocks in a
    list of their own, as ``create_block_mask`` makes it, those that are left would not follow one another.

    Args:
        block_position, segment_ids: (B, L); padding is a segment of its own.
    """
    length = segment_ids.shape[-1]
    first, behind = (each + past_length for each in seen_intervals(block_position, segment_ids))

    def sees(row, head, query, key):
        inside = (key >= first[row, query]) & (key < behind[row, query])
        return inside | (key < past_length) if past_length else inside

    begin = torch.arange(0, past_length + length, BLOCK, device=segment_ids.device)
    starts = torch.arange(0, length, BLOCK, device=segment_ids.device)
    first_of_block, behind_of_block = first[:, starts], behind[:, (starts + BLOCK - 1).clamp(max=length - 1)]
    seen = (first_of_block[:, :, None] < begin + BLOCK) & (begin < behind_of_block[:, :, None])
    seen = (seen | (begin < past_length))[:, None].int()
    return BlockMask.from_kv_blocks(
        seen.sum(dim=-1).int(),
        seen.argsort(dim=-1, descending=True, stable=True).int(),
        BLOCK_SIZE=BLOCK,
        mask_mod=sees,
        seq_lengths=(length, past_length + length),
    )
