"""Splitter of JSON Lines and JSON arrays into rows of bytes, without parsing the rows.

No library serves here. ``json`` and ``orjson`` parse whole files; streaming parsers such as ``ijson`` return values and
stop at the first syntax error. The gate needs the bytes, line and offset of every row, broken ones included, in bounded
memory, so that it can quarantine single rows and report their location.
"""

import json
import re
from collections.abc import Iterator

from formats.foreign_files import BOM
from formats.raw_row import MAX_ROW_BYTES, READ_BYTES, RawRow, ReadFunction
from models.errors import UserError

_MAX_PARSED_LINE = 4 * 2**20  # bytes; parsed JSON takes up to 60 times as much memory
# A whole string, or a structural character; an unfinished string is a lone quote. Possessive, because a string of
# escapes would leave backtracking states of 60 bytes per character.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["\[\]{},]', re.DOTALL)
_BLANK_LINES = re.compile(rb"\s*\n")
_BLANK_PIECES = re.compile(rb"\s*\r(?!\n)")
_ARRAY_START = re.compile(rb"\[[ \t]*(?:\{|$)")


def is_array(head: bytes, name: str) -> bool:
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


def split_lines(read: ReadFunction, head: bytes, name: str) -> Iterator[RawRow]:
    """Yield the lines that are not blank. Lines end at LF, CRLF or CR; JSON strings cannot contain these.

    Args:
        head: the first block of the file, already read.
        name: name of the file in rows and messages.

    Raises:
        UserError: a line is too long, or an object spans several lines.
    """
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


def _lines(read: ReadFunction, buffer: bytes, name: str) -> Iterator[tuple[int, int, bytes]]:
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
        if len(buffer) - position >= MAX_ROW_BYTES:
            raise UserError(f"{name}: line {line} is longer than {MAX_ROW_BYTES >> 20} MiB; write one row per line.")
        # Doubling the buffer keeps the time linear if a line is longer than a block.
        block = read(max(READ_BYTES, len(buffer) - position))
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


def split_array(read: ReadFunction, head: bytes, name: str) -> Iterator[RawRow]:
    """Yield the elements of the outermost array, split at its commas; their content is not validated.

    Args:
        head: the first block of the file, already read.
        name: name of the file in rows and messages.

    Raises:
        UserError: an element is too long or not closed, or text follows the array.
    """
    buffer, start, line, number = head, 0, 1, 0  # offset and line of the first byte of the buffer; rows so far
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
    if buffer.strip() or any(block.strip() for block in iter(lambda: read(READ_BYTES), b"")):
        raise UserError(f"{name}: text after the end of the array at byte {start}; a file is one array or JSON Lines.")


def _next_block(read: ReadFunction, buffer: bytes, name: str, line: int, start: int) -> bytes:
    """Read the next block, as long as the unfinished element, which keeps the time linear.

    Raises:
        UserError: the file ends within the element, or the element is too long.
    """
    if len(buffer) > MAX_ROW_BYTES:
        raise UserError(
            f"{name}: the row at byte {start} is longer than {MAX_ROW_BYTES >> 20} MiB; remove or split it."
        )
    block = read(max(READ_BYTES, len(buffer)))
    if not block:
        raise UserError(
            f"{name}: the element near line {line} (byte {start}) is not closed: the file is truncated, or a quote or "
            "bracket is missing; correct the file or download it again."
        )
    return block
