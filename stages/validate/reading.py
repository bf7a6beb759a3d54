"""Raw files to rows, each with its file, line, byte offset and its own bytes."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RawRow:
    """One row as it came.

    Attributes:
        file: path below ``data/raw``.
        line: counted from 1.
        offset: bytes before the row in its file.
        content: the row's own bytes.
        value: the parsed JSON value, if it could be parsed.
        error: why it could not be, else None.
    """

    file: str
    line: int
    offset: int
    content: bytes
    value: object = None
    error: str | None = None


def read_rows(folder: Path) -> Iterator[RawRow]:
    """All rows of all files, in the order of names and lines."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        content = path.read_bytes()
        array = _array_text(content) if path.suffix.lower() == ".json" else None
        yield from _read_array(name, array) if array is not None else _read_lines(name, content)


def _array_text(content: bytes) -> str | None:
    """The file's text if it is one JSON array, else None."""
    try:
        text = content.decode("utf-8")
        is_array = isinstance(_parse(text.removeprefix("\ufeff")), list)
    except (ValueError, RecursionError):
        return None
    return text if is_array else None


def _read_lines(name: str, content: bytes) -> Iterator[RawRow]:
    offset = 0
    # Lines end at \n alone: JSON text may hold other line separators, such as U+2028, unescaped.
    for line, raw in enumerate(content.split(b"\n"), start=1):
        stripped = raw.removeprefix(b"\xef\xbb\xbf") if line == 1 else raw
        if stripped.strip():
            yield _read_row(name, line, offset + len(raw) - len(stripped), stripped.rstrip(b"\r"))
        offset += len(raw) + 1


def _read_row(name: str, line: int, offset: int, raw: bytes) -> RawRow:
    try:
        return RawRow(name, line, offset, raw, value=_parse(raw.decode("utf-8")))
    except UnicodeDecodeError as error:
        reason = f"not UTF-8: byte 0x{raw[error.start]:02x} at byte {error.start + 1} of the row"
    except json.JSONDecodeError as error:
        reason = f"not JSON: {error.msg} at character {error.pos + 1} of the row"
    except RecursionError:
        reason = "not JSON: nested too deeply"
    except ValueError as error:
        reason = f"not JSON: {error}"
    return RawRow(name, line, offset, raw, error=reason)


def _read_array(name: str, text: str) -> Iterator[RawRow]:
    decoder = json.JSONDecoder(parse_constant=_refuse_constant)
    position = text.index("[") + 1
    line, offset, counted = 1, 0, 0
    while True:
        while text[position] in " \t\r\n,":
            position += 1
        if text[position] == "]":
            return
        value, end = decoder.raw_decode(text, position)
        line += text.count("\n", counted, position)
        offset += len(text[counted:position].encode("utf-8"))
        counted = position
        yield RawRow(name, line, offset, text[position:end].encode("utf-8"), value=value)
        position = end


def _parse(text: str) -> object:
    return json.loads(text, parse_constant=_refuse_constant)


def _refuse_constant(constant: str):
    raise ValueError(f"{constant} is no JSON value")
