"""Raw files: what is no JSON in UTF-8 is refused with a way out, and no byte costs more than another."""

import gzip
import json
import shutil
import subprocess
import sys
import time

import pytest
from shared_data import ROOT, write_rows

from formats import raw_rows
from formats.raw_rows import find_files, read_rows
from models.errors import UserError

ROWS = [{"prompt": f"第{number}种茶怎么泡？", "response": "先温杯，再投茶，最后注水。"} for number in range(20)]
TEXT = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def read(path) -> list:
    return [row for name, file in find_files(path).items() for row in read_rows(file, name)]


def refusal(path) -> str:
    with pytest.raises(UserError) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Files of other kinds ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("rows.csv", "csv.DictReader"),
        ("rows.TSV", "delimiter"),
        ("rows.xlsx", "read_excel"),
        ("rows.parquet", "read_parquet"),
        ("rows.zip", "unzip rows.zip"),
        ("rows.jsonl.bz2", "bunzip2"),
        ("rows.txt", "rename it to rows.jsonl"),
        ("rows", "rename it"),
    ],
)
def test_a_file_of_another_name_is_refused_with_a_way_out(tmp_path, name, said):
    (tmp_path / name).write_text(TEXT, encoding="utf-8")
    assert said in refusal(tmp_path / name)
    assert "is no .jsonl or .json file" in refusal(tmp_path / name)


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030"])
@pytest.mark.parametrize(("suffix", "delimiter"), [(".csv", ","), (".tsv", "\t")])
def test_the_line_that_converts_a_table_does_so(tmp_path, encoding, suffix, delimiter):
    text = f"prompt{delimiter}response\r\n你叫什么名字？{delimiter}我叫小智，很高兴认识您。\r\n"
    (tmp_path / f"a table{suffix}").write_bytes(text.encode(encoding))
    command = refusal(tmp_path / f"a table{suffix}").partition("convert it: ")[2].removesuffix(".")
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
    (row,) = read(tmp_path / "a table.jsonl")
    assert json.loads(row.content) == {"prompt": "你叫什么名字？", "response": "我叫小智，很高兴认识您。"}


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"PK\x03\x04\x14\x00", "zip"),
        (b"PAR1\x15\x04", "Parquet"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1", "Office"),
        (b"7z\xbc\xaf\x27\x1c", "7z"),
        (b"\xfd7zXZ\x00", "unxz"),
        (b"  <!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"x" * 257 + b"ustar", "tar"),
        (gzip.compress(gzip.compress(b"{}", mtime=0), mtime=0), "twice"),
        (b"prompt,response\nhi,hello\n", "csv.DictReader"),
        (b"prompt\tresponse\nhi\thello\n", "delimiter"),
    ],
)
def test_what_has_the_wrong_name_is_told_by_how_it_begins(tmp_path, head, said):
    (tmp_path / "rows.jsonl").write_bytes(head)
    assert said in refusal(tmp_path / "rows.jsonl")


def test_lines_of_text_among_rows_are_no_table(tmp_path):
    (tmp_path / "rows.jsonl").write_text("hello, world\nyes, no\n" + TEXT, encoding="utf-8")
    assert len(read(tmp_path / "rows.jsonl")) == 22


@pytest.mark.parametrize(
    ("encoding", "told"),
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
def test_another_encoding_is_named_and_its_line_converts_it(tmp_path, encoding, told, is_packed):
    text = TEXT.replace("种", "種") if encoding == "big5" else TEXT
    text = text.translate(str.maketrans("温杯后", "溫杯後")) if encoding == "big5" else text
    name = "rows.jsonl.gz" if is_packed else "rows.jsonl"
    content = text.encode(encoding, "ignore")
    (tmp_path / name).write_bytes(gzip.compress(content) if is_packed else content)
    sentence = refusal(tmp_path / name)
    assert f"iconv -f {told}" in sentence
    if shutil.which("iconv"):
        command = sentence.partition("save it as UTF-8: ")[2].removesuffix(".")
        subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
        assert len(read(tmp_path / "utf8-rows.jsonl")) == 20


@pytest.mark.parametrize(
    "line",
    [
        TEXT.splitlines()[0].encode("gb18030"),  # one broken row among good ones
        b'{"prompt": "caf\xe9", "response": "\x93yes\x94"}',
        b"{}",
    ],
)
def test_a_file_with_a_broken_row_is_read_row_by_row(tmp_path, line):
    (tmp_path / "rows.jsonl").write_bytes(TEXT.encode() + line + b"\n")
    assert len(read(tmp_path / "rows.jsonl")) == 21


@pytest.mark.parametrize(
    "line", ['{"prompt": "é à è", "response": "déjà vu"}\n', '{"prompt": "“Hi”A", "response": "…"}\n']
)
def test_other_encodings_of_latin_letters_are_no_chinese(tmp_path, line):
    (tmp_path / "rows.jsonl").write_bytes((line * 9).encode("cp1252").replace(b'\x85"', b'\x85A"'))
    assert len(read(tmp_path / "rows.jsonl")) == 9


def test_many_files_that_are_left_out_are_counted(tmp_path, caplog):
    write_rows(tmp_path / "a.jsonl", ROWS)
    for number in range(15):
        (tmp_path / f"{number:02}.csv").write_text("x")
    assert len(read(tmp_path)) == 20
    assert "09.csv and 5 more" in caplog.text


# Arrays --------------------------------------------------------------------------------------------


def test_rows_of_an_array_are_told_apart_by_their_number(tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps(ROWS[:3]), encoding="utf-8")
    write_rows(tmp_path / "rows.jsonl", ROWS[:2])
    places = [row.place for row in read(tmp_path)]
    assert places == ["rows.json#1", "rows.json#2", "rows.json#3", "rows.jsonl:1", "rows.jsonl:2"]


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
def test_four_times_the_bytes_take_four_times_as_long(tmp_path, kind):
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
    """In a process of its own: a regular expression's states are no objects of Python, and peaks never fall."""
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


def test_a_small_archive_that_unpacks_without_end_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(raw_rows, "SMALL_UNPACKED", 2**18)
    (tmp_path / "bomb.jsonl.gz").write_bytes(gzip.compress(b"\n" * 8 * 2**20))
    assert "200 times its size" in refusal(tmp_path / "bomb.jsonl.gz")
    text = "".join(f'{{"prompt": "{number * 7919}", "response": "答"}}\n' for number in range(20_000))
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    assert len(read(tmp_path / "rows.jsonl.gz")) == 20_000


def test_millions_of_blank_lines_are_passed_over_at_once(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b"\n" * 6_000_000 + b"{}")
    assert seconds(tmp_path / "rows.jsonl") < 1  # 0.03; line by line 3


def test_reading_shows_its_progress_in_bytes_of_the_file(tmp_path, monkeypatch):
    bars = []
    original = raw_rows.tqdm.wrapattr
    monkeypatch.setattr(
        raw_rows.tqdm, "wrapattr", lambda *args, **options: bars.append(options) or original(*args, **options)
    )
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(TEXT.encode()))
    read(tmp_path / "rows.jsonl.gz")
    assert bars[0]["total"] == (tmp_path / "rows.jsonl.gz").stat().st_size
    assert "rows.jsonl.gz" in bars[0]["desc"]
