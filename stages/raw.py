"""Raw data files as rows of bytes: found, unpacked and cut, in bounded memory, with nothing parsed.

``ingest`` counts rows with it and ``validate`` reads them, so that both mean the same by a row. What is no JSON in
UTF-8 at all, such as a table, an archive or text in another encoding, is refused with the way to convert it.
"""

import codecs
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

from models.errors import UserError

DATA_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
LONGEST_ROW = 256 * 2**20
# Texts shrink to a third or a tenth, deflate reaches a thousandth: a file that passes both limits is no text.
MOST_UNPACKED, SMALL_UNPACKED = 200, 64 * 2**20  # times the packed size; bytes that are unpacked in any case
_BOM = b"\xef\xbb\xbf"
_BLOCK = 2**20
_GZIP = b"\x1f\x8b"
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
        _refuse_by_name(source)
        found = {source.name: source}
    elif source.is_dir():
        paths = _files_below(source)
        found = {str(path.relative_to(source)): path for path in paths if _has_data_suffix(path)}
        if left_out := [str(path.relative_to(source)) for path in paths if not _has_data_suffix(path)]:
            log.warning("left out, being no .jsonl or .json file: %s", ascii_if_odd(_some(left_out)))
    else:
        raise UserError(f"{ascii_if_odd(str(source))} does not exist; name a data file or a folder of them.")
    if not found:
        raise UserError(f"{source} holds no file that ends in {', '.join(DATA_SUFFIXES)}.")
    for path in found.values():
        _refuse_odd(path, source)
    return found


def _has_data_suffix(path: Path) -> bool:
    return path.name.lower().endswith(DATA_SUFFIXES)


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


def ascii_if_odd(name: str) -> str:
    """A file's name as it can be printed."""
    return name if name.isprintable() else ascii(name)


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
            _refuse_by_content(head, name)
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
        is_packed = file.peek(2)[:2] == _GZIP
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
    head = head.removeprefix(_BOM).lstrip()
    if ".jsonl" not in name.lower():
        return head.startswith(b"[")
    line, _, rest = head.partition(b"\n")
    return bool(_ARRAY_OPENS.match(line.strip())) and not (rest.strip() and _is_json(line))


def _is_json(line: bytes) -> bool:
    if len(line) > _LONGEST_JUDGED:
        return False
    try:
        json.loads(line.removeprefix(_BOM))
    except (ValueError, RecursionError):
        return False
    return True


def _line_rows(read: Read, head: bytes, name: str) -> Iterator[RawRow]:
    is_first = True
    for line, offset, raw in _lines(read, head, name):
        content = raw.removeprefix(_BOM)
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


# What is no JSON in UTF-8 --------------------------------------------------------------------------

_CSV_READER = (
    'python -c "import csv, json, sys; [print(json.dumps(row, ensure_ascii=False)) for row in csv.DictReader(sys.stdin'
    '{delimiter})]"'
)
_PANDAS = (
    "python -c \"import pandas; pandas.{reader}({source!r}).to_json({target!r}, orient='records', lines=True, "
    'force_ascii=False)"'
)
_ARCHIVES = {".zip": "unzip", ".tar": "tar -xf", ".tgz": "tar -xf", ".rar": "unrar x", ".7z": "7z x"}
_PACKERS = {".bz2": "bunzip2", ".xz": "unxz", ".zst": "unzstd"}
_READERS = {".parquet": "read_parquet", ".feather": "read_feather", ".arrow": "read_feather", ".xlsx": "read_excel",
            ".xls": "read_excel", ".ods": "read_excel", ".pkl": None, ".pickle": None}  # fmt: skip
