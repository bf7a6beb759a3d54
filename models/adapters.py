"""Attach LoRA, P-Tuning v2 or full fine-tuning to a frozen base model: the only module that imports peft."""

from functools import cache

from models.errors import UserError
from models.families import family_of_config
from models.manifest import METHODS

PREFIX_NAME = "prompt_embeddings"  # peft's name of a prefix in its weight file


def attach_adapter(
    model,
    method: str,
    *,
    rank: int | None = None,
    alpha: float | None = None,
    dropout: float = 0.0,
    target_modules: list[str] | None = None,
    rslora: bool = False,
    dora: bool = False,
    prefix_tokens: int | None = None,
    projection: bool = False,
):
    """Attach a newly initialized adapter to a frozen base model; only the adapter's weights require gradients.

    Args:
        method: ``lora``, ``ptuning_v2``, or ``full``, which trains all weights of the model.
        rank, alpha, target_modules: of LoRA (Hu et al., arXiv:2106.09685).
        dropout: of LoRA, at the input of lora_A; of P-Tuning v2, on the prefix, as in the published code.
        rslora: scale LoRA by alpha / sqrt(rank) (Kalajdzievski, arXiv:2312.03732).
        dora: train magnitude and direction separately (Liu et al., arXiv:2402.09353).
        prefix_tokens, projection: of P-Tuning v2 (Liu et al., arXiv:2110.07602), peft's prefix tuning;
            ``projection`` puts a two-layer MLP before the prefix.

    Returns:
        A PeftModel, or for ``full`` the model itself, in training mode.

    Raises:
        UserError: the method or a target module does not exist.
    """
    if method == "full":
        return model.requires_grad_(True).train()
    if method == "lora":
        layers = family_of_config(model.config).linear_names(target_modules, model.config)
        config = lora_config(rank, alpha, dropout, layers, rslora, dora)
    elif method == "ptuning_v2":
        config = prefix_config(model, prefix_tokens, projection)
    else:
        raise UserError(f"Unknown adapter method {method!r}; choose one of {', '.join(METHODS)}.")
    try:
        adapted = attach_config(model, config).train()
    except ValueError as error:
        raise UserError(f"The adapter cannot be attached: {str(error).splitlines()[0]}") from None
    if method == "ptuning_v2":
        add_prefix_dropout(adapted, dropout)
    replace_lora_layers(adapted)
    return adapted


def add_prefix_dropout(adapted, probability: float) -> None:
    """Apply dropout to the keys and values of a prefix in training mode; peft has none."""
    from torch.nn import functional as F

    if probability:
        adapted.prompt_encoder[adapted.active_adapter].register_forward_hook(
            lambda module, _, prefix: F.dropout(prefix, probability, module.training)
        )


def attach_config(model, config):
    """Return the PeftModel of a model and a peft configuration."""
    from peft import get_peft_model

    return get_peft_model(model, config)


def lora_config(rank, alpha, dropout, target_modules, rslora, dora):
    """Return peft's LoraConfig; arguments as for :func:`attach_adapter`."""
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=target_modules,
        use_rslora=rslora,
        use_dora=dora,
    )


def prefix_config(model, prefix_tokens: int, projection: bool):
    """Return peft's PrefixTuningConfig; arguments as for :func:`attach_adapter`."""
    from peft import PrefixTuningConfig

    shape = family_of_config(model.config).prefix_shape(model.config)
    return PrefixTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=prefix_tokens,
        prefix_projection=projection,
        encoder_hidden_size=model.config.hidden_size,
        num_layers=shape.layers,
        num_attention_heads=shape.heads,
        token_dim=shape.heads * shape.channels,
    )


# LoRA layers ---------------------------------------------------------------------------------------


def replace_lora_layers(adapted) -> None:
    """Keep LoRA's weights in float32 but multiply in the base's dtype, and replace peft's forward by a faster one.

    See :class:`models.precision.Float32Weight` and :func:`_fast_lora_class`.
    """
    from peft.tuners.lora import Linear, LoraLayer
    from torch import nn

    from models.precision import Float32Weight

    for layer in adapted.modules():
        if isinstance(layer, LoraLayer):
            layer.cast_input_dtype_enabled = False
            for matrix in (*layer.lora_A.values(), *layer.lora_B.values()):
                if type(matrix) is nn.Linear:
                    matrix.__class__ = Float32Weight
            if type(layer) is Linear:
                layer.__class__ = _fast_lora_class()


@cache
def _fast_lora_class():
    """Return a subclass of peft's LoRA layer that applies ``alpha / rank`` after lora_A instead of after lora_B.

    The output of lora_A has width ``rank``; peft scales the output of lora_B, and its gradient, which are as wide as
    the base layer. For a single adapter the product is added to the base layer's output in place, see
    :mod:`models.low_rank`. Merged or disabled adapters and variants such as DoRA use peft's forward.
    """
    from peft.tuners.lora.layer import Linear

    from models import low_rank

    class FastLora(Linear):
        def forward(self, x, *args, **kwargs):
            plain = [name for name in self.active_adapters if name in self.lora_A and name not in self.lora_variant]
            if self.merged or self.disable_adapters or args or kwargs or plain != list(self.active_adapters):
                return super().forward(x, *args, **kwargs)
            layer = self.base_layer
            if len(plain) == 1 and low_rank.is_supported(layer, x):
                narrow = self._project_down(plain[0], x)
                up = self.lora_B[plain[0]].padded_weight(narrow)
                return low_rank.linear_plus_product(x, layer.weight, layer.bias, narrow, up)
            result = layer(x)
            for name in plain:
                result = result + self.lora_B[name](self._project_down(name, x))
            return result

        def _project_down(self, name, x):
            return self.lora_A[name](self.lora_dropout[name](x)) * self.scaling[name]

    return FastLora


# Adapted models ------------------------------------------------------------------------------------


def get_base_model(model):
    """Return the base model below an adapter, or the model itself if it has none."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def disable_adapter(model):
    """Return a context manager that disables a model's adapter, or None for a model without an adapter."""
    return model.disable_adapter() if hasattr(model, "get_base_model") else None


def count_parameters(model) -> tuple[int, int]:
    """Return the numbers of trainable parameters and of all; a quantized weight counts with its original size."""
    if hasattr(model, "get_base_model"):
        return model.get_nb_trainable_parameters()
    return model.num_parameters(only_trainable=True), model.num_parameters()


def adapter_state_dict(adapted, adapter: str = "default") -> dict:
    """Return an adapter's tensors by their names in its weight file."""
    from peft import get_peft_model_state_dict

    return get_peft_model_state_dict(adapted, adapter_name=adapter, save_embedding_layers=False)


def load_adapter_state_dict(adapted, tensors: dict, adapter: str = "default") -> None:
    """Copy tensors into an adapter; names as in :func:`adapter_state_dict`."""
    from peft import set_peft_model_state_dict

    set_peft_model_state_dict(adapted, tensors, adapter_name=adapter)


def set_prefix(adapted, rows) -> None:
    """Copy (prefix tokens, 2 · layers · heads · channels) rows into the prefix of a P-Tuning v2 model."""
    import torch

    with torch.no_grad():
        adapted.prompt_encoder[adapted.active_adapter].embedding.weight.copy_(rows)
