"""The devices of a training: how many processes there are, what they use, and what they agree on.

Several processes come from torchrun's environment: ``WORLD_SIZE`` and ``RANK``. Each holds one device.
"""

import logging
import os
import resource
import sys
import threading
import time
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import lru_cache

import psutil
import torch
import torch.distributed as dist

from models.errors import PeerLost, UserError

try:
    import pynvml
except ImportError:  # a machine that trains need not have it
    pynvml = None


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", 0))


def take() -> None:
    """Use this process's own device from now on, and leave the log to the first process."""
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank())
    if rank() > 0:
        logging.getLogger("tuneline").setLevel(logging.WARNING)


def peak_memory_gib() -> float:
    """Peak memory of this process in GiB: the GPU's where there is one, else resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


# Agreement -----------------------------------------------------------------------------------------


@lru_cache
def _beside_the_devices():
    """A group for a word between the processes, for which no GPU is waited for."""
    return dist.new_group(backend="gloo")


def any_of(flag: bool) -> bool:
    """Whether it holds in one process at least."""
    if world_size() == 1:
        return flag
    votes = torch.tensor([int(flag)])
    dist.all_reduce(votes, dist.ReduceOp.MAX, group=_beside_the_devices())
    return bool(votes)


def total(values: torch.Tensor) -> torch.Tensor:
    """Sum over all processes, in each of them."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def wait_for_all() -> None:
    if world_size() > 1:
        dist.barrier(group=_beside_the_devices())


@contextmanager
def telling_what_ended_it():
    """What the devices end a training with, as a sentence.

    Raises:
        PeerLost: another process left a collective operation, which is no fault of this one.
        UserError: the memory ran out, whatever was planned.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"The device's memory ran out ({str(error).splitlines()[0]}). "
            "Set gradient_checkpointing: true, a smaller batch_size or quantization: 4, or free the device."
        ) from None
    except RuntimeError as error:
        told = str(error).lower()
        if world_size() > 1 and (isinstance(error, dist.DistError) or "gloo" in told or "nccl" in told):
            raise PeerLost(ENDED) from None
        raise


# A death among the processes -----------------------------------------------------------------------

ENDED = "Another process of this training ended; run it again to go on from there."
WELL, FAILED = 0, 1
GRACE = 2.0  # seconds in which a process may still say itself what went wrong


@contextmanager
def ending_together():
    """End this process soon after any other of the training has died or failed.

    It may be waiting for that one in a kernel of NCCL, where neither an error nor a signal reaches it for minutes.
    So a thread of each process waits for a word of the next one, round in a circle; a connection that breaks is a
    word too, and is passed on at once.
    """
    if world_size() == 1:
        yield
        return
    circle = _Circle(dist.new_group(backend="gloo", timeout=timedelta(days=365)))
    watcher = threading.Thread(target=circle.watch, daemon=True)
    watcher.start()
    try:
        yield
    except BaseException:
        circle.leave(FAILED)
        raise
    circle.leave(WELL)
    watcher.join()  # or the group would be gone before its word is


class _Circle:
    def __init__(self, group):
        self.group, self.left = group, threading.Event()
        self._told, self._lock = False, threading.Lock()

    def leave(self, word: int) -> None:
        self.left.set()
        self._tell(word)

    def watch(self) -> None:
        word = torch.tensor([WELL])
        try:
            dist.recv(word, (rank() + 1) % world_size(), group=self.group)
        except RuntimeError:
            word.fill_(FAILED)
        if int(word) == FAILED:
            self._tell(FAILED)
            if not self.left.wait(GRACE):
                if local_rank() == 0:  # one word a host; whoever started them may say more
                    print(f"error: {ENDED}", file=sys.stderr, flush=True)
                os._exit(1)  # nothing less ends a thread that waits for the device

    def _tell(self, word: int) -> None:
        """Once: nobody would hear a second word."""
        with self._lock:
            told, self._told = self._told, True
        if not told:
            with suppress(RuntimeError):  # it is gone itself
                dist.send(torch.tensor([word]), (rank() - 1) % world_size(), group=self.group)


# Use -----------------------------------------------------------------------------------------------


class Meter:
    """How busy this process's device is, and what energy it has taken since the meter was made."""

    def __init__(self):
        self._gpu = self._process = None
        if torch.cuda.is_available():
            self._gpu = None if pynvml is None else _management_handle()
        else:
            self._process = psutil.Process()
            self._process.cpu_percent()  # the first call begins the interval of the next
        self._begun = self._joules()

    def _joules(self) -> float | None:
        if self._gpu is not None:
            with suppress(pynvml.NVMLError):
                return pynvml.nvmlDeviceGetTotalEnergyConsumption(self._gpu) / 1000
        return None

    def utilization(self) -> float | None:
        """Share of the device in use, from 0 to 1: of the GPU lately, or of all cores since the last call."""
        if self._process is not None:
            return min(1.0, self._process.cpu_percent() / 100 / (os.cpu_count() or 1))
        if self._gpu is not None:
            with suppress(pynvml.NVMLError):
                return pynvml.nvmlDeviceGetUtilizationRates(self._gpu).gpu / 100
        return None

    def watt_hours(self) -> float | None:
        now = self._joules()
        return None if now is None or self._begun is None else (now - self._begun) / 3600


def name() -> str:
    """What the devices are."""
    kind = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({torch.get_num_threads()} threads)"
    return kind if world_size() == 1 else f"{world_size()} × {kind}"


def _management_handle():
    """The current GPU in NVIDIA's management library; None where the driver has none."""
    identity = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
    with suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{identity}")
    return None


class Clock:
    """Seconds of training, going on from those of an earlier process."""

    def __init__(self):
        self.begin(0.0)

    def begin(self, before: float) -> None:
        self._started = time.monotonic() - before

    def seconds(self) -> float:
        return round(time.monotonic() - self._started, 3)
