"""What the families in transformers' own causal language models have in common."""

from collections.abc import Sequence

from models.errors import UserError
from models.families.family import Family, KeptActivations, PrefixShape
from models.linear_layers import LINEAR_ROLES


class CausalFamily(Family):
    """Causal attention, and a prefix whose tokens have positions of their own, as peft counts them."""

    checkpoints_with_prefix = False

    def create_model(self, config):
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

        from models.causal_lm import trainable_class

        return trainable_class(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)])(config)

    def linear_names(self, names: Sequence[str], config) -> list[str]:
        available = self.linear_shapes(config)
        resolved = []
        for name in names:
            layers = [layer for layer in LINEAR_ROLES.get(name, (name,)) if layer in available]
            if not layers:
                raise UserError(
                    f"The model has no linear layer {name!r}; target_modules can be {', '.join(LINEAR_ROLES)}, or "
                    f"{', '.join(sorted(available))}."
                )
            resolved += [layer for layer in layers if layer not in resolved]
        return resolved

    def prefix_shape(self, config) -> PrefixShape:
        if window := sliding_window(config):
            raise UserError(
                f"The model has layers with sliding-window attention ({window} tokens), which lose sight of a prefix. "
                "Use method lora."
            )
        return self.cache_shape(config)

    def cache_shape(self, config) -> PrefixShape:
        """Return the shape of the keys and values of one token."""
        channels = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return PrefixShape(config.num_hidden_layers, config.num_key_value_heads, channels)

    def kept_activations(self, config, is_compiled: bool) -> KeptActivations:
        """MLP: gate, its activation, and up; query and output of attention; keys and values, repeated for every query
        head where there is a mask; inputs of the norms in float32.
        """
        heads, shape = config.num_attention_heads, self.cache_shape(config)
        widths = {"q_norm": heads * shape.channels, "k_norm": shape.heads * shape.channels}
        names = [name for name, _ in self.create_on_meta(config).blocks[0].named_modules() if name.endswith("norm")]
        norms = sum(widths.get(name.rpartition(".")[2], config.hidden_size) for name in names)
        return KeptActivations(3 * config.intermediate_size + 4 * heads * shape.channels, norms)

    def kept_inputs(self, config, names: Sequence[str], is_compiled: bool, has_dropout: bool) -> int:
        """Layers with the same input share it, and the output of attention is kept anyway, unless there is dropout."""
        if has_dropout:
            return super().kept_inputs(config, names, is_compiled, has_dropout)
        groups = [LINEAR_ROLES[role] for role in ("query_key_value", "dense_h_to_4h", "dense_4h_to_h")]
        first = [next((name for name in names if name in group), None) for group in groups]
        return super().kept_inputs(config, [name for name in first if name], is_compiled, has_dropout)

    def packed_columns(self, samples: Sequence[dict], config, capacity: int) -> dict:
        kinds = set(getattr(config, "layer_types", None) or ())
        if kinds - {"full_attention", "sliding_attention"} or (sliding_window(config) and not kinds):
            raise UserError(
                f"Samples cannot be packed for models of type {config.model_type}, whose layers are of other kinds "
                "than those that are verified. Set pack_tokens: null."
            )
        return {}

    def linear_shapes(self, config) -> dict[str, tuple[int, int]]:
        import torch

        return {
            name.rpartition(".")[2]: (module.out_features, module.in_features)
            for name, module in self.create_on_meta(config).blocks[0].named_modules()
            if isinstance(module, torch.nn.Linear)
        }

    def create_on_meta(self, config):
        """Return the model without memory for its weights."""
        import torch

        with torch.device("meta"):
            return self.create_model(config)


def sliding_window(config) -> int | None:
    """Return the window of a model's layers with sliding-window attention in tokens; None if it has none."""
    kinds = getattr(config, "layer_types", None)
    return getattr(config, "sliding_window", None) if not kinds or "sliding_attention" in kinds else None
