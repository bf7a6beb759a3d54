"""Copies of checkpoints in a real DVC remote, from the clone of one host to that of another."""

import json
import threading
import time

import pytest

from models import checkpoints
from models.errors import UserError
from pipelines import checkpoint_sync, dvc, watchdog
from pipelines.clone import Clone, open_clone
from pipelines.processes import RemoteUnavailable, output_of


@pytest.fixture
def hosts(tmp_path, monkeypatch):
    """Return a function that opens the run's clone on a host; hosts share a repository and the remote ``store``."""
    monkeypatch.setenv("TUNELINE_HOME", str(tmp_path / "home"))
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "test")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "test@localhost")
    origin = tmp_path / "origin"
    origin.mkdir()
    output_of("git", "-C", str(origin), "init", "--quiet")
    dvc.capture("--cd", str(origin), "init", "--quiet")
    dvc.capture("--cd", str(origin), "remote", "add", "--default", "store", str(tmp_path / "store"))
    output_of("git", "-C", str(origin), "add", "--all")
    output_of("git", "-C", str(origin), "commit", "--quiet", "--message", "first")

    def open_on(host: str) -> Clone:
        monkeypatch.setenv("TUNELINE_HOME", str(tmp_path / host))
        return open_clone("run", "HEAD", f"file://{origin}")

    return open_on


def write_checkpoint(
    clone: Clone, step: int, training: str = "lora.abc", is_complete: bool = True, best: int | None = None
) -> None:
    folder = clone.folder / checkpoint_sync.LOCAL_FOLDER / training / f"checkpoint-{step}"
    (folder / "shards").mkdir(parents=True)
    (folder / "optimizer.pt").write_bytes(bytes(step))
    (folder / "shards" / "0.pt").write_bytes(b"shard")
    best_weights = best and folder.parent / f"best-{best}.safetensors"
    if best_weights:
        best_weights.write_bytes(bytes(best))
    if is_complete:
        checkpoints.mark_complete(folder, {"step": step}, best_weights)


def steps(clone: Clone, training: str = "lora.abc") -> list[int]:
    return [
        checkpoints.step_from_name(path.name)
        for path in checkpoints.complete_checkpoints(clone.folder / checkpoint_sync.LOCAL_FOLDER / training)
    ]


def upload(clone: Clone, name: str = "lora") -> None:
    checkpoint_sync.RemoteCheckpoints(clone, "run").upload(
        checkpoint_sync.newest_checkpoint(clone.folder / checkpoint_sync.LOCAL_FOLDER, name)
    )


def remote_files(tmp_path) -> set[str]:
    folder = tmp_path / "store/tuneline/checkpoints/run"
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_complete_checkpoint_is_downloaded_and_older_ones_are_removed(hosts, tmp_path):
    first = hosts("first")
    write_checkpoint(first, 20)
    upload(first)
    write_checkpoint(first, 120)
    write_checkpoint(first, 140, is_complete=False)
    upload(first)
    names = {"optimizer.pt", "shards/0.pt", checkpoints.PROGRESS}
    assert remote_files(tmp_path) == {f"lora.abc/checkpoint-120/{name}" for name in names}
    second = hosts("second")
    checkpoint_sync.download_checkpoint(second, "run")
    assert steps(second) == [120]
    uploaded, downloaded = (
        clone.folder / checkpoint_sync.LOCAL_FOLDER / "lora.abc/checkpoint-120" for clone in (first, second)
    )
    for name in names:
        assert (uploaded / name).read_bytes() == (downloaded / name).read_bytes()


def test_nothing_is_downloaded_if_a_local_checkpoint_is_later(hosts):
    first, second = hosts("first"), hosts("second")
    write_checkpoint(first, 40)
    upload(first)
    write_checkpoint(second, 60)
    checkpoint_sync.download_checkpoint(second, "run")
    assert steps(second) == [60]


