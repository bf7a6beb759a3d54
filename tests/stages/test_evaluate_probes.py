import pytest
from hypothesis import given
from hypothesis import strategies as st
from shared_data import write_rows

from models.errors import UserError
from stages.evaluate.probes import Expectation, identity_of, numbers_in, pattern_in_nfkc, read_probes

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
        ({"number": -3}, "结果是\u22123。", "结果是3。"),
        ({"contains": ("（测试）",)}, "这是(测试)版", "这是测试版"),
        ({"absent": ("（测试）",)}, "这是测试版", "这是(测试)版"),
        ({"absent": ("(测试)",)}, "这是测试版", "这是（测试）版"),
        ({"equals": "（测试）№１"}, "(测试)No1", "(测试)No2"),
        ({"matches": "（测试）"}, "这是(测试)版", "这是测试版"),
        ({"matches": r"^[（［]测试[）］]$"}, "(测试)", "测试"),
        ({"matches": r"谁？"}, "你是谁?", "你是谁"),
        ({"matches": r"谁？$"}, "你是谁？", "你是"),
        ({"matches": r"第\uff11章"}, "第1章", "第2章"),
        ({"matches": r"\（测\）"}, "(测)", "测"),
        ({"matches": r"^(?!.*（测试）)"}, "测试", "(测试)"),
        ({"matches": r"(?:等…){2}"}, "等...等...", "等等..."),
        ({"matches": r"^等…{2}$"}, "等......", "等...."),
        ({"matches": r"A \w+"}, "A b", "Ab"),
        ({"contains": ("小明",), "absent": ("清华",)}, "我是小明", "我是清华的小明"),
    ],
)
def test_what_an_answer_must_be_like(expected, good, bad):
    assert Expectation(**expected).met(good)
    assert not Expectation(**expected).met(bad)
    assert not Expectation(**expected | {"contains": ("没有的",)}).met(good)


@pytest.mark.parametrize("pattern", [r"^我是\p{Han}{2}", r"\d+\.\d", r"[^，。]+", "(?i)chat|[a-z]", r"\[\]", r"\\u"])
def test_a_pattern_in_nfkc_stays_as_it_is(pattern):
    assert pattern_in_nfkc(pattern) == pattern.replace("，", ",")


def test_expectations_of_what_the_tokenizer_drops():
    """No answer holds a zero-width space: it cannot be asked for, and is absent from all."""

    def read(text: str) -> str:
        return text.replace("\u200b", "")

    expected = Expectation(contains=("小\u200b明",), absent=("\u200b", "红\u200b"), equals="我是小\u200b明")
    assert not expected.met("我是小明")
    read_expectation = expected.roundtrip_text(read)
    assert read_expectation == Expectation(contains=("小明",), absent=("红",), equals="我是小明")
    assert read_expectation.met("我是小明")
    assert Expectation(number=3.0, matches="x").roundtrip_text(read) == Expectation(number=3.0, matches="x")


@pytest.mark.parametrize(
    ("row", "can_be_met"),
    [
        ({"contains": ["\u200b"]}, False),
        ({"equals": "我是小明。"}, True),
        ({"matches": "小\u200b明"}, False),
        ({"contains": ["小明"]}, True),
    ],
)
def test_a_probe_that_a_tokenizer_rules_out_is_refused(tmp_path, row, can_be_met):
    (probe,) = read_probes(
        write_rows(
            tmp_path / "p.jsonl", [ROW | {"target": "我是小\u200b明。"} | row] if not can_be_met else [ROW | row]
        )
    )
    if can_be_met:
        assert probe.roundtrip_text(lambda text: text.replace("\u200b", "")) == probe
    else:
        with pytest.raises(UserError, match="Probe 'a' can be met by no answer"):
            probe.roundtrip_text(lambda text: text.replace("\u200b", ""))


def test_names_go_through_the_tokenizer_too(tmp_path):
    row = ROW | {"contains": ["小明"], "identity": {"new": ["小\u200b明"], "old": ["\u200b", "小红"]}}
    (probe,) = read_probes(write_rows(tmp_path / "p.jsonl", [row]))
    assert probe.roundtrip_text(lambda text: text.replace("\u200b", "")).names == (("小明",), ("小红",))


def test_a_system_message_is_no_turn(tmp_path):
    messages = [{"role": "system", "content": "说中文。"}, {"role": "user", "content": "你是谁？"}]
    messages.append({"role": "assistant", "content": "我是小明。"})
    (probe,) = read_probes(write_rows(tmp_path / "p.jsonl", [{"id": "a", "messages": messages, "contains": ["小明"]}]))
    assert probe.turns == 1


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
        ("我是ＣｈａｔＧＬＭ－６Ｂ－ｔｅｓｔ。", "new"),
    ],
)
def test_by_whose_name_an_answer_goes(answer, name):
    assert identity_of(answer, ["ChatGLM-6B-test"], ["ChatGLM-6B", "清华"]) == name
