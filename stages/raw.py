"""Raw data files as rows of bytes: found, unpacked and cut, in bounded memory, with nothing parsed.

``ingest`` counts rows with it and ``validate`` reads them, so that both mean the same by a row.
"""

import gzip
import io
import json
import logging
import os
import re
import unicodedata
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from models.errors import UserError

DATA_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
LONGEST_ROW = 256 * 2**20
_BOM = b"\xef\xbb\xbf"
_BLOCK = 2**20
_GZIP = b"\x1f\x8b"
# A whole string, or a mark that may open or close something; an unfinished string is a lone quote.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|["\[\]{},]', re.DOTALL)
_LONE_RETURN = re.compile(rb"(?<=\r)(?!\n)")
_ARRAY_OPENS = re.compile(rb"\[[ \t]*(?:\{|$)")
log = logging.getLogger("tuneline.raw")


class RawRow(NamedTuple):
    """One row as it came; a tuple, because millions are made and sent from process to process.

    Attributes:
        file: its name below the folder that was read.
        line: counted from 1.
        offset: bytes before the row in its file, once unpacked.
        content: the row's own bytes.
    """

    file: str
    line: int
    offset: int
    content: bytes

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}"


# Finding -------------------------------------------------------------------------------------------


def find_files(source: Path) -> dict[str, Path]:
    """Data files by name: their path below the source folder, or the file's own name.

    Raises:
        UserError: there is none, one cannot be read, or a link leads nowhere or out of the folder.
    """
    if source.is_file():
        found = {source.name: source}
    elif source.is_dir():
        paths = _files_below(source)
        data = [path for path in paths if path.name.lower().endswith(DATA_SUFFIXES)]
        found = {str(path.relative_to(source)): path for path in data}
        if left_out := [str(path.relative_to(source)) for path in paths if path not in data]:
            log.warning("left out, being no .jsonl or .json file: %s", ascii_if_odd(", ".join(left_out)))
    else:
        raise UserError(f"{ascii_if_odd(str(source))} does not exist; name a data file or a folder of them.")
    if not found:
        raise UserError(f"{source} holds no file that ends in {', '.join(DATA_SUFFIXES)}.")
    for path in found.values():
        _refuse_odd(path, source)
    return found


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


def ascii_if_odd(name: str) -> str:
    """A file's name as it can be printed."""
    return name if name.isprintable() else ascii(name)


# Reading -------------------------------------------------------------------------------------------


def read_rows(path: Path, name: str) -> Iterator[RawRow]:
    """The rows of a file: elements of its one JSON array, else its lines that are not blank.

    Lines end at LF, CRLF or CR, as long as all are outside of JSON strings, which cannot hold them.

    Raises:
        UserError: the file cannot be read to its end, as when it is a damaged archive or an array that never ends.
    """
    try:
        with _unpacked(path) as file:
            rows = _array_rows if _is_array(file.read(_BLOCK), name) else _line_rows
            file.seek(0)
            yield from rows(file, name)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{name} is a damaged or cut-off gzip file ({error}); fetch it again.") from None
    except OSError as error:
        raise UserError(f"{name} cannot be read ({error.strerror or error}).") from None


@contextmanager
def _unpacked(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes, unpacked if they are gzip's, whatever the file is called."""
    with path.open("rb") as file:
        packed = file.read(2) == _GZIP
        file.seek(0)
        if not packed:
            yield file
        else:
            with gzip.GzipFile(fileobj=file) as archive, io.BufferedReader(archive, _BLOCK) as unpacked:
                yield unpacked


def _is_array(head: bytes, name: str) -> bool:
    """Whether a file is one JSON array, going by its first block.

    In a .jsonl file a first line such as ``[{`` may also be a row that happens to be a list; it is one if it is
    whole and others follow.
    """
    head = head.removeprefix(_BOM).lstrip()
    if ".jsonl" not in name.lower():
        return head.startswith(b"[")
    line, _, rest = head.partition(b"\n")
    return bool(_ARRAY_OPENS.match(line.strip())) and not (rest.strip() and _is_json(line))


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line.removeprefix(_BOM))
    except (ValueError, RecursionError):
        return False
    return True


def _line_rows(file: BinaryIO, name: str) -> Iterator[RawRow]:
    line = offset = rows = 0
    while raw := file.readline(LONGEST_ROW):
        if len(raw) == LONGEST_ROW:
            raise UserError(f"{name}: line {line + 1} is longer than {LONGEST_ROW >> 20} MiB; cut it into rows.")
        for piece in _at_carriage_returns(raw):
            line += 1
            content = piece.removeprefix(_BOM)
            if stripped := content.strip():
                if stripped == b"{" and rows == 0:
                    raise UserError(
                        f"{name}: the object that begins on line {line} goes on over many lines; write every row on "
                        "one line (`jq -c . FILE`), or all of them as one JSON array."
                    )
                rows += 1
                yield RawRow(name, line, offset + len(piece) - len(content), content.rstrip(b"\r\n"))
            offset += len(piece)


def _at_carriage_returns(raw: bytes) -> list[bytes]:
    """A line, cut again where old files end theirs with CR alone; nothing is taken away.

    A CR inside of one JSON value, where it is a blank, ends nothing.
    """
    if b"\r" not in raw.rstrip(b"\r\n") or _is_json(raw):
        return [raw]
    return [piece for piece in _LONE_RETURN.split(raw) if piece]


def _array_rows(file: BinaryIO, name: str) -> Iterator[RawRow]:
    """Elements between the commas of the outermost array; what they hold is for others to judge."""
    buffer, start, line = b"", 0, 1  # the bytes in view, and the offset and line of the first of them
    # In the buffer: the next byte to look at, where the element begins, and up to where lines are counted.
    position = element = counted = depth = 0
    while depth >= 0:
        # Reading as much again as is there keeps the work linear where one string is longer than a block.
        block = file.read(max(_BLOCK, len(buffer)))
        if not block:
            raise UserError(
                f"{name}: what begins near line {line} (byte {start + element}) is never closed: the file is cut off, "
                "or a quote or bracket is missing there; mend it, or fetch it again."
            )
        buffer += block
        if len(buffer) > LONGEST_ROW:
            raise UserError(f"{name}: the row at byte {start} is longer than {LONGEST_ROW >> 20} MiB.")
        for token in _TOKEN.finditer(buffer, position):
            mark = token[0]
            if mark == b'"':
                break  # a string that goes on in the next block
            position = token.end()
            if mark in (b"[", b"{"):
                depth += 1
                element = position if depth == 1 else element
            elif depth == 1 and mark in (b",", b"]"):
                if content := buffer[element : token.start()].strip():
                    begins = buffer.index(content, element)
                    line, counted = line + buffer.count(b"\n", counted, begins), begins
                    yield RawRow(name, line, start + begins, content)
                element = position
                if mark == b"]":
                    depth = -1
                    break
            elif mark in (b"]", b"}") and depth > 1:
                depth -= 1
        line += buffer.count(b"\n", counted, element)
        buffer, start, position, element, counted = buffer[element:], start + element, position - element, 0, 0
    if buffer.strip() or any(block.strip() for block in iter(lambda: file.read(_BLOCK), b"")):
        raise UserError(f"{name}: text follows the array's end at byte {start}; a file is one array or JSON Lines.")
