"""Names of the linear layers that an adapter can be attached to."""

from typing import Literal

# The names of ChatGLM-6B, and those of transformers' models.
LinearLayer = Literal[
    "query_key_value",
    "dense",
    "dense_h_to_4h",
    "dense_4h_to_h",
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "gate_up_proj",
    "down_proj",
]
# The layers of transformers' models with the role of a layer of ChatGLM-6B.
LINEAR_ROLES = {
    "query_key_value": ("q_proj", "k_proj", "v_proj"),
    "dense": ("o_proj",),
    "dense_h_to_4h": ("gate_proj", "up_proj", "gate_up_proj"),
    "dense_4h_to_h": ("down_proj",),
}
