"""python -m pipelines.check: it changes no file of the user, and reports mistakes without a traceback."""

import os
import subprocess

import pytest
from commands import check
from shared_data import write_rows

ROWS = [{"context": f"第 {number} 个问题是什么？", "target": f"答案是 {number}。"} for number in range(60)]


def is_refused(done: subprocess.CompletedProcess) -> bool:
    return done.returncode == 1 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr


def test_overlapping_input_and_output_folders_are_refused(tmp_path):
    rows = write_rows(tmp_path / "out/data.json", ROWS)
    before = rows.read_bytes()
    for files, out in [([rows], tmp_path / "out"), ([tmp_path / "out"], tmp_path / "out/new"), ([rows], rows)]:
        assert is_refused(check(*files, "--out", out))
    assert rows.read_bytes() == before
    assert list((tmp_path / "out").iterdir()) == [rows]


def test_only_folders_of_an_earlier_check_are_overwritten(tmp_path):
    rows = write_rows(tmp_path / "a.jsonl", ROWS)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/data.json").write_text("mine")
    assert "has other files" in check(rows, "--out", tmp_path / "other").stderr
    assert (tmp_path / "other/data.json").read_text() == "mine"
    assert check(rows, "--out", tmp_path / "out").returncode == 0
    assert is_refused(check(tmp_path / "typo.jsonl", "--out", tmp_path / "out"))
    assert (tmp_path / "out/checked/train.jsonl").is_file()
    assert check(rows, "--out", tmp_path / "out").returncode == 0


def test_files_of_the_same_name_all_count_and_a_file_passed_twice_counts_once(tmp_path):
    rows = [write_rows(tmp_path / f"{folder}/x.jsonl", ROWS[20 * i : 20 * i + 20]) for i, folder in enumerate("abc")]
    done = check(tmp_path / "a", rows[1], rows[2], rows[0], "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "60 rows =" in done.stderr


@pytest.mark.parametrize("out", ["a.jsonl/below", "dangling", "/proc/none"])
def test_output_folder_that_cannot_be_made_is_reported(tmp_path, out):
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    rows = write_rows(tmp_path / "a.jsonl", ROWS)
    assert is_refused(check(rows, "--out", tmp_path / out))


def test_full_disk_is_reported(tmp_path):
    """A limit on the size of files simulates it: a write fails."""
    import resource
    import signal

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    rows = write_rows(tmp_path / "a.jsonl", ROWS * 60)
    done = check(rows, "--out", tmp_path / "out", prepare=limit)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out/checked").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read all files")
def test_unreadable_files_are_reported(tmp_path):
    rows = write_rows(tmp_path / "in/locked/a.jsonl", ROWS)
    write_rows(tmp_path / "in/b.jsonl", ROWS)
    rows.parent.chmod(0)
    assert is_refused(check(tmp_path / "in"))
    rows.parent.chmod(0o755)
    rows.chmod(0)
    assert is_refused(check(rows))


def test_blocked_data_without_an_output_folder_has_no_path_in_its_message(tmp_path):
    done = check(write_rows(tmp_path / "a.jsonl", [{"context": "", "target": ""}] * 30))
    assert done.returncode == 2
    assert "See " not in done.stderr
    assert "--out DIR" in done.stderr
