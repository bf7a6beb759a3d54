import os
import signal
import subprocess
import sys
import time

import pytest
from given import ROOT

from models.errors import UserError
from models.storage import read_json, read_jsonl, sha256_of_json, write_json, write_jsonl, writing, writing_folder


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"old": True})
    with pytest.raises(OSError, match="full"), writing(path) as temporary:
        temporary.write_text("half")
        raise OSError("disk full")
    assert read_json(path) == {"old": True}
    assert [each.name for each in tmp_path.iterdir()] == ["a.json"]


def test_a_failed_folder_leaves_the_old_folder(tmp_path):
    with writing_folder(tmp_path / "f") as folder:
        (folder / "old").touch()
    with pytest.raises(OSError, match="full"), writing_folder(tmp_path / "f") as folder:
        (folder / "new").touch()
        raise OSError("disk full")
    assert [each.name for each in (tmp_path / "f").iterdir()] == ["old"]
    assert [each.name for each in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize("delay", [0.0, 0.01, 0.03])
def test_killed_while_writing_the_file_is_whole(tmp_path, delay):
    """A process rewrites one file over and over and is killed with SIGKILL: the file is some whole version."""
    path = tmp_path / "a.json"
    program = (
        "import sys, pathlib\nfrom models.storage import write_json\n"
        "count = 0\nwhile True:\n    count += 1\n"
        "    write_json(pathlib.Path(sys.argv[1]), {'count': count, 'filling': [count] * 20000})\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(path)], cwd=ROOT)
    while not path.exists():
        time.sleep(0.01)
    time.sleep(delay)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    content = read_json(path)
    assert content["filling"] == [content["count"]] * 20000


def test_damaged_files_are_one_sentence(tmp_path):
    (tmp_path / "a").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="not valid JSON"):
        read_json(tmp_path / "a")
    with pytest.raises(UserError, match="line 1"):
        read_jsonl(tmp_path / "a")
    for read in (read_json, read_jsonl):
        with pytest.raises(UserError, match="does not exist"):
            read(tmp_path / "gone")


def test_separators_inside_a_text_end_no_row(tmp_path):
    rows = [{"text": "一\u2028二\u2029三\x85四\x0b五"}, {"text": "六"}]
    write_jsonl(tmp_path / "a.jsonl", rows)
    assert read_jsonl(tmp_path / "a.jsonl") == rows


def test_bytes_that_are_no_utf8_are_one_sentence(tmp_path):
    (tmp_path / "a").write_bytes(b'{"a": "\xff"}')
    for read in (read_json, read_jsonl):
        with pytest.raises(UserError, match="a "):
            read(tmp_path / "a")


def test_the_hash_of_a_value_ignores_the_order_of_keys():
    assert sha256_of_json({"a": 1, "b": "\ud800"}) == sha256_of_json({"b": "\ud800", "a": 1})
