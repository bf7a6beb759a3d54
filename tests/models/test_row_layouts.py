"""Rows in all accepted layouts: read, or rejected with the reason; nothing is dropped in silence."""

import contextlib
import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shared_data import conversation, developer_file

from models.row_layouts import UnknownFormat, UnknownLayout, read_messages, read_row
from models.sample import Message, Sample, make_sample_id

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
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "text": "问"}]}, MESSAGES[1]]}, "content"),
        ({"messages": [*MESSAGES, {"role": "tool", "content": "晴"}]}, "role"),
        ({"conversations": [{"from": "human", "value": "问"}, {"from": "observation", "value": "晴"}]}, "from"),
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


# Layouts of other programs -------------------------------------------------------------------------

SHAREGPT = [{"from": "human", "value": "问"}, {"from": "gpt", "value": "答"}]
SYSTEM_FIRST = (Message("system", "您好。"), *conversation("问", "答"))
FOUR = conversation("早", "早上好", "问", "答")


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"conversations": SHAREGPT}, conversation("问", "答")),
        ({"id": 1, "system": "您好。", "conversations": SHAREGPT}, SYSTEM_FIRST),
        ({"conversations": [{"from": "system", "value": "您好。"}, *SHAREGPT]}, SYSTEM_FIRST),
        ({"messages": SHAREGPT}, conversation("问", "答")),
        ({"conversations": MESSAGES}, conversation("问", "答")),
        (
            {"conversations": [{"from": "user", "value": "问"}, {"from": "chatgpt", "value": "答"}]},
            conversation("问", "答"),
        ),
        (
            {"messages": [{"role": "Human", "content": "问"}, {"role": "ASSISTANT", "content": "答"}]},
            conversation("问", "答"),
        ),
        ({"messages": [{"role": "developer", "content": "您好。"}, *MESSAGES]}, SYSTEM_FIRST),
        (
            {"conversation": [{"human": "早", "assistant": "早上好"}, {"human": "问", "assistant": "答"}]},
            FOUR,
        ),
        ({"conversation": [{"system": "您好。", "input": "问", "output": "答"}]}, SYSTEM_FIRST),  # xtuner
        ({"query": "问", "response": "答", "history": [["早", "早上好"]]}, FOUR),
        ({"query": "问", "response": "答", "history": '[["早", "早上好"]]'}, FOUR),  # a cell of a table
        ({"query": "问", "response": "答", "history": [{"query": "早", "response": "早上好"}]}, FOUR),
        (
            {
                "prompt": "问",
                "response": "答",
                "history": [{"role": "user", "content": "早"}, {"role": "assistant", "content": "早上好"}],
            },
            FOUR,
        ),
        ({"conversations": json.dumps(SHAREGPT, ensure_ascii=False)}, conversation("问", "答")),
        ({"question": "问", "answer": "答"}, conversation("问", "答")),
        ({"Question": "问", "Answer": "答"}, conversation("问", "答")),
        ({"问题": "问", "答案": "答"}, conversation("问", "答")),
        ({"ask": "问", "answer": "答"}, conversation("问", "答")),
        ({"q": "问", "a": "答"}, conversation("问", "答")),
        ({"kind": "Couplet", "input": "问", "target": "答"}, conversation("问", "答")),
        ({"question": "问", "answer": "答", "label": 3}, conversation("问", "答")),
        ({"question": "问", "context": "文", "answer": "答"}, conversation("问\n文", "答")),
        ({"instruction": "问", "context": "文", "response": "答"}, conversation("问\n文", "答")),
        ({"system_prompt": "您好。", "question": "问", "response": "答"}, SYSTEM_FIRST),
        ({"prompt": "问", "completion": "答"}, conversation("问", "答")),
        ({"prompt": "问", "chosen": "答", "rejected": "错"}, conversation("问", "答")),
        ({"prompt": "问", "chosen": MESSAGES, "rejected": []}, conversation("问", "答")),
        ({"text": "一篇文章"}, (Message("text", "一篇文章"),)),
        ({"messages": [{"role": "text", "content": "一篇文章"}]}, (Message("text", "一篇文章"),)),
    ],
)
def test_layouts_of_other_programs_are_read(row, messages):
    assert read_messages(row) == messages


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"type": "text", "text": "问"}], "问"),
        ([{"type": "text", "value": "问"}], "问"),
        ([{"type": "input_text", "text": "请"}, "问"], "请问"),
    ],
)
def test_text_parts_are_joined(content, text):
    assert read_messages({"messages": [{"role": "user", "content": content}, MESSAGES[1]]})[0].content == text


