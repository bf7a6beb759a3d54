"""``torch.compile`` of a model's blocks for the GPU."""

import importlib.util
import logging

import torch

from models.adapters import get_base_model
from models.precision import has_8bit_layers

log = logging.getLogger("tuneline.training")


def compile_blocks(model) -> None:
    """Compile every block for the GPU, and switch attention over packed samples to FlexAttention.

    All rows must have the same length: each length is compiled anew. Past its recompile limit torch would run
    FlexAttention unfused, at a sixth of the speed and with three times the memory, so reaching the limit raises an
    error. Without a GPU, or without a compiler for it, the model stays as it is and uses SDPA with a mask.
    """
    if not torch.cuda.is_available():
        return
    if (reason := _reason_not_to_compile(model)) is not None:
        log.info("train: blocks are not compiled: %s", reason)
        return
    # Variants of a block: input with or without gradient, last block or not; each once more under no_grad, and for
    # the reloaded adapter.
    torch._dynamo.config.recompile_limit = 16
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    base = get_base_model(model)
    base.enable_flex_attention()
    for block in base.blocks:
        block.compile(dynamic=False)


def _reason_not_to_compile(model) -> str | None:
    if has_8bit_layers(model):
        return "8-bit layers of bitsandbytes inspect activations at run time and cannot be compiled"
    if not hasattr(base := get_base_model(model), "enable_flex_attention"):
        return f"{type(base).__name__} has no FlexAttention for packed rows yet"
    major, minor = torch.cuda.get_device_capability()
    if major < 8:
        return f"the GPU has compute capability {major}.{minor}, FlexAttention needs 8.0"
    return None if importlib.util.find_spec("triton") else "package triton is missing"
