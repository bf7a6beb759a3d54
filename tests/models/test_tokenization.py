import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shared_data import developer_file
from transformers import AutoTokenizer

from models.chatglm import ChatGLMTokenizer


@pytest.fixture(scope="module")
def recorded():
    return json.loads(developer_file("reference/vectors/tokenizer.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def published():
    return AutoTokenizer.from_pretrained(developer_file("reference/chatglm-6b"))


def test_special_ids_and_sizes(recorded, published):
    assert {token: published.convert_tokens_to_ids(token) for token in recorded["special"]} == recorded["special"]
    sizes = {"vocab_size": published.vocab_size, "len": len(published)}
    ids = {key: getattr(published, key) for key in ("eos_token_id", "pad_token_id", "bos_token_id")}
    assert sizes | ids == {key: recorded[key] for key in (*sizes, *ids)}


def test_every_recorded_text(recorded, published):
    for text in recorded["texts"]:
        ids = published(text["text"], add_special_tokens=False)["input_ids"]
        with_special = published(text["text"])["input_ids"]
        assert {
            "text": text["text"],
            "ids": ids,
            "ids_special": with_special,
            "tokens": published.tokenize(text["text"]),
            "decoded": published.decode(ids),
            "decoded_special": published.decode(with_special),
        } == text


def test_every_recorded_pair(recorded, published):
    for pair in recorded["pairs"]:
        assert published(pair["a"], pair["b"])["input_ids"] == pair["ids"]


def test_the_left_padded_batch(recorded, published):
    """The model derives from the two-dimensional mask what the published tokenizer gave in full."""
    import torch

    from models.chatglm import ChatGLMConfig
    from models.chatglm.masks import derive_position_ids, prefix_lm_mask

    batch = recorded["left_padded_batch"]
    given = published(batch["texts"], padding=True, return_tensors="pt")
    assert given["input_ids"].tolist() == batch["input_ids"]
    positions = derive_position_ids(given["input_ids"], ChatGLMConfig(), given["attention_mask"])
    assert positions.tolist() == batch["position_ids"]
    seen = prefix_lm_mask(positions[:, 1], 0, given["attention_mask"])
    real = given["attention_mask"].bool()[:, None, :, None]  # rows of padding attend to padding, for no one's use
    recorded_seen = ~torch.tensor(batch["attention_mask_masked_out"]).bool()
    assert torch.equal(seen & real, recorded_seen & real)


def test_the_older_vocabulary_shifts_every_text_token(published, tmp_path):
    (tmp_path / "ice_text.model").write_bytes(Path(published.vocab_file).read_bytes())
    (tmp_path / "config.json").write_text('{"model_type": "chatglm", "vocab_size": 150528}')
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "ChatGLMTokenizer"}')
    older = ChatGLMTokenizer.from_pretrained(tmp_path)
    text = "你好，[MASK] ChatGLM-6B\n  两个空格"
    newer_ids = published(text)["input_ids"]
    assert older(text)["input_ids"] == [token_id + 20_000 for token_id in newer_ids]
    assert older.decode(older(text)["input_ids"]) == published.decode(newer_ids)
    assert older.decode([7, 20005, 94874]) == published.decode([5, 74874])  # image tokens have no text
    assert older.convert_ids_to_tokens(7) == "<image_7>"
    assert len(older) == 150_344


def test_saved_and_loaded_it_is_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = "[MASK] 你好 </s>  <n>\t"
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert again.get_vocab() == tokenizer.get_vocab()


def test_auto_tokenizer_needs_no_tokenizer_config(base_copy):
    (base_copy / "tokenizer_config.json").unlink()
    assert type(AutoTokenizer.from_pretrained(base_copy)) is ChatGLMTokenizer


def test_a_long_blank_symbol_spelled_in_text_is_no_bomb(tokenizer):
    assert tokenizer.decode(tokenizer("<|blank_999999999|>", add_special_tokens=False)["input_ids"]) == (
        "<|blank_999999999|>"
    )


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.characters(codec="utf-8", categories=["L", "N", "Zs"]), max_size=60))
def test_text_comes_back_but_for_its_normalization(tokenizer, text):
    """What was decoded once is decoded to itself: bytes, blanks and rare characters included."""
    once = tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"], clean_up_tokenization_spaces=False)
    twice = tokenizer.decode(tokenizer(once, add_special_tokens=False)["input_ids"], clean_up_tokenization_spaces=False)
    assert "".join(twice.split()) == "".join(once.split())


def test_an_id_of_the_padded_vocabulary_is_an_unknown_token_and_no_crash(tokenizer):
    """A model may sample one: its matrix has more rows than the vocabulary has pieces."""
    beyond = tokenizer.vocab_size
    assert tokenizer.convert_ids_to_tokens([beyond]) == [tokenizer.unk_token]
    assert tokenizer.decode([beyond], skip_special_tokens=True).strip() == "⁇"
