"""Checkpoints by which a killed training goes on: whole or not there, and keyed by what the training depends on.

They lie outside DVC's outs, which DVC deletes before a stage runs. A checkpoint is transformers Trainer's own
folder: adapter, optimizer, scheduler and random states. It counts once ``progress.json`` stands in it,
which is written last, after everything else has reached the disk, and while all files have the sizes named there.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from models.errors import UserError
from models.storage import read_json, write_json

PROGRESS = "progress.json"


def prepare_folder(folder: Path) -> None:
    """Make the folder for the checkpoints of a training; those of the same name with another key are removed.

    Args:
        folder: its name is that of the adapter, a dot, and a hash of everything that the training depends on.
    """
    for other in folder.parent.glob(f"{folder.name.split('.')[0]}.*"):
        if other != folder and other.is_dir():
            shutil.rmtree(other)
    folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def exclusive_lock(parent: Path, name: str, doing: str = "training") -> Iterator[None]:
    """Hold an adapter for this process; the system lets go of it when the process ends.

    DVC's own lock does not do: killing DVC alone leaves the training running.

    Raises:
        UserError: another process is doing this with it.
    """
    parent.mkdir(parents=True, exist_ok=True)
    with _lock_of(parent, name).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"Another process is {doing} {name!r} here; wait for it, or end it.") from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        try:
            yield
        finally:
            lock.truncate(0)


def was_killed(parent: Path, name: str) -> bool:
    """Whether whoever held this last ended without a chance to say so, as kill -9 or a lack of memory end it."""
    lock = _lock_of(parent, name)
    return lock.is_file() and lock.stat().st_size > 0


def _lock_of(parent: Path, name: str) -> Path:
    return parent / f".{name}.lock"


def latest_complete(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end; what was not, or was cut off later, is removed."""
    found = complete_checkpoints(folder)
    for path in folder.glob("checkpoint-*"):
        if path not in found:
            shutil.rmtree(path)
    return found[-1] if found else None


def complete_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a training that were written to their ends, the newest last."""
    named = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdecimal()]
    return sorted(filter(is_complete, named), key=lambda path: step_from_name(path.name))


def step_from_name(name: str) -> int:
    """The step of a checkpoint by its folder's name."""
    return int(name.split("-")[1])


def is_complete(checkpoint: Path) -> bool:
    try:
        sizes = read_progress(checkpoint)["sizes"]
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, UserError, KeyError, TypeError, AttributeError, ValueError):  # it may be damaged in any way
        return False


def mark_complete(checkpoint: Path, progress: dict, beside: Path | None = None) -> None:
    """Mark a checkpoint as whole, once its files are on the disk.

    Args:
        beside: a file beside the checkpoint without which it is of no use, such as the best weights so far.
    """
    for path in (*checkpoint.iterdir(), checkpoint):
        fsync_path(path)
    sizes = {path.name: path.stat().st_size for path in checkpoint.iterdir() if path.is_file()}
    if beside is not None:
        sizes[f"../{beside.name}"] = beside.stat().st_size
    write_json(checkpoint / PROGRESS, progress | {"sizes": sizes})


def list_files(checkpoint: Path) -> list[Path]:
    """What belongs to a whole checkpoint, what lies beside it too; what marks it as whole comes last."""
    beside = [checkpoint.parent / name[3:] for name in read_progress(checkpoint)["sizes"] if name.startswith("../")]
    inside = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != PROGRESS)
    return [*beside, *inside, checkpoint / PROGRESS]


def fsync_path(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def read_progress(checkpoint: Path) -> dict:
    return read_json(checkpoint / PROGRESS)
