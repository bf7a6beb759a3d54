"""Raw reader: files that are not JSON in UTF-8 are refused with a conversion command; time and memory are linear."""

import gzip
import json
import shutil
import subprocess
import sys
import time

import pytest
from shared_data import ROOT, write_rows

from formats import packed_files
from formats.raw_rows import find_files, read_rows
from models.errors import UserError

ROWS = [{"prompt": f"第{number}种茶怎么泡？", "response": "先温杯，再投茶，最后注水。"} for number in range(20)]
TEXT = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def read(path) -> list:
    return [row for name, file in find_files(path).items() for row in read_rows(file, name)]


def read_error(path) -> str:
    """Return the message, of one line, with which a file is refused."""
    with pytest.raises(UserError) as error:
        read(path)
    assert "\n" not in str(error.value)
    return str(error.value)


# Foreign files -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("rows.xls", "read_excel"),
        ("rows.feather", "read_feather"),
        ("rows.tar", "tar -xf rows.tar"),
        ("rows.jsonl.bz2", "bunzip2"),
        ("rows.txt", "rename it to rows.jsonl"),
        ("rows.gz", "gzip -d rows.gz"),
        ("rows", "rename it"),
    ],
)
def test_file_with_another_suffix_is_refused_with_a_hint(tmp_path, name, hint):
    (tmp_path / name).write_text(TEXT, encoding="utf-8")
    message = read_error(tmp_path / name)
    assert hint in message
    assert "is not a data file" in message


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (b"PK\x03\x04\x14\x00", "zip"),
        (b"PAR1\x15\x04", "rename it to rows.parquet"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1", "Office"),
        (b"7z\xbc\xaf\x27\x1c", "7z"),
        (b"\xfd7zXZ\x00", "unxz"),
        (b"  <!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"x" * 257 + b"ustar", "tar"),
        (gzip.compress(gzip.compress(b"{}", mtime=0), mtime=0), "twice"),
        (b"prompt,response\nhi,hello\n", "rename it to rows.csv"),
        (b"prompt\tresponse\nhi\thello\n", "rename it to rows.tsv"),
    ],
)
def test_file_type_is_detected_by_its_first_bytes(tmp_path, head, message):
    (tmp_path / "rows.jsonl").write_bytes(head)
    assert message in read_error(tmp_path / "rows.jsonl")


def test_lines_of_text_before_rows_are_not_a_table(tmp_path):
    (tmp_path / "rows.jsonl").write_text("hello, world\nyes, no\n" + TEXT, encoding="utf-8")
    assert len(read(tmp_path / "rows.jsonl")) == 22


@pytest.mark.parametrize(
    ("encoding", "detected"),
    [
        ("gb18030", "gb18030"),
        ("gbk", "gb18030"),
        ("big5", "big5"),
        ("utf-16", "utf-16"),
        ("utf-16-le", "utf-16le"),
        ("utf-16-be", "utf-16be"),
        ("utf-32", "utf-32"),
    ],
)
@pytest.mark.parametrize("is_packed", [False, True])
def test_encoding_is_detected_and_the_command_converts_the_file(tmp_path, encoding, detected, is_packed):
    text = TEXT.replace("种", "種") if encoding == "big5" else TEXT
    text = text.translate(str.maketrans("温杯后", "溫杯後")) if encoding == "big5" else text
    name = "rows.jsonl.gz" if is_packed else "rows.jsonl"
    content = text.encode(encoding, "ignore")
    (tmp_path / name).write_bytes(gzip.compress(content) if is_packed else content)
    message = read_error(tmp_path / name)
    assert f"iconv -f {detected}" in message
    if shutil.which("iconv"):
        command = message.partition("save it as UTF-8: ")[2].removesuffix(".")
        subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
        assert len(read(tmp_path / "utf8-rows.jsonl")) == 20


