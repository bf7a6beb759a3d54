"""Compiling a model's blocks for the GPU."""

import importlib.util
import logging

import torch

from models.chatglm.modeling_chatglm import ChatGLMBlock, ChatGLMModel
from models.precision import has_8bit_layers

log = logging.getLogger("tuneline.training")


def compile_blocks(model) -> None:
    """Compile every block for the GPU, and let rows of several samples go through FlexAttention.

    All rows must have one length: another length is another compilation, and past its limit of those torch
    would fall back to FlexAttention unfused, at a sixth of the speed and three times the memory. It raises
    instead. On a machine without a compiler for its GPU the model stays as it is, with SDPA and a mask.
    """
    if not torch.cuda.is_available():
        return
    if (reason := _cannot_compile(model)) is not None:
        log.info("train: blocks are not compiled: %s", reason)
        return
    # Blocks differ by whether their input has a gradient, by whether they are the last, and all again where
    # there is none and for an adapter loaded again.
    torch._dynamo.config.recompile_limit = 16
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    for module in model.modules():
        if isinstance(module, ChatGLMBlock):
            module.compile(dynamic=False)
        elif isinstance(module, ChatGLMModel):
            module.flex_attention = True


def _cannot_compile(model) -> str | None:
    if has_8bit_layers(model):
        return "bitsandbytes' products in 8 bits look at their input, which a compiled block cannot"
    major, minor = torch.cuda.get_device_capability()
    if major < 8:
        return f"this GPU has compute capability {major}.{minor}, and FlexAttention needs 8.0"
    return None if importlib.util.find_spec("triton") else "the package triton is missing"