def test_best_weights_are_copied_with_their_checkpoint(hosts, tmp_path):
    first, second = hosts("first"), hosts("second")
    write_checkpoint(first, 20, best=10)
    upload(first)
    write_checkpoint(first, 40, best=30)
    upload(first)
    assert "lora.abc/best-30.safetensors" in remote_files(tmp_path)
    assert "lora.abc/best-10.safetensors" not in remote_files(tmp_path)
    checkpoint_sync.download_checkpoint(second, "run")
    assert steps(second) == [40]
    (second.folder / checkpoint_sync.LOCAL_FOLDER / "lora.abc/best-30.safetensors").unlink()
    assert steps(second) == []


def test_later_checkpoint_in_the_remote_is_not_replaced_by_an_earlier_one(hosts):
    first, second = hosts("first"), hosts("second")
    write_checkpoint(first, 5000)
    upload(first)
    write_checkpoint(second, 3)
    upload(second)
    assert checkpoint_sync.RemoteCheckpoints(second, "run").list_complete() == [("lora.abc", "checkpoint-5000")]
    write_checkpoint(second, 3, training="lora.other")  # with other data or parameters
    checkpoint_sync.RemoteCheckpoints(second, "run").upload(
        second.folder / checkpoint_sync.LOCAL_FOLDER / "lora.other/checkpoint-3"
    )
    assert checkpoint_sync.RemoteCheckpoints(second, "run").list_complete() == [("lora.other", "checkpoint-3")]


def test_unavailable_remote_raises_remote_unavailable(hosts, tmp_path):
    first, second, store = hosts("first"), hosts("second"), tmp_path / "store"
    write_checkpoint(first, 40)
    upload(first)
    progress = store / "tuneline/checkpoints/run/lora.abc/checkpoint-40" / checkpoints.PROGRESS
    for path in (store, progress):  # the remote is not mounted; a file cannot be read
        path.rename(tmp_path / "unplugged")
        if path == progress:
            path.symlink_to("nowhere")
        with pytest.raises(RemoteUnavailable):
            checkpoint_sync.download_checkpoint(second, "run")
        path.unlink(missing_ok=True)
        (tmp_path / "unplugged").rename(path)
    checkpoint_sync.download_checkpoint(second, "run")
    assert steps(second) == [40]


