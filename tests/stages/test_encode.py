import pytest
from given import conversation

from models.prompt import encode_sample
from models.sample import Sample, sample_id
from stages.encode import count, encode


@pytest.mark.parametrize("texts", [("你好", "我很好。"), ("一", "二", "三", "四")])
def test_rows_hold_the_ids_of_prompt_and_answer(tokenizer, texts):
    messages = conversation(*texts)
    (row,) = encode(tokenizer, [Sample(sample_id(messages), "a.jsonl", 1, messages)])
    prompt, answer = encode_sample(tokenizer, messages)
    assert (row["prompt"], row["answer"]) == (prompt, answer)
    assert count([row]) == {"rows": 1, "tokens": len(prompt) + len(answer), "answer_tokens": len(answer)}
