"""FSDP: weights, gradients and optimizer state sharded across devices (Zhao et al., arXiv:2304.11277).

Blocks are sharded one by one with torch's ``fully_shard``. Checkpoints hold full tensors, so a training run can resume
with another number of devices.
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

from models.adapters import get_base_model
from models.training import devices

GATHER_TO_RANK_0 = StateDictOptions(full_state_dict=True, cpu_offload=True)  # an empty state dict on other ranks
BROADCAST_FROM_RANK_0 = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
OPTIMIZER, SCHEDULER = "optimizer.safetensors", "scheduler.json"


def shard_model(model, compute_dtype: str) -> None:
    """Shard a model over all ranks, in place; call it after ``compile_blocks`` and before creating the optimizer.

    Args:
        compute_dtype: of matrix products and all-gathered weights; gradients are reduced in float32.
    """
    mesh = init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (devices.world_size(),))
    param_dtype = None if compute_dtype == "float32" else getattr(torch, compute_dtype)
    policy = MixedPrecisionPolicy(param_dtype=param_dtype, reduce_dtype=torch.float32 if param_dtype else None)
    for block in get_base_model(model).blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    # By default the root module stays gathered after an evaluation, and its parameters are then other tensors than
    # those in the optimizer.
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    model._is_accelerate_prepared = True  # keeps accelerate from wrapping the model in DDP


def is_sharded(model) -> bool:
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor gathered from all ranks; a collective operation if the tensor is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def copy_full(target: torch.Tensor, values: torch.Tensor) -> None:
    """Copy a full tensor into ``target``, of which each rank may hold a shard."""
    if isinstance(target, DTensor):
        values = distribute_tensor(values.to(target.device), target.device_mesh, target.placements)
    target.copy_(values)


def save_optimizer(model, optimizer, scheduler, folder: Path) -> None:
    """Write the full states of optimizer and scheduler from rank 0, by parameter name; all ranks must call it."""
    content = get_optimizer_state_dict(model, optimizer, options=GATHER_TO_RANK_0)
    if devices.rank() == 0:
        states = content["state"].items()
        flat = {f"{parameter} {key}": value for parameter, state in states for key, value in state.items()}
        save_file({name: value.contiguous() for name, value in flat.items()}, folder / OPTIMIZER)
        (folder / SCHEDULER).write_text(json.dumps(scheduler.state_dict()))


def load_optimizer(model, optimizer, scheduler, folder: Path) -> None:
    """Load what :func:`save_optimizer` wrote, with any number of ranks; all ranks must call it."""
    content = get_optimizer_state_dict(model, optimizer, options=GATHER_TO_RANK_0)  # provides the parameter groups
    if devices.rank() == 0:
        for name, value in load_file(folder / OPTIMIZER).items():
            parameter, _, key = name.partition(" ")
            content["state"][parameter][key] = value
    set_optimizer_state_dict(model, optimizer, optim_state_dict=content, options=BROADCAST_FROM_RANK_0)
    scheduler.load_state_dict(json.loads((folder / SCHEDULER).read_text()))
    for group, rate in zip(optimizer.param_groups, scheduler.get_last_lr(), strict=True):
        group["lr"] = rate
