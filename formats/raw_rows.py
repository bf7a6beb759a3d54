"""Reader of raw data files: finds and unpacks them, and splits them into rows of bytes without parsing the rows.

Stages ingest, validate and drift share this definition of a row. Files that are not JSON in UTF-8 are refused, see
:mod:`formats.foreign_files`.

No library serves here. ``json`` and ``orjson`` parse whole files; streaming parsers such as ``ijson`` return values and
stop at the first syntax error. The gate needs the bytes, line and offset of every row, broken ones included, in bounded
memory, so that it can quarantine single rows and report their location.
"""

import gzip
import json
import logging
import os
import re
import shlex
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from formats.foreign_files import (
    BOM,
    DATA_SUFFIXES,
    GZIP,
    has_data_suffix,
    printable_name,
    refuse_by_content,
    refuse_by_name,
)
from models.errors import UserError

MAX_ROW = 256 * 2**20  # bytes
# Limit for decompression bombs. Text shrinks to a third or a tenth, while deflate can reach a thousandth.
MAX_EXPANSION, MIN_UNPACKED = 200, 64 * 2**20  # factor of the packed size; bytes that are unpacked in any case
_BLOCK = 2**20  # bytes
_MAX_PARSED_LINE = 4 * 2**20  # bytes; parsed JSON takes up to 60 times as much memory
# A whole string, or a structural character; an unfinished string is a lone quote. Possessive, because a string of
# escapes would leave backtracking states of 60 bytes per character.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["\[\]{},]', re.DOTALL)
_BLANK_LINES = re.compile(rb"\s*\n")
_BLANK_PIECES = re.compile(rb"\s*\r(?!\n)")
_MAX_NAMES = 10  # files listed in a message
_ARRAY_START = re.compile(rb"\[[ \t]*(?:\{|$)")
Read = Callable[[int], bytes]  # returns up to this many bytes, fewer only at the end of the file
log = logging.getLogger("tuneline.raw")


class RawRow(NamedTuple):
    """The bytes of one row and their location. A tuple, because millions are created and sent between processes.

    Attributes:
        file: path below the source folder.
        line: line of the first byte, from 1.
        offset: bytes before the row in the unpacked file.
        content: the bytes of the row.
        number: position in a JSON array, from 1; 0 in JSON Lines.
    """

    file: str
    line: int
    offset: int
    content: bytes
    number: int = 0

    @property
    def location(self) -> str:
        """The location as reports show it."""
        return format_location(self.file, self.line, self.number)


def format_location(file: str, line: int, number: int) -> str:
    """Return ``rows.jsonl:3`` for line 3 of JSON Lines, ``rows.json#3`` for element 3 of a JSON array."""
    return f"{file}#{number}" if number else f"{file}:{line}"


# Files ---------------------------------------------------------------------------------------------


def find_files(source: Path) -> dict[str, Path]:
    """Return the data files of a source by name: the path below the source folder, or the name of a single file.

    Other files of a folder are skipped with a warning.

    Raises:
        UserError: there is no data file, a folder cannot be read, or a link is broken or leads out of the source.
    """
    if source.is_file():
        refuse_by_name(source)
        files = {source.name: source}
    elif source.is_dir():
        paths = _list_files(source)
        files = {str(path.relative_to(source)): path for path in paths if has_data_suffix(path)}
        if skipped := [str(path.relative_to(source)) for path in paths if not has_data_suffix(path)]:
            log.warning("skipped, not a .jsonl or .json file: %s", printable_name(_shorten_list(skipped)))
    else:
        raise UserError(f"{printable_name(str(source))} does not exist; name a data file or a folder of data files.")
    if not files:
        raise UserError(f"{source} has no file that ends in {', '.join(DATA_SUFFIXES)}.")
    for path in files.values():
        _refuse_path(path, source)
    return files


def _shorten_list(names: list[str]) -> str:
    """Return the first names and the number of the others."""
    more = f" and {len(names) - _MAX_NAMES:,} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more


def _list_files(folder: Path) -> list[Path]:
    """Return all files below a folder, sorted, and the links to folders, which are not followed."""

    def refuse(error: OSError):
        raise UserError(f"{error.filename} cannot be read ({error.strerror}); grant read access or move it elsewhere.")

    paths = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        links = [name for name in folders if Path(parent, name).is_symlink()]
        paths += [Path(parent, name) for name in (*names, *links)]
    return sorted(paths)


