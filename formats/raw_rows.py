"""Raw data files as rows of bytes: found, unpacked and cut, in bounded memory, with nothing parsed.

``ingest`` counts rows with it and ``validate`` reads them, so that both mean the same by a row. What is no JSON in
UTF-8 at all is refused, see :mod:`formats.foreign_files`.
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
    ascii_if_odd,
    has_data_suffix,
    refuse_by_content,
    refuse_by_name,
)
from models.errors import UserError

LONGEST_ROW = 256 * 2**20
# Texts shrink to a third or a tenth, deflate reaches a thousandth: a file that passes both limits is no text.
MOST_UNPACKED, SMALL_UNPACKED = 200, 64 * 2**20  # times the packed size; bytes that are unpacked in any case
_BLOCK = 2**20
_LONGEST_JUDGED = 4 * 2**20  # bytes; objects of parsed JSON take up to 60 times as much memory
# A whole string, or a mark that may open or close something; an unfinished string is a lone quote. Possessive, since
# the states that a string of escapes leaves for backtracking take 60 bytes a character.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["\[\]{},]', re.DOTALL)
_BLANK_LINES = re.compile(rb"\s*\n")
_BLANK_PIECES = re.compile(rb"\s*\r(?!\n)")
_NAMED = 10  # files that a message names
_ARRAY_OPENS = re.compile(rb"\[[ \t]*(?:\{|$)")
Read = Callable[[int], bytes]  # gives as many bytes as asked for, fewer at the end
log = logging.getLogger("tuneline.raw")


class RawRow(NamedTuple):
    """One row as it came; a tuple, because millions are made and sent from process to process.

    Attributes:
        file: its name below the folder that was read.
        line: counted from 1.
        offset: bytes before the row in its file, once unpacked.
        content: the row's own bytes.
        number: position in the file's JSON array, counted from 1; 0 in JSON Lines.
    """

    file: str
    line: int
    offset: int
    content: bytes
    number: int = 0

    @property
    def place(self) -> str:
        return place_of(self.file, self.line, self.number)


def place_of(file: str, line: int, number: int) -> str:
    """Where a row stands: ``rows.jsonl:3`` is a line, ``rows.json#3`` the third element of an array."""
    return f"{file}#{number}" if number else f"{file}:{line}"


# Finding -------------------------------------------------------------------------------------------


def find_files(source: Path) -> dict[str, Path]:
    """Data files by name: their path below the source folder, or the file's own name.

    Raises:
        UserError: there is none, one cannot be read, or a link leads nowhere or out of the folder.
    """
    if source.is_file():
        refuse_by_name(source)
        found = {source.name: source}
    elif source.is_dir():
        paths = _files_below(source)
        found = {str(path.relative_to(source)): path for path in paths if has_data_suffix(path)}
        if left_out := [str(path.relative_to(source)) for path in paths if not has_data_suffix(path)]:
            log.warning("left out, being no .jsonl or .json file: %s", ascii_if_odd(_some(left_out)))
    else:
        raise UserError(f"{ascii_if_odd(str(source))} does not exist; name a data file or a folder of them.")
    if not found:
        raise UserError(f"{source} holds no file that ends in {', '.join(DATA_SUFFIXES)}.")
    for path in found.values():
        _refuse_odd(path, source)
    return found


def _some(names: list[str]) -> str:
    """The first names and how many others there are."""
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _files_below(folder: Path) -> list[Path]:
    """All files in a folder and its subfolders, in order, and the links to folders, which are not followed."""

    def refuse(error: OSError):
        raise UserError(f"{error.filename} cannot be read ({error.strerror}); give access to it, or move it elsewhere.")

    found = []
    for where, folders, names in os.walk(folder, onerror=refuse):
        links = [name for name in folders if Path(where, name).is_symlink()]
        found += [Path(where, name) for name in (*names, *links)]
    return sorted(found)


def _refuse_odd(path: Path, source: Path) -> None:
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in str(path)):
        raise UserError(f"The name {str(path)!a} holds characters that are no text; rename the file.")
    if not path.is_file():
        raise UserError(f"{path} is no file, or a link that leads nowhere; remove it.")
    if source.is_dir() and not path.resolve().is_relative_to(source.resolve()):
        raise UserError(f"{path} is a link that leads out of {source}; copy the file instead.")


# Reading -------------------------------------------------------------------------------------------


def read_rows(path: Path, name: str) -> Iterator[RawRow]:
    """The rows of a file: elements of its one JSON array, else its lines that are not blank.

    Lines end at LF, CRLF or CR, as long as all are outside of JSON strings, which cannot hold them.

    Raises:
        UserError: the file holds something else than JSON in UTF-8, unpacks to far too much, or cannot be read to its
            end, as when it is a damaged archive or an array that never ends.
    """
    try:
        with _unpacked(path, name) as read:
            head = read(_BLOCK)
            refuse_by_content(head, name)
            rows = _array_rows if _is_array(head, name) else _line_rows
            yield from rows(read, head, name)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{name} is a damaged or cut-off gzip file ({error}); fetch it again.") from None
    except OSError as error:
        raise UserError(f"{name} cannot be read ({error.strerror or error}).") from None


