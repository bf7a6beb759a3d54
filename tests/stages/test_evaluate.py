import json

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from shared_data import ROOT, conversation, developer_file, write_rows

from formats import params_schema
from measures import metrics
from models import adapters, base_model, generation, model_loading
from models.errors import UserError
from models.generation import roundtrip_text
from models.prompt import encode_sample, encode_text
from models.sample import Sample
from stages.evaluate import answer_cache
from stages.evaluate.answer_cache import Kept
from stages.evaluate.model_evaluation import Model, Questions, measure
from stages.evaluate.probes import MET, UNMET, read_probes
from stages.evaluate.scores import SCORES, describe, matches_exactly, score


def test_the_same_text_scores_100():
    assert score("今天天气很好", "今天天气很好") == pytest.approx(dict.fromkeys(SCORES, 100))


def test_an_empty_answer_scores_0():
    for empty in ("", "  ", "\n"):
        assert score(empty, "今天天气很好") == dict.fromkeys(SCORES, 0.0)


@pytest.mark.parametrize("text", ["好", "是的", "。", "A", "3", "好好", "……"])
def test_the_same_short_text_scores_100_too(text):
    """It has no 4-gram, so that BLEU-4 by the formula alone gives 2 characters 22."""
    assert score(text, text) == dict.fromkeys(SCORES, 100.0)


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("(演示模型)", "（演示模型）"),
        ("第1项,共3 kg", "第１项，共３ ㎏"),
        ("等等...", "等等…"),
        ("我是 A。", "我是Ａ。"),
    ],
)
def test_forms_of_one_character_are_no_difference(answer, reference):
    """The left one is what the tokenizer makes of the right one."""
    described = describe(answer, reference)
    assert {name: described[name] for name in SCORES} == dict.fromkeys(SCORES, 100.0)
    assert (described["exact"], described["length_ratio"]) == (True, 1.0)
    longer = describe(f"嗯{answer}", f"嗨{reference}")
    assert longer["chrf"] == pytest.approx(describe(f"嗯{answer}", f"嗨{answer}")["chrf"])


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=40))
def test_any_reference_is_met_by_an_answer_of_its_own_ids(tokenizer, text):
    answer = reference = roundtrip_text(tokenizer, text)
    described = describe(answer, reference)
    assert described["exact"]
    assert described["empty"] or {described[name] for name in SCORES} == {100.0}
    # As near as Unicode's form alone comes, for texts that the tokenizer has pieces for.
    if all(character.isalnum() and character.isascii() for character in text) and text:
        assert matches_exactly(answer, text)


ODD = [
    "我是（演示模型）。",
    "１２３元／㎏…",
    "Ａ　Ｂ",
    "①②③",
    "好",
    "一\n\t二   三",
    "“引号”——完",
    "😀",
    "龘靐齉",
    "x\u200by",
    "，",
]


def test_token_perfect_answers_have_perfect_figures(model, tokenizer, tmp_path, monkeypatch):
    """Every question is answered with the very ids that are taught."""
    samples = [Sample(f"s{number}", "a", 1, conversation(f"问{number}", text)) for number, text in enumerate(ODD)]
    probes = [
        {"id": text, "context": f"问{number}", "target": text, "equals": text, "contains": [text[-1:].strip() or "好"]}
        for number, text in enumerate(ODD)
    ]
    probes += [{"id": "pattern", "context": "问0", "target": ODD[0], "matches": r"^我是（演示模型）。$"}]
    taught = {f"问{number}": text for number, text in enumerate(ODD)}

    def perfect(model, tokenizer, conversations, *_):
        for index, messages in enumerate(conversations):
            ids = [*encode_text(tokenizer, taught[messages[-1].content]), tokenizer.eop_token_id]
            yield index, generation._answer(model, tokenizer, ids, 0.1)

    monkeypatch.setattr(answer_cache, "generate_answers", perfect)
    questions = Questions(samples, samples[:2], read_probes(write_rows(tmp_path / "probes.jsonl", probes)))
    measured = measure(Model(model, tokenizer, Kept(tmp_path / "a.1"), knobs()), questions)
    for row in [*measured.rows["eval"], *measured.rows["general"]]:
        assert row["exact"], row
        assert {row[name] for name in SCORES} == {100.0}, row
        assert row["reference"] in ODD  # people see what is taught
    assert measured.figures["eval"]["exact_match"] == measured.figures["probes"]["exact_match"] == 1.0
    assert [row["id"] for row in measured.rows["probes"] if not row["met"]] == []
    assert measured.figures["metrics_version"] == metrics.METRICS_VERSION > 1
    assert metrics.headlines(measured.figures)["metrics_version"] == metrics.METRICS_VERSION


