"""Detect programs that hang on an unresponsive server.

A fixed timeout does not fit: a pull of 20 GB may take hours, while a server that accepts a connection may never answer.
Instead, a program is stopped after :data:`MAX_IDLE_SECONDS` without progress. A program makes progress while it or one
of its descendants uses CPU time, reads, writes, or has sent bytes acknowledged.
"""

import math
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

POLL_SECONDS = 5.0
MAX_IDLE_SECONDS = 120.0  # without progress
MIN_BYTES_PER_SECOND = 100.0  # read and written, that count as progress
MIN_CPU_SHARE = 0.01  # that counts as progress; DVC uses 0.001 while it waits
MAX_TRANSFER_SECONDS = 3600.0  # for one transfer of git, since a server that trickles bytes makes progress


class _Counters(NamedTuple):
    """Cumulative counters of a process, and the queues of its sockets.

    ``bytes_moved`` includes file reads and writes, but not sends to a socket; those show in ``queues``.

    Attributes:
        cpu_seconds: user and system time.
        bytes_moved: read and written.
        queues: by socket inode, ``tx:rx`` as in /proc/net/tcp: bytes in both queues of a TCP socket, in hexadecimal.
    """

    cpu_seconds: float
    bytes_moved: int
    queues: dict[str, str]


class Watchdog:
    """Detects that a program and all its descendants make no progress.

    Attributes:
        idle_seconds: time without progress.
    """

    def __init__(self, pid: int, waits_for_children: bool = False, max_seconds: float = math.inf):
        """Start the clock.

        Args:
            pid: of the program.
            waits_for_children: whether a program with children counts as making progress, e.g. DVC while a stage runs.
            max_seconds: time limit for the program, with or without progress.
        """
        self.pid, self.waits_for_children, self.max_seconds = pid, waits_for_children, max_seconds
        self.idle_seconds = 0.0
        self._started = self._last_check = time.monotonic()
        self._before: dict[int, _Counters] = {}

    def check_progress(self) -> str | None:
        """Compare with the previous check; return the reason to terminate the program, or None."""
        now = time.monotonic()
        # At most two intervals: this process itself may have been suspended.
        elapsed, self._last_check = min(now - self._last_check, 2 * POLL_SECONDS), now
        processes = _process_tree(self.pid)
        after = {process.pid: counters for process in processes if (counters := _read_counters(process)) is not None}
        runs_children = self.waits_for_children and len(processes) > 1
        has_progressed = runs_children or _has_progressed(self._before, after, elapsed)
        self.idle_seconds = 0.0 if has_progressed else self.idle_seconds + elapsed
        self._before = after
        if self.idle_seconds >= MAX_IDLE_SECONDS:
            return f"made no progress for {self.idle_seconds:.0f} s"
        return f"did not end within {self.max_seconds:.0f} s" if now - self._started >= self.max_seconds else None


def _process_tree(pid: int) -> list[psutil.Process]:
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def _has_progressed(before: dict[int, _Counters], after: dict[int, _Counters], elapsed: float) -> bool:
    if after.keys() - before.keys():
        return True  # a program was started
    pairs = [(before[pid], counters) for pid, counters in after.items()]
    cpu_seconds = sum(now.cpu_seconds - then.cpu_seconds for then, now in pairs)
    bytes_moved = sum(now.bytes_moved - then.bytes_moved for then, now in pairs)
    has_sent = any(now.queues.get(inode, queue) != queue for then, now in pairs for inode, queue in then.queues.items())
    return cpu_seconds >= MIN_CPU_SHARE * elapsed or bytes_moved >= MIN_BYTES_PER_SECOND * elapsed or has_sent


def _read_counters(process: psutil.Process) -> _Counters | None:
    """Return the counters of a process; None if it has ended."""
    try:
        times, bytes_moved = process.cpu_times(), 0
        if hasattr(process, "io_counters"):  # Linux
            io = process.io_counters()
            bytes_moved = io.read_chars + io.write_chars
        return _Counters(times.user + times.system, bytes_moved, _read_socket_queues(process.pid))
    except (psutil.Error, OSError):
        return None


def _read_socket_queues(pid: int) -> dict[str, str]:
    """Return the queues of a process's TCP sockets by inode: ``tx:rx``, bytes not acknowledged and not read, in hex."""
    folder, sockets, queues = Path("/proc", str(pid)), set(), {}
    with suppress(OSError):  # not Linux, or the process has ended
        for descriptor in (folder / "fd").iterdir():
            with suppress(OSError):
                sockets.add(descriptor.readlink().name.removeprefix("socket:[").removesuffix("]"))
        for table in ("tcp", "tcp6"):
            for line in (folder / "net" / table).read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()
                if fields[9] in sockets:
                    queues[fields[9]] = fields[4]
    return queues
