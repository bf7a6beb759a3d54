"""Files that are no JSON in UTF-8: tables, archives, other encodings; with the command that converts each.

``raw`` refuses such a file by its name or by its first bytes, once unpacked.
"""

import codecs
import re
import shlex
from pathlib import Path

from models.errors import UserError

DATA_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
BOM, GZIP = b"\xef\xbb\xbf", b"\x1f\x8b"
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
    (GZIP, "packed by gzip twice", ".gz"), (b"PAR1", "a Parquet file", ".parquet"),
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


def has_data_suffix(path: Path) -> bool:
    """Whether a file's name is that of JSON Lines or of a JSON array, plain or packed by gzip."""
    return path.name.lower().endswith(DATA_SUFFIXES)


def ascii_if_odd(name: str) -> str:
    """A file's name as it can be printed."""
    return name if name.isprintable() else ascii(name)


def refuse_by_name(path: Path) -> None:
    """Refuse a file that is left out of a folder for its name."""
    if not has_data_suffix(path):
        way = _way_to_json_lines(path.name, _head_of(path))
        raise UserError(f"{ascii_if_odd(str(path))} is no .jsonl or .json file; {way}.")


def _head_of(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_SAMPLED)
    except OSError:
        return b""


def refuse_by_content(head: bytes, name: str) -> None:
    """Refuse a file that is something else than its name says, going by its first bytes, once unpacked."""
    opening = head[:64].removeprefix(BOM).lstrip().lower()
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
    lines = [line.strip(b"\r") for line in head.removeprefix(BOM).split(b"\n", 20)[:20] if line.strip()]
    if len(lines) < 2 or any(line.lstrip()[:1] in (b"{", b"[") for line in lines):
        return None
    for delimiter in (b"\t", b","):
        cells = [line.count(delimiter) for line in lines[:2]]
        names = lines[0].split(delimiter)
        if min(cells) >= 1 and cells[1] >= cells[0] and all(_CELL.fullmatch(name) for name in names):
            return delimiter
    return None
