"""Stage ingest: copies, their record, and the sources that it refuses."""

from pathlib import Path

import pytest
from shared_data import write_rows

from formats.raw_rows import HUB_RECORD
from models.errors import UserError
from models.storage import sha256_of, write_json
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
    (tmp_path / "in/b.txt").write_text("x")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "in/linked").symlink_to(tmp_path / "elsewhere")
    assert [record["file"] for record in copy_raw_files(tmp_path / "in", tmp_path / "raw")] == ["A.JSONL"]
    assert "b.txt, linked" in caplog.text


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


def test_origin_of_a_download_is_part_of_the_record(tmp_path):
    files = [write_rows(tmp_path / f"in/{name}.jsonl", [ROW]) for name in ("same", "edited")]
    entries = [{"file": path.name, "bytes": 1, "sha256": sha256_of(path)} for path in files]
    origin = {"hub": "hf", "id": "a/b", "revision": "main", "commit": "0" * 40}
    write_json(tmp_path / "in" / HUB_RECORD, origin | {"files": entries})
    write_rows(files[1], [ROW, ROW])
    write_rows(tmp_path / "in/own.jsonl", [ROW])
    records = {record["file"]: record for record in copy_raw_files(tmp_path / "in", tmp_path / "raw")}
    assert records["same.jsonl"]["hub"] == origin | {"sha256": entries[0]["sha256"], "unchanged": True}
    assert records["edited.jsonl"]["hub"]["unchanged"] is False
    assert "hub" not in records["own.jsonl"]
    (tmp_path / "in" / HUB_RECORD).write_text('{"hub": 1}')
    with pytest.raises(UserError, match="is damaged; delete it"):
        copy_raw_files(tmp_path / "in", tmp_path / "raw")


@pytest.mark.parametrize("name", ["hf:owner/name@main", "modelscope:owner/name"])
def test_hub_id_is_refused_with_the_command_that_downloads_it(tmp_path, name):
    with pytest.raises(UserError, match=f"python -m pipelines.download {name} --out data/hub/name`"):
        copy_raw_files(Path(name), tmp_path / "raw")


def test_encoding_is_that_of_files_that_are_not_utf8(tmp_path):
    (tmp_path / "a.csv").write_bytes("问题,回答\n茶怎么泡？,先温杯。\n".encode("gb18030"))
    (record,) = copy_raw_files(tmp_path / "a.csv", tmp_path / "raw", encoding="gb18030")
    assert record["rows"] == 1
    assert (tmp_path / "raw/a.csv").read_bytes() == (tmp_path / "a.csv").read_bytes()