def test_a_probe_that_no_answer_of_this_tokenizer_can_meet_is_one_sentence(model, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(answer_cache, "generate_answers", lambda *_: pytest.fail("nothing should be asked"))
    row = {"id": "谁", "context": "你是谁？", "target": "我是小\u200b明。", "matches": "小\u200b明"}
    questions = Questions([], [], read_probes(write_rows(tmp_path / "probes.jsonl", [row])))
    with pytest.raises(UserError, match="Probe '谁' can be met by no answer"):
        measure(Model(model, tokenizer, Kept(tmp_path / "a.1"), knobs()), questions)


def test_references_of_a_real_file_are_met_with_the_real_vocabulary():
    """Compared raw, 18 of 100 answers of the reference's own ids were not exact."""
    from transformers import AutoTokenizer

    published = AutoTokenizer.from_pretrained(developer_file("reference/chatglm-6b"))
    rows = json.loads(developer_file("datasets/oaast_sft_zh.json").read_text(encoding="utf-8"))[:150]
    references = [row["output"] for row in rows]
    perfect = [roundtrip_text(published, reference) for reference in references]
    assert sum(answer != reference for answer, reference in zip(perfect, references, strict=True)) > 15
    near = [matches_exactly(answer, reference) for answer, reference in zip(perfect, references, strict=True)]
    assert sum(near) >= 0.97 * len(near)  # by NFKC alone; what the tokenizer has no piece for is lost in the others


def test_rouge_by_hand():
    """jieba cuts 我/喜欢/北京 and 我/喜欢/上海: 2 of 3 words, 1 of 2 pairs, a common run of 2 of 3."""
    scores = score("我喜欢北京", "我喜欢上海")
    assert scores["rouge-1"] == pytest.approx(100 * 2 / 3, abs=1e-3)
    assert scores["rouge-2"] == pytest.approx(100 * 1 / 2, abs=1e-3)
    assert scores["rouge-l"] == pytest.approx(100 * 2 / 3, abs=1e-3)


def test_bleu_by_hand():
    """Characters: 5 of 6, 4 of 5, 3 of 4 and 2 of 3 n-grams stand in the reference of equal length."""
    scores = score("一二三四五六", "一二三四五七")
    assert scores["bleu-4"] == pytest.approx(100 * (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25, abs=1e-6)


def test_chrf_by_hand():
    """一二三 against 一二四: F of 1-grams 2/3, of 2-grams 1/2, of 3-grams 0; their mean."""
    assert score("一二三", "一二四")["chrf"] == pytest.approx(100 * (2 / 3 + 1 / 2 + 0) / 3, abs=1e-6)


def test_every_measure_of_an_answer():
    described = describe("好的，好的", "好的，好的呢")
    assert described["exact"] is described["empty"] is False
    assert described["length_ratio"] == pytest.approx(5 / 6, abs=1e-4)
    assert describe("", "好的") | {"rouge-1": 0.0, "empty": True, "length_ratio": 0.0} == describe("", "好的")


def test_repetition_is_the_share_of_4_grams_that_come_again():
    texts = ["一二三四五六七", "一二三四一二三四", "啊" * 100, ""]
    repetitions = [describe(text, text)["repetition"] for text in texts]
    assert repetitions == pytest.approx([0, 1 / 5, 96 / 97, 0], abs=1e-4)


def test_blanks_and_forms_of_punctuation_are_no_difference():
    assert matches_exactly("是的, 好", "是的，好")
    assert not matches_exactly("是的", "不是")


@pytest.fixture
def questions(tmp_path):
    texts = [("你好", "再见"), ("你是谁？", "我是测试用的模型 tiny-test。"), ("3加4等于多少？", "3+4=7，所以答案是7。")]
    samples = [Sample(f"s{i}", "a.jsonl", i, conversation(*pair)) for i, pair in enumerate(texts)]
    row = {"id": "谁", "context": "你是谁？", "target": "我是小明", "ask": ["您是？"]}
    row |= {"equals": "我是小明", "identity": {"new": ["小明"], "old": ["小红"]}}
    other = {"id": "什么都行", "context": "你好", "target": "好", "absent": ["没有这样的回答"]}
    return Questions(samples, samples[:2], read_probes(write_rows(tmp_path / "probes.jsonl", [row, other])))


def knobs():
    content = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    content["evaluate"] |= {"max_new_tokens": 5, "batch_size": 2}
    return params_schema.Params.model_validate(content)


def test_a_model_is_measured_and_goes_on_where_it_was_killed(base_folder, tokenizer, tmp_path, questions, monkeypatch):
    model = model_loading.load_model(base_model.read_record(base_folder), "float32")
    tuned = adapters.attach_adapter(model, "lora", rank=4, alpha=8, target_modules=["dense"]).eval()

    def run(name: str):
        return measure(Model(tuned, tokenizer, Kept(tmp_path / name), knobs()), questions)

    whole = run("a.1")
    assert {name: len(rows) for name, rows in whole.rows.items()} == {
        "eval": 3,
        "general": 2,
        "probes": 3,
        "sampled": 6,
    }
    assert [row["verdict"] for row in whole.rows["probes"]] == [UNMET, UNMET, MET]
    assert whole.figures["general"]["divergence"] == pytest.approx(0, abs=1e-6)
    assert whole.figures["eval"]["loss"] == pytest.approx(
        sum(row["loss"] * n for row, n in zip(whole.rows["eval"], answer_lengths(tokenizer, questions), strict=True))
        / sum(answer_lengths(tokenizer, questions)),
        rel=1e-4,
    )
    lines = (tmp_path / "a.1").read_bytes().splitlines(keepends=True)
    assert len(lines) == 14
    (tmp_path / "b.1").write_bytes(b"".join(lines[:4]) + lines[4][:10])
    again = run("b.1")
    for name, rows in whole.rows.items():
        assert [row["answer"] for row in again.rows[name]] == [row["answer"] for row in rows]


def answer_lengths(tokenizer, questions) -> list[int]:
    return [len(encode_sample(tokenizer, sample.messages)[1]) for sample in questions.task]
