"""Reader of tables (CSV, TSV, Parquet, Excel): each row becomes the JSON object of its cells.

An empty cell is a key that the row does not have, as are null and NaN in Parquet. All values of CSV, TSV and Excel are
texts: numbers as Excel shows them (15 digits), dates as ``2026-11-26``, with ``T08:30:00`` if they have a time. Dates
of Parquet are texts of the same form; its numbers, booleans, lists and structures stay what they are.
"""

import csv
import datetime
import io
import json
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, BinaryIO

import orjson

from formats.packed_files import MAX_EXPANSION, UnpackedFile, UnpackingLimit
from formats.raw_row import MAX_ROW_BYTES, NO_OFFSET, READ_BYTES, RawRow, ReadFunction
from models.errors import UserError

if TYPE_CHECKING:
    from openpyxl.cell import Cell
    from pyarrow import RecordBatch
    from pyarrow.parquet import ParquetFile

DELIMITERS = {"csv": ",", "tsv": "\t"}
_BATCH_BYTES = 16 * 2**20  # of a Parquet batch in memory
_PROBED_ROWS, _MAX_BATCH_ROWS = 8, 8192
_MACROS, _EXTERNAL_LINKS = "vbaProject.bin", "xl/externalLinks/"  # parts of a workbook
_OLE = b"\xd0\xcf\x11\xe0"  # first bytes of old Office files and of encrypted workbooks


# CSV and TSV ---------------------------------------------------------------------------------------


class _Stream(io.RawIOBase):
    """A binary stream of a first block and a function that reads the others."""

    def __init__(self, head: bytes, read: ReadFunction):
        self._rest, self._read = head, read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        # A decoder of another encoding may return more bytes than it was asked for.
        available = self._rest or self._read(len(buffer))
        block, self._rest = available[: len(buffer)], available[len(buffer) :]
        buffer[: len(block)] = block
        return len(block)


def read_csv(read: ReadFunction, head: bytes, name: str, delimiter: str) -> Iterator[RawRow]:
    """Yield the rows of a CSV file in UTF-8 below its header; quoted cells may hold line breaks.

    Args:
        head: the first block of the file, already read.
        name: name of the file in rows and messages.

    Raises:
        UserError: the header has a name twice or another delimiter, or a quote is not closed.
    """
    csv.field_size_limit(MAX_ROW_BYTES)
    # Broken bytes pass as surrogates, so that only their own row is quarantined.
    stream = io.TextIOWrapper(
        io.BufferedReader(_Stream(head, read), READ_BYTES), encoding="utf-8-sig", errors="surrogateescape", newline=""
    )
    reader = csv.reader(_lines(stream, name), delimiter=delimiter, strict=True)
    header, line = None, 1
    try:
        for cells in reader:
            first, line = line, reader.line_num + 1
            if not any(cells):
                continue
            if header is None:
                header = _check_header(cells, name, delimiter)
            else:
                yield _csv_row(header, cells, name, first)
    except csv.Error as error:
        raise UserError(
            f"{name}: the row that begins on line {line} is not valid CSV ({error}); close its quotes, and write a "
            'quote within a quoted cell as "".'
        ) from None


def _lines(stream: io.TextIOWrapper, name: str) -> Iterator[str]:
    while line := stream.readline(MAX_ROW_BYTES):
        if len(line) == MAX_ROW_BYTES:
            raise UserError(f"{name} has a line of more than {MAX_ROW_BYTES >> 20} MiB; write one row per line.")
        yield line


def _check_header(cells: Sequence[str], name: str, delimiter: str = "") -> list[str]:
    """Return the names of the columns; a column without a name is called by its position.

    Raises:
        UserError: a name stands twice, or the delimiter is another one.
    """
    names = [cell.strip() or f"column {position}" for position, cell in enumerate(cells, start=1)]
    if twice := next((cell for cell in names if names.count(cell) > 1), None):
        raise UserError(f"{name}: the header has the column {twice!r} twice; rename one of them.")
    if delimiter and len(names) == 1 and (other := next((mark for mark in "\t;,|" if mark in names[0]), None)):
        raise UserError(
            f"{name}: the header has no {delimiter!r}, but {other!r}; save it with {delimiter!r} between the cells, or "
            "rename it to .tsv if it has tabs."
        )
    return names


def _csv_row(header: Sequence[str], cells: list[str], name: str, line: int) -> RawRow:
    if len(cells) > len(header) and any(cells[len(header) :]):
        fault = f"{len(cells)} cells below a header of {len(header)}; quote a cell that holds the delimiter"
        return RawRow(name, line, NO_OFFSET, _encode(cells), fault=fault)
    content = dict(zip(header, cells, strict=False))
    return RawRow(name, line, NO_OFFSET, _encode(content))


def _encode(value: object) -> bytes:
    """Return a value as JSON in UTF-8; bytes that are not UTF-8 stay as they were."""
    try:
        return orjson.dumps(value, default=_encode_value)
    except TypeError:  # surrogates
        return json.dumps(value, ensure_ascii=False, default=_encode_value).encode("utf-8", "surrogateescape")


def _encode_value(value: object) -> str:
    """Return the text of a Parquet value that JSON does not have, such as a date, a decimal or binary data."""
    if isinstance(value, bytes):
        return f"({len(value)} bytes of binary data)"
    return _format_date(value) if isinstance(value, datetime.datetime) else str(value)


def _format_date(value: datetime.datetime) -> str:
    is_date = value.time() == datetime.time() and value.tzinfo is None
    return value.date().isoformat() if is_date else value.isoformat()


# Parquet -------------------------------------------------------------------------------------------