def test_silent_remote_times_out_and_a_late_answer_changes_no_file(hosts, tmp_path, monkeypatch):
    first, second = hosts("first"), hosts("second")
    write_checkpoint(first, 40, best=30)
    upload(first)
    monkeypatch.setattr(checkpoint_sync, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(watchdog, "MAX_IDLE_SECONDS", 0.3)
    has_answered, get = threading.Event(), checkpoint_sync.RemoteCheckpoints._download_file
    late = lambda *arguments: (has_answered.wait(20), get(*arguments))  # noqa: E731
    monkeypatch.setattr(checkpoint_sync.RemoteCheckpoints, "_download_file", late)
    with pytest.raises(RemoteUnavailable, match="TimeoutError"):
        checkpoint_sync.download_checkpoint(second, "run")
    downloads = [thread for thread in threading.enumerate() if thread.daemon and "work" in thread.name]
    has_answered.set()
    for thread in downloads:
        thread.join(20)
    assert not [path for path in (second.folder / checkpoint_sync.LOCAL_FOLDER).rglob("*") if path.is_file()]


def test_slow_download_with_progress_does_not_time_out(hosts, monkeypatch):
    first, second = hosts("first"), hosts("second")
    write_checkpoint(first, 40)
    upload(first)
    monkeypatch.setattr(checkpoint_sync, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(watchdog, "MAX_IDLE_SECONDS", 0.5)
    get = checkpoint_sync.RemoteCheckpoints._download_file

    def get_slowly(self, name, target):
        target.parent.mkdir(parents=True, exist_ok=True)
        for size in range(8):
            target.write_bytes(bytes(size))
            time.sleep(0.1)
        get(self, name, target)

    monkeypatch.setattr(checkpoint_sync.RemoteCheckpoints, "_download_file", get_slowly)
    checkpoint_sync.download_checkpoint(second, "run")
    assert steps(second) == [40]


def test_permanent_error_of_the_remote_is_not_remote_unavailable(hosts, monkeypatch):
    clone = hosts("first")
    dvc.capture("--cd", str(clone.folder), "remote", "add", "--force", "store", "s3://bucket")
    with pytest.raises(UserError, match="cannot be used") as error:
        checkpoint_sync.download_checkpoint(clone, "run")
    assert not isinstance(error.value, RemoteUnavailable)
    dvc.capture("--cd", str(clone.folder), "remote", "default", "--unset")
    with pytest.raises(UserError, match="dvc remote default") as error:
        checkpoint_sync.download_checkpoint(clone, "run")
    assert not isinstance(error.value, RemoteUnavailable)


def test_incomplete_checkpoint_in_the_remote_is_ignored(hosts, tmp_path, capsys):
    first, second = hosts("first"), hosts("second")
    write_checkpoint(first, 40)
    upload(first)
    folder = tmp_path / "store/tuneline/checkpoints/run/lora.abc/checkpoint-40"
    (folder / "optimizer.pt").write_bytes(b"short")
    checkpoint_sync.download_checkpoint(second, "run")
    assert steps(second) == []
    assert "Downloaded" not in capsys.readouterr().out
    (folder / checkpoints.PROGRESS).unlink()
    checkpoint_sync.download_checkpoint(hosts("third"), "run")
    assert not (hosts("third").folder / checkpoint_sync.LOCAL_FOLDER).exists()


def test_hanging_upload_does_not_delay_the_end_of_the_training(hosts, monkeypatch):
    monkeypatch.setattr(checkpoint_sync, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(checkpoint_sync, "STOP_SECONDS", 0.2)
    hangs = threading.Event()
    monkeypatch.setattr(checkpoint_sync.RemoteCheckpoints, "upload", lambda *_: (hangs.set(), time.sleep(30)))
    clone = hosts("first")
    write_checkpoint(clone, 20)
    started = time.monotonic()
    with checkpoint_sync.uploading_checkpoints(clone, "run", "lora"):
        assert hangs.wait(20)
    assert time.monotonic() - started < 25


def test_other_files_in_the_remote_are_not_downloaded(hosts, tmp_path):
    folder = tmp_path / "store/tuneline/checkpoints/run"
    for name in ("lora.abc/checkpoint-x", "lora/checkpoint-1", "lora.abc/other"):
        (folder / name).mkdir(parents=True)
        (folder / name / checkpoints.PROGRESS).write_text(json.dumps({"sizes": {}}))
    clone = hosts("first")
    checkpoint_sync.download_checkpoint(clone, "run")
    assert not (clone.folder / checkpoint_sync.LOCAL_FOLDER).exists()


def test_checkpoints_of_an_ended_run_are_removed(hosts, tmp_path):
    clone = hosts("first")
    write_checkpoint(clone, 40)
    upload(clone)
    assert remote_files(tmp_path)
    checkpoint_sync.remove_checkpoints(clone, "run")
    assert not (tmp_path / "store/tuneline/checkpoints/run").exists()
    checkpoint_sync.remove_checkpoints(clone, "run")


def test_checkpoints_are_uploaded_during_a_training_and_an_unavailable_remote_does_not_stop_it(
    hosts, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(checkpoint_sync, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(checkpoint_sync, "MIN_PAUSE_SECONDS", 0.1)
    clone, store = hosts("first"), tmp_path / "store"

    def wait_until(condition) -> None:
        end = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.05)

    store.write_text("")  # a file: nothing can be written below it
    with checkpoint_sync.uploading_checkpoints(clone, "run", "lora"):
        write_checkpoint(clone, 20)
        wait_until(lambda: "could not be uploaded" in capsys.readouterr().out)
        store.unlink()
        wait_until(lambda: len(remote_files(tmp_path)) == 3)
        write_checkpoint(clone, 40)
        wait_until(lambda: remote_files(tmp_path) and all("checkpoint-40" in name for name in remote_files(tmp_path)))


def test_nothing_is_uploaded_if_the_clone_shares_a_cache_with_its_origin(hosts, tmp_path):
    clone = open_clone("other", "HEAD", str(tmp_path / "origin"))
    write_checkpoint(clone, 20)
    assert not checkpoint_sync.is_needed(clone)
    checkpoint_sync.download_checkpoint(clone, "other")
    checkpoint_sync.remove_checkpoints(clone, "other")
    assert not remote_files(tmp_path)
