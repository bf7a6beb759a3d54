"""Tables: CSV, TSV, Parquet and Excel become JSON objects with an address; damaged files are one message."""

import datetime
import gzip
import io
import json
import zipfile

import openpyxl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from formats import packed_files
from formats.raw_rows import read_rows
from models.errors import UserError


def read(path) -> list:
    return list(read_rows(path, path.name))


def contents(path) -> list:
    return [json.loads(row.content) for row in read(path)]


def read_error(path) -> str:
    """Return the message, of one line, with which a file is refused."""
    with pytest.raises(UserError) as error:
        read(path)
    assert "\n" not in str(error.value)
    return str(error.value)


# CSV -----------------------------------------------------------------------------------------------


def test_address_of_a_csv_row_is_its_first_line(tmp_path):
    text = '\ufeffquestion,answer,note\r\n"a\n""b""",c,\r\n\r\n,,\r\nd,"e, f",g\r\nh,i\r\n'
    (tmp_path / "rows.csv").write_bytes(text.encode())
    rows = read(tmp_path / "rows.csv")
    assert [row.location for row in rows] == ["rows.csv:2", "rows.csv:6", "rows.csv:7"]
    assert contents(tmp_path / "rows.csv") == [
        {"question": 'a\n"b"', "answer": "c", "note": ""},
        {"question": "d", "answer": "e, f", "note": "g"},
        {"question": "h", "answer": "i"},
    ]


def test_delimiter_is_that_of_the_suffix(tmp_path):
    (tmp_path / "rows.tsv").write_text("a\tb\n1\t2,3\n")
    assert contents(tmp_path / "rows.tsv") == [{"a": "1", "b": "2,3"}]
    (tmp_path / "rows.csv").write_text("a;b\n1;2\n")
    assert "the header has no ',', but ';'" in read_error(tmp_path / "rows.csv")


def test_damaged_csv_rows_are_single_faults_and_damaged_files_one_message(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b"a,b\n1,2,3\n4,5,\n\xff,6\n")
    rows = read(path)
    assert [bool(row.fault) for row in rows] == [True, False, False]
    assert rows[0].fault == "3 cells below a header of 2; quote a cell that holds the delimiter"
    assert rows[2].content == b'{"a": "\xff", "b": "6"}'
    path.write_text('a,b\n1,"2\n3,4\n')
    assert "the row that begins on line 2 is not valid CSV" in read_error(path)
    path.write_text("a,a\n1,2\n")
    assert "has the column 'a' twice" in read_error(path)
    path.write_bytes("问题,回答\n茶怎么泡？,先温杯，再投茶。\n".encode("gb18030"))
    assert "looks like GB18030; set ingest.encoding: gb18030" in read_error(path)


CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(CELLS, min_size=3, max_size=3), max_size=6))
def test_csv_written_by_python_is_read_back(tmp_path_factory, table):
    import csv

    path = tmp_path_factory.mktemp("csv") / "rows.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["a", "b", "c"], *table])
    assert contents(path) == [dict(zip("abc", row, strict=True)) for row in table if any(row)]


# Parquet -------------------------------------------------------------------------------------------


def test_values_of_parquet_keep_their_types(tmp_path):
    rows = [
        {
            "messages": [{"role": "user", "content": "问"}],
            "history": [["早", "好"]],
            "number": 1,
            "share": 0.5,
            "time": datetime.datetime(2026, 11, 26, 8, 30),
            "day": datetime.date(2026, 11, 26),
            "flag": True,
        },
        {"messages": None, "history": [], "number": None, "share": float("nan"), "flag": False},
    ]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert [row.location for row in read(tmp_path / "rows.parquet")] == ["rows.parquet#1", "rows.parquet#2"]
    first, second = contents(tmp_path / "rows.parquet")
    assert first == rows[0] | {"time": "2026-11-26T08:30:00", "day": "2026-11-26"}
    assert second == {"history": [], "flag": False}


@pytest.mark.parametrize("count", [0, 1, 20_000])
def test_parquet_is_read_in_order_over_row_groups(tmp_path, count):
    table = pa.table({"prompt": [f"第{number}杯" for number in range(count)], "n": list(range(count))})
    parquet.write_table(table, tmp_path / "rows.parquet", row_group_size=7_000)
    rows = read(tmp_path / "rows.parquet")
    assert [row.number for row in rows] == list(range(1, count + 1))
    assert [json.loads(row.content)["n"] for row in rows] == list(range(count))


