"""What the families in transformers' own causal language models have in common."""

from collections.abc import Sequence

from models.errors import UserError
from models.families.family import Family, PrefixShape
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
        channels = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return PrefixShape(config.num_hidden_layers, config.num_key_value_heads, channels)

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
