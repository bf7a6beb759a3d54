"""Stage question_fit: answers to other questions are ranked worse than answers to their own question."""

import json
import random
import sys
from pathlib import Path

import pytest
import torch
from shared_data import ROOT, conversation, write_rows

from formats import receipt
from models import adapters, base_model, training
from models.errors import DataBlocked
from models.prompt import encode_sample, label_sample
from models.sample import Message, Sample, make_sample_id
from models.storage import read_json, write_jsonl
from stages.question_fit import __main__ as question_fit
from stages.question_fit.__main__ import main
from stages.question_fit.answer_ranking import area_under_curve, measure_separation, rank_answers, select_answers

COUNT = 24


def sample(*messages: Message, line: int = 1) -> Sample:
    return Sample(make_sample_id(messages), "rows.jsonl", line, messages)


@pytest.fixture
def pairs() -> list[tuple[str, str]]:
    """Questions and answers about things that differ in one character."""
    things = "茶水山木花鸟鱼虫风云雨雪日月星河春夏秋冬东南西北"
    return [(f"{thing}是什么？", f"{thing}很好，{thing}有{thing}的用处。") for thing in things]


def teach(model, tokenizer, pairs) -> None:
    """Train the model on pairs for seconds, until it uses the question."""
    rows = [label_sample(*encode_sample(tokenizer, conversation(*pair))) | {"id": ""} for pair in pairs]
    config = training.TrainConfig(
        batch_size=8, learning_rate=5e-3, epochs=60, schedule="cosine", warmup=0.1, evaluations=2, logs=2
    )
    training.fit(adapters.attach_adapter(model, "full"), rows, [], config)
    model.eval()


def test_shuffled_answers_are_ranked_worse(model, tokenizer, pairs):
    torch.manual_seed(0)
    teach(model, tokenizer, pairs)
    answers = [answer for _, answer in pairs]
    shuffled = answers[7:] + answers[:7]
    samples = [sample(*conversation(question, answer)) for question, answer in pairs]
    samples += [sample(*conversation(question, answer)) for (question, _), answer in zip(pairs, shuffled, strict=True)]
    fitting = {entry.id for entry in samples[:COUNT]}
    ranked = rank_answers(model, tokenizer, select_answers(samples, 1000), 8)
    assert len(ranked) == 2 * COUNT
    good = [entry.difficulty for entry in ranked if entry.answer.sample.id in fitting]
    bad = [entry.difficulty for entry in ranked if entry.answer.sample.id not in fitting]
    assert area_under_curve(good, bad) >= 0.8
    fitting_alone = [entry for entry in ranked if entry.answer.sample.id in fitting]
    assert measure_separation(model, tokenizer, fitting_alone, 8) >= 0.8
    assert measure_separation(model, tokenizer, fitting_alone[:5], 8) is None
    assert [entry.difficulty for entry in ranked] == sorted((entry.difficulty for entry in ranked), reverse=True)


def test_difficulty_is_the_ratio_of_the_two_losses(model, tokenizer):
    """The losses are computed here from single rows, without batches."""

    def loss(prompt, answer):
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        return torch.nn.functional.cross_entropy(logits.float(), torch.tensor(answer)).item()

    rows = [
        sample(*conversation("你好", "再见")),
        sample(*conversation("你是谁？", "我是测试用的模型。", "谢谢", "不客气。")),
    ]
    ranked = rank_answers(model, tokenizer, select_answers(rows, 10), 4)
    assert len(ranked) == 3
    for entry in ranked:
        prompt, answer = encode_sample(tokenizer, entry.answer.sample.messages[: entry.answer.index + 1])
        alone = [tokenizer.gmask_token_id, tokenizer.sop_token_id]
        assert entry.loss == pytest.approx(loss(prompt, answer), rel=1e-4)
        assert entry.loss_alone == pytest.approx(loss(alone, answer), rel=1e-4)
        assert entry.difficulty == entry.loss / entry.loss_alone


def test_answers_that_are_not_trained_on_are_not_ranked():
    unlearnt = (*conversation("问", "答", "再问"), Message("assistant", "再答", learn=False))
    assert [answer.text for answer in select_answers([sample(*unlearnt)], 10)] == ["答"]
    assert select_answers([sample(*unlearnt)], 0) == []


