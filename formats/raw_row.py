"""A raw row: the bytes of one row of a data file, and its address."""

from collections.abc import Callable
from typing import NamedTuple

MAX_ROW_BYTES = 256 * 2**20
READ_BYTES = 2**20  # number of bytes that are read at once
NO_OFFSET = -1  # offset of a row that is not a piece of its file, such as a row of a Parquet file
ReadFunction = Callable[[int], bytes]  # returns about this many bytes, empty only at the end of the file


class RawRow(NamedTuple):
    """The bytes of one row and their location. A tuple, because millions are created and sent between processes.

    Attributes:
        file: path below the source folder; with the path in an archive, or the name of a sheet.
        line: line of the first byte, from 1.
        offset: bytes before the row in the unpacked file, in UTF-8; :data:`NO_OFFSET` in tables.
        content: the bytes of the row; in tables, the JSON object of its cells.
        number: position in a JSON array or a Parquet file, from 1; 0 in files of lines.
        fault: why the row cannot be read, if its file shows that.
    """

    file: str
    line: int
    offset: int
    content: bytes
    number: int = 0
    fault: str = ""

    @property
    def location(self) -> str:
        """The location as reports show it."""
        return format_location(self.file, self.line, self.number)


def format_location(file: str, line: int, number: int) -> str:
    """Return ``rows.jsonl:3`` for line 3 of JSON Lines, ``rows.json#3`` for element 3 of a JSON array."""
    return f"{file}#{number}" if number else f"{file}:{line}"
