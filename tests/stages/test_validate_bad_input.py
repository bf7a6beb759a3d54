"""Malformed input: the gate decides on every row, or reports a single error message."""

import gzip
import json
import os
import resource
import signal
import subprocess
import sys
import time

import psutil
import pytest
from gate import GOOD, GateRun
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shared_data import ROOT, write_rows

from formats.raw_rows import find_files, read_rows
from models.errors import UserError

GOOD_LINE = json.dumps(GOOD, ensure_ascii=False).encode()
NESTED = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)
ODD_ROWS = st.one_of(
    st.binary(max_size=40),
    st.text(max_size=20).map(lambda text: text.encode("utf-8")),
    NESTED.map(lambda value: json.dumps(value).encode()),
    # A known format with anything in its fields.
    st.tuples(NESTED, NESTED, NESTED).map(
        lambda values: json.dumps(dict(zip(("prompt", "response", "history"), values, strict=True))).encode()
    ),
    NESTED.map(lambda value: json.dumps({"messages": [{"role": "user", "content": value}]}).encode()),
    st.integers(1, 3000).map(lambda depth: b"[" * depth),
    st.integers(1, 5000).map(lambda digits: b'{"context": ' + b"9" * digits + b', "target": "\xe7\xad\x94"}'),
    st.sampled_from([GOOD_LINE, b"[1e999]", b"NaN", b"-Infinity", b'"', b'{"a": "', b"\xef\xbb\xbf", b'{"a":1,"a":2}']),
)
ENDS = st.sampled_from([b"\n", b"\r\n", b"\r", b"\n\n", b"\r\n\n"])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(ODD_ROWS, ENDS), max_size=8), st.integers(0, 2))
def test_row_counts_add_up_for_any_bytes(base_folder, tmp_path, lines, members):
    content = b"".join(part for line in lines for part in line)
    packed = members or content[:2] == b"\x1f\x8b"
    # Members of a gzip archive may be empty, and may end in the middle of a row.
    archive = b"".join(map(gzip.compress, (content[:9], b"", content[9:], b"")))
    (tmp_path / "raw").mkdir(exist_ok=True)
    (tmp_path / "raw/a.jsonl").write_bytes(archive if packed else content)
    try:
        run = GateRun(tmp_path / "raw", base_folder, tmp_path / "out")
    except UserError as error:
        assert str(error).count("\n") == 0
        return
    assert sum(run.written.values()) == len(run.table.lines)
    assert run.written["quarantine"] == len(run.rows["quarantine"])
    for row in run.rows["quarantine"]:
        if "content" in row:
            raw = row["content"].encode()
            assert content[row["offset"] : row["offset"] + len(raw)] == raw
        assert row["failed"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"a": 1}, {"b": "', "not closed"),
        (b'{\n "a": 1\n}', "several lines"),
        (gzip.compress(b"{}\n" * 99, mtime=0)[:-9], "gzip"),
    ],
)
def test_file_that_cannot_be_split_into_rows_is_one_message(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(read_rows(tmp_path / "a.json", "a.json"))


def test_mixed_line_endings_keep_line_numbers(tmp_path):
    ends = (b"\n", b"\r\n", b"\r", b"\n\n", b"\r\r", b"")
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + b"".join(GOOD_LINE + end for end in ends))
    rows = list(read_rows(tmp_path / "a.jsonl", "a.jsonl"))
    assert [row.content for row in rows] == [GOOD_LINE] * 6
    assert [row.line for row in rows] == [1, 2, 3, 4, 6, 8]
    assert rows[0].offset == 3


def test_carriage_return_within_a_row_is_white_space(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"context": "x",\r"target": "y"}\n' + GOOD_LINE + b"\n")
    assert [row.line for row in read_rows(tmp_path / "a.jsonl", "a.jsonl")] == [1, 2]


def test_rows_of_hundreds_of_files_have_their_own_file(base_folder, tmp_path):
    for number in range(300):
        write_rows(tmp_path / f"raw/{number % 7}/第{number}.jsonl", [{"context": f"问题 {number}", "target": ""}])
    run = GateRun(tmp_path / "raw", base_folder, tmp_path / "out")
    assert sorted(row["file"] for row in run.rows["quarantine"]) == sorted(
        f"{number % 7}/第{number}.jsonl" for number in range(300)
    )


