"""Attach adapters; the only place that knows peft."""

from functools import cache

from models.errors import UserError
from models.manifest import METHODS

PREFIX_ROWS = "prompt_embeddings"  # what peft calls a prefix in its file


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
    """Wrap a frozen ChatGLM in a fresh adapter, whose weights alone require gradients.

    Args:
        method: ``lora``, ``ptuning_v2``, or ``full`` for the model itself, with gradients for all its weights.
        rank, alpha, dropout, target_modules: LoRA's (Hu et al., arXiv:2106.09685).
        rslora, dora: LoRA scaled by the square root of its rank (Kalajdzievski, arXiv:2312.03732), and with
            magnitude and direction apart (Liu et al., arXiv:2402.09353).
        prefix_tokens, projection: of P-Tuning v2 (Liu et al., arXiv:2110.07602), which peft calls
            prefix tuning; ``projection`` puts a two-layer MLP before the prefix. Unlike the
            published code, peft has no dropout on the prefix.

    Returns:
        A PeftModel, or the model, in training mode.

    Raises:
        UserError: a target module does not exist.
    """
    from peft import get_peft_model

    if method == "full":
        return model.requires_grad_(True).train()
    if method == "lora":
        config = lora_config(rank, alpha, dropout, target_modules, rslora, dora)
    elif method == "ptuning_v2":
        config = prefix_config(model, prefix_tokens, projection)
    else:
        raise UserError(f"Unknown adapter method {method!r}; choose one of {', '.join(METHODS)}.")
    try:
        tuned = get_peft_model(model, config).train()
    except ValueError as error:
        raise UserError(f"The adapter cannot be attached: {str(error).splitlines()[0]}") from None
    _compute_in_the_type_of_the_base(tuned)
    return tuned


def lora_config(rank, alpha, dropout, target_modules, rslora, dora):
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
    from peft import PrefixTuningConfig

    return PrefixTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=prefix_tokens,
        prefix_projection=projection,
        encoder_hidden_size=model.config.hidden_size,
    )


def _compute_in_the_type_of_the_base(tuned) -> None:
    """Keep LoRA's own weights in float32, but not the products with them: see :class:`Float32Weight`."""
    from peft.tuners.lora import Linear, LoraLayer
    from torch import nn

    from models.precision import Float32Weight

    for layer in tuned.modules():
        if isinstance(layer, LoraLayer):
            layer.cast_input_dtype_enabled = False
            for part in (*layer.lora_A.values(), *layer.lora_B.values()):
                if type(part) is nn.Linear:
                    part.__class__ = Float32Weight
            if type(layer) is Linear:
                layer.__class__ = _scaled_early()


@cache
def _scaled_early():
    """peft's plain LoRA layer, multiplying by its scaling where its input has been narrowed to the rank.

    peft multiplies the output, as wide as the base's, and in the backward pass the gradient of that. The product
    is added to a plain base layer's in place, see :mod:`models.low_rank`.
    """
    from peft.tuners.lora.layer import Linear

    from models import low_rank

    class ScaledEarly(Linear):
        def forward(self, x, *args, **kwargs):
            plain = [name for name in self.active_adapters if name in self.lora_A and name not in self.lora_variant]
            if self.merged or self.disable_adapters or args or kwargs or plain != list(self.active_adapters):
                return super().forward(x, *args, **kwargs)
            layer = self.base_layer
            if len(plain) == 1 and low_rank.is_supported(layer, x):
                narrow = self._narrow(plain[0], x)
                wide = self.lora_B[plain[0]].padded_weight(narrow)
                return low_rank.linear_plus_product(x, layer.weight, layer.bias, narrow, wide)
            result = layer(x)
            for name in plain:
                result = result + self.lora_B[name](self._narrow(name, x))
            return result

        def _narrow(self, name, x):
            return self.lora_A[name](self.lora_dropout[name](x)) * self.scaling[name]

    return ScaledEarly


def count_parameters(model) -> tuple[int, int]:
    """How many parameters are trained, and how many there are; quantized ones count as what they stand for."""
    if hasattr(model, "get_base_model"):
        return model.get_nb_trainable_parameters()
    return model.num_parameters(only_trainable=True), model.num_parameters()


def get_base_model(model):
    """The ChatGLM below an adapter."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def disable_adapter(model):
    """A context in which an adapted model answers as its base; None for a model without an adapter."""
    return model.disable_adapter() if hasattr(model, "get_base_model") else None


def set_prefix(tuned, rows) -> None:
    """Make (prefix tokens, 2 · layers · hidden_size) rows the prefix of a model with one."""
    import torch

    with torch.no_grad():
        tuned.prompt_encoder[tuned.active_adapter].embedding.weight.copy_(rows)
