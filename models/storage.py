"""Files that are whole or absent, and their hashes.

Everything is first written under a temporary name beside its target and then renamed, so that a
kill leaves either the old file or the new one. A folder takes two renames: a kill between them
leaves none, the old one under its temporary name, and never a half-filled one. Temporary names carry
the number of the process, so that whoever writes there next clears away what a killed one left.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from models.errors import UserError

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
def writing(path: Path) -> Iterator[Path]:
    """Give a temporary file to write; rename it to ``path`` if the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        yield temporary
        temporary.replace(path)
        _clear_after_killed(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder beside where ``path`` is or would be; it is gone after the block."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear_after_killed(path)
    temporary = _temporary(path)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def writing_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder to fill; it replaces ``path`` if the block ends well."""
    with scratch_folder(path) as temporary:
        yield temporary
        former = temporary.with_suffix(".former.tmp")
        if path.exists():
            path.replace(former)
        temporary.replace(path)
        shutil.rmtree(former, ignore_errors=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _clear_after_killed(path: Path) -> None:
    """Remove what processes that run no more left beside a file or folder that is whole."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.(\d+)(?:\.former)?\.tmp")
    for left in path.parent.iterdir():
        found = pattern.fullmatch(left.name)
        if found and not _runs(int(found[1])):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass  # somebody else's
    return True


def write_text(path: Path, text: str) -> None:
    with writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def write_jsonl(path: Path, rows: Iterable[object]) -> None:
    with writing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
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