@pytest.mark.parametrize(
    ("row", "unread"),
    [
        ({"conversations": SHAREGPT, "lang": "zh"}, {"lang"}),
        ({"conversations": [{**SHAREGPT[0], "time": 1}, SHAREGPT[1]]}, {"conversations[].time"}),
        ({"conversation": [{"human": "问", "assistant": "答", "score": 1}]}, {"conversation[].score"}),
        ({"query": "问", "response": "答", "history": [{"query": "早", "response": "好", "n": 1}]}, {"history[].n"}),
        ({"question": "问", "answer": "答", "label": 3, "title": "题"}, {"label", "title"}),
        ({"prompt": "问", "chosen": "答", "rejected": "错"}, {"rejected"}),
        ({"text": "一篇文章", "title": "题"}, {"title"}),
        ({"text": "拼好的", "messages": MESSAGES}, {"text"}),
    ],
)
def test_keys_that_nothing_reads_are_returned_in_all_layouts(row, unread):
    assert read_row(row)[1] == unread


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "问", "answer": "答", "response": "别的"}, "'answer' or 'response'; name the right column"),
        ({"instruction": "说明", "question": "问", "answer": "答"}, "'instruction' or 'question'"),
        ({"question": "问", "text": "一段"}, "no known format"),
        ({"messages": "[{'role': 'user'}]"}, "not a JSON list"),
        ({"conversations": [{"human": "问", "assistant": "答"}, {"human": "问"}]}, "every turn needs"),
        ({"conversations": [{"role": "user", "content": "问"}, 3]}, "every message needs"),
        ({"question": "问", "answer": ["答"]}, "'answer' must be text, not a list"),
    ],
)
def test_uncertain_layouts_are_rejected(row, message):
    with pytest.raises(UnknownFormat, match=message):
        read_messages(row)


# Loss weights --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "texts"),
    [
        ({"text": "一篇长文章", "summary": "摘要"}, ["一篇长文章", "摘要"]),
        ({"source": "一句话", "target": "A sentence"}, ["一句话", "A sentence"]),
        ({"inputs": "翻译：hi", "targets": "你好"}, ["翻译：hi", "你好"]),
        ({"患者": "头疼", "医生": "多休息"}, ["头疼", "多休息"]),
        (
            {"contents": [{"role": "user", "parts": [{"text": "问"}]}, {"role": "model", "parts": [{"text": "答"}]}]},
            ["问", "答"],
        ),
        ({"conversations": [{"from": "human", "value": "问"}], "chosen": {"from": "gpt", "value": "答"}}, ["问", "答"]),
        ({"messages": MESSAGES[:1], "chosen": "答", "rejected": "不"}, ["问", "答"]),
        ({"chosen": MESSAGES, "rejected": MESSAGES[:1]}, ["问", "答"]),
    ],
)
def test_other_names_of_question_and_answer(row, texts):
    assert read_messages(row) == conversation(*texts)


def test_source_of_a_row_is_no_question():
    row = {"source": "zhihu", "context": "问", "target": "答"}
    assert read_row(row) == (conversation("问", "答"), {"source"})


@pytest.mark.parametrize("key", ["label", "summary_length", "role", "parent_id", "sentiment"])
def test_labelled_texts_and_messages_of_a_tree_are_no_documents(key):
    row = {"text": "这家店很好。", key: "1"}
    if key == "summary_length":
        assert read_row(row) == ((Message("text", row["text"]),), {key})
    else:
        with pytest.raises(UnknownLayout, match=f"'text', '{key}'"):
            read_row(row)


