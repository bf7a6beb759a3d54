"""Text quality: descriptors of answers, and the tests of their means."""

import pytest

from stages.compare.evaluated_models import EvaluatedModel
from stages.compare.text_quality import THRESHOLDS, check_text_quality, describe, group_by_threshold

GOOD = {"answer": "我是小明，很高兴为你服务。"}


def model(rows: list[dict]) -> EvaluatedModel:
    defaults = {"reference": "我是小明，很高兴认识你。", "chrf": 60.0, "repetition": 0.0, "refusal": False}
    return EvaluatedModel("lora", {}, history=[], task=[defaults | row for row in rows], general=[], probes=[])


def failed_columns(rows: list[dict]) -> set[str]:
    return {result.threshold.column for result in check_text_quality(model(rows)) if not result.is_passed}


def test_good_answers_pass_every_test():
    results = check_text_quality(model([GOOD] * 4))
    assert [result.threshold for result in results] == list(THRESHOLDS)
    assert all(result.is_passed for result in results)
    assert results[0].value == 13
    assert results[0].reference == 12


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"answer": "我"}, "length"),
        ({"answer": "我是小明。" * 9}, "length"),
        ({"answer": "I am Xiaoming, hi"}, "chinese"),
        ({"answer": "我是小明，很高兴", "repetition": 0.9}, "repetition"),
        ({"answer": "我是小明，很高兴", "chrf": 3.0}, "similarity"),
        ({"answer": "抱歉，我不能回答这个问题。", "refusal": True}, "refusal"),
    ],
)
def test_every_test_can_fail(row, column):
    assert failed_columns([row] * 4) == {column}


def test_empty_answers_fail_without_an_error():
    assert {"length", "chinese"} <= failed_columns([{"answer": "", "chrf": 0.0}] * 3)
    assert describe("", 0, 0)["chinese"] == 0


def test_results_are_grouped_by_threshold():
    good, bad = model([GOOD] * 4), model([{"answer": "抱歉，我不能回答。", "chrf": 1.0, "refusal": True}] * 4)
    groups = group_by_threshold([*check_text_quality(good), *check_text_quality(bad)])
    assert [results[0].threshold for results in groups] == list(THRESHOLDS)
    assert [result.is_passed for result in groups[-1]] == [True, False]
    assert groups[0][0].bounds_text == "≥ 6.00, ≤ 24.00"
    assert groups[-1][0].bounds_text == "≤ 0.05"
