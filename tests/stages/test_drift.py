"""Drift: found where it was planted, and not found where nothing changed."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pandas
import pytest
from given import ROOT, conversation, shared, write_rows

from models import base
from models.vocabulary import Vocabulary
from stages.drift import features
from stages.drift.__main__ import describe, read_raw, some
from stages.drift.judge import compare

LEVEL = {"false_alarms": 0.01, "effect": 0.2}


@pytest.fixture(scope="module")
def vocabulary(base_folder):
    return Vocabulary(base_folder / base.TOKENIZER)


def drifted(reference, current, vocabulary) -> set[str]:
    tables = describe(reference, current, vocabulary, 4)
    return {found.column for found in compare(*tables, **LEVEL) if found.drifted}


def demo() -> list:
    return read_raw([ROOT / "data/demo/raw"])[0]


@pytest.mark.integration  # Evidently draws its pictures each time
def test_100_resamples_of_unchanged_data_raise_at_most_5_alarms(vocabulary):
    # Topics are fitted to both sides together, so that those of all rows serve for each way to divide them.
    rows = demo()
    table = pandas.concat(describe(rows[:100], rows[100:], vocabulary, 4))
    alarms = 0
    for seed in range(100):
        shuffled = table.sample(frac=1, random_state=seed, ignore_index=True)
        middle = len(rows) // 2
        sides = (side.reset_index(drop=True) for side in (shuffled[:middle], shuffled[middle:]))
        alarms += any(found.drifted for found in compare(*sides, **LEVEL))
    assert alarms <= 5


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_advertising_among_identity_rows_is_found(vocabulary, share):
    planted, _ = read_raw([shared("datasets/adgen_dev.jsonl")])
    rows = demo()
    found = drifted(rows, rows[: round(len(rows) * (1 - share))] + planted[: round(len(rows) * share)], vocabulary)
    assert {"answer_characters"} < found


def test_another_topic_of_the_same_lengths_is_found(vocabulary):
    draw = random.Random(0)
    tea, rain = ("红茶绿茶乌龙茶泡茶茶叶", "下雨天气多云温度降水预报")

    def rows(words: str) -> list:
        return [conversation("".join(draw.choices(words, k=8)), "".join(draw.choices(words, k=20))) for _ in range(80)]

    assert any(column.startswith("topic") for column in drifted(rows(tea), rows(rain), vocabulary))


def test_what_the_tokenizer_does_not_know_counts_as_bytes(vocabulary):
    table = features.features([conversation("你是谁？", "龘靐齉"), conversation("你是谁？", "你好")], vocabulary)
    assert table["byte_fallback"][0] > 0.5 > table["byte_fallback"][1] == 0
    assert list(table["answer_characters"]) == [3, 2]


def test_more_rows_than_are_needed_are_drawn_the_same_way_each_time():
    assert some(range(10), 20) == list(range(10))
    assert some(range(100), 10) == some(range(100), 10) == sorted(some(range(100), 10))


def run(folder: Path, current: Path, base_folder: Path) -> dict:
    rows = [
        {"id": str(number), "source": {"file": "a", "line": 1}, "messages": asked}
        for number, asked in enumerate([vars(message) for message in messages] for messages in demo())
    ]
    write_rows(folder / "train.jsonl", rows)
    paths = ("--reference", folder / "train.jsonl", "--current", current, "--tokenizer", base_folder)
    made = ("--page", folder / "drift.html", "--figures", folder / "drift.json")
    command = [sys.executable, "-m", "stages.drift", *map(str, (*paths, *made))]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "DO_NOT_TRACK": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "drift.json").read_text(encoding="utf-8"))


def test_as_a_program(base_folder, tmp_path):
    odd = [{"context": "问", "target": "答"}] * 3 + ["no row"]
    assert run(tmp_path, write_rows(tmp_path / "few.jsonl", odd), base_folder)["verdict"] == "unknown"
    assert not (tmp_path / "drift.html").exists()
    same = run(tmp_path, ROOT / "data/demo/raw", base_folder)
    assert (same["verdict"], same["drifted"]) == ("steady", [])
    page = (tmp_path / "drift.html").read_text(encoding="utf-8")
    assert json.dumps("回答字数")[1:-1] in page
    assert '<script src="http' not in page