@pytest.mark.parametrize(
    "options",
    [
        {"options": {"A": "发热", "B": "咳嗽"}},
        {"Options": [{"key": "A", "value": "发热"}, {"key": "B", "value": "咳嗽"}]},
        {"choices": ["发热", "咳嗽"]},
        {"option": "A. 发热\nB. 咳嗽"},
        {"A": "发热", "B": "咳嗽", "C": None},
    ],
)
def test_options_follow_the_question(options):
    messages, unread = read_row({"question": "哪一个？", **options, "answer": "A", "explanation": "有炎症"})
    assert messages == conversation("哪一个？\nA. 发热\nB. 咳嗽", "A")
    assert unread == {"explanation"}


@pytest.mark.parametrize(
    "options",
    [{"options": {"text": ["发热"], "label": ["A"]}}, {"choices": [1, 2]}, {"options": 3}, {"A": "发热", "B": 2}],
)
def test_other_options_are_rejected(options):
    with pytest.raises(UnknownFormat, match="options must be"):
        read_row({"question": "哪一个？", **options, "answer": "A"})


def test_a_single_letter_is_not_listed_as_an_option():
    """It may be the answer, which must not stand in the question."""
    with pytest.raises(UnknownFormat, match="a text that lists A, B"):
        read_row({"question": "哪一个？", "option": "A", "answer": "A"})


def test_missing_options_are_left_out_and_odd_ones_rejected():
    row = {"question": "哪一个？", "answer": "A"}
    assert read_messages(row | {"options": {"A": "发热", "B": "咳嗽", "C": None}})[0].content.endswith(
        "A. 发热\nB. 咳嗽"
    )
    for odd in ([{"key": ["A"], "value": "发热"}], {"text": ["发热"]}, [["发热"]]):
        with pytest.raises(UnknownFormat, match="options must be"):
            read_row(row | {"options": odd})


def test_a_chosen_answer_beside_a_complete_conversation_is_not_read():
    assert read_row({"messages": MESSAGES, "chosen": "答"}) == (conversation("问", "答"), {"chosen"})


def test_documents_of_a_question_are_no_conversation():
    row = {"question": "问", "answer": "答", "contents": [{"title": "资料"}]}
    assert read_row(row) == (conversation("问", "答"), {"contents"})


def test_options_without_an_answer_are_no_answer():
    with pytest.raises(UnknownLayout):
        read_row({"question": "哪一个？", "A": "发热", "B": "咳嗽"})


@pytest.mark.parametrize("flag", ["weight", "loss", "train", "learn", "loss_weight", "loss_scale"])
@pytest.mark.parametrize(
    ("value", "learn"),
    [
        (0, False),
        (0.0, False),
        (False, False),
        ("0", False),
        ("False", False),
        (1, True),
        (1.0, True),
        (True, True),
        ("true", True),
        (None, True),
    ],
)
def test_a_loss_weight_decides_whether_an_answer_is_learnt(flag, value, learn):
    row = {"messages": [MESSAGES[0], {**MESSAGES[1], flag: value}, *MESSAGES]}
    messages, unread = read_row(row)
    assert [message.learn for message in messages] == [True, learn, True, True]
    assert unread == set()
    checked = {"messages": [message.to_json() for message in messages]}
    assert read_messages(checked) == messages


def test_the_weight_of_a_question_has_no_effect():
    assert read_messages({"messages": [{**MESSAGES[0], "loss_weight": 0.0}, MESSAGES[1]]}) == conversation("问", "答")


