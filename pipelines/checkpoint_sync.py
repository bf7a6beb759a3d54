"""Copy checkpoints of a training run to DVC's remote, so that another host can resume it.

Hosts that share only a repository and a remote would lose the checkpoints of a training run together with its host.
Therefore the newest checkpoint, and the best weights so far, are uploaded to ``tuneline/checkpoints/<run>`` in the
remote, beside DVC's own objects. An agent that starts the run downloads them unless it has a later checkpoint; the end
of the run removes them. ``progress.json`` is uploaded last, as it is written last: a checkpoint without it, or whose
files have other sizes than it lists, is ignored.
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
from models.storage import atomic_write_folder
from pipelines import dvc, watchdog
from pipelines.clone import DVC_PERMANENT, Clone
from pipelines.processes import RemoteUnavailable
from pipelines.retries import retry_while_unavailable
from texts import translate

REMOTE_FOLDER = ("tuneline", "checkpoints")
LOCAL_FOLDER = Path("models/checkpoints")
MAX_BYTES = 8 * 2**30  # the optimizer state of full fine-tuning takes longer to upload than a retraining saves
POLL_SECONDS = 5.0  # between two checks for a new checkpoint
MAX_UPLOAD_SHARE = 0.1  # of the time
MIN_PAUSE_SECONDS = 60.0  # between two uploads
STOP_SECONDS = 10.0  # for an upload when its training run ends: a remote that hangs must not hold the GPU
CHECKPOINT_FILE = re.compile(r"(?P<training>[\w-]+\.\w+)/(?P<name>checkpoint-\d+)/(?P<file>[\w./-]+)")
BEST_WEIGHTS = re.compile(r"(?P<training>[\w-]+\.\w+)/(?P<file>best-\d+\.safetensors)")


class RemoteCheckpoints:
    """The checkpoints of a run in the DVC remote of its clone.

    Attributes:
        is_cancelled: downloads stop at the next file.
    """

    def __init__(self, clone: Clone, run: str):
        """Open the remote.

        Raises:
            UserError: DVC has no default remote.
        """
        # DVC's own file systems have the remote's URL and keys. The import takes a second.
        from dvc.fs import get_cloud_fs

        config = dvc.load_config(clone.folder)
        if not config["core"].get("remote"):
            raise UserError(f"{clone.masked_origin} has no default DVC remote; set one with `dvc remote default`.")
        kind, settings, root = get_cloud_fs(config, name=config["core"]["remote"])
        self.is_cancelled = False
        self.remote, self.local = kind(**settings), clone.folder / LOCAL_FOLDER
        self.root, self.folder = root, self.remote.join(root, *REMOTE_FOLDER, run)

    def upload(self, checkpoint: Path, is_stopped: Callable[[], bool] = lambda: False) -> None:
        """Upload a complete checkpoint and remove older ones, unless the remote has one of this step or a later one.

        Args:
            is_stopped: the upload stops before the next file if this returns True.
        """
        training, step = checkpoint.parent.name, checkpoints.step_from_name(checkpoint.name)
        if any(other == training and checkpoints.step_from_name(name) >= step for other, name in self.list_complete()):
            return
        with _snapshot(checkpoint) as files:
            for relative, path in files.items():
                if is_stopped():
                    return
                target = self.remote.join(self.folder, training, *relative.parts)
                self.remote.makedirs(self.remote.parent(target), exist_ok=True)
                self.remote.put_file(str(path), target)
            uploaded = {(training, relative.parts[0]) for relative in files}
        for outdated in {tuple(path.split("/")[:2]) for path in self._list_files()} - uploaded:
            self.remote.rm(self.remote.join(self.folder, *outdated), recursive=True)

    def download(self) -> None:
        """Download the newest checkpoint, unless a local one is of its step or a later one.

        Raises:
            FileNotFoundError: the remote is missing, although it has the data to train on.
        """
        if not self.remote.exists(self.root):
            raise FileNotFoundError(self.root)
        for training, name in reversed(self.list_complete()):
            local = checkpoints.complete_checkpoints(self.local / training)
            if local and checkpoints.step_from_name(local[-1].name) >= checkpoints.step_from_name(name):
                return
            if self._download_checkpoint(training, name):
                print(translate("Downloaded {name} from another host.", name=name))
                return

    def _download_checkpoint(self, training: str, name: str) -> bool:
        """Download a checkpoint; return False if it turns out to be incomplete."""
        folder = self.local / training
        folder.mkdir(parents=True, exist_ok=True)
        for match in filter(None, map(BEST_WEIGHTS.fullmatch, self._list_files())):
            if match["training"] == training:
                self._download_file(match[0], folder / match["file"])
        with suppress(_IncompleteError), atomic_write_folder(folder / name) as temporary:
            for match in self._checkpoint_files():
                if (match["training"], match["name"]) == (training, name):
                    self._download_file(match[0], temporary / match["file"])
            if not checkpoints.is_complete(temporary):
                raise _IncompleteError
            return True
        return False

    def _download_file(self, name: str, target: Path) -> None:
        if self.is_cancelled:
            raise _IncompleteError
        target.parent.mkdir(parents=True, exist_ok=True)
        self.remote.get_file(self.remote.join(self.folder, name), str(target))

    def list_complete(self) -> list[tuple[str, str]]:
        """Return training and name of each complete checkpoint in the remote, the latest step last."""
        complete = {
            (match["training"], match["name"])
            for match in self._checkpoint_files()
            if match["file"] == checkpoints.PROGRESS
        }
        return sorted(complete, key=lambda checkpoint: checkpoints.step_from_name(checkpoint[1]))

    def _checkpoint_files(self) -> list[re.Match]:
        matches = map(CHECKPOINT_FILE.fullmatch, self._list_files())
        return [match for match in matches if match and ".." not in match["file"]]

    def remove(self) -> None:
        """Remove all checkpoints of the run from the remote."""
        if self.remote.exists(self.folder):
            self.remote.rm(self.folder, recursive=True)

    def _list_files(self) -> list[str]:
        """Return the run's files in the remote, relative to the run's folder."""
        if not self.remote.exists(self.folder):
            return []
        return ["/".join(self.remote.relparts(path, self.folder)) for path in self.remote.find(self.folder)]

    def run_with_idle_timeout(self, transfer: Callable[[], None]) -> None:
        """Run a transfer for as long as local files grow.

        Raises:
            TimeoutError: nothing has arrived for ``watchdog.MAX_IDLE_SECONDS``.
        """
        failures: list[BaseException] = []

        def work() -> None:
            try:
                transfer()
            except BaseException as error:
                failures.append(error)

        worker = _start_thread(work)
        size, last_change = self._local_bytes(), time.monotonic()
        while worker.is_alive():
            worker.join(POLL_SECONDS)
            before, size = size, self._local_bytes()
            last_change = last_change if size == before else time.monotonic()
            if worker.is_alive() and time.monotonic() - last_change >= watchdog.MAX_IDLE_SECONDS:
                self.is_cancelled = True  # a late answer must not change files while the training runs
                raise TimeoutError
        if failures:
            raise failures[0]

    def _local_bytes(self) -> int:
        """Return the size of all local checkpoints, including incomplete downloads."""
        size = 0
        for path in self.local.rglob("*"):
            with suppress(OSError):  # it has just been renamed
                size += path.stat().st_size
        return size


class _IncompleteError(Exception):
    """A downloaded checkpoint is incomplete."""


def _start_thread(target: Callable[[], None]) -> threading.Thread:
    """Start a daemon thread in this thread's context, by which Prefect assigns log lines to the flow run."""
    thread = threading.Thread(target=contextvars.copy_context().run, args=(target,), daemon=True)
    thread.start()
    return thread


