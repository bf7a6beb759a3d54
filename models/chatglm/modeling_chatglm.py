"""ChatGLM-6B, in the order in which it runs.

Implemented from the published architecture: a prefix language model, whose context attends to itself in both directions
while the answer is causal, with two rotary positions per token, and residuals that start from the normalized input.
Shapes: B rows, L tokens, H heads, D channels per head, P cached tokens.
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
from models.chatglm.masks import derive_position_ids, prefix_lm_block_mask, prefix_lm_mask
from models.labels import find_label_indices, gather_tokens
from models.linear_loss import mean_loss

# sqrt(2 * num_layers) for ChatGLM-6B's 28 layers. The published blocks ignore the configured num_layers, so this is the
# scale in models of any depth.
RESIDUAL_SCALE = math.sqrt(2 * 28)


# Attention ---------------------------------------------------------------------------------------


@lru_cache
def _compiled_flex_attention():
    return torch.compile(flex_attention, dynamic=False)


@lru_cache
def _inverse_frequencies(dim: int, device: torch.device) -> torch.Tensor:
    # The published buffer is rounded to half precision. Rounding on the CPU gives the same values on all devices.
    frequencies = 1.0 / 10_000 ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    return frequencies.half().float().to(device)


def rotary_embedding(position_ids: torch.Tensor, dim: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosines and sines, (B, 1, L, 2, dim) each, for the position and the block position in (B, 2, L)."""
    angles = position_ids.transpose(1, 2)[:, None, :, :, None] * _inverse_frequencies(dim, position_ids.device)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate each head's first half by position and its second half by block position, (B, H, L, D)."""
    halves = states.unflatten(-1, (2, -1))
    low, high = halves.chunk(2, dim=-1)
    return (halves * cos + torch.cat((-high, low), dim=-1) * sin).flatten(-2)


