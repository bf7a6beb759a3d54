"""Tell a program that waits for a silent server from one that works, however long that takes.

A pull of 20 GB may take hours, and a server that accepts and never answers takes for ever, so there is no limit on the
whole. What counts is whether a program and its children compute, read, write, or have sent bytes acknowledged.
"""

import math
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

LOOK = 5.0  # seconds between two looks
SILENCE = 120.0  # seconds without progress after which nothing is expected any more
BYTES = 100.0  # bytes/s, read and written, that count as progress
SHARE = 0.01  # of a CPU; DVC takes a thousandth while it waits
LONGEST = 3600.0  # seconds for a transfer of git's, which may also trickle


class _Work(NamedTuple):
    """What a process has done so far: CPU seconds, bytes read and written, and bytes in its sockets' queues by inode.

    Reading and writing files counts as bytes, sending to a socket does not: its queue changes when bytes are
    acknowledged.
    """

    seconds: float
    characters: int
    queues: dict[str, str]


class Watchdog:
    """Watches a program and all that it has started.

    Attributes:
        silent: seconds for which it has made no progress.
    """

    def __init__(self, pid: int, waits_for_children: bool = False, longest: float = math.inf):
        """Watch from now on.

        Args:
            waits_for_children: a program with children is at work, such as DVC while a stage runs.
            longest: seconds that the program may take in all.
        """
        self.pid, self.waits_for_children, self.longest = pid, waits_for_children, longest
        self.silent = 0.0
        self._began = self._looked = time.monotonic()
        self._before: dict[int, _Work] = {}

    def look(self) -> str | None:
        """Compare with the look before; gives why the program is to be given up, or None."""
        now = time.monotonic()
        passed, self._looked = min(now - self._looked, 2 * LOOK), now  # all of them may have been suspended
        processes = _tree(self.pid)
        after = {process.pid: work for process in processes if (work := _work_of(process)) is not None}
        is_at_work = self.waits_for_children and len(processes) > 1
        is_progress = is_at_work or _is_progress(self._before, after, passed)
        self.silent = 0.0 if is_progress else self.silent + passed
        self._before = after
        if self.silent >= SILENCE:
            return f"made no progress for {self.silent:.0f} s"
        return f"did not end within {self.longest:.0f} s" if now - self._began >= self.longest else None


def _tree(pid: int) -> list[psutil.Process]:
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def _is_progress(before: dict[int, _Work], after: dict[int, _Work], passed: float) -> bool:
    if after.keys() - before.keys():
        return True  # a program was started
    pairs = [(before[pid], work) for pid, work in after.items()]
    seconds = sum(now.seconds - then.seconds for then, now in pairs)
    characters = sum(now.characters - then.characters for then, now in pairs)
    has_sent = any(now.queues.get(inode, queue) != queue for then, now in pairs for inode, queue in then.queues.items())
    return seconds >= SHARE * passed or characters >= BYTES * passed or has_sent


def _work_of(process: psutil.Process) -> _Work | None:
    """What a process has done; None if it is gone."""
    try:
        times, characters = process.cpu_times(), 0
        if hasattr(process, "io_counters"):  # Linux
            counted = process.io_counters()
            characters = counted.read_chars + counted.write_chars
        return _Work(times.user + times.system, characters, _queues(process.pid))
    except (psutil.Error, OSError):
        return None


def _queues(pid: int) -> dict[str, str]:
    """Bytes sent and not acknowledged, and received and not read, of each TCP socket of a process, by inode."""
    folder, sockets, queues = Path("/proc", str(pid)), set(), {}
    with suppress(OSError):  # no Linux, or the process is gone
        for descriptor in (folder / "fd").iterdir():
            with suppress(OSError):
                sockets.add(descriptor.readlink().name.removeprefix("socket:[").removesuffix("]"))
        for table in ("tcp", "tcp6"):
            for line in (folder / "net" / table).read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()
                if fields[9] in sockets:
                    queues[fields[9]] = fields[4]
    return queues
