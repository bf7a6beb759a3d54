"""Stage ingest: copies, their record, and the sources that it refuses."""

import pytest
from shared_data import write_rows

from models.errors import UserError
from stages.ingest import copy_raw_files

ROW = {"context": "问", "target": "答"}


def test_files_are_copied_byte_for_byte_with_a_record(tmp_path):
    source = tmp_path / "in"
    write_rows(source / "b.jsonl", [ROW, ROW])
    (source / "deep").mkdir()
    (source / "deep/a.json").write_bytes('\ufeff[{"context": "问"},\r\n 3]'.encode())
    (source / "notes.txt").write_text("not data")
    records = copy_raw_files(source, tmp_path / "raw")
    assert [(record["file"], record["rows"]) for record in records] == [("b.jsonl", 2), ("deep/a.json", 2)]
    for record in records:
        assert (tmp_path / "raw" / record["file"]).read_bytes() == (source / record["file"]).read_bytes()
    assert not (tmp_path / "raw/notes.txt").exists()


def test_skipped_files_are_logged(tmp_path, caplog):
    write_rows(tmp_path / "in/A.JSONL", [ROW])
    (tmp_path / "in/b.csv").write_text("x")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "in/linked").symlink_to(tmp_path / "elsewhere")
    assert [record["file"] for record in copy_raw_files(tmp_path / "in", tmp_path / "raw")] == ["A.JSONL"]
    assert "b.csv, linked" in caplog.text


def test_source_may_be_a_single_file(tmp_path):
    path = write_rows(tmp_path / "mine.jsonl", [ROW])
    assert [record["source"] for record in copy_raw_files(path, tmp_path / "raw")] == [str(path)]


def test_old_copies_are_removed(tmp_path):
    write_rows(tmp_path / "raw/old.jsonl", [ROW])
    copy_raw_files(write_rows(tmp_path / "new.jsonl", [ROW]), tmp_path / "raw")
    assert [path.name for path in (tmp_path / "raw").iterdir()] == ["new.jsonl"]


def test_refused_sources_leave_no_copies(tmp_path):
    (tmp_path / "nothing").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/a.jsonl").write_bytes(b"\xef\xbb\xbf \n")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/a.jsonl").symlink_to(write_rows(tmp_path / "secret.jsonl", [ROW]))
    for source, message in [
        ("gone", "does not exist"),
        ("nothing", "has no file"),
        ("empty", "no rows in"),
        ("linked", "link"),
    ]:
        with pytest.raises(UserError, match=message):
            copy_raw_files(tmp_path / source, tmp_path / "raw")
    assert not (tmp_path / "raw").exists()
