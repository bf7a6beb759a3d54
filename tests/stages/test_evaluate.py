import pytest
import yaml
from given import ROOT, conversation, write_rows

from models import adapters, base
from models.prompt import encode_sample
from models.sample import Sample
from stages import params
from stages.evaluate.answers import Kept
from stages.evaluate.measure import Model, Questions, measure
from stages.evaluate.probes import MET, UNMET, read_probes
from stages.evaluate.scores import SCORES, describe, matches_exactly, repetition, score


def test_the_same_text_scores_100():
    assert score("今天天气很好", "今天天气很好") == pytest.approx(dict.fromkeys(SCORES, 100))


def test_an_empty_answer_scores_0():
    for empty in ("", "  ", "\n"):
        assert score(empty, "今天天气很好") == dict.fromkeys(SCORES, 0.0)


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
    assert repetition("一二三四五六七") == 0
    assert repetition("一二三四一二三四") == pytest.approx(1 / 5)
    assert repetition("啊" * 100) == pytest.approx(96 / 97)
    assert repetition("") == 0


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
    return params.Params.model_validate(content)


def test_a_model_is_measured_and_goes_on_where_it_was_killed(base_folder, tokenizer, tmp_path, questions, monkeypatch):
    model = base.load_model(base.read_record(base_folder), "float32")
    tuned = adapters.attach(model, "lora", rank=4, alpha=8, target_modules=["dense"]).eval()

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
