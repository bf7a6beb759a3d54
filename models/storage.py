"""Files that are whole or absent, and their hashes.

Everything is first written under a temporary name beside its target and then renamed, so that a kill leaves either
the old file or the new one. A folder is exchanged with the old one in one step. Where the file system cannot do that,
it takes two renames; after a kill between them the next process that writes there puts the old folder back.

Temporary names are random: two hosts or containers that share a volume may both have a process 17. A lock beside them
says whether their process lives, so that the next one clears away what a killed one left. Locks reach other hosts on
NFS 4 and CephFS; where a file system knows none, nothing is cleared away.
"""

import ctypes
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from models.errors import UserError

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux
# Both are hidden and end in .tmp, which git and DVC ignore.
_LOCK = ".{token}.lock.tmp"
_LEFT = re.compile(r"\.(?:(?P<name>.+)\.)?(?P<token>[0-9a-f]{16})(?P<kind>|\.former|\.lock)\.tmp", re.DOTALL)

_CANONICAL = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_json(value: object) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys."""
    # A lone surrogate has no UTF-8 form; it still needs a hash.
    return hashlib.sha256(_CANONICAL.encode(value).encode("utf-8", "surrogatepass")).hexdigest()


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a temporary file to write; rename it to ``path`` if the block ends well."""
    with _reserved(path) as temporary:
        yield temporary
        temporary.replace(path)


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder beside where ``path`` is or would be; it is gone after the block."""
    with _reserved(path) as temporary:
        temporary.mkdir()
        yield temporary


@contextmanager
def atomic_write_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder to fill; it replaces ``path`` if the block ends well."""
    with scratch_folder(path) as temporary:
        yield temporary
        if not os.path.lexists(path):
            temporary.replace(path)
        elif not _exchange(temporary, path):
            _replace_in_two_steps(temporary, path)


def remove_folder(path: Path) -> None:
    """Remove a folder as far as that is possible, under a temporary name first: programs may still write there."""
    if os.path.lexists(path):
        with suppress(OSError), _reserved(path) as gone:
            path.rename(gone)
        _remove(path)


def _replace_in_two_steps(temporary: Path, path: Path) -> None:
    former = temporary.with_suffix(".former.tmp")
    path.replace(former)
    try:
        temporary.replace(path)
    except BaseException:
        former.replace(path)
        raise
    _remove(former)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two names in one step; False if this system or file system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # not Linux with glibc
        return False
    return rename(AT_FDCWD, os.fsencode(first), AT_FDCWD, os.fsencode(second), RENAME_EXCHANGE) == 0


@contextmanager
def _reserved(path: Path) -> Iterator[Path]:
    """Give a temporary name beside ``path``, locked during the block; nothing is left under it afterwards."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent)
    token, lock = _lock_anew(path.parent)
    temporary = path.with_name(f".{path.name}.{token}.tmp")
    try:
        yield temporary
    finally:
        _remove(temporary)
        path.with_name(_LOCK.format(token=token)).unlink(missing_ok=True)
        os.close(lock)


def _lock_anew(folder: Path) -> tuple[str, int]:
    """A random token, and the lock that says that the process with it lives, open."""
    while True:
        token = secrets.token_hex(8)
        path = folder / _LOCK.format(token=token)
        lock = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        if _seizes(lock) is not False and path.exists():
            return token, lock
        os.close(lock)  # another process has taken it for a killed one's in between


def _seizes(lock: int) -> bool | None:
    """Whether this process gets a lock; None where the file system knows no locks."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError:
        return None


def remove_leftovers(folder: Path) -> None:
    """Remove what processes that run no more left in a folder, and put back what they were about to replace."""
    left: dict[str, list[re.Match]] = {}
    for path in folder.iterdir():
        if found := _LEFT.fullmatch(path.name):
            left.setdefault(found["token"], []).append(found)
    for token, names in left.items():
        lock = folder / _LOCK.format(token=token)
        with suppress(OSError), _lock_of_killed(lock) as is_killed:  # another's, or cleared by another meanwhile
            if is_killed:
                _clear(folder, names)
                lock.unlink(missing_ok=True)


@contextmanager
def _lock_of_killed(path: Path) -> Iterator[bool]:
    """Hold the lock of a token; gives whether its process runs no more. Without a lock it has ended, too."""
    try:
        lock = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        yield True
        return
    try:
        yield _seizes(lock) is True
    finally:
        os.close(lock)


def _clear(folder: Path, names: Sequence[re.Match]) -> None:
    for found in names:
        if found["kind"] == ".former" and not os.path.lexists(folder / found["name"]):
            (folder / found[0]).rename(folder / found["name"])
    for found in names:
        if found["kind"] != ".lock":
            _remove(folder / found[0])


def _remove(path: Path) -> None:
    """Remove a file or folder, if it is there and may be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def seconds_since_modification(path: Path) -> float:
    """For how long a file or folder has not been changed, by the clock of its volume; 0 if that cannot be told.

    A shared volume has another host's clock, so the time of a file that is written now is compared with.

    Raises:
        FileNotFoundError: it is gone.
    """
    changed = path.stat().st_mtime
    with suppress(OSError), tempfile.TemporaryFile(dir=path.parent) as probe:  # a full disk, or one that is read only
        os.utime(probe.fileno())
        return max(0.0, os.fstat(probe.fileno()).st_mtime - changed)
    return 0.0


def write_text(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def write_jsonl(path: Path, rows: Iterable[object]) -> None:
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict:
    """Read a JSON file that Tuneline wrote.

    Raises:
        UserError: it is missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run `dvc repro` to make it.") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); delete it and run `dvc repro`.") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply; delete it and run `dvc repro`.") from None


def read_jsonl(path: Path) -> list[dict]:
    """Rows of a JSON Lines file; see :func:`read_numbered_jsonl`."""
    return [row for _, row in read_numbered_jsonl(path)]


def read_numbered_jsonl(path: Path) -> list[tuple[int, dict]]:
    """Rows of a JSON Lines file with their line numbers, counted from 1; blank lines are passed over.

    Raises:
        UserError: it is missing, or a line is not JSON.
    """
    rows = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # splitlines() would cut at U+2028 inside a text
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start + 1}).") from None
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                rows.append((number, json.loads(line)))
            except ValueError as error:
                raise UserError(f"{path}, line {number}, is not valid JSON ({error}).") from None
    return rows
