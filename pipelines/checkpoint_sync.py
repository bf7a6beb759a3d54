"""Checkpoints of a training in DVC's remote, for whoever takes its run up on another host.

Hosts that share nothing but a repository and a remote would lose a training's checkpoints with its host. So its newest
one is copied to ``tuneline/checkpoints/<run>`` in the remote, beside DVC's own objects, with the best weights so far,
which lie beside it; whoever begins with the run takes it from there if it has none that is as far; and it is removed
when the run has ended. ``progress.json`` is copied last, as it is written last: a checkpoint without it, or of other
sizes than stand in it, counts as none.
"""

import contextvars
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from models import checkpoints
from models.errors import UserError
from models.storage import writing_folder
from pipelines import dvc, watchdog
from pipelines.clone import DVC_FINAL, Clone, RemoteAway

FOLDER = ("tuneline", "checkpoints")
LOCAL = Path("models/checkpoints")
MOST = 8 * 2**30  # bytes: the optimizer of a whole model takes longer to travel than what it saves is worth
LOOKS = 5.0  # seconds between two looks for a new checkpoint
SHARE = 0.1  # of the time may go into copying, at most
PAUSE = 60.0  # seconds between two copies, at least
LETTING_GO = 10.0  # seconds for a copy to end with its training; a remote that hangs holds no GPU
CHECKPOINT = re.compile(r"(?P<training>[\w-]+\.\w+)/(?P<name>checkpoint-\d+)/(?P<file>[\w./-]+)")
BESIDE = re.compile(r"(?P<training>[\w-]+\.\w+)/(?P<file>best-\d+\.safetensors)")


class Relay:
    """What of a run's checkpoints lies in the remote of a clone."""

    def __init__(self, clone: Clone, run: str):
        # DVC's own file systems: they know the remote's address and keys. Imported here, since this takes a second.
        from dvc.fs import get_cloud_fs

        config = dvc.settings(clone.folder)
        if not config["core"].get("remote"):
            raise UserError(f"{clone.address} has no default among its DVC remotes; `dvc remote default` one.")
        kind, settings, root = get_cloud_fs(config, name=config["core"]["remote"])
        self.is_given_up = False
        self.files, self.local = kind(**settings), clone.folder / LOCAL
        self.root, self.folder = root, self.files.join(root, *FOLDER, run)

    def send(self, checkpoint: Path, has_ended: Callable[[], bool] = lambda: False) -> None:
        """Copy a whole checkpoint to the remote, unless one is there that is as far; older ones go.

        Args:
            has_ended: whether nobody waits for it any more.
        """
        training, name = checkpoint.parent.name, checkpoint.name
        if any(checkpoints.step_from_name(each) >= checkpoints.step_from_name(name) for of, each in self.whole() if of == training):
            return
        with _snapshot(checkpoint) as files:
            for place, path in files.items():
                if has_ended():
                    return
                there = self.files.join(self.folder, training, *place.parts)
                self.files.makedirs(self.files.parent(there), exist_ok=True)
                self.files.put_file(str(path), there)
            sent = {(training, place.parts[0]) for place in files}
        for old in {tuple(each.split("/")[:2]) for each in self._there()} - sent:
            self.files.rm(self.files.join(self.folder, *old), recursive=True)

    def take(self) -> None:
        """Copy the newest checkpoint here, unless there is one that is as far.

        Raises:
            FileNotFoundError: the remote is not there, though it has what is to be trained on.
        """
        if not self.files.exists(self.root):
            raise FileNotFoundError(self.root)
        for training, name in reversed(self.whole()):
            here = checkpoints.complete_checkpoints(self.local / training)
            if here and checkpoints.step_from_name(here[-1].name) >= checkpoints.step_from_name(name):
                return
            if self._fetch(training, name):
                print(f"{name} was taken over from another host · 从另一台主机接过检查点")
                return

    def _fetch(self, training: str, name: str) -> bool:
        """Copy one here; False if it turns out not to be whole."""
        folder = self.local / training
        folder.mkdir(parents=True, exist_ok=True)
        for match in filter(None, map(BESIDE.fullmatch, self._there())):
            if match["training"] == training:
                self._get(match[0], folder / match["file"])
        with suppress(_NotWhole), writing_folder(folder / name) as temporary:
            for match in self._checkpoints():
                if (match["training"], match["name"]) == (training, name):
                    self._get(match[0], temporary / match["file"])
            if not checkpoints.is_complete(temporary):
                raise _NotWhole
            return True
        return False

    def _get(self, name: str, target: Path) -> None:
        if self.is_given_up:
            raise _NotWhole
        target.parent.mkdir(parents=True, exist_ok=True)
        self.files.get_file(self.files.join(self.folder, name), str(target))

    def whole(self) -> list[tuple[str, str]]:
        """Trainings and checkpoints that were copied to their ends, the farthest last."""
        found = {
            (each["training"], each["name"]) for each in self._checkpoints() if each["file"] == checkpoints.PROGRESS
        }
        return sorted(found, key=lambda each: checkpoints.step_from_name(each[1]))

    def _checkpoints(self) -> list[re.Match]:
        return [match for match in map(CHECKPOINT.fullmatch, self._there()) if match and ".." not in match["file"]]

    def withdraw(self) -> None:
        """Remove what lies there."""
        if self.files.exists(self.folder):
            self.files.rm(self.folder, recursive=True)

    def _there(self) -> list[str]:
        """Files in the remote, below the run's folder."""
        if not self.files.exists(self.folder):
            return []
        return ["/".join(self.files.relparts(path, self.folder)) for path in self.files.find(self.folder)]

    def unless_silent(self, job: Callable[[], None]) -> None:
        """Do something with the remote, for as long as something arrives here.

        Raises:
            TimeoutError: nothing has for so long that nothing is expected any more.
        """
        failures: list[BaseException] = []

        def work() -> None:
            try:
                job()
            except BaseException as error:
                failures.append(error)

        # A thread of its own knows of no run; this one's context tells it.
        worker = threading.Thread(target=contextvars.copy_context().run, args=(work,), daemon=True)
        worker.start()
        size, since = self._size_here(), time.monotonic()
        while worker.is_alive():
            worker.join(LOOKS)
            before, size = size, self._size_here()
            since = since if size == before else time.monotonic()
            if worker.is_alive() and time.monotonic() - since >= watchdog.SILENCE:
                self.is_given_up = True  # it may be answered later, when the training has begun
                raise TimeoutError
        if failures:
            raise failures[0]

    def _size_here(self) -> int:
        """Bytes of all checkpoints here, those that are on their way too."""
        sizes = 0
        for path in self.local.rglob("*"):
            with suppress(OSError):  # it is renamed
                sizes += path.stat().st_size
        return sizes


