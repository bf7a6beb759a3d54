"""Types of data files, and the refusal of other files and encodings, with the command that converts them.

The raw reader refuses a file by its name, or a text file by the first bytes of its unpacked content.
"""

import codecs
import re
import shlex
from pathlib import Path

from models.errors import UserError

KINDS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet", ".xlsx": "xlsx"}
_PACKED = (".gz", ".zst")
DATA_SUFFIXES = (*(f"{suffix}{packed}" for suffix in KINDS for packed in ("", *_PACKED)), ".zip")
BOM, GZIP, ZSTD, ZIP = b"\xef\xbb\xbf", b"\x1f\x8b", b"(\xb5/\xfd", b"PK\x03\x04"
_PANDAS = (
    "python -c \"import pandas; pandas.{reader}({source!r}).to_json({target!r}, orient='records', lines=True, "
    'force_ascii=False)"'
)
_ARCHIVES = {".tar": "tar -xf", ".tgz": "tar -xf", ".rar": "unrar x", ".7z": "7z x"}
_PACKERS = {".bz2": "bunzip2", ".xz": "unxz"}
_READERS = {".feather": "read_feather", ".arrow": "read_feather", ".xls": "read_excel", ".ods": "read_excel",
            ".pkl": None, ".pickle": None}  # fmt: skip
