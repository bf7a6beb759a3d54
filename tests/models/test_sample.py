import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shared_data import conversation

from models.sample import Message, Sample, UnknownFormat, make_sample_id, read_messages, read_row

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
def test_every_accepted_format_is_read(row, texts):
    assert read_messages(row) == conversation(*texts)


ALPACA, CHAT = {"instruction": "问", "output": "答"}, {"context": "问", "target": "答"}
MESSAGES = [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]
SYSTEM = {"role": "system", "content": "您好。"}


@pytest.mark.parametrize(
    "row",
    [
        *({**row, "system": "您好。"} for row in (ALPACA, CHAT, {"messages": MESSAGES})),
        {"messages": [SYSTEM, *MESSAGES], "system": "您好。"},
        {"messages": [SYSTEM, *MESSAGES], "system": None},
        {"messages": [{**SYSTEM, "content": ""}, SYSTEM, *MESSAGES]},
    ],
)
def test_a_system_text_becomes_the_first_message(row):
    assert read_messages(row) == (Message("system", "您好。"), *conversation("问", "答"))


@pytest.mark.parametrize("mark", ["", " \n", "\u200b", "nan", "None", "null", "#N/A", "\\N", "<NA>", None])
def test_missing_values_are_ignored(mark):
    for key in ("input", "system", "history"):
        assert read_messages({**ALPACA, key: mark}) == conversation("问", "答")
    assert read_messages({"messages": [{"role": "system", "content": mark}, *MESSAGES]}) == conversation("问", "答")


def test_a_null_marker_that_the_instruction_is_about_is_an_input():
    row = {"instruction": "这个 Python 值是什么类型？", "input": "None", "output": "NoneType"}
    assert read_messages(row)[0].content == "这个 Python 值是什么类型？\nNone"


def test_a_missing_instruction_is_not_joined_with_the_input():
    assert read_messages({**ALPACA, "instruction": "nan", "input": "一段文字"})[0].content == "nan"


@pytest.mark.parametrize(
    ("row", "unread"),
    [
        ({**CHAT, "score": 1, "id": 0, "empty": None, "none": "nan", "list": []}, {"score", "id"}),
        ({**CHAT, "input": "文"}, {"input"}),
        ({**ALPACA, "input": "文", "history": [], "system": ""}, set()),
        ({"messages": MESSAGES, "history": [["早", "好"]], "prompt": "问"}, {"history", "prompt"}),
        ({"messages": [{**MESSAGES[0], "name": "甲"}, MESSAGES[1]]}, {"messages[].name"}),
        ({**CHAT, "weight": 1, "loss": True, "tools": [], "images": ""}, set()),
        ({"messages": [*MESSAGES[:1], {**MESSAGES[1], "weight": 0}, *MESSAGES]}, set()),  # weight of an earlier answer
    ],
)
def test_ignored_keys_are_returned(row, unread):
    assert read_row(row)[1] == unread


@pytest.mark.parametrize(
    ("row", "key"),
    [
        ({**CHAT, "tools": [{"name": "weather"}]}, "tools"),
        ({"messages": MESSAGES, "tools": '[{"name":"weather"}]'}, "tools"),
        ({**ALPACA, "images": ["a.jpg"]}, "images"),
        ({**CHAT, "videos": ["a.mp4"]}, "videos"),
        ({**CHAT, "audio": "a.wav"}, "audio"),
        ({"messages": MESSAGES, "functions": [{}]}, "functions"),
        ({"messages": [MESSAGES[0], {"role": "assistant", "content": None, "tool_calls": [{"id": 1}]}]}, "tool_calls"),
        ({"messages": [{**MESSAGES[0], "images": ["a.jpg"]}, MESSAGES[1]]}, "images"),
        ({"messages": [MESSAGES[0], {**MESSAGES[1], "weight": 0}]}, "weight"),
        ({"messages": [MESSAGES[0], {**MESSAGES[1], "loss": False}]}, "loss"),
        ({"messages": [MESSAGES[0], {**MESSAGES[1], "train": False}]}, "train"),
        ({**CHAT, "weight": 0.5}, "weight"),
        ({**CHAT, "loss": 0}, "loss"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "问"}]}, MESSAGES[1]]}, "content"),
        ({"messages": [SYSTEM, *MESSAGES], "system": "别的"}, "system"),
        ({**CHAT, "system": ["您好。"]}, "system"),
        ({"messages": [{**SYSTEM, "content": ""}]}, "messages"),
    ],
)
def test_unsupported_content_is_rejected_with_its_key(row, key):
    with pytest.raises(UnknownFormat, match=f"'{key}'|the key '{key}'"):
        read_messages(row)


def test_error_messages_shorten_long_values():
    for row in (
        {"x" * 10**6: 1},
        {"messages": [{"role": "x" * 10**6, "content": ""}]},
        {**CHAT, "weight": "9" * 10**6},
    ):
        with pytest.raises(UnknownFormat) as caught:
            read_messages(row)
        assert len(str(caught.value)) < 300


def test_the_number_in_a_json_array_survives_json():
    messages = conversation("问", "答")
    sample = Sample("0", "a.json", 1, messages, 3)
    assert sample.to_json()["source"] == {"file": "a.json", "line": 1, "number": 3}
    assert Sample.from_json(sample.to_json()) == sample
    assert Sample("0", "a.jsonl", 1, messages).to_json()["source"] == {"file": "a.jsonl", "line": 1}


@pytest.mark.parametrize(
    ("row", "message"),
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
def test_other_rows_are_rejected_with_the_reason(row, message):
    with pytest.raises(UnknownFormat, match=message):
        read_messages(row)


def test_the_id_depends_on_the_content_only():
    first = make_sample_id(conversation("问", "答"))
    assert first == make_sample_id(conversation("问", "答"))
    assert len({first, make_sample_id(conversation("问答", "")), make_sample_id(conversation("答", "问"))}) == 3


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
def test_any_json_is_read_or_rejected_with_a_reason(row):
    try:
        messages = read_messages(row)
    except UnknownFormat as error:
        assert str(error)
    else:
        sample = Sample(make_sample_id(messages), "a.jsonl", 1, messages)
        assert Sample.from_json(sample.to_json()) == sample
