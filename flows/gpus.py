"""The GPUs of this host, as NVIDIA's driver knows them, and who owns which.

They are called by their numbers in nvidia-smi, or by their UUIDs. CUDA by itself counts the fastest first, so what a
process is to see is always told by UUID.
"""

import errno
import os
import re
import socket
from collections.abc import Sequence
from typing import NamedTuple

import pynvml

from models.errors import UserError

NONE = "none"  # the CPU in the place of a GPU
VISIBLE = "CUDA_VISIBLE_DEVICES"
OWNED = "owned"
HIDDEN = ("", "-1")  # its ways to say that there is none


class Gpu(NamedTuple):
    """A GPU, or an instance of one that MIG has split.

    Attributes:
        name: its number in nvidia-smi; of an instance its UUID.
    """

    name: str
    uuid: str

    @property
    def mark(self) -> str:
        """An environment variable by which processes are known that use it."""
        return f"TUNELINE_{re.sub('[^0-9A-Za-z]', '_', self.uuid)}"


def present() -> list[Gpu]:
    """What programs on this host can use; of a GPU that is split, its instances. One that is lost is left out.

    Raises:
        UserError: there is a driver, and it does not work.
    """
    try:
        pynvml.nvmlInit()
    except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded):
        return []
    except pynvml.NVMLError as error:
        raise UserError(f"NVIDIA's driver does not work ({error}); `nvidia-smi` should say the same.") from None
    found = []
    for number in range(pynvml.nvmlDeviceGetCount()):
        try:
            found += _parts_of(number)
        except pynvml.NVMLError as error:
            print(f"GPU {number} is left out ({error}).")
    pynvml.nvmlShutdown()
    return found


def _parts_of(number: int) -> list[Gpu]:
    card = pynvml.nvmlDeviceGetHandleByIndex(number)
    try:
        is_split = pynvml.nvmlDeviceGetMigMode(card)[0] == pynvml.NVML_DEVICE_MIG_ENABLE
    except pynvml.NVMLError:  # it cannot be
        is_split = False
    if not is_split:
        return [Gpu(str(number), pynvml.nvmlDeviceGetUUID(card))]
    found = []
    for place in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(card)):
        try:
            uuid = pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(card, place))
        except pynvml.NVMLError:  # an empty place
            continue
        found.append(Gpu(uuid, uuid))
    return found


def chosen(said: str, there: Sequence[Gpu]) -> list[Gpu]:
    """GPUs as a user names them: numbers, UUIDs or their beginnings, a comma between them; ``none`` for none.

    Raises:
        UserError: this host has no such GPU, or one is named twice.
    """
    if said.strip() == NONE:
        return []
    found = [_named(part.strip(), there) for part in said.split(",")]
    if len(set(found)) < len(found):
        raise UserError(f"{said!r} names a GPU twice; name each once.")
    if len(found) > 1 and any(gpu.uuid.startswith("MIG") for gpu in found):
        raise UserError(f"{said!r}: CUDA sees one instance of MIG at most, and nothing beside it; name it alone.")
    return found


def _named(part: str, there: Sequence[Gpu]) -> Gpu:
    number = re.sub(r"^0+(?=\d)", "", part)  # 00 is GPU 0, too
    begins = part if re.match(r"(GPU|MIG)-\w", part) else None
    found = [gpu for gpu in there if number == gpu.name or (begins and gpu.uuid.startswith(begins))]
    if not there:
        raise UserError(f"{part!r} names no GPU: this host has none; {NONE} lets its CPU stand in for one.")
    if len(found) != 1:
        names = ", ".join(gpu.name for gpu in there)
        raise UserError(f"{part!r} names no GPU of this host, or several; it has {names}.")
    return found[0]


def one_each() -> list[str]:
    """What agents own where nobody says it: one GPU each of those that may be seen here, or ``none``."""
    there = present()
    visible = os.environ.get(VISIBLE)
    if visible is not None:
        try:
            there = [] if visible.strip() in HIDDEN else chosen(visible, there)
        except UserError as error:
            raise UserError(f"{VISIBLE}: {error}") from None
    return [gpu.name for gpu in there] or [NONE]


def own(gpus: Sequence[Gpu]) -> list[int]:
    """Hold these for as long as this process lives, or another that gets the open files which this gives.

    A name among Linux's abstract sockets is one for the whole host, whoever's home it is, and free again at once when
    the last process that holds it has ended. Containers have names of their own, and GPUs from who runs them.

    Raises:
        UserError: another agent of this host holds one.
    """
    held = []
    for gpu in gpus:
        name = socket.socket(socket.AF_UNIX)
        try:
            name.bind(f"\0tuneline {gpu.uuid}")
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise UserError(f"Another agent on this host owns GPU {gpu.name}; stop it first.") from None
        held.append(name.detach())
    return held
