import pytest
from checkpoints_of_families import make_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from shared_data import conversation

from formats.data_params import Base
from models.base_verification import verify_base
from models.families import family_of, recognize_tokenizer
from models.model_loading import load_tokenizer
from models.prompt import ANSWER_SPECIAL_TOKENS, PROMPT_SPECIAL_TOKENS, encode_prompt, encode_sample, render_prompt
from stages.tokenizer import copy_tokenizer


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40), min_size=2, max_size=4))
def test_token_counts_of_the_gate_equal_those_of_encode(tokenizer, texts):
    messages = conversation(*(texts if len(texts) % 2 == 0 else texts[1:]))
    prompt, answer = encode_sample(tokenizer, messages)
    counted = tokenizer.vocabulary.count_tokens([render_prompt(messages[:-1]), messages[-1].content])
    assert [counted[0] + PROMPT_SPECIAL_TOKENS, counted[1] + ANSWER_SPECIAL_TOKENS] == [len(prompt), len(answer)]


def test_control_tokens_of_the_vocabulary(tokenizer):
    tokens = tokenizer.vocabulary.control_tokens()
    assert {"[MASK]", "[gMASK]", "<sop>", "<eop>", "</s>", "<pad>", "<unk>", "<n>", "<|blank_80|>"} <= set(tokens)


@pytest.mark.parametrize("kind", ["chatglm3-6b", "qwen3"])
def test_a_copied_tokenizer_is_that_of_its_base(tmp_path, kind):
    """The folder has no weights, and the files of no other family."""
    base = verify_base(make_checkpoint(kind, tmp_path / "base"), kind)
    out = tmp_path / "tokenizer"
    out.mkdir()
    copy_tokenizer(Base(model=str(tmp_path / "base")), out)
    assert recognize_tokenizer(out) is family_of(base)
    assert not list(out.glob("*.safetensors"))
    messages = conversation("你好", "你好！", "你是谁？")
    assert encode_prompt(load_tokenizer(out), messages) == encode_prompt(load_tokenizer(base), messages)
    assert recognize_tokenizer(out).load_vocabulary(out).count_tokens(["你好"]) == [
        len(family_of(base).encode_text(load_tokenizer(base), "你好"))
    ]