def _refuse_path(path: Path, source: Path) -> None:
    """Raise UserError for a name that cannot be printed, a broken link, or a link out of the source."""
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in str(path)):
        raise UserError(f"The file name {str(path)!a} has control characters or is not UTF-8; rename the file.")
    if not path.is_file():
        raise UserError(f"{path} is a broken link or not a regular file; remove it.")
    if source.is_dir() and not path.resolve().is_relative_to(source.resolve()):
        raise UserError(f"{path} is a link out of {source}; copy the file instead.")


# Reading -------------------------------------------------------------------------------------------


def read_rows(path: Path, name: str) -> Iterator[RawRow]:
    """Yield the rows of a file: the elements of its JSON array, or its lines that are not blank.

    Lines end at LF, CRLF or CR; JSON strings cannot contain these.

    Args:
        path: file, plain or packed by gzip.
        name: name of the file in rows and messages.

    Raises:
        UserError: the file is not JSON in UTF-8, is a damaged archive or a decompression bomb, or ends within an array.
    """
    try:
        with _unpacked(path, name) as read:
            head = read(_BLOCK)
            refuse_by_content(head, name)
            rows = _array_rows if _is_array(head, name) else _line_rows
            yield from rows(read, head, name)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{name} is a damaged or truncated gzip file ({error}); download it again.") from None
    except OSError as error:
        raise UserError(f"{name} cannot be read ({error.strerror or error}).") from None


@contextmanager
def _unpacked(path: Path, name: str) -> Iterator[Read]:
    """Yield a function that reads the unpacked bytes of a file; gzip is detected by content, not by name.

    The progress bar counts bytes of the file itself.
    """
    size = path.stat().st_size
    progress = {"desc": f"read {printable_name(name)}", "delay": 2, "leave": False}
    with path.open("rb") as file, tqdm.wrapattr(file, "read", total=size, **progress) as monitored:
        is_packed = file.peek(2)[:2] == GZIP
        if not is_packed:
            yield monitored.read
        else:
            with gzip.GzipFile(fileobj=monitored) as archive:
                yield _limit(archive.read, max(MAX_EXPANSION * size, MIN_UNPACKED), name)


def _limit(read: Read, limit: int, name: str) -> Read:
    """Return a function that reads in the same way, and raises UserError after this many bytes."""
    total = 0

    def read_within_limit(size: int) -> bytes:
        nonlocal total
        block = read(size)
        total += len(block)
        if total > limit:
            raise UserError(
                f"{name} unpacks to more than {limit >> 20:,} MiB, {MAX_EXPANSION} times its size, unlike any text. If "
                f"the file is correct, unpack it (`gzip -dk {shlex.quote(name)}`) and name the unpacked file."
            )
        return block

    return read_within_limit


def _is_array(head: bytes, name: str) -> bool:
    """Whether a file is one JSON array, by its first block.

    In a .jsonl file, a first line that begins with ``[{`` may also be a row that is a list: it is a row if the line is
    valid JSON and more lines follow.
    """
    head = head.removeprefix(BOM).lstrip()
    if ".jsonl" not in name.lower():
        return head.startswith(b"[")
    line, _, rest = head.partition(b"\n")
    return bool(_ARRAY_START.match(line.strip())) and not (rest.strip() and _is_json(line))


def _is_json(line: bytes) -> bool:
    if len(line) > _MAX_PARSED_LINE:
        return False
    try:
        json.loads(line.removeprefix(BOM))
    except (ValueError, RecursionError):
        return False
    return True


def _line_rows(read: Read, head: bytes, name: str) -> Iterator[RawRow]:
    is_first = True
    for line, offset, raw in _lines(read, head, name):
        content = raw.removeprefix(BOM)
        if stripped := content.strip():
            if stripped == b"{" and is_first:
                raise UserError(
                    f"{name}: the object on line {line} spans several lines; write every row on one line "
                    "(`jq -c . FILE`), or all rows as one JSON array."
                )
            is_first = False
            yield RawRow(name, line, offset + len(raw) - len(content), content.rstrip(b"\r\n"))


