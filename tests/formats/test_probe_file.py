import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shared_data import write_rows

from formats.probe_file import (
    Expectation,
    classify_identity,
    find_numbers,
    normalize_pattern,
    read_probe_rows,
    read_probes,
)
from models.errors import UserError

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
def test_expectations(expected, good, bad):
    assert Expectation(**expected).is_met_by(good)
    assert not Expectation(**expected).is_met_by(bad)
    assert not Expectation(**expected | {"contains": ("没有的",)}).is_met_by(good)


@pytest.mark.parametrize("pattern", [r"^我是\p{Han}{2}", r"\d+\.\d", r"[^，。]+", "(?i)chat|[a-z]", r"\[\]", r"\\u"])
def test_ascii_operators_of_patterns_are_unchanged(pattern):
    assert normalize_pattern(pattern) == pattern.replace("，", ",")


def test_characters_that_the_tokenizer_drops_are_removed_from_expectations():
    """No answer contains a zero-width space."""

    def roundtrip(text: str) -> str:
        return text.replace("\u200b", "")

    expected = Expectation(contains=("小\u200b明",), absent=("\u200b", "红\u200b"), equals="我是小\u200b明")
    assert not expected.is_met_by("我是小明")
    roundtripped = expected.roundtrip_text(roundtrip)
    assert roundtripped == Expectation(contains=("小明",), absent=("红",), equals="我是小明")
    assert roundtripped.is_met_by("我是小明")
    assert Expectation(number=3.0, matches="x").roundtrip_text(roundtrip) == Expectation(number=3.0, matches="x")


@pytest.mark.parametrize(
    ("row", "can_be_met"),
    [
        ({"contains": ["\u200b"]}, False),
        ({"equals": "我是小明。"}, True),
        ({"matches": "小\u200b明"}, False),
        ({"contains": ["小明"]}, True),
    ],
)
def test_probe_that_the_tokenizer_cannot_spell_is_refused(tmp_path, row, can_be_met):
    (probe,) = read_probes(
        write_rows(
            tmp_path / "p.jsonl", [ROW | {"target": "我是小\u200b明。"} | row] if not can_be_met else [ROW | row]
        )
    )
    if can_be_met:
        assert probe.roundtrip_text(lambda text: text.replace("\u200b", "")) == probe
    else:
        with pytest.raises(UserError, match="Probe 'a' cannot be met by any answer"):
            probe.roundtrip_text(lambda text: text.replace("\u200b", ""))


def test_names_pass_through_the_tokenizer(tmp_path):
    row = ROW | {"contains": ["小明"], "identity": {"new": ["小\u200b明"], "old": ["\u200b", "小红"]}}
    (probe,) = read_probes(write_rows(tmp_path / "p.jsonl", [row]))
    assert probe.roundtrip_text(lambda text: text.replace("\u200b", "")).names == (("小明",), ("小红",))


def test_probe_may_have_a_system_message(tmp_path):
    messages = [{"role": "system", "content": "说中文。"}, {"role": "user", "content": "你是谁？"}]
    messages.append({"role": "assistant", "content": "我是小明。"})
    (probe,) = read_probes(write_rows(tmp_path / "p.jsonl", [{"id": "a", "messages": messages, "contains": ["小明"]}]))
    assert (probe.question, probe.reference) == ("你是谁？", "我是小明。")
    row = ROW | {"system": "说中文。", "contains": ["小明"]}
    assert read_probes(write_rows(tmp_path / "p.jsonl", [row]))[0].messages == probe.messages


def test_pattern_with_catastrophic_backtracking_times_out():
    assert not Expectation(matches=r"(a+)+$").is_met_by("a" * 60 + "b")


@given(st.integers(-(10**9), 10**9), st.text("元人的约 ，。", max_size=5), st.text("元人的约 ，。", max_size=5))
def test_number_is_found_in_any_notation(number, before, after):
    wide = str(number).translate({ord(str(d)): chr(0xFF10 + d) for d in range(10)})
    for written in (str(number), f"{number:,}", f"{number}.0", wide):
        assert float(number) in find_numbers(before + written + after)


