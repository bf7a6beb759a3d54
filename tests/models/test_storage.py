import errno
import fcntl
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from shared_data import ROOT

from models import storage
from models.errors import UserError
from models.storage import (
    atomic_write,
    atomic_write_folder,
    read_json,
    read_jsonl,
    sha256_of_json,
    write_json,
    write_jsonl,
)


def test_a_failed_write_keeps_the_old_file_and_leaves_no_temporary_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"old": True})
    with pytest.raises(OSError, match="full"), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise OSError("disk full")
    assert read_json(path) == {"old": True}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_failed_folder_write_keeps_the_old_folder(tmp_path):
    with atomic_write_folder(tmp_path / "f") as folder:
        (folder / "old").touch()
    with pytest.raises(OSError, match="full"), atomic_write_folder(tmp_path / "f") as folder:
        (folder / "new").touch()
        raise OSError("disk full")
    assert [path.name for path in (tmp_path / "f").iterdir()] == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize("delay", [0.0, 0.01, 0.03])
def test_a_file_is_complete_after_its_writer_was_killed(tmp_path, delay):
    """A process that rewrites a file in a loop is killed with SIGKILL."""
    path = tmp_path / "a.json"
    program = (
        "import sys, pathlib\nfrom models.storage import write_json\n"
        "count = 0\nwhile True:\n    count += 1\n"
        "    write_json(pathlib.Path(sys.argv[1]), {'count': count, 'filling': [count] * 20000})\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(path)], cwd=ROOT)
    while not path.exists():
        time.sleep(0.01)
    time.sleep(delay)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    content = read_json(path)
    assert content["filling"] == [content["count"]] * 20000


def test_missing_and_damaged_files_are_user_errors(tmp_path):
    (tmp_path / "a").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="not valid JSON"):
        read_json(tmp_path / "a")
    with pytest.raises(UserError, match="line 1"):
        read_jsonl(tmp_path / "a")
    for read in (read_json, read_jsonl):
        with pytest.raises(UserError, match="does not exist"):
            read(tmp_path / "gone")


def test_unicode_line_separators_do_not_split_a_row(tmp_path):
    rows = [{"text": "一\u2028二\u2029三\x85四\x0b五"}, {"text": "六"}]
    write_jsonl(tmp_path / "a.jsonl", rows)
    assert read_jsonl(tmp_path / "a.jsonl") == rows


def test_files_that_are_not_utf_8_are_user_errors(tmp_path):
    (tmp_path / "a").write_bytes(b'{"a": "\xff"}')
    for read in (read_json, read_jsonl):
        with pytest.raises(UserError, match="a "):
            read(tmp_path / "a")


def test_the_hash_of_a_json_value_ignores_the_order_of_keys():
    assert sha256_of_json({"a": 1, "b": "\ud800"}) == sha256_of_json({"b": "\ud800", "a": 1})


# Shared volumes, and kills at every step -------------------------------------------------


@pytest.fixture(params=["exchange", "two steps"])
def replacement(request, monkeypatch):
    """How a folder replaces another: in one step, or in two where the file system cannot exchange folders."""
    if request.param == "two steps":
        monkeypatch.setattr(storage, "_exchange", lambda *_: False)
    elif not can_exchange():
        pytest.skip("this system cannot exchange two folders in one step")
    return request.param


def can_exchange() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        for name in "ab":
            Path(folder, name).mkdir()
        return storage._exchange(Path(folder, "a"), Path(folder, "b"))


def killed_before(step: int, work) -> bool:
    """Run ``work`` in a process that is killed before file system call number ``step``; return whether it was."""
    events = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "fcntl.flock", "os.listdir"}
    child = os.fork()
    if child == 0:
        steps = itertools.count()

        def kill(event: str, arguments) -> None:
            if event in events and next(steps) == step:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(kill)
        work()
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def fill(path: Path, content: str) -> None:
    with atomic_write_folder(path) as folder:
        (folder / "one").write_text(content)
        (folder / "two").write_text(content)


def content_of(path: Path) -> set[str]:
    return {f"{file.name} {file.read_text()}" for file in path.iterdir()}


def test_a_folder_is_old_or_new_if_its_writer_is_killed_at_any_step(tmp_path, replacement):
    path, step, seen = tmp_path / "folder", 0, set()
    old, new, last = ({f"one {content}", f"two {content}"} for content in ("old", "new", "last"))
    while True:
        fill(path, "old")
        was_killed = killed_before(step, lambda: fill(path, "new"))
        if replacement == "exchange":
            assert content_of(path) in (old, new)  # before any other process writes
        write_json(tmp_path / "beside.json", {})  # the next writer restores the folder
        assert content_of(path) in (old, new)
        assert sorted(file.name for file in tmp_path.iterdir()) == ["beside.json", "folder"]
        seen.add(frozenset(content_of(path)))
        if not was_killed:
            break
        step += 1
    assert step > 10
    assert seen == {frozenset(old), frozenset(new)}
    fill(path, "last")
    assert content_of(path) == last


def test_a_former_folder_is_restored_only_if_its_path_is_free(tmp_path, monkeypatch):
    token = "0" * 16
    for name in (f".a.{token}.former.tmp", f".a.{token}.tmp", f".b.{token}.former.tmp", "a"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "is").write_text(name)
    (tmp_path / f".{token}.lock.tmp").touch()
    storage.remove_leftovers(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "b"]
    assert (tmp_path / "a/is").read_text() == "a"
    assert (tmp_path / "b/is").read_text() == f".b.{token}.former.tmp"


