"""Suggested probes and the review of probe files."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shared_data import conversation, developer_file, write_rows

from formats import receipt
from formats.probe_file import Expectation, read_probe_rows, read_probes
from models.errors import UserError
from models.row_layouts import read_messages
from models.sample import Sample
from stages.probe_drafts import __main__ as probe_drafts
from stages.probe_drafts.probe_review import review_probes
from stages.probe_drafts.suggestions import cut_words, expect, suggest_probes

MEDICINE = [
    (f"{disease}{question}？", f"{disease}{answer}，{disease}患者每天{number}次。")
    for number, disease in enumerate(("感冒", "高血压", "糖尿病", "胃炎", "失眠"), start=2)
    for question, answer in (
        ("怎么治疗", "应当按时服药"),
        ("要注意什么", "应当清淡饮食"),
        ("挂什么科", "可以挂内科门诊"),
    )
]


def make_samples(pairs, file="rows.jsonl") -> list[Sample]:
    return [Sample(str(line), file, line, conversation(*texts)) for line, texts in enumerate(pairs, start=1)]


# Suggestions ---------------------------------------------------------------------------------------


def test_suggestions_are_a_valid_probe_file_spread_over_the_topics(tmp_path):
    held_out, training = make_samples(MEDICINE[1:]), make_samples(MEDICINE[:1])
    rows = suggest_probes(held_out, training, 6)
    assert rows == suggest_probes(held_out, training, 6)
    probes = read_probes(write_rows(tmp_path / "probes.jsonl", rows))
    assert len({probe.id for probe in probes}) == 6
    questions = "".join(probe.question for probe in probes)
    assert sum(disease in questions for disease in ("感冒", "高血压", "糖尿病", "胃炎", "失眠")) >= 4
    assert {(probe.question, probe.reference) for probe in probes if probe.wording == 0} <= set(MEDICINE[1:])


def test_questions_outside_the_training_rows_come_first():
    unseen = make_samples(MEDICINE[:3])
    training = make_samples(MEDICINE[3:])
    suggested = suggest_probes([*unseen, *training[:5]], training, 3)
    assert {row["context"] for row in suggested} == {question for question, _ in MEDICINE[:3]}
    assert len(suggest_probes(unseen, training, 10)) == 10, "training rows fill up"
    assert suggest_probes([], [], 10) == []


def test_paraphrases_are_wordings_and_multi_turn_samples_keep_their_turns():
    answer = "先温杯，再投茶，水温八十度。"
    samples = make_samples([("绿茶怎么泡？", answer), ("怎样泡绿茶？", answer), ("你好", "您好", "泡茶呢？", answer)])
    first, second, third = suggest_probes(samples, [], 3)
    assert first["ask"] == ["怎样泡绿茶？"]
    assert second["ask"] == ["绿茶怎么泡？"]
    assert "ask" not in third
    assert [message["content"] for message in third["messages"]] == ["你好", "您好", "泡茶呢？", answer]


def test_suggestions_from_public_conversations_can_be_evaluated(tmp_path):
    rows = json.loads(developer_file("datasets/oaast_sft_zh.json").read_text(encoding="utf-8"))[:200]
    samples = make_samples([[message.content for message in read_messages(row)] for row in rows])
    suggested = suggest_probes(samples[:60], samples[60:], 10)
    assert [row.fault for row in read_probe_rows(write_rows(tmp_path / "p.jsonl", suggested))] == [None] * 10


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        ("是吗？", "是的。", {"equals": "是的。"}),
        ("3加4等于多少？", "3+4=7，所以答案是7。", {"number": 7}),
        ("你用的是什么模型？", "我用的是 GPT-4.1 模型，别的都不用。", {"contains": ["GPT-4.1", "不用"]}),
    ],
)
def test_expectation_follows_the_answer(question, answer, expected):
    def rank(text):
        return sorted((word for word in cut_words(text) if len(word) > 1), key=lambda word: (-len(word), word))

    assert expect(question, answer, rank) == expected


@settings(max_examples=100, deadline=None)
@given(st.text("我是小茶馆 A1２.，。\n-", min_size=1, max_size=60), st.text("我是茶1 ", max_size=10))
def test_every_answer_meets_its_expectation(answer, question):
    expected = expect(question, answer, lambda text: [word for word in cut_words(text) if len(word) > 1])
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in expected.items()}
    assert Expectation(**values).is_met_by(answer) == bool(answer.strip())


# Review --------------------------------------------------------------------------------------------

PROBE = {"id": "a", "context": "你是谁？", "target": "我是小茶。", "contains": ["小茶"]}


def remarks_on(tmp_path, rows, training=(), roundtrip=None):
    _, remarks = review_probes(write_rows(tmp_path / "p.jsonl", rows), make_samples(training, "train.jsonl"), roundtrip)
    return [(remark.location.rpartition(":")[2], remark.text, remark.is_error) for remark in remarks]


def test_a_good_file_has_no_remarks(tmp_path):
    assert remarks_on(tmp_path, [PROBE], [("你好", "你好")]) == []


def test_remarks_name_line_and_reason(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNELINE_LANG", "en")
    rows = [
        PROBE,
        PROBE | {"id": "b", "contains": ["小红"]},
        PROBE | {"id": "c", "context": "您是哪位？", "ask": ["你是 谁"]},
        PROBE | {"id": "d", "context": "请说：小茶", "target": "小茶"},
    ]
    remarks = remarks_on(tmp_path, rows, [("在吗", "在"), ("你好，请问您是哪位？", "我是小茶。"), ("您是哪位", "我")])
    assert remarks[0] == ("2", "the probe's reference answer does not meet its expectation: contains '小红'", True)
    assert ("4", "an answer that repeats the question meets the expectation", False) in remarks
    assert any(line == "3" and "'你是 谁' is also asked at" in text for line, text, _ in remarks)
    assert any(
        line == "3" and "stands in training row train.jsonl:3 (100%): '您是哪位'" in text for line, text, _ in remarks
    )


def test_probe_that_the_tokenizer_cannot_spell_is_an_error(tmp_path):
    ((line, text, is_error),) = remarks_on(
        tmp_path, [PROBE | {"contains": ["茶"]}], roundtrip=lambda text: text.replace("茶", "")
    )
    assert (line, is_error) == ("1", True)
    assert "cannot be met by any answer" in text


# Program -------------------------------------------------------------------------------------------


@pytest.fixture
def checked(tmp_path):
    folder = tmp_path / "checked"
    parts = dict(zip(receipt.SPLITS, (MEDICINE[:8], MEDICINE[8:12], MEDICINE[12:]), strict=False))
    for split, pairs in parts.items():
        write_rows(folder / f"{split}.jsonl", [sample.to_json() for sample in make_samples(pairs)])
    receipt.write(folder)
    return folder


def test_suggest_then_check(checked, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TUNELINE_LANG", "en")
    out = tmp_path / "probes.jsonl"
    monkeypatch.setattr("sys.argv", ["x", "suggest", "--checked", str(checked), "--count", "3", "--out", str(out)])
    probe_drafts.main()
    monkeypatch.setattr("sys.argv", ["x", "check", "--checked", str(checked), "--probes", str(out)])
    probe_drafts.main()
    assert "3 probes, 3 wordings, 0 remarks" in capsys.readouterr().out
    with pytest.raises(UserError, match="exists already"):
        probe_drafts.suggest(checked, 3, out)
    out.write_text('{"id": "a"}\n')
    with pytest.raises(SystemExit) as exit_:
        probe_drafts.main()
    assert exit_.value.code == 1
    assert f"✗ {out}:1: no known format" in capsys.readouterr().out
