"""Hashes, atomic writes, and reading and writing of JSON files.

Files are written under a temporary name next to their target and renamed, so that a killed process leaves the old or
the new version. A folder is exchanged with the old one in one step (renameat2 with RENAME_EXCHANGE). File systems
without RENAME_EXCHANGE need two renames; if the process is killed between them, the next writer in the parent folder
restores the old folder.

Temporary names hold a random token, because process ids repeat on hosts and in containers that share a volume. A lock
file with the same token is locked (flock) while its process lives; the next writer in the folder removes temporary
files whose lock is free. flock works across hosts on NFS 4 and CephFS. On file systems without flock, temporary files
of killed processes remain.
"""

import ctypes
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

from filelock import FileLock, Timeout

from models.errors import UserError

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # constants of Linux
# Hidden names that end in .tmp, which git and DVC ignore.
_LOCK = ".{token}.lock.tmp"
_LEFTOVER = re.compile(r"\.(?:(?P<name>.+)\.)?(?P<token>[0-9a-f]{16})(?P<kind>|\.former|\.lock)\.tmp", re.DOTALL)

_CANONICAL = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"))

# Hashes --------------------------------------------------------------------------------------------


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_json(value: object) -> str:
    """Return the SHA-256 of a JSON value, independent of the order of keys."""
    # surrogatepass: a lone surrogate has no UTF-8 form but needs a hash.
    return hashlib.sha256(_CANONICAL.encode(value).encode("utf-8", "surrogatepass")).hexdigest()


# Atomic writes -------------------------------------------------------------------------------------


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file, and rename the file to ``path`` unless the block raises an error."""
    with _temporary_path(path) as temporary:
        yield temporary
        temporary.replace(path)


@contextmanager
def atomic_write_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder, and replace ``path`` by it unless the block raises an error."""
    with scratch_folder(path) as temporary:
        yield temporary
        if not os.path.lexists(path):
            temporary.replace(path)
        elif not _exchange(temporary, path):
            _replace_in_two_steps(temporary, path)


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder next to ``path``, and remove it after the block."""
    with _temporary_path(path) as temporary:
        temporary.mkdir()
        yield temporary


def remove_folder(path: Path) -> None:
    """Remove a folder, ignoring errors. It is renamed first, because other processes may still write to its path."""
    if os.path.lexists(path):
        with suppress(OSError), _temporary_path(path) as temporary:
            path.rename(temporary)
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
    """Exchange two paths in one step; return False if the system or file system does not support it."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # not Linux with glibc
        return False
    return rename(AT_FDCWD, os.fsencode(first), AT_FDCWD, os.fsencode(second), RENAME_EXCHANGE) == 0


@contextmanager
def _temporary_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to ``path``; during the block its lock is held, and after it the path is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent)
    token, lock = _create_lock(path.parent)
    temporary = path.with_name(f".{path.name}.{token}.tmp")
    try:
        yield temporary
    finally:
        _remove(temporary)
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _create_lock(folder: Path) -> tuple[str, FileLock]:
    """Return a random token and its lock, which is held unless the file system has no locks."""
    while True:
        token = secrets.token_hex(8)
        lock = _lock_of(folder, token)
        try:
            lock.acquire()
        except Timeout:
            continue  # another process locked or removed the file first, taking it for a leftover
        except OSError:
            if not os.path.lexists(lock.lock_file):
                raise
        return token, lock


def _lock_of(folder: Path, token: str) -> FileLock:
    # No fallback to a lock file without flock: a killed process would never release it.
    return FileLock(folder / _LOCK.format(token=token), blocking=False, fallback_to_soft=False)


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files of killed processes from a folder, and restore folders that they were replacing."""
    leftovers: dict[str, list[re.Match]] = {}
    for path in folder.iterdir():
        if match := _LEFTOVER.fullmatch(path.name):
            leftovers.setdefault(match["token"], []).append(match)
    for token, matches in leftovers.items():
        # OSError, such as Timeout: the process lives, the file system has no locks, or another process is faster.
        with suppress(OSError), _lock_of(folder, token) as lock:
            _remove_or_restore(folder, matches)
            Path(lock.lock_file).unlink(missing_ok=True)


def _remove_or_restore(folder: Path, matches: Sequence[re.Match]) -> None:
    for match in matches:
        if match["kind"] == ".former" and not os.path.lexists(folder / match["name"]):
            (folder / match[0]).rename(folder / match["name"])
    for match in matches:
        if match["kind"] != ".lock":
            _remove(folder / match[0])


def _remove(path: Path) -> None:
    """Remove a file or folder, ignoring errors."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def seconds_since_modification(path: Path) -> float:
    """Return the age of a file's or folder's last modification, or 0 if it cannot be determined.

    The age is measured against the modification time of a new file on the same volume, because the clock of a shared
    volume may differ from this host's.

    Raises:
        FileNotFoundError: the path does not exist.
    """
    modified = path.stat().st_mtime
    with suppress(OSError), tempfile.TemporaryFile(dir=path.parent) as probe:  # OSError: disk full or read-only
        os.utime(probe.fileno())
        return max(0.0, os.fstat(probe.fileno()).st_mtime - modified)
    return 0.0


# JSON and text files -------------------------------------------------------------------------------


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
        UserError: the file is missing or not valid JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run `dvc repro` to create it.") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); delete it and run `dvc repro`.") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply; delete it and run `dvc repro`.") from None


def read_jsonl(path: Path) -> list[dict]:
    """Read the rows of a JSON Lines file; see :func:`read_numbered_jsonl`."""
    return [row for _, row in read_numbered_jsonl(path)]


def read_numbered_jsonl(path: Path) -> list[tuple[int, dict]]:
    """Read the rows of a JSON Lines file with their line numbers, from 1; blank lines are skipped.

    Raises:
        UserError: the file is missing or not UTF-8, or a line is not valid JSON.
    """
    rows = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # splitlines() would also split at U+2028 in a text
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
