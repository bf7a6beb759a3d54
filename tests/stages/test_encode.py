import pytest
from given import conversation

from models.errors import DataBlocked
from models.prompt import encode_sample
from models.sample import Sample, sample_id
from stages.encode import encode, keep_books, refuse_unless_enough
from stages.params import Encode


def samples(*pairs):
    made = [conversation(*pair) for pair in pairs]
    return [Sample(sample_id(messages), "a.jsonl", 1, messages) for messages in made]


def test_rows_over_the_budget_are_set_aside_whole_and_counted(tokenizer):
    given = samples(("你好", "你好"), ("问" * 50, "答"), ("问", "答" * 50))
    within, over = encode(tokenizer, given, Encode(max_prompt_tokens=20, max_answer_tokens=20))
    assert [row["id"] for row in within] == [given[0].id]
    assert (within[0]["prompt"], within[0]["answer"]) == encode_sample(tokenizer, given[0].messages)
    assert [Sample.from_json(row) for row in over] == given[1:]
    assert over[0]["prompt_tokens"] > 20 >= over[0]["answer_tokens"]


def test_a_row_of_just_the_budget_fits(tokenizer):
    (sample,) = samples(("你好", "再见"))
    prompt, answer = encode_sample(tokenizer, sample.messages)
    for spare, fits in ((0, 1), (-1, 0)):
        budget = Encode(max_prompt_tokens=len(prompt) + spare, max_answer_tokens=len(answer))
        assert len(encode(tokenizer, [sample], budget)[0]) == fits


def books(train: tuple[int, int], evaluation: tuple[int, int]) -> dict:
    def rows(count):
        return [{"prompt": [1], "answer": [1]}] * count

    return keep_books({"train": (rows(train[0]), rows(train[1])), "eval": (rows(evaluation[0]), rows(evaluation[1]))})


def test_too_many_over_the_budget_or_an_empty_split_is_blocked(tmp_path):
    budget = Encode(max_prompt_tokens=9, max_answer_tokens=9, max_over_budget=0.1)
    refuse_unless_enough(books((90, 10), (9, 1)), budget, tmp_path)
    with pytest.raises(DataBlocked, match="12 of 110"):
        refuse_unless_enough(books((89, 11), (9, 1)), budget, tmp_path)
    with pytest.raises(DataBlocked, match="eval split"):
        refuse_unless_enough(books((100, 0), (0, 1)), budget, tmp_path)
