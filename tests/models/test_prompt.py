import pytest
from shared_data import conversation

from models.prompt import IGNORED_LABEL, encode_prompt, encode_sample, label_sample, render_prompt
from models.sample import Message

THREE_TURNS = conversation("你好", "你好！", "你是谁？", "我是 A。", "再见")


def test_a_single_question_is_the_prompt():
    assert render_prompt(conversation("你好")) == "你好"


def test_turns_are_numbered_from_zero_like_in_the_published_chat():
    assert render_prompt(THREE_TURNS) == (
        "[Round 0]\n问：你好\n答：你好！\n[Round 1]\n问：你是谁？\n答：我是 A。\n[Round 2]\n问：再见\n答："
    )


def test_a_system_message_comes_before_the_first_question():
    assert render_prompt((Message("system", "说中文。"), *conversation("你好"))) == "说中文。\n你好"


def test_training_and_generation_use_the_same_prompt(tokenizer):
    prompt, answer = encode_sample(tokenizer, (*THREE_TURNS, Message("assistant", "再见！")))
    assert prompt == encode_prompt(tokenizer, THREE_TURNS)
    assert prompt[-2:] == [tokenizer.gmask_token_id, tokenizer.sop_token_id]
    assert answer[-1] == tokenizer.eop_token_id
    assert tokenizer.decode(answer) == "再见!"
    row = label_sample(prompt, answer)
    assert row["input_ids"] == prompt + answer
    assert row["labels"] == [IGNORED_LABEL] * len(prompt) + answer


def test_token_ids_equal_those_of_the_published_tokenizer():
    """Recorded from the published tokenizer, for a prompt of two turns and a pair of texts."""
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
def test_a_control_token_in_a_message_is_encoded_as_text(tokenizer, spelled):
    prompt, answer = encode_sample(tokenizer, conversation(f"问 {spelled} 吗", f"答 {spelled} 。"))
    special = {tokenizer.gmask_token_id, tokenizer.mask_token_id, tokenizer.sop_token_id, tokenizer.eop_token_id}
    assert not special.intersection(prompt[:-2], answer[:-1])
