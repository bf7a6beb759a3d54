"""transformers' causal language models with the forward pass that training and evaluation use.

The forward pass takes packed rows, and computes the logits of labelled tokens only. This is the mask of two packed
samples, ``a1 a2 A1`` and ``b1 B1``, and of a padding token ``-``; ``x`` means that the query attends to the key::

    query / key    a1 a2 A1 b1 B1  -
               a1   x  .  .  .  .  .
               a2   x  x  .  .  .  .
               A1   x  x  x  .  .  .
               b1   .  .  .  x  .  .
               B1   .  .  .  x  x  .
                -   .  .  .  .  .  x
    segment         0  0  0  1  1 -1
    position        0  1  2  0  1  0

Shapes: B rows, L tokens, P cached tokens of a prefix, which all samples of a row attend to.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from transformers.modeling_outputs import CausalLMOutputWithPast

from models.errors import UserError
from models.labels import find_label_indices, gather_tokens
from models.linear_loss import mean_loss


def segment_positions(segment_ids: torch.Tensor) -> torch.Tensor:
    """Return the position of each token in its sample, (B, L), from the number of its sample, (B, L)."""
    index = torch.arange(segment_ids.shape[1], device=segment_ids.device)
    starts = F.pad(segment_ids[:, 1:] != segment_ids[:, :-1], (1, 0), value=True)
    return index - torch.where(starts, index, 0).cummax(dim=1).values


def packed_mask(segment_ids: torch.Tensor, num_cached: int, window: int | None = None) -> torch.Tensor:
    """Return the keys that each token attends to: bool (B, 1, L, P + L).

    Args:
        segment_ids: (B, L), the number of each token's sample in its row.
        num_cached: cached tokens before the row.
        window: of sliding attention in tokens; None for full attention.
    """
    length, device = segment_ids.shape[1], segment_ids.device
    distance = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)
    same_sample = segment_ids[:, :, None] == segment_ids[:, None, :]
    mask = same_sample & (distance >= 0)
    if window is not None:
        mask &= distance < window
    cached = mask.new_ones(len(mask), length, num_cached)
    return torch.cat((cached, mask), dim=2)[:, None]


@lru_cache
def trainable_class(native: type) -> type:
    """Return a subclass of a causal language model of transformers, under the same name, with this forward pass."""

    class CausalLM(native):
        @property
        def blocks(self):
            """The layers, which are compiled, sharded and converted to fp8 one by one."""
            return self.model.layers

        def forward(
            self,
            input_ids: torch.Tensor | None = None,
            attention_mask: torch.Tensor | None = None,
            position_ids: torch.Tensor | None = None,  # generate() passes positions to a parameter of this name only
            past_key_values=None,
            inputs_embeds: torch.Tensor | None = None,
            use_cache: bool | None = None,
            labels: torch.Tensor | None = None,
            num_items_in_batch: torch.Tensor | int | None = None,
            segment_ids: torch.Tensor | None = None,
            label_indices: torch.Tensor | None = None,
            logits_to_keep: int | torch.Tensor = 0,
            **kwargs,
        ) -> CausalLMOutputWithPast:
            """Return the loss, the logits, or both; with ``segment_ids``, ``label_indices`` or ``labels`` as below.

            Args:
                labels: (B, L), -100 at ignored tokens; shifted by one here.
                num_items_in_batch: labelled tokens that the loss is averaged over; by default those of this call.
                segment_ids: (B, L), the number of each token's sample in its row, if samples are packed;
                    ``attention_mask`` is then ignored.
                label_indices: (N,), the result of :func:`models.labels.find_label_indices`. With ``labels`` there are
                    then no logits, without them those of these tokens, (1, N, vocab_size).
            """
            if segment_ids is None and label_indices is None and labels is None:
                return super().forward(
                    input_ids=input_ids,
                    attention_mask=attention_mask,
                    position_ids=position_ids,
                    past_key_values=past_key_values,
                    inputs_embeds=inputs_embeds,
                    use_cache=use_cache,
                    logits_to_keep=logits_to_keep,
                    **kwargs,
                )
            if past_key_values is not None and self.training and self.is_gradient_checkpointing:
                raise UserError("The layers of transformers ignore a prefix with gradient checkpointing.")
            if segment_ids is not None:
                num_cached = past_key_values.get_seq_length() if past_key_values is not None else 0
                position_ids = segment_positions(segment_ids) + num_cached
                attention_mask = self._packed_masks(segment_ids, num_cached)
            outputs = self.model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                inputs_embeds=inputs_embeds,
                use_cache=past_key_values is not None,
                **kwargs | {"return_dict": True},
            )
            states, loss, logits = outputs.last_hidden_state, None, None
            token_indices = find_label_indices(labels) if label_indices is None else label_indices
            labelled_states = gather_tokens(states, token_indices)
            if labels is None:
                logits = self.lm_head(labelled_states)
            else:
                loss = mean_loss(
                    self.lm_head, labelled_states[0], labels.flatten()[token_indices + 1], num_items_in_batch
                )
                logits = self.lm_head(states) if label_indices is None else None
            return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=outputs.past_key_values)

        def _packed_masks(self, segment_ids: torch.Tensor, num_cached: int):
            """Return the mask of packed rows, or a mask for every kind of layer."""
            mask = packed_mask(segment_ids, num_cached)
            kinds = set(getattr(self.config, "layer_types", None) or ())
            if "sliding_attention" not in kinds:
                return mask
            sliding = packed_mask(segment_ids, num_cached, self.config.sliding_window)  # without a prefix
            return {"full_attention": mask, "sliding_attention": sliding}

    CausalLM.__name__ = CausalLM.__qualname__ = native.__name__  # transformers writes it into config.json
    return CausalLM