@contextmanager
def _unpacked(path: Path, name: str) -> Iterator[Read]:
    """A function that reads the file's bytes, unpacked if they are gzip's, whatever the file is called.

    Progress is shown in bytes of the file itself.
    """
    size = path.stat().st_size
    progress = {"desc": f"read · 读取 {ascii_if_odd(name)}", "delay": 2, "leave": False}
    with path.open("rb") as file, tqdm.wrapattr(file, "read", total=size, **progress) as watched:
        is_packed = file.peek(2)[:2] == GZIP
        if not is_packed:
            yield watched.read
        else:
            with gzip.GzipFile(fileobj=watched) as archive:
                yield _limited(archive.read, max(MOST_UNPACKED * size, SMALL_UNPACKED), name)


def _limited(read: Read, limit: int, name: str) -> Read:
    """The same function until it has given more bytes than the limit.

    Raises:
        UserError: by the function, at the limit: a small archive may hold a file without end.
    """
    total = 0

    def read_within_limit(size: int) -> bytes:
        nonlocal total
        block = read(size)
        total += len(block)
        if total > limit:
            raise UserError(
                f"{name} unpacks to more than {limit >> 20:,} MiB, {MOST_UNPACKED} times its size, as no text does; "
                f"if it is right, unpack it (`gzip -dk {shlex.quote(name)}`) and give the unpacked file."
            )
        return block

    return read_within_limit


def _is_array(head: bytes, name: str) -> bool:
    """Whether a file is one JSON array, going by its first block.

    In a .jsonl file a first line such as ``[{`` may also be a row that happens to be a list; it is one if it is
    whole and others follow.
    """
    head = head.removeprefix(BOM).lstrip()
    if ".jsonl" not in name.lower():
        return head.startswith(b"[")
    line, _, rest = head.partition(b"\n")
    return bool(_ARRAY_OPENS.match(line.strip())) and not (rest.strip() and _is_json(line))


def _is_json(line: bytes) -> bool:
    if len(line) > _LONGEST_JUDGED:
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
                    f"{name}: the object that begins on line {line} spans several lines; write every row on "
                    "one line (`jq -c . FILE`), or all of them as one JSON array."
                )
            is_first = False
            yield RawRow(name, line, offset + len(raw) - len(content), content.rstrip(b"\r\n"))


def _lines(read: Read, buffer: bytes, name: str) -> Iterator[tuple[int, int, bytes]]:
    """The lines that are not blank: number counted from 1, bytes before it in the file, the line with its end."""
    line, start, position = 1, 0, 0  # of the next byte to look at: its line; the buffer's place in the file; its own
    while True:
        while True:
            # Blank lines by the million are passed over at once.
            if blank := _BLANK_LINES.match(buffer, position):
                line += buffer.count(b"\n", position, blank.end())
                position = blank.end()
            end = buffer.find(b"\n", position) + 1
            if not end:
                break
            raw, before = buffer[position:end], 0
            if b"\r" not in raw:
                yield line, start + position, raw
            else:
                for before, offset, piece in _pieces(raw):
                    yield line + before, start + position + offset, piece
            line, position = line + before + 1, end
        if len(buffer) - position >= LONGEST_ROW:
            raise UserError(f"{name}: line {line} is longer than {LONGEST_ROW >> 20} MiB; cut it into rows.")
        # Reading as much again as is there keeps the work linear where one line is longer than a block.
        block = read(max(_BLOCK, len(buffer) - position))
        if not block:
            break
        buffer, start, position = buffer[position:] + block, start + position, 0
    for before, offset, piece in _pieces(buffer[position:]):
        yield line + before, start + position + offset, piece


def _pieces(raw: bytes) -> Iterator[tuple[int, int, bytes]]:
    """A line, cut again where old files end theirs with CR alone: lines and bytes before each piece, and the piece.

    A CR inside of one JSON value, where it is a blank, ends nothing.
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
    """Elements between the commas of the outermost array; what they hold is for others to judge."""
    start, line, number = 0, 1, 0  # offset and line of the buffer's first byte; rows so far
    # In the buffer: the next byte to look at, where the element begins, and up to where lines are counted.
    position = element = counted = depth = 0
    while depth >= 0:
        for token in _TOKEN.finditer(buffer, position):
            mark = token[0] if token.end() - token.start() == 1 else b""
            if mark == b'"':
                break  # a string that goes on in the next block
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
        raise UserError(f"{name}: text follows the array's end at byte {start}; a file is one array or JSON Lines.")


def _next_block(read: Read, buffer: bytes, name: str, line: int, start: int) -> bytes:
    """Read as many bytes again as the unfinished element has, which keeps the work linear.

    Raises:
        UserError: there are no more, or the element is too long.
    """
    if len(buffer) > LONGEST_ROW:
        raise UserError(f"{name}: the row at byte {start} is longer than {LONGEST_ROW >> 20} MiB.")
    block = read(max(_BLOCK, len(buffer)))
    if not block:
        raise UserError(
            f"{name}: what begins near line {line} (byte {start}) is never closed: the file is cut off, "
            "or a quote or bracket is missing there; mend it, or fetch it again."
        )
    return block
