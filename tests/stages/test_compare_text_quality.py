import pytest
from stages.compare.model_columns import Model

from stages.compare.text_quality import LIMITS, by_descriptor, describe, judge


def model(rows: list[dict]) -> Model:
    whole = [{"reference": "我是小明，很高兴认识你。", "chrf": 60.0, "repetition": 0.0} | row for row in rows]
    return Model("lora", {}, [], [], whole, [])


def failed(rows: list[dict]) -> set[str]:
    return {verdict.limit.column for verdict in judge(model(rows)) if not verdict.passed}


GOOD = {"answer": "我是小明，很高兴为你服务。"}


def test_good_answers_pass_every_test():
    verdicts = judge(model([GOOD] * 4))
    assert [verdict.limit for verdict in verdicts] == list(LIMITS)
    assert all(verdict.passed for verdict in verdicts)
    assert verdicts[0].value == 13
    assert verdicts[0].reference == 12


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"answer": "我"}, "length"),
        ({"answer": "我是小明。" * 9}, "length"),
        ({"answer": "I am Xiaoming, hi"}, "chinese"),
        ({"answer": "我是小明，很高兴", "repetition": 0.9}, "repetition"),
        ({"answer": "我是小明，很高兴", "chrf": 3.0}, "similarity"),
        ({"answer": "抱歉，我不能回答这个问题。"}, "refusal"),
    ],
)
def test_every_test_can_fail(row, column):
    assert failed([row] * 4) == {column}


def test_an_empty_answer_does_not_crash():
    assert {"length", "chinese"} <= failed([{"answer": "", "chrf": 0.0}] * 3)
    assert describe("", 0, 0)["chinese"] == 0


@pytest.mark.parametrize("text", ["很抱歉，我无法回答这个问题。", "As an AI model", "I'm sorry, but I can't help."])
def test_refusals_are_known(text):
    assert describe(text, 0, 0)["refusal"] == 1


@pytest.mark.parametrize("text", ["他说抱歉来晚了", "我是小明", "这道题我不会算错", "没有什么对不起的"])
def test_other_sentences_are_no_refusals(text):
    assert describe(text, 0, 0)["refusal"] == 0


def test_the_verdicts_stand_in_the_table():
    good, bad = model([GOOD] * 4), model([{"answer": "抱歉，我不能回答。", "chrf": 1.0}] * 4)
    table = by_descriptor([*judge(good), *judge(bad)])
    assert [label for label, _, _ in table] == [limit.label for limit in LIMITS]
    assert [[verdict.passed for verdict in verdicts] for _, _, verdicts in table][-1] == [True, False]
    assert table[0][1] == "≥ 6.00, ≤ 24.00"
    assert table[-1][1] == "≤ 0.05"