def test_links_are_followed_within_the_folder_and_refused_out_of_it(tmp_path):
    inside = write_rows(tmp_path / "raw/a.jsonl", [GOOD])
    (tmp_path / "raw/link.jsonl").symlink_to(inside)
    (tmp_path / "raw/up").symlink_to(tmp_path / "raw", target_is_directory=True)
    assert set(find_files(tmp_path / "raw")) == {"a.jsonl", "link.jsonl"}
    for name, target, message in [
        ("out", write_rows(tmp_path / "outside.jsonl", [GOOD]), "link out of"),
        ("loop", tmp_path / "raw/loop.jsonl", "broken link"),
        ("nowhere", tmp_path / "raw/none", "broken link"),
    ]:
        link = tmp_path / f"raw/{name}.jsonl"
        link.symlink_to(target)
        with pytest.raises(UserError, match=message):
            find_files(tmp_path / "raw")
        link.unlink()


def test_row_over_the_size_limit_is_quarantined(base_folder, tmp_path):
    write_rows(tmp_path / "raw/a.jsonl", [GOOD, {"context": "问", "target": "长" * 17_000_000}, GOOD])
    run = GateRun(tmp_path / "raw", base_folder, tmp_path / "out")
    assert run.failed(2) == {"parseable"}
    assert sum(run.written.values()) == 3
    assert run.rows["quarantine"][0]["failed"][0]["seen"].startswith("5100")


# Programs ------------------------------------------------------------------------------------------


def command(raw, out) -> list[str]:
    return [sys.executable, "-m", "pipelines.check", str(raw), "--out", str(out)]


@pytest.mark.integration
def test_memory_stays_bounded_over_lines_of_50_mb(tmp_path):
    (tmp_path / "raw").mkdir()
    with (tmp_path / "raw/a.jsonl").open("wb") as file:
        for _ in range(16):
            file.write(b'{"context": "' + b"x" * 50_000_000 + b'", "target": "y"}\n')
    done = subprocess.run(command(tmp_path / "raw", tmp_path / "out"), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "16 rows" in done.stderr
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    assert peak < 1.3 * 2**20, f"a process took {peak / 2**20:.2f} GiB"  # 16 such rows take 0.75 GiB once


@pytest.fixture(scope="module")
def many_rows(tmp_path_factory):
    """Enough rows for several chunks, so that worker processes start."""
    raw = tmp_path_factory.mktemp("many")
    rows = [
        {"context": f"第 {number} 个问题是什么？", "target": f"答案是 {number * 7919}。"} for number in range(160_000)
    ]
    write_rows(raw / "a.jsonl", rows)
    return raw


def start(raw, out) -> tuple[subprocess.Popen, int, list[int]]:
    """Start the command in its own process group.

    Returns:
        The process, once workers run; the process ids of stage validate and of its workers.
    """
    process = subprocess.Popen(
        command(raw, out), cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 600
    while process.poll() is None and time.monotonic() < deadline:
        children = psutil.Process(process.pid).children(recursive=True)
        validate = [child.pid for child in children if _runs(child, "stages.validate")]
        workers = [child.pid for child in children if _runs(child, "forkserver") and not child.children()]
        if list(out.glob(".examined.*.tmp/*")) and len(workers) > 1:
            return process, validate[0], workers
        time.sleep(0.05)
    raise AssertionError("no worker started")


def _runs(process: psutil.Process, name: str) -> bool:
    try:
        return name in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False


def have_ended(pids: list[int]) -> bool:
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        if not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids):
            return True
        time.sleep(0.1)
    return False


@pytest.mark.integration
def test_killed_worker_is_one_message_and_leaves_no_files(many_rows, tmp_path):
    process, _, workers = start(many_rows, tmp_path / "out")
    os.kill(workers[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 1
    assert "worker process of validate was killed" in errors
    assert "Traceback" not in errors
    assert have_ended(workers)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".tuneline-check"]


@pytest.mark.integration
def test_run_after_sigkill_removes_the_leftovers(many_rows, tmp_path):
    """After SIGKILL of stage validate alone, its workers end, and the next run removes its spool."""
    process, validate, workers = start(many_rows, tmp_path / "out")
    os.kill(validate, signal.SIGKILL)
    process.communicate(timeout=600)
    assert process.returncode not in (0, 2)
    assert have_ended(workers)
    assert len(list((tmp_path / "out").glob(".examined.*.tmp"))) == 1
    write_rows(tmp_path / "few/a.jsonl", [GOOD | {"context": f"问题 {number}"} for number in range(40)])
    done = subprocess.run(command(tmp_path / "few", tmp_path / "out"), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (0, 2), done.stderr
    assert not list((tmp_path / "out").glob("*.tmp"))
