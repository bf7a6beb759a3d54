"""List, select and lock the NVIDIA GPUs of this host.

GPUs are named by their index in nvidia-smi or by UUID. CUDA's default order is fastest first and may differ from
nvidia-smi's, so processes always receive UUIDs in CUDA_VISIBLE_DEVICES.
"""

import errno
import os
import re
import socket
from collections.abc import Sequence
from typing import NamedTuple

import pynvml

from models.errors import UserError

NO_GPU = "none"  # the CPU in place of a GPU
VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"
NO_VISIBLE_DEVICES = ("", "-1")  # values of CUDA_VISIBLE_DEVICES that hide all GPUs
MARKER_VALUE = "owned"


class Gpu(NamedTuple):
    """A GPU or a MIG instance.

    Attributes:
        name: the index in nvidia-smi; the UUID for a MIG instance.
    """

    name: str
    uuid: str

    @property
    def marker(self) -> str:
        """The environment variable that identifies processes which use this GPU."""
        return f"TUNELINE_{re.sub('[^0-9A-Za-z]', '_', self.uuid)}"


def list_gpus() -> list[Gpu]:
    """Return the usable GPUs of this host; a partitioned GPU is replaced by its MIG instances.

    A GPU that the driver lists but cannot access is skipped with a message.

    Raises:
        UserError: NVIDIA's driver is installed but does not work.
    """
    try:
        pynvml.nvmlInit()
    except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded):
        return []
    except pynvml.NVMLError as error:
        raise UserError(f"NVIDIA's driver does not work ({error}); check it with `nvidia-smi`.") from None
    gpus = []
    for index in range(pynvml.nvmlDeviceGetCount()):
        try:
            gpus += _list_instances(index)
        except pynvml.NVMLError as error:
            print(f"GPU {index} is skipped ({error}).")
    pynvml.nvmlShutdown()
    return gpus


def _list_instances(index: int) -> list[Gpu]:
    """Return the GPU itself, or its MIG instances if MIG is enabled."""
    device = pynvml.nvmlDeviceGetHandleByIndex(index)
    try:
        has_mig = pynvml.nvmlDeviceGetMigMode(device)[0] == pynvml.NVML_DEVICE_MIG_ENABLE
    except pynvml.NVMLError:  # MIG is not supported
        has_mig = False
    if not has_mig:
        return [Gpu(str(index), pynvml.nvmlDeviceGetUUID(device))]
    instances = []
    for slot in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(device)):
        try:
            uuid = pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(device, slot))
        except pynvml.NVMLError:  # empty slot
            continue
        instances.append(Gpu(uuid, uuid))
    return instances


def select_gpus(names: str, available: Sequence[Gpu]) -> list[Gpu]:
    """Return the GPUs that a user names: indices, UUIDs or UUID prefixes, separated by commas; ``none`` for none.

    Raises:
        UserError: this host has no such GPU, a GPU is named twice, or a MIG instance is combined with another device.
    """
    if names.strip() == NO_GPU:
        return []
    selected = [_find_gpu(name.strip(), available) for name in names.split(",")]
    if len(set(selected)) < len(selected):
        raise UserError(f"{names!r} names a GPU twice; name each GPU once.")
    if len(selected) > 1 and any(gpu.uuid.startswith("MIG") for gpu in selected):
        raise UserError(f"{names!r}: CUDA can use one MIG instance and no other device with it; name it alone.")
    return selected


def _find_gpu(name: str, available: Sequence[Gpu]) -> Gpu:
    index = re.sub(r"^0+(?=\d)", "", name)  # 00 is GPU 0
    uuid_prefix = name if re.match(r"(GPU|MIG)-\w", name) else None
    matches = [gpu for gpu in available if index == gpu.name or (uuid_prefix and gpu.uuid.startswith(uuid_prefix))]
    if not available:
        raise UserError(f"{name!r} is not a GPU of this host: it has none. `{NO_GPU}` uses the CPU instead.")
    if len(matches) != 1:
        problem = "is ambiguous" if matches else "is not a GPU of this host"
        raise UserError(f"{name!r} {problem}; choose from {', '.join(gpu.name for gpu in available)}.")
    return matches[0]


def default_gpu_sets() -> list[str]:
    """Return the ``--gpus`` values of the default agents: one for each visible GPU, or ``none`` without a GPU."""
    gpus = list_gpus()
    visible = os.environ.get(VISIBLE_DEVICES)
    if visible is not None:
        try:
            gpus = [] if visible.strip() in NO_VISIBLE_DEVICES else select_gpus(visible, gpus)
        except UserError as error:
            raise UserError(f"{VISIBLE_DEVICES}: {error}") from None
    return [gpu.name for gpu in gpus] or [NO_GPU]


def claim_gpus(gpus: Sequence[Gpu]) -> list[int]:
    """Lock GPUs for this process and for processes that inherit the returned file descriptors.

    The lock is a name among Linux's abstract sockets: valid on the whole host, whatever TUNELINE_HOME is, and released
    by the kernel when the last process that holds the descriptor ends. Containers have their own namespace: a GPU must
    not be assigned to two containers.

    Raises:
        UserError: another agent of this host has locked a GPU.
    """
    locks = []
    for gpu in gpus:
        lock = socket.socket(socket.AF_UNIX)
        try:
            lock.bind(f"\0tuneline {gpu.uuid}")
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise UserError(f"Another agent on this host uses GPU {gpu.name}; stop it first.") from None
        locks.append(lock.detach())
    return locks