def _lines(read: Read, buffer: bytes, name: str) -> Iterator[tuple[int, int, bytes]]:
    """Yield the lines that are not blank: number from 1, offset in the file, and bytes with the line ending."""
    line, start, position = 1, 0, 0  # current line; offset of the buffer in the file; position in the buffer
    while True:
        while True:
            # Millions of blank lines are skipped in one step.
            if blank := _BLANK_LINES.match(buffer, position):
                line += buffer.count(b"\n", position, blank.end())
                position = blank.end()
            end = buffer.find(b"\n", position) + 1
            if not end:
                break
            raw, skipped = buffer[position:end], 0
            if b"\r" not in raw:
                yield line, start + position, raw
            else:
                for skipped, offset, piece in _split_at_cr(raw):
                    yield line + skipped, start + position + offset, piece
            line, position = line + skipped + 1, end
        if len(buffer) - position >= MAX_ROW:
            raise UserError(f"{name}: line {line} is longer than {MAX_ROW >> 20} MiB; write one row per line.")
        # Doubling the buffer keeps the time linear if a line is longer than a block.
        block = read(max(_BLOCK, len(buffer) - position))
        if not block:
            break
        buffer, start, position = buffer[position:] + block, start + position, 0
    for skipped, offset, piece in _split_at_cr(buffer[position:]):
        yield line + skipped, start + position + offset, piece


def _split_at_cr(raw: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Split a line at CR, the line ending of old files: yield lines before each piece, its offset, and the piece.

    A CR within a JSON value is white space, so a line that is valid JSON is not split.
    """
    if b"\r" not in raw.rstrip(b"\r\n") or _is_json(raw):
        yield 0, 0, raw
        return
    line = position = 0
    while position < len(raw):
        if blank := _BLANK_PIECES.match(raw, position):
            line += raw.count(b"\r", position, blank.end())
            position = blank.end()
        end = raw.find(b"\r", position) + 1 or len(raw)
        end += raw[end : end + 1] == b"\n"
        yield line, position, raw[position:end]
        line, position = line + 1, end


def _array_rows(read: Read, buffer: bytes, name: str) -> Iterator[RawRow]:
    """Yield the elements of the outermost array, split at its commas; their content is not validated."""
    start, line, number = 0, 1, 0  # offset and line of the first byte of the buffer; rows so far
    # Positions in the buffer: next byte, start of the element, and end of the counted lines.
    position = element = counted = depth = 0
    while depth >= 0:
        for token in _TOKEN.finditer(buffer, position):
            mark = token[0] if token.end() - token.start() == 1 else b""
            if mark == b'"':
                break  # the string continues in the next block
            position = token.end()
            if mark in (b"[", b"{"):
                depth += 1
                element = position if depth == 1 else element
            elif depth == 1 and mark in (b",", b"]"):
                if content := buffer[element : token.start()].strip():
                    begins = token.start() - len(buffer[element : token.start()].lstrip())
                    line, counted = line + buffer.count(b"\n", counted, begins), begins
                    number += 1
                    yield RawRow(name, line, start + begins, content, number)
                element = position
                if mark == b"]":
                    depth = -1
                    break
            elif mark in (b"]", b"}") and depth > 1:
                depth -= 1
        line += buffer.count(b"\n", counted, element)
        buffer, start, position, element, counted = buffer[element:], start + element, position - element, 0, 0
        if depth >= 0:
            buffer += _next_block(read, buffer, name, line, start)
    if buffer.strip() or any(block.strip() for block in iter(lambda: read(_BLOCK), b"")):
        raise UserError(f"{name}: text after the end of the array at byte {start}; a file is one array or JSON Lines.")


def _next_block(read: Read, buffer: bytes, name: str, line: int, start: int) -> bytes:
    """Read the next block, as long as the unfinished element, which keeps the time linear.

    Raises:
        UserError: the file ends within the element, or the element is too long.
    """
    if len(buffer) > MAX_ROW:
        raise UserError(f"{name}: the row at byte {start} is longer than {MAX_ROW >> 20} MiB; remove or split it.")
    block = read(max(_BLOCK, len(buffer)))
    if not block:
        raise UserError(
            f"{name}: the element near line {line} (byte {start}) is not closed: the file is truncated, or a quote or "
            "bracket is missing; correct the file or download it again."
        )
    return block