class _NotWhole(Exception):
    """What was copied is not a checkpoint that a training can go on from."""


@contextmanager
def _snapshot(checkpoint: Path) -> Iterator[dict[Path, Path]]:
    """The files of a checkpoint by their places in the training's folder, while the training may remove its own."""
    training = checkpoint.parent
    with tempfile.TemporaryDirectory(prefix=".relay-", dir=training.parent) as folder:
        found = {
            path.relative_to(training): Path(folder, str(number))
            for number, path in enumerate(checkpoints.list_files(checkpoint))
        }
        for place, path in found.items():
            os.link(training / place, path)
        yield found


def travels(clone: Clone) -> bool:
    """Whether the checkpoints of a clone would be gone with its host, and there is a remote for them."""
    return not clone.shares_cache and clone.has_remote


def take(clone: Clone, run: str) -> None:
    """Take over what another host had copied.

    Raises:
        RemoteAway: the remote does not give it; to train all of it once more would be dear.
        UserError: there is no remote that could be used.
    """
    if not travels(clone):
        return
    try:
        relay = Relay(clone, run)
        relay.unless_silent(relay.take)
    except UserError:
        raise
    except NotImplementedError:  # a remote that cannot list what it has, such as one by HTTP
        print("DVC's remote cannot list files; checkpoints stay on their hosts · 该远端不能列出文件，检查点留在本机")
    except Exception as error:
        if DVC_FINAL.search(str(error)):
            raise UserError(f"DVC's remote cannot be used ({error}); see `dvc remote list`.") from None
        raise RemoteAway(f"DVC's remote does not give the run's checkpoint ({type(error).__name__}).") from None


def withdraw(clone: Clone, run: str) -> None:
    """Remove what was copied, once a run has ended."""
    with _nothing_ends_here("removed"):
        if travels(clone):
            relay = Relay(clone, run)
            relay.unless_silent(relay.withdraw)


@contextmanager
def following(clone: Clone, run: str, name: str) -> Iterator[None]:
    """Copy the newest checkpoint of this adapter's training to the remote from time to time, while the block runs."""
    ended = threading.Event()

    def follow() -> None:
        relay, sent, not_before = None, None, 0.0
        while not ended.wait(LOOKS):
            began = time.monotonic()
            if began < not_before:
                continue
            with _nothing_ends_here("copied"):
                newest = newest_of(clone.folder / LOCAL, name)
                if newest in (None, sent):
                    continue
                relay = relay or Relay(clone, run)
                relay.send(newest, ended.is_set)
                sent = newest
            not_before = time.monotonic() + max(PAUSE, (time.monotonic() - began) / SHARE)

    if not travels(clone):
        yield
        return
    # A thread of its own knows of no run; this one's context tells it.
    follower = threading.Thread(target=contextvars.copy_context().run, args=(follow,), daemon=True)
    follower.start()
    try:
        yield
    finally:
        ended.set()
        follower.join(LETTING_GO)


def newest_of(folder: Path, name: str) -> Path | None:
    """The newest whole checkpoint of an adapter, if it is not too large to travel."""
    found = [path for training in folder.glob(f"{name}.*") for path in checkpoints.complete_checkpoints(training)]
    newest = max(found, key=lambda path: checkpoints.step_from_name(path.name), default=None)
    if newest and sum(path.stat().st_size for path in checkpoints.list_files(newest)) <= MOST:
        return newest
    return None


@contextmanager
def _nothing_ends_here(done: str) -> Iterator[None]:
    """Print what went wrong with a remote of whatever kind; without it a training merely begins anew elsewhere."""
    try:
        yield
    except Exception as error:
        print(f"A checkpoint in DVC's remote could not be {done} ({type(error).__name__}); going on · 检查点未能中转")