def test_each_wording_is_a_probe(tmp_path):
    row = ROW | {"contains": ["小明"], "ask": ["您是？", "你叫什么"], "history": [["你好", "你好！"]]}
    probes = read_probes(write_rows(tmp_path / "p.jsonl", [row]))
    assert [probe.messages[-2].content for probe in probes] == ["你是谁？", "您是？", "你叫什么"]
    assert {probe.messages[-1].content for probe in probes} == {"我是小明。"}
    assert [probe.wording for probe in probes] == [0, 1, 2]
    assert {(probe.id, len(probe.messages)) for probe in probes} == {("a", 4)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "needs at least one of contains, absent"),
        ({"contains": "小明"}, "'contains' must be a list"),
        ({"contains": [" "]}, "'contains' must be a list"),
        ({"contians": ["x"]}, "'contians' is not a key"),
        ({"number": True}, "'number' must be a number"),
        ({"equals": ""}, "'equals' must be a string"),
        ({"matches": "("}, "missing"),
        ({"contains": ["x"], "identity": {"new": ["a"]}}, "needs the lists 'new' and 'old'"),
        ({"contains": ["x"], "id": 3}, "with an 'id'"),
        ({"contains": ["x"], "id": " "}, "with an 'id'"),
        ({"contains": ["小红"]}, "reference answer does not meet its expectation"),
        ({"contains": ["小明"], "ask": ["你是谁？"]}, "'ask' repeats a wording"),
        ({"number": float("inf")}, "'number' must be a number"),
        ({"contains": ["小明"], "identity": {"new": [], "old": ["a"]}}, "needs at least one new and one old name"),
        ({"contains": ["x"], "target": None}, ""),
    ],
)
def test_invalid_probe_raises_one_sentence_with_the_line(tmp_path, change, message):
    with pytest.raises(UserError, match=rf"p.jsonl:1: .*{message}"):
        read_probes(write_rows(tmp_path / "p.jsonl", [ROW | change]))


@pytest.mark.parametrize("row", [[1], 42, "x", None])
def test_row_that_is_not_an_object_is_refused(tmp_path, row):
    with pytest.raises(UserError, match=r"p\.jsonl:1: a probe must be a JSON object"):
        read_probes(write_rows(tmp_path / "p.jsonl", [row]))


def test_empty_answer_fails():
    assert not Expectation(absent=("清华",)).is_met_by(" \n")


@pytest.mark.parametrize(
    ("text", "numbers"), [("80-90分", {80, 90}), ("12-5=7", {12, 5, 7}), ("从-3到+4", {-3, 4}), ("1,200-5", {1200, 5})]
)
def test_minus_after_a_digit_is_not_a_sign(text, numbers):
    assert find_numbers(text) == numbers


def test_duplicate_id_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"p\.jsonl:2: the id 'a' is not unique"):
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
def test_identity_of_an_answer(answer, name):
    assert classify_identity(answer, ["ChatGLM-6B-test"], ["ChatGLM-6B", "清华"]) == name


def test_probes_of_all_files_of_a_folder_are_read(tmp_path):
    write_rows(tmp_path / "probes/a.jsonl", [ROW | {"contains": ["小明"]}])
    (tmp_path / "probes/b.json").write_text(json.dumps([ROW | {"id": "b", "absent": ["小红"]}]), encoding="utf-8")
    (tmp_path / "probes/README.md").write_text("# Probes")
    assert [probe.id for probe in read_probes(tmp_path / "probes")] == ["a", "b"]
    write_rows(tmp_path / "probes/c.jsonl", [ROW | {"contains": ["小明"]}])
    with pytest.raises(UserError, match=r"c\.jsonl:1: the id 'a' is not unique: .*a\.jsonl:1 has it"):
        read_probes(tmp_path / "probes")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"id": "a"', r"p\.jsonl:1: not JSON"),
        ('{"id": "你是谁"}'.encode("gbk"), "not UTF-8|GB18030"),
        (b"\n\n", "contains no probes"),
        (b"[" * 100_000, "not JSON|not closed"),
    ],
)
def test_damaged_file_is_one_sentence(tmp_path, content, message):
    (tmp_path / "p.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_probes(tmp_path / "p.jsonl")
    assert "\n" not in str(error.value)


def test_every_row_is_read_in_spite_of_faults(tmp_path):
    rows = [ROW | {"contains": ["小红"], "number": 3}, ROW | {"id": "b", "contains": ["小明"]}, {"id": "c"}]
    first, second, third = read_probe_rows(write_rows(tmp_path / "p.jsonl", rows))
    assert first.fault.endswith("does not meet its expectation: contains '小红', number 3")
    assert second.fault is None
    assert second.wordings[0].id == "b"
    assert "id" in third.fault
    assert third.location.endswith("p.jsonl:3")
