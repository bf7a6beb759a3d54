from hypothesis import given, settings
from hypothesis import strategies as st
from shared_data import conversation

from models.prompt import ANSWER_SPECIAL_TOKENS, PROMPT_SPECIAL_TOKENS, encode_sample, render_prompt


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