def test_damaged_parquet_is_one_message(tmp_path):
    path = tmp_path / "rows.parquet"
    parquet.write_table(pa.table({"a": ["茶" * 50 + str(number) for number in range(5000)]}), path)
    whole = path.read_bytes()
    for content in (whole[:-9], whole[: len(whole) // 2], b"PAR1", b"", whole[:200] + b"\xff" * 400 + whole[600:]):
        path.write_bytes(content)
        assert "is not a Parquet file, or damaged" in read_error(path)


def test_parquet_of_one_long_repeated_text_is_a_bomb(tmp_path, monkeypatch):
    """A dictionary holds the text once; without the probe of the first rows, a batch takes 8 GB."""
    monkeypatch.setattr(packed_files, "MIN_UNPACKED", 2**24)
    path = tmp_path / "rows.parquet"
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 100_000, pa.int32()), pa.array(["x" * 2**20]))
    with parquet.ParquetWriter(path, pa.schema([("text", column.type)])) as writer:
        writer.write_table(pa.table({"text": column}))
    assert path.stat().st_size < 2**17
    assert "200 times its size" in read_error(path)


# Excel ---------------------------------------------------------------------------------------------


def write_workbook(path, **sheets) -> None:
    workbook = openpyxl.Workbook()
    workbook.remove(workbook.active)
    for title, rows in sheets.items():
        sheet = workbook.create_sheet(title)
        for row in rows:
            sheet.append(row)
    workbook.save(path)


def test_cells_of_excel_are_texts(tmp_path):
    day, time = datetime.datetime(2026, 11, 26), datetime.datetime(2026, 11, 26, 8, 30)
    rows = [["q", "a", "n", None], ["问", 3, 0.1 + 0.2, None], [None] * 4, [day, time, True, None], ["x", "#N/A", None]]
    write_workbook(tmp_path / "rows.xlsx", one=rows)
    assert [row.location for row in read(tmp_path / "rows.xlsx")] == ["rows.xlsx:2", "rows.xlsx:4", "rows.xlsx:5"]
    assert contents(tmp_path / "rows.xlsx") == [
        {"q": "问", "a": "3", "n": "0.3"},
        {"q": "2026-11-26", "a": "2026-11-26T08:30:00", "n": "TRUE"},
        {"q": "x", "a": "#N/A"},
    ]


def test_every_sheet_is_read_below_its_own_header(tmp_path):
    write_workbook(tmp_path / "rows.xlsx", 甲=[["q"], ["1"]], 乙=[], 丙=[[], ["a", "b"], ["2", "3"]])
    assert [row.location for row in read(tmp_path / "rows.xlsx")] == ["rows.xlsx/甲:2", "rows.xlsx/丙:3"]
    assert contents(tmp_path / "rows.xlsx") == [{"q": "1"}, {"a": "2", "b": "3"}]


def add_part(path, name: str, content: bytes = b"x") -> None:
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)


def test_workbooks_that_are_more_than_values_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "rows.xlsx"
    write_workbook(path, one=[["q", "a"], ["1", "=CONCAT(A2, 1)"]])
    assert "cell B2 has a formula; copy the cells, paste them as values" in read_error(path)
    for name, message in (
        ("xl/vbaProject.bin", "has macros"),
        ("xl/externalLinks/link.xml", "links to other"),
    ):
        write_workbook(path, one=[["q"], ["1"]])
        add_part(path, name)
        assert message in read_error(path)
    path.write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1")
    assert "protected by a password" in read_error(path)
    path.write_bytes(b"PK\x03\x04")
    assert "is not an Excel workbook, or damaged" in read_error(path)
    monkeypatch.setattr(packed_files, "MIN_UNPACKED", 2**18)
    write_workbook(path, one=[["q"], ["1"]])
    add_part(path, "xl/media/bomb.bin", b"\0" * 8 * 2**20)
    assert "200 times its size" in read_error(path)


NAMESPACE = b"http://schemas.openxmlformats.org/spreadsheetml/2006/main"


def test_damaged_workbook_is_one_message(tmp_path):
    path = tmp_path / "rows.xlsx"
    for part, content in (
        ("xl/worksheets/sheet1.xml", b'<worksheet xmlns="%s"><sheetData><row><c t="s"><v>9</v></c></row>' % NAMESPACE),
        ("xl/worksheets/sheet1.xml", b"<worksheet"),
        ("xl/workbook.xml", b'<!DOCTYPE a [<!ENTITY b "bb">]><workbook>&b;</workbook>'),
    ):
        write_workbook(path, one=[["q"], ["1"]])
        source = zipfile.ZipFile(io.BytesIO(path.read_bytes()))
        with zipfile.ZipFile(path, "w") as target:
            for name in source.namelist():
                target.writestr(name, content if name == part else source.read(name))
        assert "damaged Excel workbook" in read_error(path), content


@pytest.mark.parametrize("suffix", [".parquet.gz", ".xlsx.gz"])
def test_packed_tables_are_read(tmp_path, suffix):
    plain = tmp_path / suffix.removesuffix(".gz")[1:]
    plain = plain.with_suffix(suffix.removesuffix(".gz"))
    if "parquet" in suffix:
        parquet.write_table(pa.table({"q": ["1"]}), plain)
    else:
        write_workbook(plain, one=[["q"], ["1"]])
    packed = tmp_path / f"rows{suffix}"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert contents(packed) == [{"q": "1"}]
