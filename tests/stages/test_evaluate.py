import json
import operator

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from shared_data import ROOT, conversation, developer_file, write_rows

from formats import params_schema
from formats.probe_file import MET, UNMET, read_probes
from measures import metrics
from models import adapters, base_model, generation, model_loading
from models.errors import UserError
from models.generation import roundtrip_text
from models.prompt import encode_sample, encode_text
from models.sample import Message, Sample
from stages.evaluate import answer_cache
from stages.evaluate.answer_cache import AnswerCache
from stages.evaluate.model_evaluation import EvalSet, ModelUnderTest, evaluate_model, evaluate_samples
from stages.evaluate.scores import SCORES, describe_answer, matches_exactly, refuses, score_answer


def test_identical_text_scores_100():
    assert score_answer("今天天气很好", "今天天气很好") == pytest.approx(dict.fromkeys(SCORES, 100))


def test_empty_answer_scores_0():
    for empty in ("", "  ", "\n"):
        assert score_answer(empty, "今天天气很好") == dict.fromkeys(SCORES, 0.0)


@pytest.mark.parametrize("text", ["好", "是的", "。", "A", "3", "好好", "……"])
def test_identical_short_text_scores_100(text):
    """A text without 4-grams would otherwise get a BLEU-4 of 22 from smoothing."""
    assert score_answer(text, text) == dict.fromkeys(SCORES, 100.0)


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("(演示模型)", "（演示模型）"),
        ("第1项,共3 kg", "第１项，共３ ㎏"),
        ("等等...", "等等…"),
        ("我是 A。", "我是Ａ。"),
    ],
)
def test_character_forms_do_not_affect_scores(answer, reference):
    """The answer is the reference, encoded and decoded."""
    scores = describe_answer(answer, reference)
    assert {name: scores[name] for name in SCORES} == dict.fromkeys(SCORES, 100.0)
    assert (scores["exact"], scores["length_ratio"]) == (True, 1.0)
    longer = describe_answer(f"嗯{answer}", f"嗨{reference}")
    assert longer["chrf"] == pytest.approx(describe_answer(f"嗯{answer}", f"嗨{answer}")["chrf"])


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=40))
def test_roundtripped_reference_is_an_exact_match(tokenizer, text):
    answer = reference = roundtrip_text(tokenizer, text)
    scores = describe_answer(answer, reference)
    assert scores["exact"]
    assert scores["empty"] or {scores[name] for name in SCORES} == {100.0}
    # The tokenizer has a piece for every ASCII letter and digit.
    if all(character.isalnum() and character.isascii() for character in text) and text:
        assert matches_exactly(answer, text)