@pytest.mark.parametrize(
    "row",
    [
        {**CHAT, "weight": 0},
        {"conversations": SHAREGPT, "loss": False},
        {"conversations": [SHAREGPT[0], {**SHAREGPT[1], "loss": False}]},
        {"conversation": [{"human": "问", "assistant": "答", "learn": 0}]},
    ],
)
def test_a_row_of_which_nothing_is_learnt_is_rejected(row):
    with pytest.raises(UnknownFormat, match="nothing of the row is learnt"):
        read_messages(row)


@pytest.mark.parametrize("value", [0.5, 2, -1, "half", [0], {"a": 1}])
def test_other_weights_are_rejected(value):
    for row in ({**CHAT, "weight": value}, {"messages": [MESSAGES[0], {**MESSAGES[1], "weight": value}]}):
        with pytest.raises(UnknownFormat, match="the key 'weight' is"):
            read_messages(row)


# Columns -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "columns", "messages", "unread"),
    [
        ({"问诊": "问", "医生": "答"}, {"question": "问诊", "answer": "医生"}, conversation("问", "答"), set()),
        (
            {"data": {"q": "问", "a": "答", "n": 1}, "c": 2},
            {"question": "data.q", "answer": "data.a"},
            conversation("问", "答"),
            {"data.n", "c"},
        ),
        ({"a.q": "问", "a.a": "答"}, {"question": "a.q", "answer": "a.a"}, conversation("问", "答"), set()),
        (
            {"x": "问", "y": "答", "h": [["早", "早上好"]]},
            {"question": "x", "answer": "y", "history": "h", "system": "s"},
            FOUR,
            set(),
        ),
        ({"x": "问", "y": "答", "s": "您好。"}, {"question": "x", "answer": "y", "system": "s"}, SYSTEM_FIRST, set()),
        ({"log": SHAREGPT}, {"messages": "log"}, conversation("问", "答"), set()),
        ({"body": "一篇文章", "title": "题"}, {"text": "body"}, (Message("text", "一篇文章"),), {"title"}),
        # The columns have priority over known keys; rows without them are recognized by their keys.
        (
            {"question": "别的", "answer": "答", "x": "问"},
            {"question": "x", "answer": "answer"},
            conversation("问", "答"),
            {"question"},
        ),
        (CHAT, {"question": "x", "answer": "y"}, conversation("问", "答"), set()),
    ],
)
def test_columns_name_question_and_answer(row, columns, messages, unread):
    assert read_row(row, columns) == (messages, unread)


def test_a_missing_column_is_named():
    columns = {"question": "title", "answer": "text"}
    with pytest.raises(UnknownFormat, match=r"the column 'title', which ingest.columns names as question, is missing"):
        read_row({"text": "答"}, columns)
    with pytest.raises(UnknownLayout, match=r"none of the columns of ingest.columns \('title', 'text'\)"):
        read_row({"甲": "问"}, columns)
    with pytest.raises(UnknownFormat, match="'text' must be text, not a number"):
        read_row({"title": "问", "text": 3}, columns)


@pytest.mark.parametrize("name", ["self_cognition.json", "oaast_sft_zh.json"])
def test_real_rows_read_the_same_in_every_layout(name):
    for row in json.loads(developer_file(f"datasets/{name}").read_text(encoding="utf-8"))[:200]:
        messages = read_messages(row)
        turns = [{"from": {"user": "human", "assistant": "gpt"}[m.role], "value": m.content} for m in messages]
        assert read_messages({"conversations": turns}) == messages
        assert read_messages({"messages": [message.to_json() for message in messages]}) == messages
        history = [[a.content, b.content] for a, b in zip(messages[:-2:2], messages[1:-2:2], strict=True)]
        pair = {"query": messages[-2].content, "response": messages[-1].content, "history": history}
        assert read_messages(pair) == messages


# Turns that are marked in their texts ---------------------------------------------------------------

BELLE = "Human:一\nAssistant:二 \nHuman:三\n四 \nAssistant:"
MOSS_TURN = {
    "Human": "<|Human|>: 你好<eoh>\n",
    "Inner Thoughts": "<|Inner Thoughts|>: None<eot>\n",
    "Commands": "<|Commands|>: None<eoc>\n",
    "Tool Responses": "<|Results|>: None<eor>\n",
    "MOSS": "<|MOSS|>: 您好！<eom>\n",
}


