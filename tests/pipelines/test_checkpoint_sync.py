"""Checkpoints that travel by a real DVC remote from one host's clone to another's."""

import json
import threading
import time

import pytest

from models import checkpoints
from models.errors import UserError
from pipelines import checkpoint_sync, dvc, watchdog
from pipelines.clone import Clone, RemoteAway, open_clone
from pipelines.processes import output_of


@pytest.fixture
def hosts(tmp_path, monkeypatch):
    """Opens the clone of a run on a host of this name; hosts share a repository and a remote, ``store``."""
    monkeypatch.setenv("TUNELINE_HOME", str(tmp_path / "home"))
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "test")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "test@localhost")
    origin = tmp_path / "origin"
    origin.mkdir()
    output_of("git", "-C", str(origin), "init", "--quiet")
    dvc.ask("--cd", str(origin), "init", "--quiet")
    dvc.ask("--cd", str(origin), "remote", "add", "--default", "store", str(tmp_path / "store"))
    output_of("git", "-C", str(origin), "add", "--all")
    output_of("git", "-C", str(origin), "commit", "--quiet", "--message", "first")

    def opened(host: str) -> Clone:
        monkeypatch.setenv("TUNELINE_HOME", str(tmp_path / host))
        return open_clone("run", "HEAD", f"file://{origin}")

    return opened


def write(clone: Clone, step: int, training: str = "lora.abc", is_whole: bool = True, best: int | None = None) -> None:
    folder = clone.folder / checkpoint_sync.LOCAL / training / f"checkpoint-{step}"
    (folder / "shards").mkdir(parents=True)
    (folder / "optimizer.pt").write_bytes(bytes(step))
    (folder / "shards" / "0.pt").write_bytes(b"shard")
    beside = best and folder.parent / f"best-{best}.safetensors"
    if beside:
        beside.write_bytes(bytes(best))
    if is_whole:
        checkpoints.complete(folder, {"step": step}, beside)


def steps(clone: Clone, training: str = "lora.abc") -> list[int]:
    return [
        checkpoints.step_of(path.name) for path in checkpoints.whole(clone.folder / checkpoint_sync.LOCAL / training)
    ]


def send(clone: Clone, name: str = "lora") -> None:
    checkpoint_sync.Relay(clone, "run").send(checkpoint_sync.newest_of(clone.folder / checkpoint_sync.LOCAL, name))


def there(tmp_path) -> set[str]:
    folder = tmp_path / "store/tuneline/checkpoints/run"
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_checkpoint_arrives_whole_and_only_the_newest_stays(hosts, tmp_path):
    first = hosts("first")
    write(first, 20)
    send(first)
    write(first, 120)
    write(first, 140, is_whole=False)
    send(first)
    names = {"optimizer.pt", "shards/0.pt", checkpoints.PROGRESS}
    assert there(tmp_path) == {f"lora.abc/checkpoint-120/{name}" for name in names}
    second = hosts("second")
    checkpoint_sync.take(second, "run")
    assert steps(second) == [120]
    sent, taken = (clone.folder / checkpoint_sync.LOCAL / "lora.abc/checkpoint-120" for clone in (first, second))
    for name in names:
        assert (sent / name).read_bytes() == (taken / name).read_bytes()


def test_whoever_is_as_far_takes_nothing(hosts):
    first, second = hosts("first"), hosts("second")
    write(first, 40)
    send(first)
    write(second, 60)
    checkpoint_sync.take(second, "run")
    assert steps(second) == [60]


def test_the_best_weights_so_far_travel_with_their_checkpoint(hosts, tmp_path):
    first, second = hosts("first"), hosts("second")
    write(first, 20, best=10)
    send(first)
    write(first, 40, best=30)
    send(first)
    assert "lora.abc/best-30.safetensors" in there(tmp_path)
    assert "lora.abc/best-10.safetensors" not in there(tmp_path)
    checkpoint_sync.take(second, "run")
    assert steps(second) == [40]
    (second.folder / checkpoint_sync.LOCAL / "lora.abc/best-30.safetensors").unlink()
    assert steps(second) == []


def test_whoever_began_anew_does_not_take_the_place_of_one_that_is_farther(hosts):
    first, second = hosts("first"), hosts("second")
    write(first, 5000)
    send(first)
    write(second, 3)
    send(second)
    assert checkpoint_sync.Relay(second, "run").whole() == [("lora.abc", "checkpoint-5000")]
    write(second, 3, training="lora.other")  # other data or settings
    checkpoint_sync.Relay(second, "run").send(second.folder / checkpoint_sync.LOCAL / "lora.other/checkpoint-3")
    assert checkpoint_sync.Relay(second, "run").whole() == [("lora.other", "checkpoint-3")]


def test_a_remote_that_is_away_when_a_run_begins_is_waited_for(hosts, tmp_path):
    first, second, store = hosts("first"), hosts("second"), tmp_path / "store"
    write(first, 40)
    send(first)
    progress = store / "tuneline/checkpoints/run/lora.abc/checkpoint-40" / checkpoints.PROGRESS
    for path in (store, progress):  # it is not mounted; it fails in the middle
        path.rename(tmp_path / "unplugged")
        if path == progress:
            path.symlink_to("nowhere")
        with pytest.raises(RemoteAway):
            checkpoint_sync.take(second, "run")
        path.unlink(missing_ok=True)
        (tmp_path / "unplugged").rename(path)
    checkpoint_sync.take(second, "run")
    assert steps(second) == [40]


