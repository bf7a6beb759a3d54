"""Ranks and devices of a training run: collectives, collective abort, utilization and energy.

torchrun sets ``WORLD_SIZE``, ``RANK`` and ``LOCAL_RANK``. Each rank is a process with one device.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import lru_cache

import psutil
import torch
import torch.distributed as dist

from models.errors import PeerLost, UserError

try:
    import pynvml
except ImportError:  # optional: without it there are no figures for utilization and energy
    pynvml = None


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", 0))


def set_device() -> None:
    """Select the GPU of this rank, and restrict the log of non-zero ranks to warnings."""
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank())
    if rank() > 0:
        logging.getLogger("tuneline").setLevel(logging.WARNING)


def describe_devices() -> str:
    """Return number and name of the devices, such as ``2 × NVIDIA H100`` or ``CPU (8 threads)``."""
    kind = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({torch.get_num_threads()} threads)"
    return kind if world_size() == 1 else f"{world_size()} × {kind}"


# Collectives ---------------------------------------------------------------------------------------


@lru_cache
def _gloo_group():
    """Return a process group for CPU tensors, whose collectives do not wait for a GPU."""
    return dist.new_group(backend="gloo")


def any_rank(flag: bool) -> bool:
    """Return whether ``flag`` is true on at least one rank; all ranks must call it."""
    if world_size() == 1:
        return flag
    flags = torch.tensor([int(flag)])
    dist.all_reduce(flags, dist.ReduceOp.MAX, group=_gloo_group())
    return bool(flags)


def all_reduce_sum(values: torch.Tensor) -> torch.Tensor:
    """Sum a tensor over all ranks, in place, and return it; all ranks must call it."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def barrier() -> None:
    """Block until all ranks have called it."""
    if world_size() > 1:
        dist.barrier(group=_gloo_group())


@contextmanager
def translate_device_errors() -> Iterator[None]:
    """Turn device errors into messages.

    Raises:
        PeerLost: another rank left a collective operation; the cause is in that rank.
        UserError: out of memory, despite the estimate.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"The device ran out of memory ({str(error).splitlines()[0]}). "
            "Set gradient_checkpointing: true, a smaller batch_size or quantization: 4, or free the device."
        ) from None
    except RuntimeError as error:
        message = str(error).lower()
        if world_size() > 1 and (isinstance(error, dist.DistError) or "gloo" in message or "nccl" in message):
            raise PeerLost(PEER_ENDED) from None
        raise


# Collective abort ----------------------------------------------------------------------------------

PEER_ENDED = "Another process of this training run ended. Run the command again to resume from the last checkpoint."
FINISHED, FAILED = 0, 1
GRACE_SECONDS = 2.0  # time for a rank to report its own error before it is aborted


@contextmanager
def abort_with_peers() -> Iterator[None]:
    """Abort this process within seconds after another rank has failed or died.

    A rank that waits in an NCCL kernel for a dead one receives neither an error nor a signal for minutes. Therefore a
    thread of each rank blocks on a gloo recv from its neighbour; a failure message or a broken connection propagates
    around the ring.
    """
    if world_size() == 1:
        yield
        return
    watchdog = PeerWatchdog(dist.new_group(backend="gloo", timeout=timedelta(days=365)))
    thread = threading.Thread(target=watchdog.watch, daemon=True)
    thread.start()
    try:
        yield
    except BaseException:
        watchdog.finish(FAILED)
        raise
    watchdog.finish(FINISHED)
    thread.join()  # keeps the group alive until the neighbour's message has arrived


class PeerWatchdog:
    """Ring of ranks: each sends its status, once, to the rank before it and receives that of the rank after it.

    Args:
        group: separate gloo process group, as other collectives must not overtake the messages.
    """

    def __init__(self, group):
        self.group, self.finished = group, threading.Event()
        self._sent, self._lock = False, threading.Lock()

    def finish(self, status: int) -> None:
        """Send this rank's final status; from then on the rank is not aborted."""
        self.finished.set()
        self._send(status)

    def watch(self) -> None:
        """Receive the neighbour's status; after a failure, pass it on and abort this process."""
        status = torch.tensor([FINISHED])
        try:
            dist.recv(status, (rank() + 1) % world_size(), group=self.group)
        except RuntimeError:  # the connection broke
            status.fill_(FAILED)
        if int(status) != FAILED:
            return
        self._send(FAILED)
        if not self.finished.wait(GRACE_SECONDS):
            if local_rank() == 0:  # once per host
                print(f"error: {PEER_ENDED}", file=sys.stderr, flush=True)
            os._exit(1)  # an exception cannot end a main thread that waits for the device

    def _send(self, status: int) -> None:
        with self._lock:
            sent, self._sent = self._sent, True
        if not sent:  # the neighbour receives a single message
            with suppress(RuntimeError):  # the neighbour has ended
                dist.send(torch.tensor([status]), (rank() - 1) % world_size(), group=self.group)


# Utilization, energy and time ----------------------------------------------------------------------


class DeviceMeter:
    """Measures utilization and energy of this rank's device since its construction."""

    def __init__(self):
        self._gpu = self._process = None
        if torch.cuda.is_available():
            self._gpu = None if pynvml is None else _nvml_handle()
        else:
            self._process = psutil.Process()
            self._process.cpu_percent()  # starts the interval that the next call measures
        self._joules_at_start = self._joules()

    def _joules(self) -> float | None:
        if self._gpu is not None:
            with suppress(pynvml.NVMLError):
                return pynvml.nvmlDeviceGetTotalEnergyConsumption(self._gpu) / 1000
        return None

    def utilization(self) -> float | None:
        """Return the recent utilization of the GPU, or that of all cores since the last call; from 0 to 1."""
        if self._process is not None:
            return min(1.0, self._process.cpu_percent() / 100 / (os.cpu_count() or 1))
        if self._gpu is not None:
            with suppress(pynvml.NVMLError):
                return pynvml.nvmlDeviceGetUtilizationRates(self._gpu).gpu / 100
        return None

    def watt_hours(self) -> float | None:
        """Return the energy used by the GPU, None if the driver does not report it."""
        joules = self._joules()
        return None if joules is None or self._joules_at_start is None else (joules - self._joules_at_start) / 3600


def _nvml_handle():
    """Return the current GPU's handle in NVIDIA's management library (NVML); None without a driver that has it."""
    uuid = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
    with suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    return None


class TrainingClock:
    """Wall-clock seconds of a training run, continued after a resume."""

    def __init__(self):
        self.start(0.0)

    def start(self, elapsed: float) -> None:
        """Start the clock at ``elapsed`` seconds."""
        self._start = time.monotonic() - elapsed

    def seconds(self) -> float:
        return round(time.monotonic() - self._start, 3)