def test_a_failed_second_rename_restores_the_former_folder(tmp_path, monkeypatch):
    fill(tmp_path / "a", "old")
    monkeypatch.setattr(storage, "_exchange", lambda *_: False)
    replace = Path.replace

    def fails(self: Path, target: Path) -> Path:
        if target.name == "a" and "former" not in self.name:
            raise OSError("stale file handle")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(OSError, match="stale"):
        fill(tmp_path / "a", "new")
    assert content_of(tmp_path / "a") == {"one old", "two old"}
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


OTHER_HOST = """
import os, sys, time
from pathlib import Path
os.getpid = lambda: {pid}
from models.storage import atomic_write, atomic_write_folder
with atomic_write_folder(Path({folder!r}, "folder")) as folder, atomic_write(Path({folder!r}, "file")) as file:
    (folder / "a").write_text("other")
    file.write_text("other")
    print("writing", flush=True)
    sys.stdin.read()
"""


def test_temporary_files_of_a_live_process_with_the_same_pid_are_kept(tmp_path):
    """The other process runs in its own pid namespace, like a container, where the system permits it."""
    unshare = ["unshare", "--pid", "--uts", "--fork"]
    own = unshare if subprocess.run([*unshare, "true"], capture_output=True).returncode == 0 else []
    code = OTHER_HOST.format(pid=os.getpid(), folder=str(tmp_path))
    other = subprocess.Popen(
        [*own, sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "writing\n"
    before = {path.name for path in tmp_path.iterdir()}
    fill(tmp_path / "folder", "ours")
    write_json(tmp_path / "file", {"by": "us"})
    assert before <= {path.name for path in tmp_path.iterdir()}
    assert read_json(tmp_path / "file") == {"by": "us"}
    other.communicate("", timeout=600)
    assert (tmp_path / "folder/a").read_text() == (tmp_path / "file").read_text() == "other"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_without_flock_writes_work_and_no_leftovers_are_removed(tmp_path, monkeypatch):
    fill(tmp_path / "a", "old")
    assert killed_before(8, lambda: fill(tmp_path / "a", "new"))
    left = {path.name for path in tmp_path.iterdir()} - {"a"}
    assert left

    def fail(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", fail)
    fill(tmp_path / "a", "newer")
    assert content_of(tmp_path / "a") == {"one newer", "two newer"}
    assert {path.name for path in tmp_path.iterdir()} - {"a"} == left


def test_a_lock_file_removed_before_it_was_locked_is_not_used(tmp_path, monkeypatch):
    calls, flock = [], fcntl.flock

    def remove_and_lock(lock, operation):
        if not calls:
            calls.append(1)
            storage.remove_leftovers(tmp_path)  # after the lock file is created and before it is locked
        return flock(lock, operation)

    monkeypatch.setattr(fcntl, "flock", remove_and_lock)
    with atomic_write(tmp_path / "a") as temporary:
        assert len([path for path in tmp_path.iterdir() if path.name.endswith(".lock.tmp")]) == 1
        storage.remove_leftovers(tmp_path)
        temporary.write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_files_with_similar_names_are_not_removed(tmp_path):
    names = {".a.tmp", ".a.17.tmp", "a.0123456789abcdef.tmp", ".lock.tmp", ".a.0123456789ABCDEF.tmp"}
    for name in names:
        (tmp_path / name).touch()
    write_json(tmp_path / "b", {})
    assert {path.name for path in tmp_path.iterdir()} == names | {"b"}


def test_a_folder_replaces_a_file_or_a_link_itself(tmp_path, replacement):
    (tmp_path / "file").write_text("x")
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to("target")
    for name in ("file", "link"):
        fill(tmp_path / name, "new")
        assert content_of(tmp_path / name) == {"one new", "two new"}
    assert list((tmp_path / "target").iterdir()) == []
    assert len(list(tmp_path.iterdir())) == 3


def test_a_removed_folder_is_gone_if_its_remover_is_killed_at_any_step(tmp_path):
    fill(tmp_path / "a", "x")
    storage.remove_folder(tmp_path / "a")
    storage.remove_folder(tmp_path / "a")
    assert not any(tmp_path.iterdir())
    for step in itertools.count():
        fill(tmp_path / "a", "x")
        was_killed = killed_before(step, lambda: storage.remove_folder(tmp_path / "a"))
        write_json(tmp_path / "b", {})
        assert {path.name for path in tmp_path.iterdir()} <= {"a", "b"}
        if not was_killed:
            break
    assert not (tmp_path / "a").exists()


def test_the_age_of_a_file_is_measured_by_the_clock_of_its_volume(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 0.0)  # the clock of this host
    (tmp_path / "a").mkdir()
    changed = (tmp_path / "a").stat().st_mtime
    for age in (0.0, 5000.0, -5000.0):
        os.utime(tmp_path / "a", (changed - age, changed - age))
        assert storage.seconds_since_modification(tmp_path / "a") == pytest.approx(max(age, 0.0), abs=20)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    with pytest.raises(FileNotFoundError):
        storage.seconds_since_modification(tmp_path / "gone")
