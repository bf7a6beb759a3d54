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
    """Results of the published tokenizer."""
    return json.loads(developer_file("reference/vectors/tokenizer.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tokenizer_6b():
    """Our tokenizer with the published vocabulary."""
    return AutoTokenizer.from_pretrained(developer_file("reference/chatglm-6b"))


def test_special_ids_and_sizes(recorded, tokenizer_6b):
    assert {token: tokenizer_6b.convert_tokens_to_ids(token) for token in recorded["special"]} == recorded["special"]
    sizes = {"vocab_size": tokenizer_6b.vocab_size, "len": len(tokenizer_6b)}
    ids = {key: getattr(tokenizer_6b, key) for key in ("eos_token_id", "pad_token_id", "bos_token_id")}
    assert sizes | ids == {key: recorded[key] for key in (*sizes, *ids)}


def test_every_recorded_text(recorded, tokenizer_6b):
    for text in recorded["texts"]:
        ids = tokenizer_6b(text["text"], add_special_tokens=False)["input_ids"]
        with_special = tokenizer_6b(text["text"])["input_ids"]
        assert {
            "text": text["text"],
            "ids": ids,
            "ids_special": with_special,
            "tokens": tokenizer_6b.tokenize(text["text"]),
            "decoded": tokenizer_6b.decode(ids),
            "decoded_special": tokenizer_6b.decode(with_special),
        } == text


def test_every_recorded_pair(recorded, tokenizer_6b):
    for pair in recorded["pairs"]:
        assert tokenizer_6b(pair["a"], pair["b"])["input_ids"] == pair["ids"]


def test_recorded_left_padded_batch(recorded, tokenizer_6b):
    """The model derives positions and mask, which the published tokenizer returned, from a (B, L) mask."""
    import torch

    from models.chatglm import ChatGLMConfig
    from models.chatglm.masks import derive_position_ids, prefix_lm_mask

    batch = recorded["left_padded_batch"]
    encoded = tokenizer_6b(batch["texts"], padding=True, return_tensors="pt")
    assert encoded["input_ids"].tolist() == batch["input_ids"]
    positions = derive_position_ids(encoded["input_ids"], ChatGLMConfig(), encoded["attention_mask"])
    assert positions.tolist() == batch["position_ids"]
    mask = prefix_lm_mask(positions[:, 1], 0, encoded["attention_mask"])
    is_token = encoded["attention_mask"].bool()[:, None, :, None]  # rows of padding differ and have no effect
    recorded_mask = ~torch.tensor(batch["attention_mask_masked_out"]).bool()
    assert torch.equal(mask & is_token, recorded_mask & is_token)


def test_the_vocabulary_with_image_tokens_shifts_every_text_token(tokenizer_6b, tmp_path):
    (tmp_path / "ice_text.model").write_bytes(Path(tokenizer_6b.vocab_file).read_bytes())
    (tmp_path / "config.json").write_text('{"model_type": "chatglm", "vocab_size": 150528}')
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "ChatGLMTokenizer"}')
    older = ChatGLMTokenizer.from_pretrained(tmp_path)
    text = "你好，[MASK] ChatGLM-6B\n  两个空格"
    newer_ids = tokenizer_6b(text)["input_ids"]
    assert older(text)["input_ids"] == [token_id + 20_000 for token_id in newer_ids]
    assert older.decode(older(text)["input_ids"]) == tokenizer_6b.decode(newer_ids)
    assert older.decode([7, 20005, 94874]) == tokenizer_6b.decode([5, 74874])  # image tokens have no text
    assert older.convert_ids_to_tokens(7) == "<image_7>"
    assert len(older) == 150_344


def test_saving_and_loading_keeps_the_tokenizer(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "[MASK] 你好 </s>  <n>\t"
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.get_vocab() == tokenizer.get_vocab()


def test_auto_tokenizer_works_without_tokenizer_config(base_copy):
    (base_copy / "tokenizer_config.json").unlink()
    assert type(AutoTokenizer.from_pretrained(base_copy)) is ChatGLMTokenizer


def test_a_huge_blank_symbol_in_text_is_not_expanded(tokenizer):
    assert tokenizer.decode(tokenizer("<|blank_999999999|>", add_special_tokens=False)["input_ids"]) == (
        "<|blank_999999999|>"
    )


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.characters(codec="utf-8", categories=["L", "N", "Zs"]), max_size=60))
def test_decoded_text_encodes_and_decodes_to_itself(tokenizer, text):
    """Including bytes, blanks and rare characters; the first decoding normalizes the text."""
    once = tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"], clean_up_tokenization_spaces=False)
    twice = tokenizer.decode(tokenizer(once, add_special_tokens=False)["input_ids"], clean_up_tokenization_spaces=False)
    assert "".join(twice.split()) == "".join(once.split())


def test_an_id_beyond_the_vocabulary_is_an_unknown_token(tokenizer):
    """A model may sample one: its embedding has more rows than the vocabulary has pieces."""
    beyond = tokenizer.vocab_size
    assert tokenizer.convert_ids_to_tokens([beyond]) == [tokenizer.unk_token]
    assert tokenizer.decode([beyond], skip_special_tokens=True).strip() == "⁇"
