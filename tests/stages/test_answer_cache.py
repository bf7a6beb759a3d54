import pytest
from shared_data import conversation

from models.generation import Answer
from stages.evaluate import answer_cache
from stages.evaluate.answer_cache import AnswerCache, generate_missing_answers

CONVERSATIONS = {
    f"row {i}": conversation(text) for i, text in enumerate(["你好", "你是谁？", "3加4等于多少？", "再见"])
}


def test_cached_answers_are_not_generated_again(model, tokenizer, tmp_path, monkeypatch):
    expected = generate_missing_answers(
        model, tokenizer, CONVERSATIONS, AnswerCache(tmp_path / "a.1"), max_new_tokens=6, batch_size=2
    )
    complete = (tmp_path / "a.1").read_bytes()
    lines = complete.split(b"\n")
    for cut in (b"\n".join(lines[:2]) + b"\n" + lines[2][:9], b"\n".join(lines[:3]) + b"\n", b"", lines[0][:3]):
        (tmp_path / "a.1").write_bytes(cut)
        generated = []
        original = answer_cache.generate_answers

        def count_and_generate(model, tokenizer, conversations, *rest, generated=generated, original=original):
            generated += conversations
            return original(model, tokenizer, conversations, *rest)

        monkeypatch.setattr(answer_cache, "generate_answers", count_and_generate)
        resumed = generate_missing_answers(
            model, tokenizer, CONVERSATIONS, AnswerCache(tmp_path / "a.1"), max_new_tokens=6, batch_size=2
        )
        monkeypatch.setattr(answer_cache, "generate_answers", original)
        assert [answer.text for answer in resumed] == [answer.text for answer in expected]
        assert len(generated) == 4 - cut.count(b"\n")
        assert len((tmp_path / "a.1").read_bytes().splitlines()) == 4


def test_answers_of_other_inputs_are_deleted(tmp_path):
    AnswerCache(tmp_path / "lora.1").add("x", Answer("好", 1, 0.1))
    AnswerCache(tmp_path / "lora_wide.1").add("x", Answer("好", 1, 0.1))
    assert AnswerCache(tmp_path / "lora.1").answers == {"x": Answer("好", 1, 0.1)}
    assert AnswerCache(tmp_path / "lora.2").answers == {}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lora_wide.1"]


@pytest.mark.parametrize("text", ["一行\n两行", '引号"和\\', "\u2028", ""])
def test_any_text_survives_a_round_trip(tmp_path, text):
    AnswerCache(tmp_path / "a.1").add("k", Answer(text, 3, 0.5))
    assert AnswerCache(tmp_path / "a.1").answers["k"].text == text


@pytest.mark.parametrize(
    "damage", [b"\x00\xff", b"{}", b"[1]", b"null", b'{"key": "x"}', b"[" * 100_000, b'{"key": 1}']
)
def test_damaged_line_loses_one_answer(tmp_path, damage):
    cache = AnswerCache(tmp_path / "a.1")
    for key in "abc":
        cache.add(key, Answer(key, 1, 0.1))
    lines = (tmp_path / "a.1").read_bytes().split(b"\n")
    (tmp_path / "a.1").write_bytes(b"\n".join([lines[0], damage, lines[2], b""]))
    assert AnswerCache(tmp_path / "a.1").answers == {key: Answer(key, 1, 0.1) for key in "ac"}
    assert (tmp_path / "a.1").read_bytes() == b"\n".join([lines[0], lines[2], b""])