# How files begin that are often given the wrong name, and the suffix that would be right.
_BEGINNINGS = (
    (b"PK\x03\x04", "a zip archive or an Excel workbook", ".zip"), (b"PK\x05\x06", "an empty zip archive", ".zip"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", ".7z"), (b"Rar!", "a RAR archive", ".rar"),
    (b"BZh", "packed by bzip2", ".bz2"), (b"\xfd7zXZ", "packed by xz", ".xz"),
    (b"(\xb5/\xfd", "packed by zstd", ".zst"),
    (_GZIP, "packed by gzip twice", ".gz"), (b"PAR1", "a Parquet file", ".parquet"),
    (b"ARROW1", "an Arrow file", ".arrow"), (b"\xd0\xcf\x11\xe0", "an old Office file", ".xls"),
    (b"%PDF", "a PDF", ""), (b"SQLite format 3", "an SQLite database", ""),
    (b"version https://git-lfs", "a pointer of Git LFS", ""),
    (b"<!doctype", "a web page", ""), (b"<html", "a web page", ""),
)  # fmt: skip
_UNICODE = ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"),
            (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip
_CELL = re.compile(rb"[^{}\[\]:]{1,40}")
_SAMPLED = 2**16  # bytes by which an encoding is told
_COMMON_SHARE = 0.6  # of Chinese characters that are everyday ones: 0.9 in texts, 0.3 where the encoding is wrong


def _refuse_by_name(path: Path) -> None:
    """Refuse a file that is left out of a folder for its name."""
    if not _has_data_suffix(path):
        way = _way_to_json_lines(path.name, _head_of(path))
        raise UserError(f"{ascii_if_odd(str(path))} is no .jsonl or .json file; {way}.")


def _head_of(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_SAMPLED)
    except OSError:
        return b""


def _refuse_by_content(head: bytes, name: str) -> None:
    """Refuse a file that is something else than its name says, going by its first bytes, once unpacked."""
    opening = head[:64].removeprefix(_BOM).lstrip().lower()
    for beginning, kind, suffix in _BEGINNINGS:
        if head.startswith(beginning) or (beginning[:1] == b"<" and opening.startswith(beginning)):
            raise UserError(f"{name} is {kind}, not JSON; {_way_to_json_lines(Path(name).stem + suffix, head)}.")
    if head[257:262] == b"ustar":
        raise UserError(f"{name} is a tar archive, not JSON; {_way_to_json_lines(Path(name).stem + '.tar', head)}.")
    if encoding := encoding_of(head):
        raise UserError(f"{name} looks like {encoding.upper()}; save it as UTF-8: {_iconv(name, encoding)}.")
    if delimiter := _delimiter_of(head):
        suffix = ".tsv" if delimiter == b"\t" else ".csv"
        raise UserError(f"{name} looks like a table, not JSON; {_way_to_json_lines(Path(name).stem + suffix, head)}.")


def _way_to_json_lines(name: str, head: bytes) -> str:
    """What to do with a file of that name."""
    suffix, source = Path(name).suffix.lower(), shlex.quote(name)
    target = f"{Path(name).stem}.jsonl"
    if suffix in (".csv", ".tsv"):
        encoding = encoding_of(head)
        opened = f"iconv -f {encoding} -t utf-8 {source}" if encoding else f"cat {source}"
        reader = _CSV_READER.format(delimiter=r", delimiter='\t'" if suffix == ".tsv" else "")
        return f"convert it: {opened} | {reader} > {shlex.quote(target)}"
    if suffix in _ARCHIVES:
        return f"unpack it (`{_ARCHIVES[suffix]} {source}`) and name the .jsonl or .json file in it"
    if suffix in _PACKERS:
        return f"unpack it: {_PACKERS[suffix]} {source}"
    if reader := _READERS.get(suffix):
        return f"convert it: {_PANDAS.format(reader=reader, source=name, target=target)}"
    if head.startswith(b"version https://git-lfs"):
        return "fetch what it points to: git lfs pull"
    if suffix == ".gz":
        return f"unpack it: gzip -d {source}"
    return f"name a .jsonl or .json file; if it holds one JSON object a line, rename it to {shlex.quote(target)}"


def _iconv(name: str, encoding: str) -> str:
    source, target = shlex.quote(name), shlex.quote(f"utf8-{Path(name).name.removesuffix('.gz')}")
    if name.endswith(".gz"):
        return f"gzip -dc {source} | iconv -f {encoding} -t utf-8 > {target}"
    return f"iconv -f {encoding} -t utf-8 {source} > {target}"


def encoding_of(head: bytes) -> str | None:
    """The encoding of a file that is not in UTF-8, by its first bytes; None if it may be, or cannot be told."""
    for mark, encoding in _UNICODE:
        if head.startswith(mark):
            return encoding
    sample = head[:_SAMPLED]
    for offset, encoding in ((1, "utf-16le"), (0, "utf-16be")):
        # ASCII, such as brackets and quotes, leaves every other byte 0.
        if (
            len(sample) >= 4
            and sample[:16][offset::2].strip(b"\0") == b""
            and sample[:16][1 - offset :: 2].strip(b"\0")
        ):
            return encoding
    # A file with some broken lines among good ones is no other encoding. The last line may be cut.
    lines = [line for line in sample.split(b"\n") if not line.isascii()]
    broken = [line for line in lines if not _decodes(line, "utf-8")]
    if not lines or len(broken) < 0.9 * len(lines):
        return None
    return next((name for name in ("gb18030", "big5") if _is_everyday_chinese(b"\n".join(broken), name)), None)


def _decodes(line: bytes, encoding: str) -> str | None:
    """The text, without a character that is cut off at the end; None in another encoding."""
    try:
        return codecs.getincrementaldecoder(encoding)().decode(line)
    except UnicodeDecodeError:
        return None


def _is_everyday_chinese(sample: bytes, encoding: str) -> bool:
    """Whether bytes are text in an encoding: any pair of bytes gives some character, but seldom an everyday one."""
    text = _decodes(sample, encoding)
    han = [character for character in text or "" if "\u4e00" <= character <= "\u9fff"]
    first, last, codec = (0xB0, 0xD7, "gb2312") if encoding == "gb18030" else (0xA4, 0xC6, "big5")
    everyday = sum(first <= character.encode(codec, "replace")[0] <= last for character in han)
    return bool(han) and everyday >= _COMMON_SHARE * len(han)


def _delimiter_of(head: bytes) -> bytes | None:
    """What separates the columns of a table that has a header; None if the file is none."""
    lines = [line.strip(b"\r") for line in head.removeprefix(_BOM).split(b"\n", 20)[:20] if line.strip()]
    if len(lines) < 2 or any(line.lstrip()[:1] in (b"{", b"[") for line in lines):
        return None
    for delimiter in (b"\t", b","):
        cells = [line.count(delimiter) for line in lines[:2]]
        names = lines[0].split(delimiter)
        if min(cells) >= 1 and cells[1] >= cells[0] and all(_CELL.fullmatch(name) for name in names):
            return delimiter
    return None
