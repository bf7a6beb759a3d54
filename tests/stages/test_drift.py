"""Stage drift: planted drift is detected, and unchanged data raises few false alarms."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest
from evidently.metrics.column_statistics import ValueDriftCalculation
from shared_data import ROOT, conversation, developer_file, write_rows

from formats.verdict_params import Monitor
from models.families.chatglm_6b import ChatGLM6BFamily
from models.vocabulary import Vocabulary
from stages.drift import conversation_features, quarantine_drift
from stages.drift.__main__ import build_tables, compare_datasets, decide_verdict, read_conversations, sample_rows
from stages.drift.drift_tests import bonferroni_level, compare_features

FALSE_ALARMS, EFFECT = 0.01, 0.2


@pytest.fixture(scope="module")
def vocabulary(base_folder):
    return Vocabulary(base_folder / ChatGLM6BFamily.vocabulary_file)


def drifted_columns(reference, current, vocabulary) -> set[str]:
    tables = build_tables([reference, current], vocabulary, 4)
    significance_level = bonferroni_level(FALSE_ALARMS, tables[0].shape[1])
    features = compare_features(*tables, significance_level, EFFECT)
    return {feature.column for feature in features if feature.drifted}


def demo_conversations() -> list:
    return read_conversations([ROOT / "data/demo/raw"])[0]


@pytest.mark.integration
def test_100_resamples_of_unchanged_data_raise_at_most_5_alarms(vocabulary, monkeypatch):
    monkeypatch.setattr(ValueDriftCalculation, "_render", lambda *_: [])  # charts take most of the time
    # Topics are fitted to both datasets together, so one fit serves for all ways to divide the rows.
    rows = demo_conversations()
    table = pandas.concat(build_tables([rows[:100], rows[100:]], vocabulary, 4))
    significance_level, num_alarms = bonferroni_level(FALSE_ALARMS, table.shape[1]), 0
    for seed in range(100):
        shuffled = table.sample(frac=1, random_state=seed, ignore_index=True)
        middle = len(rows) // 2
        halves = (half.reset_index(drop=True) for half in (shuffled[:middle], shuffled[middle:]))
        num_alarms += any(feature.drifted for feature in compare_features(*halves, significance_level, EFFECT))
    assert num_alarms <= 5


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_advertisements_among_identity_rows_are_detected(vocabulary, share):
    advertisements, _ = read_conversations([developer_file("datasets/adgen_dev.jsonl")])
    rows = demo_conversations()
    current = rows[: round(len(rows) * (1 - share))] + advertisements[: round(len(rows) * share)]
    assert {"answer_characters"} < drifted_columns(rows, current, vocabulary)


def test_another_topic_with_equal_lengths_is_detected(vocabulary):
    rng = random.Random(0)
    tea, rain = ("红茶绿茶乌龙茶泡茶茶叶", "下雨天气多云温度降水预报")

    def rows(words: str) -> list:
        return [conversation("".join(rng.choices(words, k=8)), "".join(rng.choices(words, k=20))) for _ in range(80)]

    assert any(column.startswith("topic") for column in drifted_columns(rows(tea), rows(rain), vocabulary))


def test_features_of_a_conversation(vocabulary):
    table = conversation_features.compute_features(
        [conversation("你是谁？", "龘靐齉"), conversation("你是谁？", "你好你好你好你好")], vocabulary
    )
    assert table["byte_fallback"][0] > 0.5 > table["byte_fallback"][1] == 0
    assert list(table["answer_characters"]) == [3, 8]
    assert list(table["repetition"]) == [0, 0.6]  # 2 distinct of 5 4-grams
    assert list(table.columns) == [column for column in conversation_features.LABELS if column != "quarantined_share"]


def test_rows_are_sampled_with_a_fixed_seed_and_in_order():
    assert sample_rows(range(10), 20) == list(range(10))
    assert sample_rows(range(100), 10) == sample_rows(range(100), 10) == sorted(sample_rows(range(100), 10))


# Share of rows that fail a row check ----------------------------------------------------------------


def facts(rows: int, failed: int, **change) -> dict:
    """Return what the data checks write about a dataset."""
    suite = {"checks": [{"name": "no_html", "scope": "row", "maximum": None}, {"name": "unique", "scope": "cross_row"}]}
    books = {"rows_in": rows, "failed_row_checks": failed}
    return {"tokenizer_sha256": "a", "suite": suite, "books": books} | change


def test_equal_shares_raise_at_most_the_allowed_false_alarms():
    """15 % of both datasets fail, in 500 pairs of any size: about 5 false alarms are expected at a level of 1 %."""
    rng = np.random.default_rng(0)
    num_alarms = 0
    for _ in range(500):
        row_counts = [
            {"rows_in": rows, "failed_row_checks": int(rng.binomial(rows, 0.15))}
            for rows in rng.integers(20, 2000, 2).tolist()
        ]
        num_alarms += quarantine_drift.compare_shares(*row_counts, significance_level=0.01, effect=0.0).drifted
    assert num_alarms <= 12  # more have a probability of 1 in 500


@pytest.mark.parametrize(
    ("failed", "rows", "drifted"),
    [(150, 1000, False), (400, 1000, True), (0, 1000, True), (200, 1000, False), (5, 20, False), (20, 20, True)],
)
def test_large_change_of_the_share_is_detected(failed, rows, drifted):
    """Compared with 150 of 1,000. 20 % is significant with enough rows, but not large: Cohen's h is 0.13."""
    reference, current = (dataset["books"] for dataset in (facts(1000, 150), facts(rows, failed)))
    share = quarantine_drift.compare_shares(reference, current, 0.01, 0.2)
    assert share.drifted == drifted
    assert (share.reference_mean, share.current_mean) == (0.15, failed / rows)