def test_a_remote_that_never_answers_is_away_and_what_arrives_later_changes_nothing(hosts, tmp_path, monkeypatch):
    first, second = hosts("first"), hosts("second")
    write(first, 40, best=30)
    send(first)
    monkeypatch.setattr(checkpoint_sync, "LOOKS", 0.05)
    monkeypatch.setattr(watchdog, "SILENCE", 0.3)
    answers, get = threading.Event(), checkpoint_sync.Relay._get
    monkeypatch.setattr(checkpoint_sync.Relay, "_get", lambda *asked: (answers.wait(20), get(*asked)))
    with pytest.raises(RemoteAway, match="TimeoutError"):
        checkpoint_sync.take(second, "run")
    copying = [thread for thread in threading.enumerate() if thread.daemon and "work" in thread.name]
    answers.set()
    for thread in copying:
        thread.join(20)
    assert not [path for path in (second.folder / checkpoint_sync.LOCAL).rglob("*") if path.is_file()]


def test_a_copy_that_makes_progress_is_waited_for(hosts, monkeypatch):
    first, second = hosts("first"), hosts("second")
    write(first, 40)
    send(first)
    monkeypatch.setattr(checkpoint_sync, "LOOKS", 0.05)
    monkeypatch.setattr(watchdog, "SILENCE", 0.5)
    get = checkpoint_sync.Relay._get

    def slowly(self, name, target):
        target.parent.mkdir(parents=True, exist_ok=True)
        for size in range(8):
            target.write_bytes(bytes(size))
            time.sleep(0.1)
        get(self, name, target)

    monkeypatch.setattr(checkpoint_sync.Relay, "_get", slowly)
    checkpoint_sync.take(second, "run")
    assert steps(second) == [40]


def test_a_remote_that_waiting_does_not_mend_is_refused(hosts, monkeypatch):
    clone = hosts("first")
    dvc.ask("--cd", str(clone.folder), "remote", "add", "--force", "store", "s3://bucket")
    with pytest.raises(UserError, match="cannot be used") as refused:
        checkpoint_sync.take(clone, "run")
    assert not isinstance(refused.value, RemoteAway)
    dvc.ask("--cd", str(clone.folder), "remote", "default", "--unset")
    with pytest.raises(UserError, match="dvc remote default") as refused:
        checkpoint_sync.take(clone, "run")
    assert not isinstance(refused.value, RemoteAway)


def test_what_was_copied_by_half_counts_as_nothing(hosts, tmp_path, capsys):
    first, second = hosts("first"), hosts("second")
    write(first, 40)
    send(first)
    folder = tmp_path / "store/tuneline/checkpoints/run/lora.abc/checkpoint-40"
    (folder / "optimizer.pt").write_bytes(b"short")
    checkpoint_sync.take(second, "run")
    assert steps(second) == []
    assert "taken over" not in capsys.readouterr().out
    (folder / checkpoints.PROGRESS).unlink()
    checkpoint_sync.take(hosts("third"), "run")
    assert not (hosts("third").folder / checkpoint_sync.LOCAL).exists()


def test_a_copy_that_hangs_holds_nobody(hosts, monkeypatch):
    monkeypatch.setattr(checkpoint_sync, "LOOKS", 0.05)
    monkeypatch.setattr(checkpoint_sync, "LETTING_GO", 0.2)
    hangs = threading.Event()
    monkeypatch.setattr(checkpoint_sync.Relay, "send", lambda *_: (hangs.set(), time.sleep(30)))
    clone = hosts("first")
    write(clone, 20)
    started = time.monotonic()
    with checkpoint_sync.following(clone, "run", "lora"):
        assert hangs.wait(20)
    assert time.monotonic() - started < 25


def test_what_is_no_checkpoint_is_left_where_it_is(hosts, tmp_path):
    folder = tmp_path / "store/tuneline/checkpoints/run"
    for name in ("lora.abc/checkpoint-x", "lora/checkpoint-1", "lora.abc/other"):
        (folder / name).mkdir(parents=True)
        (folder / name / checkpoints.PROGRESS).write_text(json.dumps({"sizes": {}}))
    clone = hosts("first")
    checkpoint_sync.take(clone, "run")
    assert not (clone.folder / checkpoint_sync.LOCAL).exists()


def test_when_a_run_has_ended_nothing_of_it_is_left(hosts, tmp_path):
    clone = hosts("first")
    write(clone, 40)
    send(clone)
    assert there(tmp_path)
    checkpoint_sync.withdraw(clone, "run")
    assert not (tmp_path / "store/tuneline/checkpoints/run").exists()
    checkpoint_sync.withdraw(clone, "run")


def test_a_training_is_followed_and_a_remote_that_is_away_ends_nothing(hosts, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(checkpoint_sync, "LOOKS", 0.05)
    monkeypatch.setattr(checkpoint_sync, "PAUSE", 0.1)
    clone, store = hosts("first"), tmp_path / "store"

    def until(condition) -> None:
        end = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.05)

    store.write_text("")  # nothing can lie below it
    with checkpoint_sync.following(clone, "run", "lora"):
        write(clone, 20)
        until(lambda: "could not be copied" in capsys.readouterr().out)
        store.unlink()
        until(lambda: len(there(tmp_path)) == 3)
        write(clone, 40)
        until(lambda: there(tmp_path) and all("checkpoint-40" in name for name in there(tmp_path)))


def test_where_the_repository_is_a_folder_of_this_host_nothing_travels(hosts, tmp_path):
    clone = open_clone("other", "HEAD", str(tmp_path / "origin"))
    write(clone, 20)
    assert not checkpoint_sync.travels(clone)
    checkpoint_sync.take(clone, "other")
    checkpoint_sync.withdraw(clone, "other")
    assert not there(tmp_path)
