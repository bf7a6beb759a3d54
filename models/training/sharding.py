"""Weights, gradients and optimizer spread over all devices, for what fits on none (FSDP, arXiv:2304.11277).

It is torch's own ``fully_shard``, block by block. What is written is whole, so that a training goes on with
another number of devices than it began with.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from models.chatglm.modeling_chatglm import ChatGLMBlock
from models.training import devices

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)  # in the first process; the others get nothing
FROM_THE_FIRST = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
OPTIMIZER, SCHEDULER = "optimizer.safetensors", "scheduler.json"


def shard(model, compute_in: str) -> None:
    """Spread a model over the processes, in place; call it after compiling, and before the optimizer is made.

    Args:
        compute_in: type of the products where weights are float32.
    """
    mesh = init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (devices.world_size(),))
    half = None if compute_in == "float32" else getattr(torch, compute_in)
    policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32 if half else None)
    for module in model.modules():
        if isinstance(module, ChatGLMBlock):
            fully_shard(module, mesh=mesh, mp_policy=policy)
    # Else what is in no block would stay whole after an evaluation, and be another tensor than the optimizer's.
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    model._is_accelerate_prepared = True  # or accelerate would put DDP around it


def is_sharded(model) -> bool:
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor with all its parts, for which all processes must ask at once."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def put(into: torch.Tensor, values: torch.Tensor) -> None:
    """Copy whole values into a tensor, of which each process may hold a part."""
    if isinstance(into, DTensor):
        values = distribute_tensor(values.to(into.device), into.device_mesh, into.placements)
    into.copy_(values)


def save_optimizer(model, optimizer, scheduler, folder: Path) -> None:
    """Write the states of optimizer and scheduler, by the names of the parameters; all processes must call it."""
    content = get_optimizer_state_dict(model, optimizer, options=WHOLE)
    if devices.rank() == 0:
        states = content["state"].items()
        flat = {f"{key} {name}": value for name, state in states for key, value in state.items()}
        save_file({name: value.contiguous() for name, value in flat.items()}, folder / OPTIMIZER)
        (folder / SCHEDULER).write_text(json.dumps(scheduler.state_dict()))


def load_optimizer(model, optimizer, scheduler, folder: Path) -> None:
    """Take up what :func:`save_optimizer` wrote, with whatever number of processes."""
    content = get_optimizer_state_dict(model, optimizer, options=WHOLE)  # with its groups as they are to be
    if devices.rank() == 0:
        for name, value in load_file(folder / OPTIMIZER).items():
            key, _, parameter = name.partition(" ")
            content["state"][parameter][key] = value
    set_optimizer_state_dict(model, optimizer, optim_state_dict=content, options=FROM_THE_FIRST)
    scheduler.load_state_dict(json.loads((folder / SCHEDULER).read_text()))
    for group, rate in zip(optimizer.param_groups, scheduler.get_last_lr(), strict=True):
        group["lr"] = rate
