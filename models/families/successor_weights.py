"""ChatGLM2-6B and ChatGLM3-6B as transformers' ``GlmForCausalLM``: configuration and names of the weights.

Both models are the architecture of GLM-4 with other sizes. Renaming the published weights and splitting the joint
projection of queries, keys and values gives the same function::

    query_key_value, rows:  | heads · D | groups · D | groups · D |     D channels per head
                              q_proj      k_proj       v_proj

Source: the published modelling code. In float32 the function is the same. In half precision the published ChatGLM2-6B
computes its rotary angles in half precision too, and loses long positions; here they are computed in float32, as in
ChatGLM3-6B.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import torch

from models.errors import UserError
from models.schemas import SuccessorConfig

RENAMED = {
    "transformer.embedding.word_embeddings.weight": "model.embed_tokens.weight",
    "transformer.encoder.final_layernorm.weight": "model.norm.weight",
    "transformer.output_layer.weight": "lm_head.weight",
}
RENAMED_IN_LAYERS = {
    "input_layernorm.weight": "input_layernorm.weight",
    "self_attention.dense.weight": "self_attn.o_proj.weight",
    "post_attention_layernorm.weight": "post_attention_layernorm.weight",
    "mlp.dense_h_to_4h.weight": "mlp.gate_up_proj.weight",
    "mlp.dense_4h_to_h.weight": "mlp.down_proj.weight",
}
# The rotary buffer is computed; a prefix encoder of a P-Tuning checkpoint is imported as an adapter.
IGNORED = re.compile(r"transformer\.(rotary_pos_emb\.inv_freq$|prefix_encoder\.)")
_LAYER = re.compile(r"transformer\.encoder\.layers\.(\d+)\.(.+)")
_JOINT_PROJECTION = "self_attention.query_key_value"
_PROJECTIONS = ("q_proj", "k_proj", "v_proj")
REQUIRED_VALUES = {
    "rmsnorm": True,
    "post_layer_norm": True,
    "multi_query_attention": True,
    "add_bias_linear": False,
    "apply_residual_connection_post_layernorm": False,
    "fp32_residual_connection": False,
}


def build_config(published: SuccessorConfig, path: Path, ratio_divides_positions: bool = False):
    """Return the GlmConfig that computes the same function as a published configuration.

    Args:
        ratio_divides_positions: what ``rope_ratio`` of the 32k variants means: it divides positions in ChatGLM2-6B-32k,
            and multiplies the base of the rotary frequencies in ChatGLM3-6B-32k. Read in the published code.

    Raises:
        UserError: a key has a value that ``GlmForCausalLM`` cannot express.
    """
    from transformers import GlmConfig

    for key, required in REQUIRED_VALUES.items():
        if (value := getattr(published, key)) != required:
            raise UserError(f"{path} has {key} {value!r}; only {required!r} is supported.")
    return GlmConfig(
        vocab_size=published.padded_vocab_size,
        hidden_size=published.hidden_size,
        intermediate_size=published.ffn_hidden_size,
        num_hidden_layers=published.num_layers,
        num_attention_heads=published.num_attention_heads,
        num_key_value_heads=published.multi_query_group_num,
        head_dim=published.kv_channels,
        max_position_embeddings=published.seq_length,
        rms_norm_eps=published.layernorm_epsilon,
        attention_bias=published.add_qkv_bias,
        tie_word_embeddings=published.tie_word_embeddings,
        hidden_act="silu",
        rope_parameters=_rope_parameters(published.rope_ratio, ratio_divides_positions),
        pad_token_id=published.pad_token_id,
        bos_token_id=1,
        eos_token_id=published.eos_token_id,
        dtype=published.dtype or published.torch_dtype,
    )


def _rope_parameters(ratio: float, divides_positions: bool) -> dict:
    shared = {"partial_rotary_factor": 0.5}
    if divides_positions and ratio != 1:
        return shared | {"rope_type": "linear", "rope_theta": 10_000.0, "factor": ratio}
    return shared | {"rope_type": "default", "rope_theta": 10_000.0 * ratio}


def convert_weights(
    tensors: Iterator[tuple[Path, str, torch.Tensor]], config
) -> Iterator[tuple[Path, str, torch.Tensor]]:
    """Rename published weights to those of ``GlmForCausalLM``, and split the joint projections.

    Unknown names pass unchanged, so that the caller can reject them.

    Args:
        tensors: path, name and tensor, as from :func:`models.tensor_files.read_weight_files`.
        config: from :func:`build_config`.
    """
    for path, name, tensor in tensors:
        if IGNORED.match(name):
            continue
        layer = _LAYER.fullmatch(name)
        if layer is None:
            yield path, RENAMED.get(name, name), tensor
        elif layer[2].rpartition(".")[0] == _JOINT_PROJECTION:
            for projection, rows in _split_projection(path, name, tensor, config).items():
                yield path, f"model.layers.{layer[1]}.self_attn.{projection}.{name.rpartition('.')[2]}", rows
        elif layer[2] in RENAMED_IN_LAYERS:
            yield path, f"model.layers.{layer[1]}.{RENAMED_IN_LAYERS[layer[2]]}", tensor
        else:
            yield path, name, tensor


def publish_weights(model) -> dict[str, torch.Tensor]:
    """Return the weights of a ``GlmForCausalLM`` under their published names, with joint projections."""
    weights, published = model.state_dict(), {}
    for name, original in {**{new: old for old, new in RENAMED.items()}, **_layer_names(model.config)}.items():
        published[original] = weights[name].contiguous()
    for layer in range(model.config.num_hidden_layers):
        for leaf in ("weight", "bias") if model.config.attention_bias else ("weight",):
            parts = [weights[f"model.layers.{layer}.self_attn.{name}.{leaf}"] for name in _PROJECTIONS]
            published[f"transformer.encoder.layers.{layer}.{_JOINT_PROJECTION}.{leaf}"] = torch.cat(parts)
    return published


def _layer_names(config) -> dict[str, str]:
    """Return the published names of the weights in layers that are only renamed."""
    return {
        f"model.layers.{layer}.{name}": f"transformer.encoder.layers.{layer}.{original}"
        for layer in range(config.num_hidden_layers)
        for original, name in RENAMED_IN_LAYERS.items()
    }


def _split_projection(path: Path, name: str, tensor: torch.Tensor, config) -> dict[str, torch.Tensor]:
    """Return the rows of queries, keys and values.

    Raises:
        UserError: the number of rows does not match the configuration.
    """
    keys = config.num_key_value_heads * config.head_dim
    sizes = (config.num_attention_heads * config.head_dim, keys, keys)
    if tensor.dim() == 0 or tensor.shape[0] != sum(sizes):
        raise UserError(
            f"{path}: {name} has shape {list(tensor.shape)}, but by config.json it must have {sum(sizes)} rows; use "
            "the files of one checkpoint."
        )
    return dict(zip(_PROJECTIONS, tensor.split(sizes), strict=True))


def rotate_prefix(rows: torch.Tensor, config, positions: int) -> torch.Tensor:
    """Return a prefix whose keys are rotated by a number of positions.

    The published code gives a prefix no position and does not rotate its keys; the first token has position 0. peft
    counts the prefix, so that the first token has position P, the length of the prefix. Attention depends on
    differences of positions alone: with keys rotated by P positions the model computes the published function.

    Args:
        rows: (P, layers · 2 · groups · D); a row is keys and values of the first layer, then of the second, and so on.
        config: from :func:`build_config`.
        positions: P for peft; -P for the way back.
    """
    keys, values = rows.unflatten(1, (config.num_hidden_layers, 2, config.num_key_value_heads, -1)).unbind(2)
    rotary_dim = int(config.head_dim * config.rope_parameters["partial_rotary_factor"])
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float64) / rotary_dim
    scaled = positions / config.rope_parameters.get("factor", 1)
    angles = scaled / config.rope_parameters["rope_theta"] ** exponents
    even, odd = keys[..., :rotary_dim].double().unflatten(-1, (-1, 2)).unbind(-1)  # interleaved pairs
    cos, sin = angles.cos(), angles.sin()
    rotated = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).to(rows.dtype)
    keys = torch.cat((rotated, keys[..., rotary_dim:]), dim=-1)
    return torch.stack((keys, values), dim=2).flatten(1)