# First bytes of other file types, their description, and their suffix.
_MAGIC_BYTES = (
    (ZIP, "a zip archive or an Excel workbook", ".zip"), (b"PK\x05\x06", "an empty zip archive", ".zip"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", ".7z"), (b"Rar!", "a RAR archive", ".rar"),
    (b"BZh", "packed by bzip2", ".bz2"), (b"\xfd7zXZ", "packed by xz", ".xz"),
    (ZSTD, "packed twice", ".zst"), (GZIP, "packed by gzip twice", ".gz"), (b"PAR1", "a Parquet file", ".parquet"),
    (b"ARROW1", "an Arrow file", ".arrow"), (b"\xd0\xcf\x11\xe0", "an old Office file", ".xls"),
    (b"%PDF", "a PDF", ""), (b"SQLite format 3", "an SQLite database", ""),
    (b"version https://git-lfs", "a pointer of Git LFS", ""),
    (b"<!doctype", "a web page", ""), (b"<html", "a web page", ""),
)  # fmt: skip
_UNICODE = ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"),
            (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip
_CELL = re.compile(rb"[^{}\[\]:]{1,40}")
_SAMPLE_BYTES = 2**16  # bytes from which an encoding is detected
_COMMON_SHARE = 0.6  # share of level-1 Chinese characters: 0.9 in real texts, 0.3 in the wrong encoding


def data_kind(name: str) -> str | None:
    """Return the type of a data file by its name: ``json``, ``csv``, ``tsv``, ``parquet``, ``xlsx`` or ``zip``.

    ``json`` is JSON Lines or one JSON array. None for other files.
    """
    path = Path(name.lower())
    if path.suffix == ".zip":
        return "zip"
    return KINDS.get(Path(path.stem).suffix if path.suffix in _PACKED else path.suffix)


def has_data_suffix(path: Path) -> bool:
    """Whether a file has the suffix of a data file, plain or packed."""
    return data_kind(path.name) is not None


def printable_name(name: str) -> str:
    """Return a file name, with escapes if it has characters that cannot be printed."""
    return name if name.isprintable() else ascii(name)


def refuse_by_name(path: Path) -> None:
    """Raise UserError for a file without a suffix of data files; the message says how to convert it."""
    if not has_data_suffix(path):
        hint = _conversion_hint(path.name, _read_head(path))
        raise UserError(f"{printable_name(str(path))} is not a data file ({', '.join(KINDS)}, .zip); {hint}.")


def _read_head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_SAMPLE_BYTES)
    except OSError:
        return b""


def refuse_by_content(head: bytes, name: str, kind: str) -> None:
    """Raise UserError for a text file whose first unpacked bytes are not text in UTF-8 of its type.

    Args:
        kind: type of the file by its name, see :func:`data_kind`.
    """
    stem, opening = Path(name).stem, head[:64].removeprefix(BOM).lstrip().lower()
    wanted = "JSON" if kind == "json" else kind.upper()
    for magic, description, suffix in _MAGIC_BYTES:
        if head.startswith(magic) or (magic[:1] == b"<" and kind == "json" and opening.startswith(magic)):
            raise UserError(f"{name} is {description}, not {wanted}; {_conversion_hint(stem + suffix, head)}.")
    if head[257:262] == b"ustar":
        raise UserError(f"{name} is a tar archive, not {wanted}; {_conversion_hint(stem + '.tar', head)}.")
    if encoding := detect_encoding(head):
        setting = "big5" if encoding == "big5" else encoding.removesuffix("le").removesuffix("be")
        raise UserError(
            f"{name} looks like {encoding.upper()}; set ingest.encoding: {setting} in params.yaml, or save it as "
            f"UTF-8: {_iconv_command(name, encoding)}."
        )
    if kind == "json" and (delimiter := _detect_delimiter(head)):
        suffix = ".tsv" if delimiter == b"\t" else ".csv"
        raise UserError(f"{name} looks like a table, not JSON; {_conversion_hint(stem + suffix, head)}.")


def _conversion_hint(name: str, head: bytes) -> str:
    """Return how to convert a file to JSON Lines, as the second half of a sentence.

    Args:
        name: with the suffix of its true type.
        head: its first bytes.
    """
    suffix, source = Path(name).suffix.lower(), shlex.quote(name)
    target = f"{Path(name).stem}.jsonl"
    if suffix in KINDS and suffix not in (".json", ".jsonl"):
        return f"rename it to {source}"
    if suffix == ".zip":
        return f"rename it to {source}, or to .xlsx if it is an Excel workbook"
    if suffix in _ARCHIVES:
        return f"unpack it (`{_ARCHIVES[suffix]} {source}`) and name the data file in it"
    if suffix in _PACKERS:
        return f"unpack it: {_PACKERS[suffix]} {source}"
    if reader := _READERS.get(suffix):
        return f"convert it: {_PANDAS.format(reader=reader, source=name, target=target)}"
    if head.startswith(b"version https://git-lfs"):
        return "download the file that it points to: git lfs pull"
    if suffix in _PACKED:
        return f"unpack it: {'gzip -d' if suffix == '.gz' else 'unzstd'} {source}"
    return f"name a data file; if it holds one JSON object a line, rename it to {shlex.quote(target)}"


def _iconv_command(name: str, encoding: str) -> str:
    source, target = shlex.quote(name), shlex.quote(f"utf8-{Path(name).name.removesuffix('.gz')}")
    if name.endswith(".gz"):
        return f"gzip -dc {source} | iconv -f {encoding} -t utf-8 > {target}"
    return f"iconv -f {encoding} -t utf-8 {source} > {target}"


def is_utf8(head: bytes, encoding: str) -> bool:
    """Whether the first bytes of a file are UTF-8, and not text in another encoding.

    ASCII alone may be either, unless it has no zero bytes and the other encoding is UTF-16 or UTF-32.
    """
    if b"\0" in head or _decode(head, "utf-8") is None:
        return False
    return not head.isascii() or encoding.startswith("utf-")


def detect_encoding(head: bytes) -> str | None:
    """Return the encoding of a file that is not UTF-8, by its first bytes; None if it is UTF-8 or unknown."""
    for mark, encoding in _UNICODE:
        if head.startswith(mark):
            return encoding
    sample = head[:_SAMPLE_BYTES]
    for offset, encoding in ((1, "utf-16le"), (0, "utf-16be")):
        # In UTF-16, every other byte of ASCII characters such as brackets and quotes is 0.
        if (
            len(sample) >= 4
            and sample[:16][offset::2].strip(b"\0") == b""
            and sample[:16][1 - offset :: 2].strip(b"\0")
        ):
            return encoding
    # Few broken lines among good ones do not make another encoding. The last line of the sample may be cut.
    lines = [line for line in sample.split(b"\n") if not line.isascii()]
    broken = [line for line in lines if not _decode(line, "utf-8")]
    if not lines or len(broken) < 0.9 * len(lines):
        return None
    return next((name for name in ("gb18030", "big5") if _is_everyday_chinese(b"\n".join(broken), name)), None)


def _decode(line: bytes, encoding: str) -> str | None:
    """Return the text of bytes, without an incomplete last character; None if they have another encoding."""
    try:
        return codecs.getincrementaldecoder(encoding)().decode(line)
    except UnicodeDecodeError:
        return None


def _is_everyday_chinese(sample: bytes, encoding: str) -> bool:
    """Whether bytes decode to common Chinese characters; in the wrong encoding, most characters are rare."""
    text = _decode(sample, encoding)
    han = [character for character in text or "" if "\u4e00" <= character <= "\u9fff"]
    first, last, codec = (0xB0, 0xD7, "gb2312") if encoding == "gb18030" else (0xA4, 0xC6, "big5")
    everyday = sum(first <= character.encode(codec, "replace")[0] <= last for character in han)
    return bool(han) and everyday >= _COMMON_SHARE * len(han)


def _detect_delimiter(head: bytes) -> bytes | None:
    """Return the delimiter of a table with a header; None if the file is not a table."""
    lines = [line.strip(b"\r") for line in head.removeprefix(BOM).split(b"\n", 20)[:20] if line.strip()]
    if len(lines) < 2 or any(line.lstrip()[:1] in (b"{", b"[") for line in lines):
        return None
    for delimiter in (b"\t", b","):
        cells = [line.count(delimiter) for line in lines[:2]]
        names = lines[0].split(delimiter)
        if min(cells) >= 1 and cells[1] >= cells[0] and all(_CELL.fullmatch(name) for name in names):
            return delimiter
    return None