UNUSUAL_TEXTS = [
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


def test_token_perfect_answers_have_perfect_scores(model, tokenizer, tmp_path, monkeypatch):
    """Every answer consists of the reference's own token ids."""
    samples = [
        Sample(f"s{number}", "a", 1, conversation(f"问{number}", text)) for number, text in enumerate(UNUSUAL_TEXTS)
    ]
    probes = [
        {"id": text, "context": f"问{number}", "target": text, "equals": text, "contains": [text[-1:].strip() or "好"]}
        for number, text in enumerate(UNUSUAL_TEXTS)
    ]
    probes += [{"id": "pattern", "context": "问0", "target": UNUSUAL_TEXTS[0], "matches": r"^我是（演示模型）。$"}]
    references = {f"问{number}": text for number, text in enumerate(UNUSUAL_TEXTS)}

    def answer_with_reference(model, tokenizer, conversations, *_):
        for index, messages in enumerate(conversations):
            ids = [*encode_text(tokenizer, references[messages[-1].content]), tokenizer.eop_token_id]
            yield index, generation.build_answer(model, tokenizer, ids, 0.1)

    monkeypatch.setattr(answer_cache, "generate_answers", answer_with_reference)
    eval_set = EvalSet(samples, samples[:2], read_probes(write_rows(tmp_path / "probes.jsonl", probes)))
    result = evaluate_model(ModelUnderTest(model, tokenizer, AnswerCache(tmp_path / "a.1"), load_params()), eval_set)
    for row in [*result.rows["test"], *result.rows["general"]]:
        assert row["exact"], row
        assert {row[name] for name in SCORES} == {100.0}, row
        assert row["reference"] in UNUSUAL_TEXTS  # the report shows the original text
    assert result.metrics["test"]["exact_match"] == result.metrics["probes"]["exact_match"] == 1.0
    assert [row["id"] for row in result.rows["probes"] if not row["met"]] == []
    assert result.metrics["metrics_version"] == metrics.METRICS_VERSION > 1


def test_probe_that_the_tokenizer_cannot_spell_is_refused_before_generation(model, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(answer_cache, "generate_answers", lambda *_: pytest.fail("generation started"))
    row = {"id": "谁", "context": "你是谁？", "target": "我是小\u200b明。", "matches": "小\u200b明"}
    eval_set = EvalSet([], [], read_probes(write_rows(tmp_path / "probes.jsonl", [row])))
    with pytest.raises(UserError, match="Probe '谁' cannot be met by any answer"):
        evaluate_model(ModelUnderTest(model, tokenizer, AnswerCache(tmp_path / "a.1"), load_params()), eval_set)


def test_roundtripped_references_match_with_the_published_vocabulary():
    """Without normalization, 18 of 100 answers of the reference's own ids were not exact."""
    from transformers import AutoTokenizer

    published = AutoTokenizer.from_pretrained(developer_file("reference/chatglm-6b"))
    rows = json.loads(developer_file("datasets/oaast_sft_zh.json").read_text(encoding="utf-8"))[:150]
    references = [row["output"] for row in rows]
    answers = [roundtrip_text(published, reference) for reference in references]
    assert sum(answer != reference for answer, reference in zip(answers, references, strict=True)) > 15
    exact = [matches_exactly(answer, reference) for answer, reference in zip(answers, references, strict=True)]
    assert sum(exact) >= 0.97 * len(exact)  # the others have characters without a token


def test_rouge_by_hand():
    """jieba segments 我/喜欢/北京 and 我/喜欢/上海: 2 of 3 words, 1 of 2 bigrams, a common subsequence of 2."""
    scores = score_answer("我喜欢北京", "我喜欢上海")
    assert scores["rouge-1"] == pytest.approx(100 * 2 / 3, abs=1e-3)
    assert scores["rouge-2"] == pytest.approx(100 * 1 / 2, abs=1e-3)
    assert scores["rouge-l"] == pytest.approx(100 * 2 / 3, abs=1e-3)


def test_bleu_by_hand():
    """Characters: 5 of 6, 4 of 5, 3 of 4 and 2 of 3 n-grams occur in the reference of equal length."""
    scores = score_answer("一二三四五六", "一二三四五七")
    assert scores["bleu-4"] == pytest.approx(100 * (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25, abs=1e-6)


def test_chrf_by_hand():
    """一二三 against 一二四: F of 1-grams 2/3, of 2-grams 1/2, of 3-grams 0; their mean."""
    assert score_answer("一二三", "一二四")["chrf"] == pytest.approx(100 * (2 / 3 + 1 / 2 + 0) / 3, abs=1e-6)


def test_properties_of_an_answer():
    scores = describe_answer("好的，好的", "好的，好的呢")
    assert scores["exact"] is scores["empty"] is False
    assert scores["length_ratio"] == pytest.approx(5 / 6, abs=1e-4)
    assert describe_answer("", "好的") | {"rouge-1": 0.0, "empty": True, "length_ratio": 0.0} == describe_answer(
        "", "好的"
    )


def test_repetition_is_the_share_of_repeated_4_grams():
    texts = ["一二三四五六七", "一二三四一二三四", "啊" * 100, ""]
    repetitions = [describe_answer(text, text)["repetition"] for text in texts]
    assert repetitions == pytest.approx([0, 1 / 5, 96 / 97, 0], abs=1e-4)


def test_refusals_count_where_the_reference_does_not_refuse():
    refusal, context = "抱歉，我无法回答您的问题。", [Message("user", "茶怎么泡？")]
    assert describe_answer(refusal, "先温杯。", context)["refusal"]
    assert not describe_answer(refusal, refusal, context)["refusal"]
    assert not describe_answer("先温杯。", refusal, context)["refusal"]


def test_exact_match_ignores_whitespace_and_punctuation_forms():
    assert matches_exactly("是的, 好", "是的，好")
    assert not matches_exactly("是的", "不是")


@pytest.fixture
def eval_set(tmp_path):
    texts = [("你好", "再见"), ("你是谁？", "我是测试用的模型 tiny-test。"), ("3加4等于多少？", "3+4=7，所以答案是7。")]
    samples = [Sample(f"s{i}", "a.jsonl", i, conversation(*pair)) for i, pair in enumerate(texts)]
    row = {"id": "谁", "context": "你是谁？", "target": "我是小明", "ask": ["您是？"]}
    row |= {"equals": "我是小明", "identity": {"new": ["小明"], "old": ["小红"]}}
    any_answer = {"id": "什么都行", "context": "你好", "target": "好", "absent": ["没有这样的回答"]}
    probes = read_probes(write_rows(tmp_path / "probes.jsonl", [row, any_answer]))
    return EvalSet(samples, samples[:2], probes, chosen_by=samples[1:])


def load_params():
    content = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    content["evaluate"] |= {"max_new_tokens": 5, "batch_size": 2}
    return params_schema.Params.model_validate(content)


def test_evaluation_resumes_from_the_answer_cache(base_folder, tokenizer, tmp_path, eval_set, monkeypatch):
    model = model_loading.load_model(base_model.read_record(base_folder), "float32")
    tuned = adapters.attach_adapter(model, "lora", rank=4, alpha=8, target_modules=["dense"]).eval()

    def run(name: str):
        return evaluate_model(ModelUnderTest(tuned, tokenizer, AnswerCache(tmp_path / name), load_params()), eval_set)

    complete = run("a.1")
    assert {name: len(rows) for name, rows in complete.rows.items()} == {
        "test": 3,
        "general": 2,
        "probes": 3,
        "sampled": 6,
    }
    assert [row["verdict"] for row in complete.rows["probes"]] == [UNMET, UNMET, MET]
    assert complete.metrics["general"]["divergence"] == pytest.approx(0, abs=1e-6)
    assert complete.metrics["test"]["loss"] == pytest.approx(
        sum(row["loss"] * n for row, n in zip(complete.rows["test"], answer_lengths(tokenizer, eval_set), strict=True))
        / sum(answer_lengths(tokenizer, eval_set)),
        rel=1e-4,
    )
    chosen_by = complete.rows["test"][1:]  # the same samples, which are not answered again
    tokens = [row["answer_tokens"] for row in chosen_by]
    expected = sum(row["loss"] * count for row, count in zip(chosen_by, tokens, strict=True)) / sum(tokens)
    assert complete.metrics["eval"] == {"rows": 2, "loss": pytest.approx(expected, rel=1e-4)}
    lines = (tmp_path / "a.1").read_bytes().splitlines(keepends=True)
    assert len(lines) == 14
    (tmp_path / "b.1").write_bytes(b"".join(lines[:4]) + lines[4][:10])
    resumed = run("b.1")
    for name, rows in complete.rows.items():
        assert [row["answer"] for row in resumed.rows[name]] == [row["answer"] for row in rows]


def answer_lengths(tokenizer, eval_set) -> list[int]:
    return [len(encode_sample(tokenizer, sample.messages)[1]) for sample in eval_set.task]


# Several learnt answers, and plain texts -----------------------------------------------------------


def evaluate_rows(model, tokenizer, tmp_path, samples, learn: str = "all") -> list[dict]:
    params = load_params()
    params = params.model_copy(update={"train": params.train.model_copy(update={"learn": learn})})
    under_test = ModelUnderTest(model, tokenizer, AnswerCache(tmp_path / f"{learn}.1"), params)
    return evaluate_samples(under_test, "eval", samples)


def test_loss_of_a_conversation_is_the_mean_over_the_tokens_of_its_learnt_answers(model, tokenizer, tmp_path):
    messages = conversation("你好", "你好，再见。", "你是谁？", "我是测试用的模型 tiny-test。", "好", "好")
    parts = [Sample(f"p{end}", "a", 1, messages[:end]) for end in (2, 4, 6)]
    whole = Sample("whole", "a", 1, messages)
    losses = [row["loss"] for row in evaluate_rows(model, tokenizer, tmp_path, parts, "last")]
    lengths = [len(encode_sample(tokenizer, part.messages)[1]) for part in parts]
    (row,) = evaluate_rows(model, tokenizer, tmp_path, [whole])
    assert row["loss"] == pytest.approx(sum(map(operator.mul, losses, lengths)) / sum(lengths), abs=2e-6)
    assert row["answer_tokens"] == sum(lengths)
    assert (row["reference"], len(row["messages"])) == ("好", 5)


def test_conversation_is_asked_up_to_its_last_learnt_answer(model, tokenizer, tmp_path):
    messages = (*conversation("你好", "你好，再见。", "你是谁？"), Message("assistant", "不学", learn=False))
    (row,) = evaluate_rows(model, tokenizer, tmp_path, [Sample("a", "a", 1, messages)])
    (first,) = evaluate_rows(model, tokenizer, tmp_path, [Sample("a", "a", 1, messages[:2])], "last")
    assert (row["reference"], len(row["messages"])) == ("你好，再见。", 1)
    assert (row["loss"], row["answer"]) == (first["loss"], first["answer"])


def test_plain_texts_have_a_loss_but_no_answer(model, tokenizer, tmp_path, eval_set):
    text = Sample("t", "a", 1, (Message("text", "夕阳把湖面染成了金色。"),))
    texts_only = EvalSet([text], [text], eval_set.probes)
    mixed = EvalSet([eval_set.task[0], text], [text], eval_set.probes)
    for name, samples in (("mixed", mixed), ("texts", texts_only)):
        under_test = ModelUnderTest(model, tokenizer, AnswerCache(tmp_path / name), load_params())
        result = evaluate_model(under_test, samples)
        row = result.rows["test"][-1]
        assert row.keys() == {"id", "loss", "near_limit", "answer_tokens", "messages", "reference"}
        assert row["loss"] > 0
        figures = result.metrics["test"]
        assert (figures["rows"], figures["answered"]) == (len(samples.task), len(samples.task) - 1)
        assert (figures["rouge-l"] is None) == (name == "texts")
        if name == "mixed":
            assert figures["rouge-l"] == result.rows["test"][0]["rouge-l"]


@pytest.mark.parametrize("text", ["很抱歉，我无法回答这个问题。", "As an AI model", "I'm sorry, but I can't help."])
def test_refusals_are_recognized(text):
    assert refuses(text)


@pytest.mark.parametrize("text", ["他说抱歉来晚了", "我是小明", "这道题我不会算错", "没有什么对不起的"])
def test_other_sentences_are_not_refusals(text):
    assert not refuses(text)
