"""Parsing of a row: its bytes → messages, or the reason why it has none."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from formats.foreign_files import detect_encoding
from formats.params_schema import Params
from models.row_layouts import UnknownFormat, UnknownLayout, quote_value, read_row
from models.sample import Message
from models.thinking import has_thinking, has_unclosed_thinking, strip_thinking
from stages.validate.layouts import Layout, recognize_layout


@dataclass(frozen=True)
class ParseFault:
    """The reason why a row has no conversation.

    Attributes:
        check: name of the check that the row fails: ``parseable`` or ``known_format``.
        message: what is wrong.
        layout: the unsupported layout, if that is the reason.
    """

    check: str
    message: str
    layout: Layout | None = None


def parse_content(content: bytes, params: Params, fault: str = "") -> tuple[tuple[Message, ...] | ParseFault, set[str]]:
    """Parse a row with the columns of ``ingest.columns``, and keep or remove its thinking as params.yaml says.

    Args:
        content: the bytes of the row, JSON in UTF-8.
        fault: why the row cannot be read, if its file shows that.

    Returns:
        As :func:`parse_row`.
    """
    parsed, unread = parse_row(
        content, params.validate_.checks.parseable.max_bytes, params.ingest.columns.by_part, fault
    )
    return _handle_thinking(parsed, params.validate_.thinking), unread


def _handle_thinking(parsed: tuple[Message, ...] | ParseFault, thinking: str) -> tuple[Message, ...] | ParseFault:
    """Return the messages of a row with the blocks of thinking kept or removed, as ``validate.thinking`` says."""
    if isinstance(parsed, ParseFault) or not has_thinking(parsed):
        return parsed
    if has_unclosed_thinking(parsed):
        return ParseFault("known_format", "an answer begins with <think>, but has no </think>")
    return strip_thinking(parsed) if thinking == "strip" else parsed


def parse_row(
    content: bytes, max_bytes: int, columns: Mapping[str, str] | None = None, fault: str = ""
) -> tuple[tuple[Message, ...] | ParseFault, set[str]]:
    """Parse a row.

    Args:
        content: the bytes of the row, JSON in UTF-8.
        max_bytes: limit of the length.
        columns: names of columns by part, see :func:`models.row_layouts.read_row`.
        fault: why the row cannot be read, if its file shows that.

    Returns:
        The messages, or the reason why there are none; and the keys that are not read.
    """
    row = ParseFault("parseable", fault) if fault else _decode(content, max_bytes)
    if isinstance(row, ParseFault):
        return row, set()
    try:
        return read_row(row, columns)
    except UnknownLayout as error:
        layout = recognize_layout(row)
        # A description that begins with a key is left out: the error lists the keys already.
        hint = f"; it looks like {layout.name}" if layout and layout.is_known and layout.name[0] != "'" else ""
        return ParseFault("known_format", f"{error}{hint}", layout), set()
    except UnknownFormat as error:
        return ParseFault("known_format", str(error)), set()


def _decode(content: bytes, max_bytes: int) -> object | ParseFault:
    """Return the JSON value of a row, or the reason why it has none."""
    if len(content) > max_bytes:
        return ParseFault("parseable", f"{len(content)} bytes, more than {max_bytes}")
    try:
        return _JSON.decode(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        byte, encoding = content[error.start], detect_encoding(content)
        hint = f", perhaps {encoding.upper()}" if encoding else ""
        return ParseFault("parseable", f"not UTF-8{hint}: byte 0x{byte:02x} at byte {error.start + 1} of the row")
    except json.JSONDecodeError as error:
        reason = error.msg.removesuffix(" at")
        return ParseFault("parseable", f"not JSON: {reason} at character {error.pos + 1} of the row")
    except RecursionError:
        return ParseFault("parseable", "not JSON: nested too deeply")
    except ValueError as error:
        return ParseFault("parseable", f"not JSON: {error}")


def _refuse_duplicate_keys(pairs: list[tuple[str, object]]) -> dict:
    """Return the object of these pairs; JSON readers disagree on which of two equal keys counts.

    Raises:
        ValueError: a key is repeated.
    """
    values = dict(pairs)
    if len(values) < len(pairs):
        seen = set()
        duplicate = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"duplicate key {quote_value(duplicate)}")
    return values


def _refuse_constant(constant: str):
    raise ValueError(f"{constant} is not a JSON value")


_JSON = json.JSONDecoder(object_pairs_hook=_refuse_duplicate_keys, parse_constant=_refuse_constant)