@pytest.mark.parametrize("encoding", ["gb18030", "gbk", "big5", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_file_in_the_named_encoding_is_read(tmp_path, encoding, suffix):
    rows = [{"prompt": f"第{number}杯", "response": "先注水，再泡。" * 9} for number in range(9_000)]
    if suffix == ".csv":
        text = "prompt,response\r\n" + "".join(f"{row['prompt']},{row['response']}\r\n" for row in rows)
    else:
        text = json.dumps(rows, ensure_ascii=False) if suffix == ".json" else "\n".join(json.dumps(row) for row in rows)
    name = f"rows{suffix}"
    (tmp_path / name).write_bytes(text.encode(encoding))
    setting = "utf-16" if encoding.startswith("utf-16") else encoding
    assert [json.loads(row.content) for row in read_rows(tmp_path / name, name, setting)] == rows
    (tmp_path / name).write_text(text, encoding="utf-8")  # the encoding is that of files that are not UTF-8
    assert [json.loads(row.content) for row in read_rows(tmp_path / name, name, setting)] == rows


def test_wrong_encoding_is_one_message(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(TEXT.encode("gb18030") + b"\xff\xff\n")
    with pytest.raises(UserError, match=r"is not GB18030 near byte \d+; correct ingest.encoding"):
        list(read_rows(tmp_path / "rows.jsonl", "rows.jsonl", "gb18030"))
    (tmp_path / "rows.jsonl").write_bytes(TEXT.encode("gb18030"))
    assert "set ingest.encoding: gb18030 in params.yaml" in read_error(tmp_path / "rows.jsonl")


@pytest.mark.parametrize(
    "line",
    [
        TEXT.splitlines()[0].encode("gb18030"),  # one broken row among good ones
        b'{"prompt": "caf\xe9", "response": "\x93yes\x94"}',
        b"{}",
    ],
)
def test_file_with_one_broken_row_is_not_refused(tmp_path, line):
    (tmp_path / "rows.jsonl").write_bytes(TEXT.encode() + line + b"\n")
    assert len(read(tmp_path / "rows.jsonl")) == 21


@pytest.mark.parametrize(
    "line", ['{"prompt": "é à è", "response": "déjà vu"}\n', '{"prompt": "“Hi”A", "response": "…"}\n']
)
def test_latin_encodings_are_not_detected_as_chinese(tmp_path, line):
    (tmp_path / "rows.jsonl").write_bytes((line * 9).encode("cp1252").replace(b'\x85"', b'\x85A"'))
    assert len(read(tmp_path / "rows.jsonl")) == 9


def test_warning_lists_ten_skipped_files_and_counts_the_others(tmp_path, caplog):
    write_rows(tmp_path / "a.jsonl", ROWS)
    for number in range(15):
        (tmp_path / f"{number:02}.txt").write_text("x")
    assert len(read(tmp_path)) == 20
    assert "09.txt and 5 more" in caplog.text


# Arrays --------------------------------------------------------------------------------------------


def test_location_of_a_row_in_an_array_is_its_number(tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps(ROWS[:3]), encoding="utf-8")
    write_rows(tmp_path / "rows.jsonl", ROWS[:2])
    locations = [row.location for row in read(tmp_path)]
    assert locations == ["rows.json#1", "rows.json#2", "rows.json#3", "rows.jsonl:1", "rows.jsonl:2"]


# Time and memory -----------------------------------------------------------------------------------


def seconds(path) -> float:
    started = time.process_time()
    assert list(read_rows(path, path.name)) is not None
    return time.process_time() - started


LONG = {
    "a long string": lambda size: b'[{"a": "' + b"x" * size + b'"}]',
    "a string of escapes": lambda size: b'[{"a": "' + b"\\n" * (size // 2) + b'"}]',
    "nesting": lambda size: b"[" + b"[" * (size // 2) + b"]" * (size // 2) + b"]",
    "commas": lambda size: b"[" + b"," * size + b"]",
    "blanks": lambda size: b"[" + b" " * size + b"{}]",
    "blank lines": lambda size: b"\n" * size + b"{}",
    "carriage returns": lambda size: b"{}" + b"\r" * size + b"{}",
    "one line": lambda size: b'{"a": "' + b"x" * size + b'"}\n{}',
    "blanks in front of a row": lambda size: b" " * size + b"{}\n{}",
}


@pytest.mark.parametrize("kind", LONG)
def test_time_is_linear_in_bytes(tmp_path, kind):
    size = 150_000 if kind in ("nesting", "commas") else 1_500_000
    times = []
    for factor in (1, 4):
        content = LONG[kind](factor * size)
        path = tmp_path / f"{factor}.json{'' if content.startswith(b'[') else 'l'}"
        path.write_bytes(content)
        times.append(min(seconds(path) for _ in range(2)))
    assert times[1] < 10 * times[0] + 0.1, times


@pytest.mark.parametrize("kind", ["a string of escapes", "one line", "carriage returns"])
def test_memory_is_a_few_times_the_longest_row(tmp_path, kind):
    """In its own process, because ``tracemalloc`` does not count the states of regular expressions."""
    path = tmp_path / f"rows.json{'' if kind == 'a string of escapes' else 'l'}"
    path.write_bytes(LONG[kind](6_000_000))
    program = (
        "import resource, sys; from pathlib import Path; from formats.raw_rows import read_rows;"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "before = peak(); list(read_rows(Path(sys.argv[1]), 'rows')); print(peak() - before)"
    )
    command = [sys.executable, "-c", program, str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 60 * 1024  # KiB; 200,000 before


def test_decompression_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(packed_files, "MIN_UNPACKED", 2**18)
    (tmp_path / "bomb.jsonl.gz").write_bytes(gzip.compress(b"\n" * 8 * 2**20))
    assert "200 times its size" in read_error(tmp_path / "bomb.jsonl.gz")
    text = "".join(f'{{"prompt": "{number * 7919}", "response": "答"}}\n' for number in range(20_000))
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    assert len(read(tmp_path / "rows.jsonl.gz")) == 20_000


def test_millions_of_blank_lines_are_skipped_in_one_step(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b"\n" * 6_000_000 + b"{}")
    assert seconds(tmp_path / "rows.jsonl") < 1  # 0.03; line by line 3


def test_progress_bar_counts_bytes_of_the_file(tmp_path, monkeypatch):
    bars = []
    original = packed_files.tqdm.wrapattr
    monkeypatch.setattr(
        packed_files.tqdm, "wrapattr", lambda *args, **options: bars.append(options) or original(*args, **options)
    )
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(TEXT.encode()))
    read(tmp_path / "rows.jsonl.gz")
    assert bars[0]["total"] == (tmp_path / "rows.jsonl.gz").stat().st_size
    assert "rows.jsonl.gz" in bars[0]["desc"]
