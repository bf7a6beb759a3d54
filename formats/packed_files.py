"""Unpacking of data files: gzip, zstd, and the data files of a zip archive, in bounded memory.

gzip and zstd are detected by content, not by name. A file that unpacks to far more than text can is refused.
"""

import gzip
import io
import shlex
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from tqdm import tqdm

from formats.foreign_files import GZIP, ZSTD, data_kind, printable_name
from formats.raw_row import READ_BYTES, ReadFunction
from models.errors import UserError

# Limit for decompression bombs. Text shrinks to a third or a tenth, while deflate can reach a thousandth.
MAX_EXPANSION, MIN_UNPACKED = 200, 64 * 2**20  # factor of the packed size; bytes that are unpacked in any case
_ENCRYPTED = 0x1  # flag bits of a zip entry
_UTF8_NAME = 0x800
_IGNORED_FOLDER = "__MACOSX"  # resource forks, which macOS adds to archives


class UnpackedFile(NamedTuple):
    """A data file, unpacked while it is read.

    Attributes:
        name: name in rows and messages, with the path in the archive.
        read: returns the unpacked bytes.
        path: the file itself if it is not packed, else None.
    """

    name: str
    read: ReadFunction
    path: Path | None

    def open_seekable(self) -> BinaryIO:
        """Return the file for random access: the file itself, or a temporary unpacked copy."""
        if self.path is not None:
            return self.path.open("rb")
        copy = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
        while block := self.read(READ_BYTES):
            copy.write(block)
        copy.seek(0)
        return copy


def unpack(path: Path, name: str) -> Iterator[UnpackedFile]:
    """Yield the file, unpacked, or each data file of a zip archive; a file must be read before the next is asked for.

    The progress bar counts bytes of the file itself.

    Args:
        name: name of the file in messages.

    Raises:
        UserError: the file is a damaged or encrypted archive, or one without data files, or a decompression bomb.
            Damage may also raise the error of the library while the file is read.
    """
    size = path.stat().st_size
    progress = {"desc": f"read {printable_name(name)}", "delay": 2, "leave": False}
    limit = UnpackingLimit(name, size)
    with path.open("rb") as file, tqdm.wrapattr(file, "read", total=size, **progress) as monitored:
        magic = file.peek(4)[:4]
        if name.lower().endswith(".zip"):
            yield from _unpack_zip(monitored, name, limit)
        elif magic[:2] == GZIP or magic == ZSTD:
            yield UnpackedFile(name, limit.watch(_decompressor(monitored, magic, name)), None)
        else:
            yield UnpackedFile(name, monitored.read, path)


class UnpackingLimit:
    """Refuses a file that unpacks to more bytes than text can."""

    def __init__(self, name: str, size: int):
        self.bytes = max(MAX_EXPANSION * size, MIN_UNPACKED)
        self._name, self._total = name, 0

    def add(self, count: int) -> None:
        """Count unpacked bytes.

        Raises:
            UserError: their sum exceeds the limit.
        """
        self._total += count
        if self._total > self.bytes:
            raise UserError(
                f"{self._name} unpacks to more than {self.bytes >> 20:,} MiB, {MAX_EXPANSION} times its size, unlike "
                f"any text. If the file is correct, {_unpacking_hint(self._name)} and name the unpacked file."
            )

    def watch(self, read: ReadFunction) -> ReadFunction:
        """Return a function that reads in the same way, and counts the bytes."""

        def read_within_limit(size: int) -> bytes:
            block = read(size)
            self.add(len(block))
            return block

        return read_within_limit


def _unpacking_hint(name: str) -> str:
    command = {".gz": "gzip -dk", ".zst": "unzstd", ".zip": "unzip"}.get(Path(name).suffix.lower())
    return f"unpack it (`{command} {shlex.quote(name)}`)" if command else "save it without compression"


def _decompressor(file: BinaryIO, magic: bytes, name: str) -> ReadFunction:
    """Return a function that reads the unpacked bytes of a gzip or zstd file."""
    if magic[:2] == GZIP:
        return gzip.GzipFile(fileobj=file).read
    # pyarrow has zstd built in; it takes 0.1 s to import, so only where it is needed.
    import pyarrow

    stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(file, "r"), "zstd")

    def read(size: int) -> bytes:
        try:
            return stream.read(size)
        except (OSError, pyarrow.ArrowException) as error:
            raise UserError(f"{name} is a damaged or truncated zstd file ({error}); download it again.") from None

    return read


# Zip -----------------------------------------------------------------------------------------------


def _unpack_zip(file: BinaryIO, name: str, limit: UnpackingLimit) -> Iterator[UnpackedFile]:
    with zipfile.ZipFile(file) as archive:
        members = _data_members(archive, name)
        for member_name, info in members.items():
            with archive.open(info) as member:
                packed = io.BufferedReader(member)
                magic = packed.peek(4)[:4]
                is_packed = magic[:2] == GZIP or magic == ZSTD
                read = _decompressor(packed, magic, member_name) if is_packed else packed.read
                yield UnpackedFile(member_name, limit.watch(read), None)


def _data_members(archive: zipfile.ZipFile, name: str) -> dict[str, zipfile.ZipInfo]:
    """Return the data files of an archive by name, which is the path below the archive's own name.

    Raises:
        UserError: there is none, or a file is encrypted, stands twice, or has a path out of the archive.
    """
    members = {}
    for info in archive.infolist():
        path = _decode_name(info)
        if info.is_dir() or path.startswith(f"{_IGNORED_FOLDER}/") or data_kind(path) in (None, "zip"):
            continue
        _refuse_path(path, name)
        if info.flag_bits & _ENCRYPTED:
            raise UserError(
                f"{name}: {path} is protected by a password; unpack the archive and name the unpacked file."
            )
        if f"{name}/{path}" in members:
            raise UserError(f"{name} has two files named {path}; unpack the archive and rename one of them.")
        members[f"{name}/{path}"] = info
    if not members:
        raise UserError(f"{name} has no data file such as .jsonl, .csv or .parquet in it; name another archive.")
    return members


def _decode_name(info: zipfile.ZipInfo) -> str:
    """Return the name of a zip entry; names without the UTF-8 flag are UTF-8 or, on Chinese Windows, GB18030."""
    if info.flag_bits & _UTF8_NAME or info.filename.isascii():
        return info.filename
    raw = info.filename.encode("cp437", "replace")
    for encoding in ("utf-8", "gb18030"):
        try:
            return raw.decode(encoding)
        except UnicodeDecodeError:
            continue
    return info.filename


def _refuse_path(path: str, name: str) -> None:
    """Raise UserError for a path out of the archive, which only a damaged or malicious archive has."""
    parts = PurePosixPath(path).parts
    if path.startswith("/") or ".." in parts or "\\" in path or ":" in parts[0] or not path.isprintable():
        raise UserError(f"{name} has a file with the path {path!a}, which leads out of the archive; do not use it.")
