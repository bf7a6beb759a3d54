"""Reader of raw data files: finds and unpacks them, and splits them into rows of bytes without parsing the rows.

Stages ingest, validate and drift share this definition of a row. The type of a file is its suffix. Text files that are
not UTF-8 are refused, see :mod:`formats.foreign_files`, unless the caller names their encoding.
"""

import codecs
import gzip
import logging
import lzma
import os
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from formats.foreign_files import (
    DATA_SUFFIXES,
    data_kind,
    detect_encoding,
    has_data_suffix,
    is_utf8,
    printable_name,
    refuse_by_content,
    refuse_by_name,
)
from formats.json_rows import is_array, split_array, split_lines
from formats.packed_files import UnpackedFile, unpack
from formats.raw_row import READ_BYTES, RawRow, ReadFunction
from formats.table_rows import DELIMITERS, read_csv, read_parquet, read_xlsx
from models.errors import UserError

HUB_RECORD = ".tuneline-download"  # file in a folder with the origin of its files, see :mod:`pipelines.download`
UTF8 = "utf-8"
_MAX_NAMES = 10  # files listed in a message
# What gzip and zipfile raise for damage; NotImplementedError for an unknown method, UnicodeDecodeError for a name.
_DAMAGE = (
    EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError,
)  # fmt: skip
log = logging.getLogger("tuneline.raw")


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
        skipped = [
            str(path.relative_to(source)) for path in paths if not has_data_suffix(path) and path.name != HUB_RECORD
        ]
        if skipped:
            log.warning("skipped, not data files: %s", printable_name(_shorten_list(skipped)))
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


def read_rows(path: Path, name: str, encoding: str = UTF8) -> Iterator[RawRow]:
    """Yield the rows of a file: elements of a JSON array, lines that are not blank, or rows of a table.

    Args:
        path: file, plain or packed by gzip or zstd, or a zip archive of such files.
        name: name of the file in rows and messages.
        encoding: of text files that are not UTF-8.

    Raises:
        UserError: the file has another type or encoding, is damaged or a decompression bomb, or ends within an array.
    """
    try:
        for file in unpack(path, name):
            yield from _read_unpacked(file, encoding)
    except _DAMAGE as error:
        kind = "zip" if name.lower().endswith(".zip") else "gzip"
        raise UserError(f"{name} is a damaged or truncated {kind} file ({error}); download it again.") from None
    except OSError as error:
        raise UserError(f"{name} cannot be read ({error.strerror or error}).") from None


def _read_unpacked(file: UnpackedFile, encoding: str) -> Iterator[RawRow]:
    kind = data_kind(file.name) or "json"
    if kind == "parquet":
        yield from read_parquet(file)
    elif kind == "xlsx":
        yield from read_xlsx(file)
    else:
        head, read = file.read(READ_BYTES), file.read
        if encoding != UTF8 and not is_utf8(head, encoding):
            read = _decode(head, read, file.name, encoding)
            head = read(READ_BYTES)
        refuse_by_content(head, file.name, kind)
        if kind in DELIMITERS:
            yield from read_csv(read, head, file.name, DELIMITERS[kind])
        else:
            split = split_array if is_array(head, file.name) else split_lines
            yield from split(read, head, file.name)


def _decode(head: bytes, read: ReadFunction, name: str, encoding: str) -> ReadFunction:
    """Return a function that reads a file in UTF-8.

    Args:
        head: the first block of the file, already read.
        encoding: of the file; the byte order of UTF-16 without a mark is detected.
    """
    detected = detect_encoding(head) or ""
    decoder = codecs.getincrementaldecoder(detected if detected.startswith(encoding) else encoding)()
    blocks, position = [head], 0

    def read_utf8(size: int) -> bytes:
        nonlocal position
        while True:
            block = blocks.pop() if blocks else read(size)
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{name} is not {encoding.upper()} near byte {position + error.start + 1}; correct ingest.encoding "
                    "in params.yaml, or the file."
                ) from None
            position += len(block)
            if text or not block:
                return text.encode(UTF8)

    return read_utf8
