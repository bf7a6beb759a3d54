"""ChatGLM-6B, in the order in which it runs.

Written afresh from the published architecture: a prefix language model whose context sees itself
both ways while the answer is causal, with two rows of rotary positions and residuals that come
out of the layer norms. Shapes: B rows, L tokens, H heads, D channels a head, P cached tokens.
"""

import math
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from models.chatglm.configuration_chatglm import ChatGLMConfig
from models.chatglm.loss import FrozenHeadLoss
from models.chatglm.masks import derive_position_ids, prefix_lm_block_mask, prefix_lm_mask

IGNORED_LABEL = -100
# sqrt(2 * num_layers) for ChatGLM-6B's 28 layers. The published blocks never learn of another
# num_layers, so this is the scale in models of any depth.
RESIDUAL_SCALE = math.sqrt(2 * 28)


# Attention ---------------------------------------------------------------------------------------


@lru_cache
def _compiled_flex_attention():
    return torch.compile(flex_attention, dynamic=False)


@lru_cache
def _inverse_frequencies(dim: int, device: torch.device) -> torch.Tensor:
    # The published buffer is rounded to half precision; rounded on the CPU, it is so everywhere.
    frequencies = 1.0 / 10_000 ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    return frequencies.half().float().to(device)


def rotary_embedding(position_ids: torch.Tensor, dim: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines, (B, 1, L, 2, dim) each: for position and for block position."""
    angles = position_ids.transpose(1, 2)[:, None, :, :, None] * _inverse_frequencies(dim, position_ids.device)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the halves of each head, (B, H, L, D): the first by position, the second by block position."""
    halves = states.unflatten(-1, (2, -1))
    low, high = halves.chunk(2, dim=-1)
    return (halves * cos + torch.cat((-high, low), dim=-1) * sin).flatten(-2)


def split_and_rotate(
    mixed: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, fused: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rotated query and key, and the value, (B, H, L, D) each, from their joint projection (B, L, H, 3D).

    Args:
        fused: use the Triton kernels, if heads of D channels suit them.
    """
    if fused:
        from models.chatglm import rotary_triton
    if fused and rotary_triton.is_supported(mixed.shape[-1] // 3):
        angles = (each.squeeze(1).chunk(2, dim=-1)[0].flatten(-2) for each in (cos, sin))
        return rotary_triton.split_and_rotate(mixed, *angles)
    query, key, value = mixed.transpose(1, 2).chunk(3, dim=-1)
    return rotate(query, cos, sin), rotate(key, cos, sin), value


# Blocks ------------------------------------------------------------------------------------------


class _GatherTokens(torch.autograd.Function):
    """Rows of a matrix, none of them twice: their gradients are put back instead of added up, which is faster."""

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
    """The states of (N,) token_indices among the B · L tokens, (1, N, width), of (B, L, width); all of them without token_indices."""
    return states if token_indices is None else _GatherTokens.apply(states.flatten(0, 1), token_indices)[None]


class ChatGLMAttention(nn.Module):
    """Self-attention. The published code divides queries by ``layer + 1`` and multiplies the
    scores back in float32; that cancels, and SDPA accumulates in float32 anyway."""

    def __init__(self, config: ChatGLMConfig, layer_index: int):
        super().__init__()
        self.layer_index = layer_index
        self.num_heads = config.num_attention_heads
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states, rotary, mask, past, token_indices=None):
        mixed = self.query_key_value(hidden_states).unflatten(-1, (self.num_heads, -1))
        query, key, value = split_and_rotate(mixed, *rotary, fused=isinstance(mask, BlockMask))
        if isinstance(past, Cache):
            key, value = past.update(key, value, self.layer_index)
        elif past is not None:
            key, value = torch.cat((past[0], key), dim=-2), torch.cat((past[1], value), dim=-2)
        if isinstance(mask, BlockMask):
            options = {"BLOCKS_ARE_CONTIGUOUS": past is None}  # those of keys that a block of queries sees
            attended = _compiled_flex_attention()(query, key, value, block_mask=mask, kernel_options=options)
        else:
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.dense(gather_tokens(attended.transpose(1, 2).flatten(-2), token_indices))


class ChatGLMMLP(nn.Module):
    """Feed-forward layer with the tanh form of GELU."""

    def __init__(self, config: ChatGLMConfig):
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, config.inner_hidden_size)
        self.dense_4h_to_h = nn.Linear(config.inner_hidden_size, config.hidden_size)

    def forward(self, hidden_states):
        return self.dense_4h_to_h(F.gelu(self.dense_h_to_4h(hidden_states), approximate="tanh"))


class ChatGLMBlock(nn.Module):
    """One layer. Its residuals start from the normalized input, scaled up.

    ``past`` is a cache, which the layer adds its keys and values to; or keys and values, (B, H, P, D) each,
    which it leaves as they are; or None. With ``token_indices`` it gives the states of these alone, see :func:`gather_tokens`.
    """

    def __init__(self, config: ChatGLMConfig, layer_index: int):
        super().__init__()
        norm = partial(nn.LayerNorm, config.hidden_size, eps=config.layernorm_epsilon)
        self.input_layernorm = norm()
        self.attention = ChatGLMAttention(config, layer_index)
        self.post_attention_layernorm = norm()
        self.mlp = ChatGLMMLP(config)

    def forward(self, hidden_states, rotary, mask, past=None, token_indices=None):
        attended = self.input_layernorm(hidden_states)
        update = self.attention(attended, rotary, mask, past, token_indices)
        hidden_states = gather_tokens(attended, token_indices) * RESIDUAL_SCALE + update
        transformed = self.post_attention_layernorm(hidden_states)
        return transformed * RESIDUAL_SCALE + self.mlp(transformed)


# Models ------------------------------------------------------------------------------------------


class ChatGLMPreTrainedModel(PreTrainedModel):
    config_class = ChatGLMConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ["ChatGLMBlock"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    # Published checkpoints carry the rotary buffer, and P-Tuning checkpoints the prefix, which is peft's here.
    _keys_to_ignore_on_load_unexpected = [r"rotary_emb\.inv_freq$", r"prefix_encoder\."]


def _fixed_past(cache: Cache, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A layer's keys and values, which stay: a checkpointed block runs twice and must find the same both times."""
    return cache.layers[layer].keys, cache.layers[layer].values


class ChatGLMModel(ChatGLMPreTrainedModel):
    """Embedding, blocks and the final layer norm.

    Attributes:
        flex_attention: whether rows of several samples go through FlexAttention, which must then be
            compiled, instead of SDPA with a mask of (B, 1, L, P + L).
    """

    def __init__(self, config: ChatGLMConfig):
        super().__init__(config)
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(ChatGLMBlock(config, index) for index in range(config.num_layers))
        self.final_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.gradient_checkpointing = False
        self.flex_attention = False
        self.post_init()

    def get_input_embeddings(self):
        return self.word_embeddings

    def set_input_embeddings(self, value):
        self.word_embeddings = value

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        segment_ids: torch.Tensor | None = None,
        token_indices: torch.Tensor | None = None,
    ) -> BaseModelOutputWithPast:
        """See :meth:`ChatGLMForConditionalGeneration.forward`.

        Returns:
            ``last_hidden_state`` (B, L, hidden_size), or (1, N, hidden_size) with N ``token_indices``: what is in the last
            layer behind its attention then works for these alone.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        if position_ids is None:
            if input_ids is None:
                raise ValueError("inputs_embeds do not show where the context ends: give position_ids (B, 2, L) too.")
            position_ids = derive_position_ids(input_ids, self.config, attention_mask)
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()

        hidden_states = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        past_length = past_key_values.get_seq_length() if past_key_values is not None else 0
        mask = attention_mask
        if segment_ids is not None and self.flex_attention:
            mask = prefix_lm_block_mask(position_ids[:, 1], past_length, segment_ids)
        elif attention_mask is None or attention_mask.dim() == 2:
            mask = prefix_lm_mask(position_ids[:, 1], past_length, attention_mask, segment_ids)
        head_dim = self.config.hidden_size // self.config.num_attention_heads
        rotary = rotary_embedding(position_ids, head_dim // 2, hidden_states.dtype)

        if token_indices is not None:  # of which every batch has another number: blocks are compiled for any
            torch._dynamo.maybe_mark_dynamic(token_indices, 0)
        all_hidden_states = [hidden_states]
        for index, layer in enumerate(self.layers):
            past = past_key_values if use_cache else _fixed_past(past_key_values, index) if past_length else None
            run = partial(layer, token_indices=token_indices) if layer is self.layers[-1] else layer
            if self.gradient_checkpointing and self.training and not use_cache:
                run = partial(self._gradient_checkpointing_func, run)
            hidden_states = run(hidden_states, rotary, mask, past)
            if output_hidden_states:
                all_hidden_states.append(hidden_states)
        return BaseModelOutputWithPast(
            last_hidden_state=self.final_layernorm(hidden_states),
            past_key_values=past_key_values if use_cache else None,
            hidden_states=tuple(all_hidden_states) if output_hidden_states else None,
        )


def find_label_indices(labels: torch.Tensor) -> torch.Tensor:
    """Places, among the B · L tokens of (B, L) labels, whose successor in the row has a label."""
    return F.pad(labels[:, 1:] != IGNORED_LABEL, (0, 1)).flatten().nonzero().squeeze(-1)


class ChatGLMOutput(CausalLMOutputWithPast):
    """``loss``, ``logits``, ``past_key_values``, ``hidden_states``.

    A call with labels computes logits at label_indices positions alone. The full (B, L, vocab_size)
    ``logits`` are then computed when somebody first reads them.
    """

    @property
    def logits(self):
        if self._logits is None and self._compute_logits is not None:
            self._logits = self._compute_logits()
        return self._logits

    @logits.setter
    def logits(self, value):
        self.__dict__.update(_logits=value, _compute_logits=None)

    def defer_logits(self, compute):
        self.__dict__["_compute_logits"] = compute
        return self


class ChatGLMForConditionalGeneration(ChatGLMPreTrainedModel, GenerationMixin):
    """ChatGLM with its language-model head, under the weights' published names."""

    def __init__(self, config: ChatGLMConfig):
        super().__init__(config)
        self.transformer = ChatGLMModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self):
        return self.lm_head

    def set_output_embeddings(self, new_embeddings):
        self.lm_head = new_embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int = 0,
        num_items_in_batch: torch.Tensor | int | None = None,
        position_ids_2d: torch.Tensor | None = None,
        segment_ids: torch.Tensor | None = None,
        label_indices: torch.Tensor | None = None,
        **kwargs,
    ) -> ChatGLMOutput:
        """Run the model.

        Args:
            input_ids: (B, L): context, ``[gMASK]``, ``<sop>``, answer.
            attention_mask: (B, P + L), zero at padding, which may stand on either side; derived
                mask and positions need nothing else. A (B, 1, L, P + L) mask for SDPA is taken as is.
            position_ids: (B, 2, L) position and block position; derived from ``input_ids`` if
                left out. peft adds the prefix's length to them, although a ChatGLM prefix takes
                up no position: leave them out with a prefix.
            past_key_values: transformers' cache; a prefix of P-Tuning v2 arrives here, filled.
            inputs_embeds: (B, L, hidden_size) instead of ``input_ids``, with ``position_ids``.
            labels: (B, L), -100 where nothing is to be learnt; shifted by one here.
            logits_to_keep: compute logits for this many last tokens; 0 for all.
            num_items_in_batch: label_indices tokens over which the loss is averaged, where a batch is
                spread over several calls; by default those of this call.
            position_ids_2d: position_ids under a name that peft leaves alone; generation uses it.
            segment_ids: (B, L) the sample that each token belongs to, where a row holds several; they do not
                see one another. Needs position_ids; the attention_mask then goes unread.
            label_indices: (N,) token_indices among the B · L tokens whose successor has a label, for callers who know them
                and want nothing of the others. The device need not be waited for to find them, and the last layer
                works for no others. With labels there are then no logits; without, those of these token_indices.

        Returns:
            ``loss`` in float32, the mean over label_indices tokens; ``logits`` (B, L, vocab_size), or (1, N, vocab_size)
            of the ``label_indices`` token_indices.
        """
        outputs = self.transformer(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids if position_ids_2d is None else position_ids_2d,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            segment_ids=segment_ids,
            token_indices=label_indices,
            return_dict=True,
        )
        hidden_states = outputs.last_hidden_state
        loss = logits = None
        if labels is None:
            logits = self.lm_head(hidden_states[:, -logits_to_keep:])
        else:
            token_indices = find_label_indices(labels) if label_indices is None else label_indices
            picked = gather_tokens(hidden_states, token_indices) if label_indices is None else hidden_states
            loss = self._loss(picked[0], labels.flatten()[token_indices + 1], num_items_in_batch)
        result = ChatGLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
        )
        if logits is None and label_indices is None:
            result.defer_logits(partial(self.lm_head, hidden_states))
        return result

    def _loss(self, hidden_states, targets, num_items_in_batch):
        if self.lm_head.weight.requires_grad:
            total = F.cross_entropy(self.lm_head(hidden_states).float(), targets, reduction="sum")
        else:
            total = FrozenHeadLoss.apply(hidden_states, self.lm_head.weight, targets)
        return total / (max(len(targets), 1) if num_items_in_batch is None else num_items_in_batch)

    def prepare_inputs_for_generation(self, input_ids, attention_mask=None, **kwargs):
        # The positions of an answer depend on the whole row, of which a step sees the last token.
        inputs = super().prepare_inputs_for_generation(input_ids, attention_mask=attention_mask, **kwargs)
        inputs.pop("position_ids", None)
        step = inputs["input_ids"].shape[-1]
        positions = derive_position_ids(input_ids, self.config, attention_mask)
        inputs["position_ids_2d"] = positions[..., -step:]
        return inputs
