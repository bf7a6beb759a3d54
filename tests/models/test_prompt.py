import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shared_data import conversation

from models.prompt import IGNORED_LABEL, encode_prompt, encode_sample, label_sample, render_prompt
from models.sample import Message
from models.text_normalization import normalize_nfkc, normalize_text, restore_chinese_punctuation

THREE_TURNS = conversation("你好", "你好！", "你是谁？", "我是 A。", "再见")


def test_a_single_question_stands_as_it_is():
    assert render_prompt(conversation("你好")) == "你好"


def test_turns_are_numbered_from_zero_as_the_published_chat_does():
    assert render_prompt(THREE_TURNS) == (
        "[Round 0]\n问：你好\n答：你好！\n[Round 1]\n问：你是谁？\n答：我是 A。\n[Round 2]\n问：再见\n答："
    )


def test_a_system_message_stands_before_the_first_question():
    assert render_prompt((Message("system", "说中文。"), *conversation("你好"))) == "说中文。\n你好"


def test_training_and_answering_see_the_same_prompt(tokenizer):
    prompt, answer = encode_sample(tokenizer, (*THREE_TURNS, Message("assistant", "再见！")))
    assert prompt == encode_prompt(tokenizer, THREE_TURNS)
    assert prompt[-2:] == [tokenizer.gmask_token_id, tokenizer.sop_token_id]
    assert answer[-1] == tokenizer.eop_token_id
    assert tokenizer.decode(answer) == "再见!"
    row = label_sample(prompt, answer)
    assert row["input_ids"] == prompt + answer
    assert row["labels"] == [IGNORED_LABEL] * len(prompt) + answer


def test_golden_tokens_of_the_published_vocabulary():
    """As recorded from the published tokenizer for the same two-turn prompt and the same pair."""
    import json

    from shared_data import developer_file
    from transformers import AutoTokenizer

    recorded = json.loads(developer_file("reference/vectors/tokenizer.json").read_text(encoding="utf-8"))
    published = AutoTokenizer.from_pretrained(developer_file("reference/chatglm-6b"))
    rounds = next(text for text in recorded["texts"] if text["text"].startswith("[Round 0]"))
    assert encode_prompt(published, conversation("你好", "你好👋！", "你是谁？")) == rounds["ids_special"]
    pair = recorded["pairs"][0]
    prompt, answer = encode_sample(published, conversation(pair["a"], pair["b"]))
    assert prompt + answer == pair["ids"]


@pytest.mark.parametrize("spelled", ["[MASK]", "<sop>", "</s>", "<pad>", "<unk>", "[gMASK]", "<eop>"])
def test_a_spelled_control_token_stays_text(tokenizer, spelled):
    prompt, answer = encode_sample(tokenizer, conversation(f"问 {spelled} 吗", f"答 {spelled} 。"))
    special = {tokenizer.gmask_token_id, tokenizer.mask_token_id, tokenizer.sop_token_id, tokenizer.eop_token_id}
    assert not special.intersection(prompt[:-2], answer[:-1])


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("你好,你是谁?", "你好，你是谁？"),
        (" 是的!3,141 和 a:b ", "是的！3,141 和 a:b"),
        ("x,y;好", "x,y；好"),
        ("", ""),
    ],
)
def test_punctuation_beside_chinese_is_chinese_again(raw, clean):
    assert restore_chinese_punctuation(raw) == clean


def test_normalization_ignores_blanks_and_forms_of_punctuation():
    assert normalize_text("我是 A，你 呢？") == normalize_text("我是A,你呢?")
    assert normalize_text("我是（测试）１…") == normalize_text("我是(测试)1...")
    assert normalize_text("A  b") == "Ab" != normalize_text("a b")


@given(st.text(max_size=60))
def test_normalization_is_whole_at_once(text):
    assert normalize_text(normalize_text(text)) == normalize_text(text)


def test_normalization_takes_linear_time():
    """Python sorts combining marks in quadratic time: 80,000 of them took 7 s, now some hundredths."""
    marks = "a" + "\u0301\u0327" * 200_000
    started = time.perf_counter()
    normalize_text(marks)
    normalize_text(" ".join(marks))
    assert time.perf_counter() - started < 5
    assert normalize_text("e\u0301\u0327") == normalize_text("\u0229\u0301")
    assert normalize_nfkc("e" + "\u0301" * 30) == "é" + "\u0301" * 29