def split_and_rotate(
    mixed: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, fused: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return rotated query, rotated key, and value, (B, H, L, D) each.

    Args:
        mixed: joint projection (B, L, H, 3D).
        cos, sin: see :func:`rotary_embedding`.
        fused: use the Triton kernels, if they support D channels per head.
    """
    if fused:
        from models.chatglm import rotary_triton
    if fused and rotary_triton.is_supported(mixed.shape[-1] // 3):
        angles = (values.squeeze(1).chunk(2, dim=-1)[0].flatten(-2) for values in (cos, sin))
        return rotary_triton.split_and_rotate(mixed, *angles)
    query, key, value = mixed.transpose(1, 2).chunk(3, dim=-1)
    return rotate(query, cos, sin), rotate(key, cos, sin), value


# Blocks ------------------------------------------------------------------------------------------


class ChatGLMAttention(nn.Module):
    """Self-attention.

    The published code divides queries by ``layer + 1`` and multiplies the scores by it in float32. This cancels, and
    SDPA accumulates in float32 anyway.
    """

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
            options = {"BLOCKS_ARE_CONTIGUOUS": past is None}  # see prefix_lm_block_mask
            attended = _compiled_flex_attention()(query, key, value, block_mask=mask, kernel_options=options)
        else:
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.dense(gather_tokens(attended.transpose(1, 2).flatten(-2), token_indices))


class ChatGLMMLP(nn.Module):
    """Feed-forward layer with the tanh approximation of GELU."""

    def __init__(self, config: ChatGLMConfig):
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, config.inner_hidden_size)
        self.dense_4h_to_h = nn.Linear(config.inner_hidden_size, config.hidden_size)

    def forward(self, hidden_states):
        return self.dense_4h_to_h(F.gelu(self.dense_h_to_4h(hidden_states), approximate="tanh"))


class ChatGLMBlock(nn.Module):
    """One transformer layer, whose residuals start from the scaled normalized input."""

    def __init__(self, config: ChatGLMConfig, layer_index: int):
        super().__init__()
        norm = partial(nn.LayerNorm, config.hidden_size, eps=config.layernorm_epsilon)
        self.input_layernorm = norm()
        self.attention = ChatGLMAttention(config, layer_index)
        self.post_attention_layernorm = norm()
        self.mlp = ChatGLMMLP(config)

    def forward(self, hidden_states, rotary, mask, past=None, token_indices=None):
        """Return hidden states, (B, L, hidden_size), or (1, N, hidden_size) with ``token_indices``.

        Args:
            hidden_states: (B, L, hidden_size).
            rotary: cosines and sines, see :func:`rotary_embedding`.
            mask: for SDPA, (B, 1, L, P + L), or a BlockMask for FlexAttention; None attends to everything.
            past: a cache, which is extended by this layer's keys and values; or keys and values, (B, H, P, D) each,
                which stay unchanged; or None.
            token_indices: see :func:`models.labels.gather_tokens`.
        """
        normalized = self.input_layernorm(hidden_states)
        attended = self.attention(normalized, rotary, mask, past, token_indices)
        hidden_states = gather_tokens(normalized, token_indices) * RESIDUAL_SCALE + attended
        normalized = self.post_attention_layernorm(hidden_states)
        return normalized * RESIDUAL_SCALE + self.mlp(normalized)


# Models ------------------------------------------------------------------------------------------


class ChatGLMPreTrainedModel(PreTrainedModel):
    config_class = ChatGLMConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ["ChatGLMBlock"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    # Published checkpoints contain the rotary buffer, P-Tuning checkpoints also the prefix encoder, which peft loads.
    _keys_to_ignore_on_load_unexpected = [r"rotary_emb\.inv_freq$", r"prefix_encoder\."]


def _past_of_layer(
    cache: Cache | None, layer: int, past_length: int, use_cache: bool
) -> Cache | tuple[torch.Tensor, torch.Tensor] | None:
    """Return the past of a layer: the cache to extend, or without ``use_cache`` its keys and values; None without any.

    A checkpointed block runs twice, so it must not extend the cache.
    """
    if use_cache:
        return cache
    if past_length == 0:
        return None
    return cache.layers[layer].keys, cache.layers[layer].values


class ChatGLMModel(ChatGLMPreTrainedModel):
    """Embedding, blocks and the final layer norm.

    Attributes:
        flex_attention: use FlexAttention for packed rows instead of SDPA with a (B, 1, L, P + L) mask; the blocks must
            then be compiled.
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
            ``last_hidden_state``, (B, L, hidden_size), or (1, N, hidden_size) with N ``token_indices``; the last layer
            then computes everything after its attention for these tokens only.

        Raises:
            ValueError: ``input_ids`` and ``inputs_embeds`` are both given or both missing, or ``inputs_embeds`` come
                without ``position_ids``.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass either input_ids or inputs_embeds.")
        if position_ids is None:
            if input_ids is None:
                raise ValueError("inputs_embeds do not show where the context ends; pass position_ids (B, 2, L) too.")
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

        if token_indices is not None:  # N differs per batch: mark it dynamic to avoid recompilation
            torch._dynamo.maybe_mark_dynamic(token_indices, 0)
        all_hidden_states = [hidden_states]
        for index, layer in enumerate(self.layers):
            past = _past_of_layer(past_key_values, index, past_length, use_cache)
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


class ChatGLMOutput(CausalLMOutputWithPast):
    """``loss``, ``logits``, ``past_key_values``, ``hidden_states``.

    With labels, the loss needs the logits of labelled tokens only. The full ``logits``, (B, L, vocab_size), are
    computed when the attribute is first read.
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
    """ChatGLM with its language-model head; parameters have their published names."""

    def __init__(self, config: ChatGLMConfig):
        super().__init__(config)
        self.transformer = ChatGLMModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @property
    def blocks(self) -> nn.ModuleList:
        """The layers, which are compiled, sharded and converted to fp8 one by one."""
        return self.transformer.layers

    def enable_flex_attention(self) -> None:
        """Use FlexAttention for packed rows, see :class:`ChatGLMModel`."""
        self.transformer.flex_attention = True

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
        """Return the loss, the logits, or both.

        Args:
            input_ids: (B, L): context, ``[gMASK]``, ``<sop>``, answer.
            attention_mask: (B, P + L), 0 at padding on either side, from which mask and positions are derived; or a
                mask for SDPA, (B, 1, L, P + L).
            position_ids: (B, 2, L), position and block position; by default derived from ``input_ids``. With a prefix,
                leave them out: peft adds the prefix's length to them, but a ChatGLM prefix takes up no position.
            past_key_values: cache of transformers; a prefix of P-Tuning v2 arrives here as a filled cache.
            inputs_embeds: (B, L, hidden_size) instead of ``input_ids``; needs ``position_ids``.
            labels: (B, L), -100 at ignored tokens; shifted by one here.
            logits_to_keep: number of last tokens to compute logits for; 0 for all.
            num_items_in_batch: labelled tokens that the loss is averaged over, if a batch is spread over several calls;
                by default those of this call.
            position_ids_2d: ``position_ids`` under a name that peft does not modify; used for generation and packing.
            segment_ids: (B, L), the number of each token's sample in its row, if samples are packed. Needs position
                ids; ``attention_mask`` is then ignored.
            label_indices: (N,), the result of :func:`models.labels.find_label_indices`. Passing it avoids waiting for
                the device, and the last layer computes these tokens only. With ``labels`` there are then no logits,
                without them those of these tokens.

        Returns:
            ``loss``, float32, the mean over labelled tokens; ``logits``, (B, L, vocab_size), or (1, N, vocab_size) with
            ``label_indices``.
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
            labelled_states = gather_tokens(hidden_states, token_indices) if label_indices is None else hidden_states
            loss = mean_loss(self.lm_head, labelled_states[0], labels.flatten()[token_indices + 1], num_items_in_batch)
        result = ChatGLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
        )
        if logits is None and label_indices is None:
            result.defer_logits(partial(self.lm_head, hidden_states))
        return result

    def prepare_inputs_for_generation(self, input_ids, attention_mask=None, **kwargs):
        # Positions in the answer depend on the whole row, but a step's input_ids are the last token.
        inputs = super().prepare_inputs_for_generation(input_ids, attention_mask=attention_mask, **kwargs)
        inputs.pop("position_ids", None)
        step = inputs["input_ids"].shape[-1]
        positions = derive_position_ids(input_ids, self.config, attention_mask)
        inputs["position_ids_2d"] = positions[..., -step:]
        return inputs