def test_the_choice_does_not_depend_on_the_order(pairs):
    samples = [sample(*conversation(*pair)) for pair in pairs]
    chosen = select_answers(samples, 10)
    random.Random(1).shuffle(samples)
    assert select_answers(samples, 10) == chosen
    assert len(chosen) == 10


# Stage ---------------------------------------------------------------------------------------------


@pytest.fixture
def workspace(tmp_path, monkeypatch, base_folder, pairs):
    """A project with raw and checked rows, the first of them in a conversation of two answers."""
    raw = [{"prompt": question, "response": answer} for question, answer in pairs]
    write_rows(tmp_path / "data/raw/rows.jsonl", raw)
    samples = [sample(*conversation(*pair), line=line) for line, pair in enumerate(pairs, 1)]
    checked = tmp_path / "data/checked"
    checked.mkdir()
    for split in receipt.SPLITS:
        write_jsonl(checked / f"{split}.jsonl", [entry.to_json() for entry in samples] if split == "train" else [])
    receipt.write(checked, tokenizer_sha256=base_model.read_record(base_folder).tokenizer_sha256)
    params = (ROOT / "params.yaml").read_text(encoding="utf-8")
    (tmp_path / "params.yaml").write_text(params.replace("  answers: 2000", "  shown: 5\n  answers: 2000"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_stage(monkeypatch, base_folder) -> dict:
    outs = {"ranking": "fit.json", "rows": "fit.jsonl", "page": "fit.html"}
    paths = {"raw": "data/raw", "checked": "data/checked", "base": base_folder, **outs}
    options = [str(part) for name, path in paths.items() for part in (f"--{name}", path)]
    monkeypatch.setattr(sys, "argv", ["question_fit", *options])
    main()
    return read_json(Path("fit.json"))


def test_the_stage_writes_ranking_page_and_rows_for_the_review(workspace, monkeypatch, base_folder, pairs):
    monkeypatch.setattr(question_fit, "MIN_SEPARATION", 0.0)  # the base of this test knows nothing
    report = run_stage(monkeypatch, base_folder)
    assert report["answers"] == COUNT
    assert len(report["worst"]) == 5
    rows = [json.loads(line) for line in (workspace / "fit.jsonl").read_text(encoding="utf-8").splitlines()]
    raw = (workspace / "data/raw/rows.jsonl").read_text(encoding="utf-8").splitlines()
    for row, entry in zip(rows, report["worst"], strict=True):
        assert row["content"] == raw[row["line"] - 1]
        assert row["failed"] == [
            {"check": "question_fit", "severity": "warn", "seen": entry["difficulty"], "limit": None}
        ]
    first = (workspace / "fit.json").read_bytes(), (workspace / "fit.html").read_bytes()
    run_stage(monkeypatch, base_folder)
    assert ((workspace / "fit.json").read_bytes(), (workspace / "fit.html").read_bytes()) == first
    assert pairs[rows[0]["line"] - 1][1] in first[1].decode()


def test_a_base_that_cannot_tell_shows_nothing_in_the_review(workspace, monkeypatch, base_folder):
    monkeypatch.setattr(question_fit, "MIN_SEPARATION", 1.01)
    assert len(run_stage(monkeypatch, base_folder)["worst"]) == 5
    assert (workspace / "fit.jsonl").read_bytes() == b"\n"
    assert "ignore the ranking" in (workspace / "fit.html").read_text(encoding="utf-8")


def test_the_area_under_the_curve_counts_ties_half():
    assert area_under_curve([1, 2], [3, 4]) == 1
    assert area_under_curve([3, 4], [1, 2]) == 0
    assert area_under_curve([1, 1], [1, 1]) == 0.5
    assert area_under_curve([1, 3], [2]) == 0.5


def test_the_ranking_can_be_switched_off(workspace, monkeypatch, base_folder):
    path = workspace / "params.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("answers: 2000", "answers: 0"), encoding="utf-8")
    assert run_stage(monkeypatch, base_folder) == {"answers": 0, "not_helped": 0, "separation": None, "worst": []}
    assert (workspace / "fit.jsonl").read_bytes() == b"\n"


def test_changed_rows_are_refused(workspace, monkeypatch, base_folder, capsys):
    with (workspace / "data/checked/train.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(SystemExit) as stopped:
        run_stage(monkeypatch, base_folder)
    assert stopped.value.code == DataBlocked.exit_code
    assert "changed after it was checked" in capsys.readouterr().err
