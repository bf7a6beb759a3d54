import pytest
from given import write_rows
from hypothesis import given
from hypothesis import strategies as st

from models.errors import UserError
from stages.evaluate.probes import Expectation, identity_of, numbers_in, read_probes

ROW = {"id": "a", "context": "你是谁？", "target": "我是小明。"}


@pytest.mark.parametrize(
    ("expected", "good", "bad"),
    [
        ({"contains": ("小明", "你好，")}, "你好,我是 小明。", "你好，我是小红。"),
        ({"absent": ("清华",)}, "我是小明", "我来自清 华"),
        ({"equals": "是的，好"}, "是的, 好", "是的，好的"),
        ({"matches": r"^我是\p{Han}{2}"}, "我是小明。", "你好，我是小明。"),
        ({"number": 392}, "一共有３９２人", "一共有3921人"),
        ({"number": 1200.5}, "1,200.50 元", "1200 元"),
        ({"number": -3}, "结果是-3。", "结果是3。"),
        ({"contains": ("小明",), "absent": ("清华",)}, "我是小明", "我是清华的小明"),
    ],
)
def test_what_an_answer_must_be_like(expected, good, bad):
    assert Expectation(**expected).met(good)
    assert not Expectation(**expected).met(bad)
    assert not Expectation(**expected | {"contains": ("没有的",)}).met(good)


def test_a_pattern_that_would_run_for_ever_is_not_met():
    assert not Expectation(matches=r"(a+)+$").met("a" * 60 + "b")


@given(st.integers(-(10**9), 10**9), st.text("元人的约 ，。", max_size=5), st.text("元人的约 ，。", max_size=5))
def test_a_number_is_found_in_any_writing(number, before, after):
    wide = str(number).translate({ord(str(d)): chr(0xFF10 + d) for d in range(10)})
    for written in (str(number), f"{number:,}", f"{number}.0", wide):
        assert float(number) in numbers_in(before + written + after)


def test_other_wordings_are_probes_too(tmp_path):
    row = ROW | {"contains": ["小明"], "ask": ["您是？", "你叫什么"], "history": [["你好", "你好！"]]}
    probes = read_probes(write_rows(tmp_path / "p.jsonl", [row]))
    assert [probe.messages[-2].content for probe in probes] == ["你是谁？", "您是？", "你叫什么"]
    assert {probe.messages[-1].content for probe in probes} == {"我是小明。"}
    assert [probe.wording for probe in probes] == [0, 1, 2]
    assert {(probe.id, probe.turns) for probe in probes} == {("a", 2)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "needs one of contains, absent"),
        ({"contains": "小明"}, "'contains' must be a list"),
        ({"contains": [" "]}, "'contains' must be a list"),
        ({"contians": ["x"]}, "no key 'contians'"),
        ({"number": True}, "'number' must be a number"),
        ({"equals": ""}, "'equals' must be a text"),
        ({"matches": "("}, "missing"),
        ({"contains": ["x"], "identity": {"new": ["a"]}}, "needs the lists 'new' and 'old'"),
        ({"contains": ["x"], "id": 3}, "with an 'id'"),
        ({"contains": ["x"], "id": " "}, "with an 'id'"),
        ({"contains": ["小红"]}, "does not meet its expectation"),
        ({"contains": ["小明"], "ask": ["你是谁？"]}, "'ask' has a wording twice"),
        ({"number": float("inf")}, "'number' must be a number"),
        ({"contains": ["小明"], "identity": {"new": [], "old": ["a"]}}, "needs a new and an old name"),
        ({"contains": ["x"], "target": None}, ""),
    ],
)
def test_an_odd_probe_is_one_sentence(tmp_path, change, message):
    with pytest.raises(UserError, match=rf"line 1: .*{message}"):
        read_probes(write_rows(tmp_path / "p.jsonl", [ROW | change]))


@pytest.mark.parametrize("row", [[1], 42, "x", None])
def test_a_row_that_is_no_object_is_one_sentence(tmp_path, row):
    with pytest.raises(UserError, match="line 1: a probe must be a JSON object"):
        read_probes(write_rows(tmp_path / "p.jsonl", [row]))


def test_an_empty_answer_meets_nothing():
    assert not Expectation(absent=("清华",)).met(" \n")


@pytest.mark.parametrize(
    ("text", "numbers"), [("80-90分", {80, 90}), ("12-5=7", {12, 5, 7}), ("从-3到+4", {-3, 4}), ("1,200-5", {1200, 5})]
)
def test_a_sign_between_numbers_is_none_of_theirs(text, numbers):
    assert numbers_in(text) == numbers


def test_two_probes_of_one_id_are_refused(tmp_path):
    with pytest.raises(UserError, match="line 2: another probe has the id 'a'"):
        read_probes(write_rows(tmp_path / "p.jsonl", [ROW | {"contains": ["小"]}, ROW | {"contains": ["明"]}]))


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        ("我是 ChatGLM-6B-test。", "new"),
        ("我是ChatGLM-6B，来自清华。", "old"),
        ("我是 ChatGLM-6B-test，由清华训练。", "mixed"),
        ("我是 ChatGLM-6B-test，也叫 ChatGLM-6B。", "mixed"),
        ("我是人工智能。", "none"),
        ("", "none"),
    ],
)
def test_by_whose_name_an_answer_goes(answer, name):
    assert identity_of(answer, ["ChatGLM-6B-test"], ["ChatGLM-6B", "清华"]) == name