@pytest.mark.parametrize(
    ("row", "texts"),
    [
        ({"instruction": BELLE, "input": "", "output": "五"}, ["一", "二", "三\n四", "五"]),
        ({"instruction": "Human:一\nAssistant:", "output": "二"}, ["一", "二"]),
        ({"prompt": "用户：一\n助手：", "response": "二", "history": TURNS[:1]}, ["早", "早上好", "一", "二"]),
        ({"utterances": ["病人：疼。", "病人：很疼。", "医生：哪里？"]}, ["疼。\n很疼。", "哪里？"]),
        ({"dialog": ["Customer: hi", "Agent: hello"]}, ["hi", "hello"]),
        (
            {"chat": {"turn_2": {"Human": "再见", "MOSS": "慢走"}, "turn_1": MOSS_TURN}},
            ["你好", "您好！", "再见", "慢走"],
        ),
        ({"messages": [{"role": "usr", "content": "一"}, {"role": "sys", "content": "二"}]}, ["一", "二"]),
    ],
)
def test_marks_of_turns_are_read_and_removed(row, texts):
    assert read_messages(row) == conversation(*texts)


@pytest.mark.parametrize(
    "question",
    [
        "Human:一\nAssistant:二",  # ends with an answer
        "Human:一\nHuman:二\nAssistant:",  # two questions
        "说明\nHuman:一\nAssistant:",  # begins with other text
        "Assistant:",
        "医生：我头疼怎么办：",
        "写一段对话：",
        "",
    ],
)
def test_other_questions_stay_as_they_are(question):
    assert read_messages({"instruction": question, "output": "答"})[0].content == question


@pytest.mark.parametrize(
    ("row", "error"),
    [
        ({"utterances": ["病人：疼。", "多喝水。"]}, UnknownLayout),  # a text without its speaker
        ({"chat": {"turn_1": {"Human": "一"}}}, UnknownFormat),
        ({"chat": {"turn_1": MOSS_TURN | {"Commands": '<|Commands|>: Search("茶")<eoc>\n'}}}, UnknownFormat),
        ({"messages": [{"role": "user", "content": "一"}, {"role": "sys", "content": "二"}]}, UnknownLayout),
        (["问", "答"], UnknownLayout),
        ({"question": "问", "answers": ["答", "另答"]}, UnknownLayout),
    ],
)
def test_turns_that_are_not_clear_are_rejected(row, error):
    with pytest.raises(error):
        read_messages(row)


@pytest.mark.parametrize("filler", [" ", "\n", "\n ", "Human:", "\nHuman:", "<eom>", "[", "：", "医生："])
def test_marks_are_searched_in_linear_time(filler):
    text = filler * (200_000 // len(filler)) + "x"
    started = time.process_time()
    for row in (
        {"instruction": f"Human:{text}\nAssistant:", "output": text},
        {"instruction": text + ":", "output": text},
        {"utterances": [text, "医生：" + text]},
        {"chat": {"turn_1": {"Human": text, "MOSS": text, "Commands": text}}},
    ):
        with contextlib.suppress(UnknownFormat):
            read_row(row)
    assert time.process_time() - started < 2  # quadratic time would take minutes


def test_columns_may_be_entries_of_lists():
    row = {"questions": [["问", "另问"]], "answers": ["答", "另答"]}
    columns = {"question": "questions.0.0", "answer": "answers.0"}
    assert read_row(row, columns) == (conversation("问", "答"), {"questions.0.1", "answers.1"})
    assert read_messages({"a": [{"q": "问"}], "b": "答"}, {"question": "a.0.q", "answer": "b"}) == conversation(
        "问", "答"
    )
    with pytest.raises(UnknownFormat, match="missing or empty"):
        read_messages(row, {"question": "questions.0.7", "answer": "answers.0"})
