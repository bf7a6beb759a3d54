"""Drift: found where it was planted, and not found where nothing changed."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
from shared_data import ROOT, conversation, developer_file, write_rows

from formats.params_schema import Monitor
from models import base_model
from models.vocabulary import Vocabulary
from stages.drift import conversation_features, quarantine_drift
from stages.drift.__main__ import describe, judge, read_raw, some, verdict_of
from stages.drift.drift_tests import compare

LEVEL = {"false_alarms": 0.01, "effect": 0.2}


@pytest.fixture(scope="module")
def vocabulary(base_folder):
    return Vocabulary(base_folder / base_model.TOKENIZER)


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
    planted, _ = read_raw([developer_file("datasets/adgen_dev.jsonl")])
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
    table = conversation_features.features(
        [conversation("你是谁？", "龘靐齉"), conversation("你是谁？", "你好")], vocabulary
    )
    assert table["byte_fallback"][0] > 0.5 > table["byte_fallback"][1] == 0
    assert list(table["answer_characters"]) == [3, 2]


def test_more_rows_than_are_needed_are_drawn_the_same_way_each_time():
    assert some(range(10), 20) == list(range(10))
    assert some(range(100), 10) == some(range(100), 10) == sorted(some(range(100), 10))


# The share that fails the row checks ----------------------------------------------------------------


def facts(rows: int, failed: int, **change) -> dict:
    """What a gate counted."""
    suite = {"checks": [{"name": "no_html", "scope": "row", "maximum": None}, {"name": "unique", "scope": "among"}]}
    books = {"rows_in": rows, "failed_row_checks": failed}
    return {"tokenizer_sha256": "a", "suite": suite, "books": books} | change


def test_the_share_raises_no_more_false_alarms_than_promised():
    """15 % fail on both sides, in pairs of files of any size: at most 1 of 100 may be called another, 5 of 500."""
    draw = np.random.default_rng(0)
    alarms = 0
    for _ in range(500):
        books = []
        for rows in draw.integers(20, 2000, 2).tolist():
            books.append({"rows_in": rows, "failed_row_checks": int(draw.binomial(rows, 0.15))})
        alarms += quarantine_drift.compare_shares(*books, level=0.01, effect=0.0).drifted
    assert alarms <= 12  # more than so many come once in 500 draws of 500 trials


@pytest.mark.parametrize(
    ("failed", "rows", "drifted"),
    [(150, 1000, False), (400, 1000, True), (0, 1000, True), (200, 1000, False), (5, 20, False), (20, 20, True)],
)
def test_a_share_that_moved_far_is_found(failed, rows, drifted):
    """Against 150 of 1,000. 20 % would be real with enough rows, and is not large: Cohen's h is 0.13."""
    reference, current = (gate["books"] for gate in (facts(1000, 150), facts(rows, failed)))
    found = quarantine_drift.compare_shares(reference, current, 0.01, 0.2)
    assert found.drifted == drifted
    assert (found.reference_mean, found.current_mean) == (0.15, failed / rows)


def test_a_real_difference_that_is_small_is_no_drift():
    books = [facts(10**6, failed)["books"] for failed in (150_000, 160_000)]
    found = quarantine_drift.compare_shares(*books, 0.01, 0.2)
    assert found.p_value < 1e-6
    assert not found.drifted
    assert quarantine_drift.compare_shares(*books, 0.01, 0.01).drifted


def test_the_share_is_judged_only_where_the_same_checks_counted_rows_enough():
    other = {"checks": [{"name": "no_html", "scope": "row", "maximum": 3}]}
    among = {"checks": [facts(1, 1)["suite"]["checks"][0], {"name": "unique", "scope": "among", "severity": "warn"}]}
    assert quarantine_drift.is_comparable(facts(100, 1), facts(100, 1), 20)
    assert quarantine_drift.is_comparable(facts(100, 1), facts(100, 1, suite=among), 20)
    assert quarantine_drift.is_comparable(facts(100, 1), facts(20, 1), 20)
    for odd in (
        facts(19, 1),
        facts(100, 1, suite=other),
        facts(100, 1, tokenizer_sha256="b"),
        facts(100, 1, books={"rows_in": 100}),  # as receipts of an older version
        {},
    ):
        assert not quarantine_drift.is_comparable(facts(100, 1), odd, 20)
        assert not quarantine_drift.is_comparable(odd, facts(100, 1), 20)


@pytest.fixture
def judged(base_folder, tmp_path):
    """What stage drift finds between two lists of conversations, and the gates behind them."""

    def judge_both(reference, current, gates=({}, {}), **knobs):
        arguments = SimpleNamespace(tokenizer=base_folder, page=tmp_path / "drift.html")
        return judge(reference, current, gates, arguments, Monitor(topics=1, **knobs))

    return judge_both


def test_fewer_rows_than_can_tell_give_no_verdict(judged):
    """However low monitor.least_rows is set."""
    long = [conversation("问" * 9, "答" * 40 + str(number)) for number in range(5)]
    for sides in ((demo(), long), (long, demo())):
        assert verdict_of(judged(*sides, least_rows=1)) == "unknown"


def test_each_test_beside_the_columns_takes_its_part_of_the_false_alarms(judged, monkeypatch):
    levels = []
    usual = quarantine_drift.compare_shares

    def compare_shares(reference, current, level, effect):
        levels.append(level)
        return usual(reference, current, level, effect)

    monkeypatch.setattr(quarantine_drift, "compare_shares", compare_shares)
    rows = demo()[:30]
    found = judged(rows, rows, (facts(100, 15), facts(100, 16)))
    assert [column.column for column in found][-1] == "quarantined_share"
    assert verdict_of(found) == "steady"
    assert levels == [pytest.approx(0.01 / len(found))]
    alone = judged(rows, [], (facts(100, 15), facts(100, 100)))
    assert [(column.column, column.drifted) for column in alone] == [("quarantined_share", True)]
    assert levels[1] == 0.01
    assert (verdict_of(alone), verdict_of(judged(rows, [], (facts(100, 15), facts(100, 16))))) == ("drift", "unknown")


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