def read_parquet(file: UnpackedFile) -> Iterator[RawRow]:
    """Yield the rows of a Parquet file, a batch in memory at a time.

    Raises:
        UserError: the file is damaged, has a column twice, or expands like a decompression bomb.
    """
    import pyarrow
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        with file.open_seekable() as source:
            size = source.seek(0, io.SEEK_END)
            limit = UnpackingLimit(file.name, size)
            table = ParquetFile(source, buffer_size=READ_BYTES, pre_buffer=False)  # or it reads a whole row group
            header = _check_header(table.schema_arrow.names, file.name)
            for group in range(table.num_row_groups):
                for batch in table.iter_batches(_choose_batch_size(table, group), row_groups=[group]):
                    limit.add(batch.nbytes)
                    for content in _batch_rows(batch, header):
                        number += 1
                        encoded = orjson.dumps(content, default=_encode_value)  # texts of Arrow are UTF-8
                        yield RawRow(file.name, 1, NO_OFFSET, encoded, number)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{file.name} is not a Parquet file, or damaged ({reason}); write it again.") from None


def _choose_batch_size(table: "ParquetFile", group: int) -> int:
    """Return the number of rows of a row group that fit :data:`_BATCH_BYTES`, by its first rows.

    A dictionary may hold one long text for millions of rows, so that the size of the file says little.
    """
    probe = next(table.iter_batches(_PROBED_ROWS, row_groups=[group]), None)
    if probe is None or not probe.num_rows:
        return _PROBED_ROWS
    return max(_PROBED_ROWS, min(_MAX_BATCH_ROWS, _BATCH_BYTES * probe.num_rows // max(probe.nbytes, 1)))


def _batch_rows(batch: "RecordBatch", header: Sequence[str]) -> Iterator[dict]:
    """Yield the rows of a batch as objects, without null and NaN."""
    import pyarrow

    columns = [column.to_pylist() for column in batch.columns]
    is_dense = True
    for index, column in enumerate(batch.columns):
        if pyarrow.types.is_floating(column.type):
            columns[index] = [None if value != value else value for value in columns[index]]
            is_dense = False
        is_dense = is_dense and column.null_count == 0
    for values in zip(*columns, strict=True):
        row = dict(zip(header, values, strict=True))
        yield row if is_dense else {key: value for key, value in row.items() if value is not None}


# Excel ---------------------------------------------------------------------------------------------


def read_xlsx(file: UnpackedFile) -> Iterator[RawRow]:
    """Yield the rows of all sheets of an Excel workbook, each below its own header.

    With several sheets, the file of a row is ``book.xlsx/SHEET``.

    Raises:
        UserError: the workbook is damaged, encrypted, or a decompression bomb, or has macros, formulas, or links to
            other workbooks.
    """
    with file.open_seekable() as source:
        _inspect_workbook(source, file.name)
        try:
            yield from _read_sheets(source, file.name)
        except UserError:
            raise
        except Exception as error:  # openpyxl raises KeyError, ValueError, ParseError, … for damaged parts
            reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            raise UserError(f"{file.name} is a damaged Excel workbook ({reason}); save it again.") from None


def _inspect_workbook(source: BinaryIO, name: str) -> None:
    """Raise UserError for a workbook that must not be opened, by the list of its parts."""
    if source.read(4) == _OLE:
        raise UserError(f"{name} is protected by a password or an old .xls file; save it as .xlsx without a password.")
    source.seek(0)
    try:
        parts = zipfile.ZipFile(source).infolist()
    except zipfile.BadZipFile:
        raise UserError(f"{name} is not an Excel workbook, or damaged; save it again as .xlsx.") from None
    limit = UnpackingLimit(name, source.seek(0, io.SEEK_END))
    source.seek(0)
    # zipfile reads no more than the declared size of a part.
    if sum(part.file_size for part in parts) > limit.bytes:
        raise UserError(
            f"{name} unpacks to more than {limit.bytes >> 20:,} MiB, {MAX_EXPANSION} times its size, unlike any "
            "workbook; save its rows as CSV."
        )
    for part in parts:
        if part.filename.endswith(_MACROS):
            raise UserError(f"{name} has macros; save it as .xlsx without macros.")
        if part.filename.startswith(_EXTERNAL_LINKS):
            raise UserError(
                f"{name} links to other workbooks; copy its cells, paste them as values, and save it again."
            )


def _read_sheets(source: BinaryIO, name: str) -> Iterator[RawRow]:
    import openpyxl

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # styles and extensions that openpyxl does not know
        with closing(openpyxl.load_workbook(source, read_only=True, keep_links=False)) as workbook:
            sheets = workbook.worksheets
            for sheet in sheets:
                sheet.reset_dimensions()  # some programs write wrong ones, and rows beyond them would be lost
                yield from _read_sheet(sheet.iter_rows(), f"{name}/{sheet.title}" if len(sheets) > 1 else name)


def _read_sheet(rows: Iterator[Sequence["Cell"]], name: str) -> Iterator[RawRow]:
    header = None
    for line, row in enumerate(rows, start=1):
        cells = [_cell_text(cell, name) for cell in row]
        if not any(cells):
            continue
        if header is None:
            while not cells[-1]:
                cells.pop()
            header = _check_header(cells, name)
        else:
            yield _csv_row(header, cells, name, line)


def _cell_text(cell: "Cell", name: str) -> str:
    """Return the text of a cell.

    Raises:
        UserError: the cell has a formula, whose value need not be in the file.
    """
    value = cell.value
    if isinstance(value, str) and cell.data_type != "f":
        return value
    if value is None:
        return ""
    if cell.data_type == "f":
        raise UserError(
            f"{name}: cell {cell.coordinate} has a formula; copy the cells, paste them as values, and save it again."
        )
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, int | float):
        return f"{value:.15g}" if isinstance(value, float) else str(value)
    return _format_date(value) if isinstance(value, datetime.datetime) else str(value)
