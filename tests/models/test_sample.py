import pytest
from given import conversation
from hypothesis import given, settings
from hypothesis import strategies as st

from models.sample import Sample, UnknownFormat, read_messages, sample_id

TURNS = [["早", "早上好"], ["吃了吗", "吃了"]]


@pytest.mark.parametrize(
    ("row", "texts"),
    [
        ({"context": "问", "target": "答"}, ["问", "答"]),
        ({"context": "问", "target": "答", "history": TURNS}, ["早", "早上好", "吃了吗", "吃了", "问", "答"]),
        ({"prompt": "问", "response": "答", "history": []}, ["问", "答"]),
        ({"content": "标签", "summary": "文案"}, ["标签", "文案"]),
        (
            {"instruction": "翻译", "input": "hi", "output": "嗨", "history": TURNS[:1]},
            ["早", "早上好", "翻译\nhi", "嗨"],
        ),
        ({"instruction": "你好", "input": "", "output": "嗨"}, ["你好", "嗨"]),
        ({"messages": [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]}, ["问", "答"]),
    ],
)
def test_every_accepted_format(row, texts):
    assert read_messages(row) == conversation(*texts)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ([1], "not a list"),
        (None, "not null"),
        (3.5, "not a number"),
        ({}, "no keys"),
        ({"context": "问"}, "'context'"),
        ({"context": 1, "target": "答"}, "'context' must be text"),
        ({"context": "问", "target": "答", "history": "早"}, "'history'"),
        ({"context": "问", "target": "答", "history": [["早"]]}, "pair"),
        ({"messages": [{"role": "robot", "content": "问"}]}, "robot"),
        ({"messages": [{"role": "user"}]}, "'content'"),
        ({"context": "问", "target": "答", "prompt": "别的", "response": "答"}, "more than one format"),
        ({"instruction": "问", "input": [], "output": "答"}, "'input' must be text"),
    ],
)
def test_other_rows_are_refused_with_the_reason(row, said):
    with pytest.raises(UnknownFormat, match=said):
        read_messages(row)


def test_the_id_depends_on_the_content_alone():
    first = sample_id(conversation("问", "答"))
    assert first == sample_id(conversation("问", "答"))
    assert len({first, sample_id(conversation("问答", "")), sample_id(conversation("答", "问"))}) == 3


JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(st.characters(), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["context", "target", "history", "messages", "role", "content"]), inner)
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(JSON)
def test_any_json_is_a_sample_or_a_reason(row):
    try:
        messages = read_messages(row)
    except UnknownFormat as error:
        assert str(error)
    else:
        sample = Sample(sample_id(messages), "a.jsonl", 1, messages)
        assert Sample.from_json(sample.to_json()) == sample
