"""Checkpoints of a training run on disk: complete or absent, and keyed by everything that the training depends on.

Checkpoints are stored outside DVC's outs, which DVC deletes before a stage runs. A checkpoint is the folder that
transformers' Trainer writes: weights, optimizer, scheduler and random states. It is complete once it has
``progress.json``, which is written last, after all other files have reached the disk, and while all files have the
sizes recorded there.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from models.errors import UserError
from models.storage import read_json, write_json

PROGRESS = "progress.json"


def prepare_folder(folder: Path) -> None:
    """Create the checkpoint folder of a training run, and remove those of the same adapter with another key.

    Args:
        folder: named ``<adapter>.<key>``, where the key is a hash of everything that the training depends on.
    """
    for other in folder.parent.glob(f"{folder.name.split('.')[0]}.*"):
        if other != folder and other.is_dir():
            shutil.rmtree(other)
    folder.mkdir(parents=True, exist_ok=True)


# Lock ----------------------------------------------------------------------------------------------


@contextmanager
def exclusive_lock(parent: Path, name: str) -> Iterator[None]:
    """Lock an adapter for this process; the system releases the lock when the process ends.

    DVC's own lock does not suffice: if DVC alone is killed, the training process continues. While the lock is held, its
    file contains the process id, by which :func:`was_killed` recognizes a holder that did not release it.

    Raises:
        UserError: another process trains the adapter.
    """
    parent.mkdir(parents=True, exist_ok=True)
    path = _lock_path(parent, name)
    lock = FileLock(path, blocking=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"Another process on this host trains {name!r}. Wait until it ends, or stop it.") from None
    try:
        path.write_text(str(os.getpid()))
        yield
    finally:
        os.truncate(path, 0)
        lock.release()


def was_killed(parent: Path, name: str) -> bool:
    """Return whether the last holder of the lock was killed by SIGKILL or the OOM killer."""
    lock = _lock_path(parent, name)
    return lock.is_file() and lock.stat().st_size > 0


def _lock_path(parent: Path, name: str) -> Path:
    return parent / f".{name}.lock"


# Reading -------------------------------------------------------------------------------------------


def latest_complete(folder: Path) -> Path | None:
    """Return the latest complete checkpoint of a training run, and remove incomplete and damaged ones."""
    complete = complete_checkpoints(folder)
    for path in folder.glob("checkpoint-*"):
        if path not in complete:
            shutil.rmtree(path)
    return complete[-1] if complete else None


def complete_checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints of a training run, in the order of their steps."""
    candidates = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdecimal()]
    return sorted(filter(is_complete, candidates), key=lambda path: step_from_name(path.name))


def step_from_name(name: str) -> int:
    """Return the step of a checkpoint from its folder's name, ``checkpoint-<step>``."""
    return int(name.split("-")[1])


def is_complete(checkpoint: Path) -> bool:
    try:
        sizes = read_progress(checkpoint)["sizes"]
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, UserError, KeyError, TypeError, AttributeError, ValueError):  # of any damage in progress.json
        return False


def read_progress(checkpoint: Path) -> dict:
    return read_json(checkpoint / PROGRESS)


def list_files(checkpoint: Path) -> list[Path]:
    """Return all files of a complete checkpoint, those next to it included, and ``progress.json`` last."""
    beside = [checkpoint.parent / name[3:] for name in read_progress(checkpoint)["sizes"] if name.startswith("../")]
    inside = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != PROGRESS)
    return [*beside, *inside, checkpoint / PROGRESS]


# Writing -------------------------------------------------------------------------------------------


def mark_complete(checkpoint: Path, progress: dict, beside: Path | None = None) -> None:
    """Flush the files of a checkpoint to disk, then write ``progress.json``.

    Args:
        progress: JSON that a resumed training run reads.
        beside: file beside the checkpoint that it needs, such as the best weights so far.
    """
    for path in (*checkpoint.iterdir(), checkpoint):
        fsync_path(path)
    sizes = {path.name: path.stat().st_size for path in checkpoint.iterdir() if path.is_file()}
    if beside is not None:
        sizes[f"../{beside.name}"] = beside.stat().st_size
    write_json(checkpoint / PROGRESS, progress | {"sizes": sizes})


def fsync_path(path: Path) -> None:
    """Block until a file or folder has reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