@contextmanager
def _snapshot(checkpoint: Path) -> Iterator[dict[Path, Path]]:
    """Yield hard links to a checkpoint's files by their paths in the training's folder.

    Meanwhile the training run may remove its own files.
    """
    training = checkpoint.parent
    with tempfile.TemporaryDirectory(prefix=".relay-", dir=training.parent) as folder:
        links = {
            path.relative_to(training): Path(folder, str(number))
            for number, path in enumerate(checkpoints.list_files(checkpoint))
        }
        for relative, link in links.items():
            os.link(training / relative, link)
        yield links


def is_needed(clone: Clone) -> bool:
    """Return whether a clone's checkpoints would be lost with its host, and there is a remote for them."""
    return not clone.shares_cache and clone.has_remote


@retry_while_unavailable
def download_checkpoint(clone: Clone, run: str) -> None:
    """Download the newest checkpoint that another host has uploaded for this run.

    Raises:
        RemoteUnavailable: the remote is still unavailable after all retries. A training run from the start would cost
            more than the wait.
        UserError: the remote cannot be used.
    """
    if not is_needed(clone):
        return
    try:
        remote = RemoteCheckpoints(clone, run)
        remote.run_with_idle_timeout(remote.download)
    except UserError:
        raise
    except NotImplementedError:  # a remote that cannot list files, such as HTTP
        print(translate("DVC's remote cannot list files, so checkpoints stay on their host."))
    except Exception as error:
        if DVC_PERMANENT.search(str(error)):
            raise UserError(f"DVC's remote cannot be used ({error}); see `dvc remote list`.") from None
        raise RemoteUnavailable(
            f"The checkpoint of this run cannot be downloaded from DVC's remote ({type(error).__name__})."
        ) from None


