"""zip and zstd: read like plain files, and refused with one message where they are damaged or malicious."""

import gzip
import json
import struct
import zipfile

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shared_data import developer_file

from formats import packed_files
from formats.raw_rows import read_rows
from models.errors import UserError

ROW = json.dumps({"prompt": "茶怎么泡？", "response": "先温杯。"}, ensure_ascii=False).encode()
LINES = (ROW + b"\n") * 3


def zstd(content: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def read(path) -> list:
    return list(read_rows(path, path.name))


def read_error(path) -> str:
    with pytest.raises(UserError) as error:
        read(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def write_zip(path, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def test_every_data_file_of_a_zip_is_read_with_its_path(tmp_path):
    members = {
        "a.jsonl": LINES[: 2 * len(ROW) + 2],
        "deep/b.csv": b"q,a\n1,2\n",
        "c.json": b"[" + ROW + b"," + ROW + b"]",
        "d.jsonl.gz": gzip.compress(LINES),
        "e.jsonl.zst": zstd(ROW),
        "readme.md": b"not data",
        "__MACOSX/a.jsonl": b"\0\0",
    }
    write_zip(tmp_path / "all.zip", **members)
    locations = [row.location for row in read(tmp_path / "all.zip")]
    assert locations == [
        *("all.zip/a.jsonl:1", "all.zip/a.jsonl:2", "all.zip/deep/b.csv:2", "all.zip/c.json#1", "all.zip/c.json#2"),
        *(f"all.zip/d.jsonl.gz:{line}" for line in (1, 2, 3)),
        "all.zip/e.jsonl.zst:1",
    ]


def test_chinese_names_of_windows_archives_are_decoded(tmp_path):
    write_zip(tmp_path / "a.zip", **{"XXXX.jsonl": ROW})
    content = (tmp_path / "a.zip").read_bytes().replace(b"XXXX", "数据".encode("gb18030"))
    (tmp_path / "a.zip").write_bytes(content)
    assert [row.file for row in read(tmp_path / "a.zip")] == ["a.zip/数据.jsonl"]


@pytest.mark.parametrize("name", ["../a.jsonl", "/etc/a.jsonl", "a/../../b.jsonl", "..\\a.jsonl", "C:/a.jsonl"])
def test_path_out_of_the_archive_is_refused(tmp_path, name):
    write_zip(tmp_path / "a.zip", **{name: ROW})
    assert "leads out of the archive" in read_error(tmp_path / "a.zip")


def test_damaged_and_encrypted_archives_are_one_message(tmp_path):
    path = tmp_path / "a.zip"
    write_zip(path, **{"a.jsonl": LINES * 99})
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:40] + b"\xff" * 20 + whole[60:], whole[:4]):
        path.write_bytes(content)
        assert "damaged or truncated zip file" in read_error(path)
    flagged = bytearray(whole)
    central = whole.index(b"PK\x01\x02")
    struct.pack_into("<H", flagged, central + 8, 1)
    path.write_bytes(flagged)
    assert "a.jsonl is protected by a password" in read_error(path)
    write_zip(path, **{"a.txt": b"x", "inner.zip": b"x"})
    assert "has no data file" in read_error(path)
    path.write_bytes(LINES)
    assert "not a zip file" in read_error(path)


def test_bombs_in_zip_and_zstd_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(packed_files, "MIN_UNPACKED", 2**18)
    blank = b"\n" * 4 * 2**20
    write_zip(tmp_path / "a.zip", **{f"{number}.jsonl": blank for number in range(9)})
    (tmp_path / "a.jsonl.zst").write_bytes(zstd(blank))
    for name in ("a.zip", "a.jsonl.zst"):
        assert "200 times its size" in read_error(tmp_path / name)


def test_zstd_is_read_and_its_damage_is_one_message(tmp_path):
    path = tmp_path / "rows.jsonl.zst"
    path.write_bytes(zstd(LINES) + zstd(LINES))
    assert [row.line for row in read(path)] == [1, 2, 3, 4, 5, 6]
    path.write_bytes(zstd(bytes(range(256)) * 999)[:-9])
    assert "damaged or truncated zstd file" in read_error(path)
    path.write_bytes(b"(\xb5/\xfd" + b"x" * 40)
    assert "damaged or truncated zstd file" in read_error(path)


def test_real_rows_are_the_same_in_every_packing(tmp_path):
    content = developer_file("datasets/adgen_dev.jsonl").read_bytes()
    (tmp_path / "a.jsonl").write_bytes(content)
    (tmp_path / "b.jsonl.zst").write_bytes(zstd(content))
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(content))
    write_zip(tmp_path / "d.zip", **{"a.jsonl": content})
    files = [[(row.line, row.offset, row.content) for row in read(path)] for path in sorted(tmp_path.iterdir())]
    assert len(files[0]) == 1070
    assert all(rows == files[0] for rows in files)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_damage_is_read_or_one_message(tmp_path_factory, data):
    """Of 250 damaged archives each, 9 had raised UnicodeDecodeError and 32 LZMAError."""
    method = data.draw(st.sampled_from([zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2]))
    path = tmp_path_factory.mktemp("damaged") / "a.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("数.jsonl", LINES * 9)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    try:
        read(path)
    except UserError as error:
        assert "\n" not in str(error)
