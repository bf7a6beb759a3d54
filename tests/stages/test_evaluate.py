import json
import math

import pytest
import torch
from given import conversation, write_rows

from models.errors import UserError
from models.prompt import encode_sample
from stages.evaluate.__main__ import eval_loss, probe_metrics, read_probes
from stages.evaluate.scores import SCORES, matches_exactly, mean_scores, meets, score


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


def test_the_mean_is_over_pairs():
    assert mean_scores([("好的", "好的"), ("", "好的")])["rouge-1"] == pytest.approx(50, abs=1e-3)


def test_what_a_probe_expects():
    probe = {"contains": ["ChatGLM-6B-test", "你好，"], "absent": ["清华"]}
    assert meets("你好,我是 ChatGLM-6B-test。", probe)
    assert not meets("你好，我是 ChatGLM-6B。", probe)
    assert not meets("你好，我是清华的 ChatGLM-6B-test。", probe)
    assert matches_exactly("是的, 好", "是的，好")
    assert not matches_exactly("是的", "不是")


def test_shares_of_probes_by_turns():
    one, two = [{}], [{}, {}, {}]
    judged = [
        {"messages": one, "met": True, "exact": True},
        {"messages": one, "met": False, "exact": False},
        {"messages": two, "met": True, "exact": False},
    ]
    assert probe_metrics(judged) == {"exact_match": 0.3333, "met_single_turn": 0.5, "met_multi_turn": 1.0}
    assert probe_metrics(judged[:1])["met_multi_turn"] is None


def test_loss_is_the_mean_over_labelled_tokens_whatever_the_batches(model, tokenizer):
    pairs = [("你好", "再见"), ("你是谁？", "我是测试用的模型 tiny-test。"), ("3加4等于多少？", "3+4=7，所以答案是7。")]
    rows, total, labelled = [], 0.0, 0
    for pair in pairs:
        prompt, answer = encode_sample(tokenizer, conversation(*pair))
        rows.append({"prompt": prompt, "answer": answer})
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        total -= logits[range(len(answer)), answer].sum().item()
        labelled += len(answer)
    for batch_size in (1, 2, 3):
        assert math.isclose(eval_loss(model, rows, batch_size), total / labelled, rel_tol=1e-5)


GOOD_PROBE = {"id": "a", "context": "问", "target": "答", "contains": ["答"]}


@pytest.mark.parametrize(
    ("probe", "said"),
    [
        ({"id": "b"}, "no known format"),
        ({**GOOD_PROBE, "contain": ["答"]}, "'contain'"),
        ({**GOOD_PROBE, "contains": []}, "'contains' or 'absent'"),
        ({**GOOD_PROBE, "contains": "答"}, "list"),
        ({**GOOD_PROBE, "contains": [""]}, "not empty"),
        ({**GOOD_PROBE, "id": 3}, "'id'"),
        ({"id": "b", "contains": ["答"], "messages": [{"role": "assistant", "content": "答"}]}, "question"),
    ],
)
def test_a_probe_that_proves_nothing_is_refused_with_its_line(tmp_path, probe, said):
    path = write_rows(tmp_path / "probes.jsonl", [GOOD_PROBE])
    path.write_text(path.read_text(encoding="utf-8") + "\n" + json.dumps(probe), encoding="utf-8")
    with pytest.raises(UserError, match=rf"line 3: .*{said}"):
        read_probes(path)