def remove_checkpoints(clone: Clone, run: str) -> None:
    """Remove the uploaded checkpoints of a run that has ended; an error is printed and ignored."""
    message = translate("A checkpoint in DVC's remote could not be removed; it takes up space until it is deleted.")
    with _print_errors(message):
        if is_needed(clone):
            remote = RemoteCheckpoints(clone, run)
            remote.run_with_idle_timeout(remote.remove)


@contextmanager
def uploading_checkpoints(clone: Clone, run: str, name: str) -> Iterator[None]:
    """Periodically upload the newest checkpoint of an adapter during the block."""
    stopped = threading.Event()
    message = translate("A checkpoint could not be uploaded to DVC's remote; the training continues.")

    def upload_newest() -> None:
        remote, uploaded, not_before = None, None, 0.0
        while not stopped.wait(POLL_SECONDS):
            started = time.monotonic()
            if started < not_before:
                continue
            with _print_errors(message):
                newest = newest_checkpoint(clone.folder / LOCAL_FOLDER, name)
                if newest in (None, uploaded):
                    continue
                remote = remote or RemoteCheckpoints(clone, run)
                remote.upload(newest, stopped.is_set)
                uploaded = newest
            duration = time.monotonic() - started
            not_before = time.monotonic() + max(MIN_PAUSE_SECONDS, duration / MAX_UPLOAD_SHARE)

    if not is_needed(clone):
        yield
        return
    uploader = _start_thread(upload_newest)
    try:
        yield
    finally:
        stopped.set()
        uploader.join(STOP_SECONDS)


def newest_checkpoint(folder: Path, name: str) -> Path | None:
    """Return the newest complete checkpoint of an adapter; None if there is none, or it exceeds ``MAX_BYTES``."""
    complete = [path for training in folder.glob(f"{name}.*") for path in checkpoints.complete_checkpoints(training)]
    newest = max(complete, key=lambda path: checkpoints.step_from_name(path.name), default=None)
    if newest and sum(path.stat().st_size for path in checkpoints.list_files(newest)) <= MAX_BYTES:
        return newest
    return None


@contextmanager
def _print_errors(message: str) -> Iterator[None]:
    """Print a message with the type of the error instead of raising it: the run is correct without the upload."""
    try:
        yield
    except Exception as error:
        print(f"{message} ({type(error).__name__})")