def test_significant_but_small_change_is_not_drift():
    row_counts = [facts(10**6, failed)["books"] for failed in (150_000, 160_000)]
    share = quarantine_drift.compare_shares(*row_counts, 0.01, 0.2)
    assert share.p_value < 1e-6
    assert not share.drifted
    assert quarantine_drift.compare_shares(*row_counts, 0.01, 0.01).drifted


def test_shares_are_comparable_with_enough_rows_and_the_same_row_checks():
    other = {"checks": [{"name": "no_html", "scope": "row", "maximum": 3}]}
    cross_row = {
        "checks": [facts(1, 1)["suite"]["checks"][0], {"name": "unique", "scope": "cross_row", "severity": "warn"}]
    }
    assert quarantine_drift.is_comparable(facts(100, 1), facts(100, 1), 20)
    assert quarantine_drift.is_comparable(facts(100, 1), facts(100, 1, suite=cross_row), 20)
    assert quarantine_drift.is_comparable(facts(100, 1), facts(20, 1), 20)
    for incomparable in (
        facts(19, 1),
        facts(100, 1, suite=other),
        facts(100, 1, tokenizer_sha256="b"),
        facts(100, 1, books={"rows_in": 100}),  # receipt of an older version
        {},
    ):
        assert not quarantine_drift.is_comparable(facts(100, 1), incomparable, 20)
        assert not quarantine_drift.is_comparable(incomparable, facts(100, 1), 20)


@pytest.fixture
def compare(base_folder, tmp_path):
    """Return a function that compares two lists of conversations and the facts about them."""

    def compare(reference, current, facts=({}, {}), **params):
        page = tmp_path / "drift.html"
        return compare_datasets((reference, current), facts, base_folder, page, Monitor(topics=1, **params))

    return compare


def test_too_few_rows_give_no_verdict(compare):
    """However low monitor.least_rows is."""
    few = [conversation("问" * 9, "答" * 40 + str(number)) for number in range(5)]
    for datasets in ((demo_conversations(), few), (few, demo_conversations())):
        assert decide_verdict(compare(*datasets, least_rows=1)) == "unknown"


def test_quarantined_share_counts_in_the_multiple_testing_correction(compare, monkeypatch):
    levels = []
    compare_shares = quarantine_drift.compare_shares

    def recording_level(reference, current, significance_level, effect):
        levels.append(significance_level)
        return compare_shares(reference, current, significance_level, effect)

    monkeypatch.setattr(quarantine_drift, "compare_shares", recording_level)
    rows = demo_conversations()[:30]
    features = compare(rows, rows, (facts(100, 15), facts(100, 16)))
    assert features[-1].column == "quarantined_share"
    assert decide_verdict(features) == "steady"
    assert levels == [pytest.approx(0.01 / len(features))]
    share_only = compare(rows, [], (facts(100, 15), facts(100, 100)))
    assert [(feature.column, feature.drifted) for feature in share_only] == [("quarantined_share", True)]
    assert levels[1] == 0.01
    assert decide_verdict(share_only) == "drift"
    assert decide_verdict(compare(rows, [], (facts(100, 15), facts(100, 16)))) == "unknown"


# Program --------------------------------------------------------------------------------------------


def run_stage(folder: Path, current: Path, base_folder: Path) -> dict:
    """Run stage drift on the demo's rows as the reference, and return the report."""
    rows = [
        {"id": str(number), "source": {"file": "a", "line": 1}, "messages": [message.to_json() for message in messages]}
        for number, messages in enumerate(demo_conversations())
    ]
    write_rows(folder / "train.jsonl", rows)
    inputs = ("--reference", folder / "train.jsonl", "--current", current, "--tokenizer", base_folder)
    outputs = ("--page", folder / "drift.html", "--figures", folder / "drift.json")
    command = [sys.executable, "-m", "stages.drift", *map(str, (*inputs, *outputs))]
    environment = {**os.environ, "DO_NOT_TRACK": "1", "TUNELINE_LANG": "zh"}
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return json.loads((folder / "drift.json").read_text(encoding="utf-8"))


def test_stage_writes_report_and_page(base_folder, tmp_path):
    few = [{"context": "问", "target": "答"}] * 3 + ["no row"]
    report = run_stage(tmp_path, write_rows(tmp_path / "few.jsonl", few), base_folder)
    assert (report["verdict"], report["rows"]["unreadable"]) == ("unknown", 1)
    assert not (tmp_path / "drift.html").exists()
    report = run_stage(tmp_path, ROOT / "data/demo/raw", base_folder)
    assert (report["verdict"], report["drifted"]) == ("steady", [])
    labels = {feature["column"]: feature["label"] for feature in report["columns"]}
    assert labels["answer_characters"] == {"en": "Characters of the answer", "zh": "回答字符数"}
    assert labels["topic_1"] == {"en": "Topic 1", "zh": "主题 1"}
    page = (tmp_path / "drift.html").read_text(encoding="utf-8")
    assert json.dumps("回答字符数")[1:-1] in page
    assert '<script src="http' not in page


def test_false_alarms_are_divided_among_all_tests_of_a_comparison():
    """Independent tests at the Bonferroni level raise any alarm with at most the probability that was asked for."""
    for num_tests in (1, 9, 40):
        level = bonferroni_level(0.05, num_tests)
        assert 0.048 < 1 - (1 - level) ** num_tests <= 0.05 + 1e-12
