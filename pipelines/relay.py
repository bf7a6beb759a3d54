"""Checkpoints of a training in DVC's remote, for whoever takes its run up on another host.

Hosts that share nothing but a repository and a remote would lose a training's checkpoints with its host. So its newest
one is copied to ``tuneline/checkpoints/<run>`` in the remote, beside DVC's own objects; whoever begins with the run
takes it from there if it has none that is as far; and it is removed when the run has ended. ``progress.json`` is
copied last, as it is written last: a checkpoint without it, or of other sizes than stand in it, counts as none.
"""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from models import checkpoints
from models.storage import writing_folder
from pipelines.clone import Clone

FOLDER = ("tuneline", "checkpoints")
LOCAL = Path("models/checkpoints")
MOST = 8 * 2**30  # bytes: the optimizer of a whole model takes longer to travel than what it saves is worth
LOOKS = 5.0  # seconds between two looks for a new checkpoint
SHARE = 0.1  # of the time may go into copying, at most
PAUSE = 60.0  # seconds between two copies, at least
CHECKPOINT = re.compile(r"(?P<training>[\w-]+\.\w+)/(?P<name>checkpoint-\d+)/(?P<file>[\w./-]+)")


class Relay:
    """What of a run's checkpoints lies in the remote of a clone."""

    def __init__(self, clone: Clone, run: str):
        # DVC's own file systems: they know the remote's address and keys. Imported here, since this takes a second.
        from dvc.config import Config
        from dvc.fs import get_cloud_fs

        config = Config(dvc_dir=str(clone.folder / ".dvc"))
        kind, settings, root = get_cloud_fs(config, name=config["core"]["remote"])
        self.files, self.local = kind(**settings), clone.folder / LOCAL
        self.folder = self.files.join(root, *FOLDER, run)

    def send(self, checkpoint: Path) -> None:
        """Copy a whole checkpoint to the remote; older ones go."""
        name = f"{checkpoint.parent.name}/{checkpoint.name}"
        files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
        for path in sorted(files, key=lambda path: path.name == checkpoints.PROGRESS):
            there = self.files.join(self.folder, name, *path.relative_to(checkpoint).parts)
            self.files.makedirs(self.files.parent(there), exist_ok=True)
            self.files.put_file(str(path), there)
        self._remove([each for each in self._there() if not each.startswith(f"{name}/")])

    def take(self) -> None:
        """Copy the newest checkpoint here, unless there is one that is as far."""
        there = [match for match in map(CHECKPOINT.fullmatch, self._there()) if match and ".." not in match["file"]]
        whole = {(match["training"], match["name"]) for match in there if match["file"] == checkpoints.PROGRESS}
        for training, name in sorted(whole, key=lambda each: checkpoints.step_of(each[1]))[-1:]:
            here = checkpoints.whole(self.local / training)
            if here and checkpoints.step_of(here[-1].name) >= checkpoints.step_of(name):
                return
            (self.local / training).mkdir(parents=True, exist_ok=True)
            with writing_folder(self.local / training / name) as temporary:
                for match in there:
                    if (match["training"], match["name"]) == (training, name):
                        target = temporary.joinpath(*PurePosixPath(match["file"]).parts)
                        target.parent.mkdir(parents=True, exist_ok=True)
                        self.files.get_file(self.files.join(self.folder, match[0]), str(target))
            print(f"{name} was taken over from another host · 从另一台主机接过检查点")

    def withdraw(self) -> None:
        """Remove what lies there."""
        self._remove(self._there())

    def _there(self) -> list[str]:
        """Files in the remote, below the run's folder."""
        if not self.files.exists(self.folder):
            return []
        return ["/".join(self.files.relparts(path, self.folder)) for path in self.files.find(self.folder)]

    def _remove(self, names: list[str]) -> None:
        for name in names:
            self.files.rm_file(self.files.join(self.folder, name))


def travels(clone: Clone) -> bool:
    """Whether the checkpoints of a clone would be gone with its host, and there is a remote for them."""
    return not clone.shares_cache and clone.has_remote


def take(clone: Clone, run: str) -> None:
    """Take over what another host had copied. What cannot be had is trained once more."""
    with _nothing_ends_here("taken over"):
        if travels(clone):
            Relay(clone, run).take()


def withdraw(clone: Clone, run: str) -> None:
    """Remove what was copied, once a run has ended."""
    with _nothing_ends_here("removed"):
        if travels(clone):
            Relay(clone, run).withdraw()


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
                relay.send(newest)
                sent = newest
            not_before = time.monotonic() + max(PAUSE, (time.monotonic() - began) / SHARE)

    if not travels(clone):
        yield
        return
    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    try:
        yield
    finally:
        ended.set()
        follower.join()


def newest_of(folder: Path, name: str) -> Path | None:
    """The newest whole checkpoint of an adapter, if it is not too large to travel."""
    found = [path for training in folder.glob(f"{name}.*") for path in checkpoints.whole(training)]
    newest = max(found, key=lambda path: checkpoints.step_of(path.name), default=None)
    if newest and sum(path.stat().st_size for path in newest.rglob("*") if path.is_file()) <= MOST:
        return newest
    return None


@contextmanager
def _nothing_ends_here(done: str) -> Iterator[None]:
    """Print what went wrong with a remote of whatever kind; without it a training merely begins anew elsewhere."""
    try:
        yield
    except Exception as error:
        print(f"A checkpoint in DVC's remote could not be {done} ({type(error).__name__}); going on · 检查点未能中转")
