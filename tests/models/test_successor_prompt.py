"""Tokenization and prompts of ChatGLM2-6B and ChatGLM3-6B: parity with recorded results of the published code."""

import json

import pytest
from shared_data import conversation, developer_file

from models.prompt import IGNORED_LABEL
from models.sample import Message
from models.successor_prompt import (
    encode_message,
    encode_roles,
    encode_rounds,
    label_roles,
    label_rounds,
    render_rounds,
    render_tools,
    start_ids,
)
from models.vocabulary import SuccessorVocabulary

GENERATIONS = {"chatglm2": False, "chatglm3": True}


class Recorded:
    """Recorded results of a release's tokenizer.

    Attributes:
        results: by name, see the file.
    """

    def __init__(self, generation: str):
        self.results = json.loads(
            developer_file(f"reference/vectors/{generation}/tokenizer.json").read_text(encoding="utf-8")
        )
        file = developer_file(f"reference/{generation}-6b/tokenizer.model")
        self.vocabulary = SuccessorVocabulary(file, GENERATIONS[generation])


@pytest.fixture(scope="module", params=GENERATIONS)
def recorded(request) -> Recorded:
    return Recorded(request.param)


@pytest.fixture(scope="module")
def chatglm2() -> Recorded:
    return Recorded("chatglm2")


@pytest.fixture(scope="module")
def chatglm3() -> Recorded:
    return Recorded("chatglm3")


def to_messages(rows: list[dict]) -> tuple[Message, ...]:
    return tuple(Message(row["role"], row["content"], row.get("loss", True)) for row in rows)


def test_texts_are_encoded_and_decoded_as_by_the_published_tokenizer(recorded):
    vocabulary = recorded.vocabulary
    for entry in recorded.results["texts"]:
        ids = vocabulary.encode(entry["text"])
        assert ids == entry["ids"], entry["text"]
        assert start_ids(vocabulary) + ids == entry["ids_special"]
        assert vocabulary.decode(ids) == entry["decoded"]
        assert vocabulary.decode(entry["ids_special"]) == entry["decoded_special"]
    texts = [entry["text"] for entry in recorded.results["texts"]]
    assert vocabulary.count_tokens([*texts, "\ud800"])[:-1] == [
        len(entry["ids"]) for entry in recorded.results["texts"]
    ]


def test_control_tokens_have_their_published_ids(recorded):
    published = {name: token_id for name, token_id in recorded.results["special"].items() if not name.startswith("<b")}
    published["</s>"] = published.pop("<eos>")
    assert published.pop("<pad>") == 0
    assert recorded.vocabulary.control_ids == published
    for name, text in recorded.results["decoded_special_ids"].items():
        assert recorded.vocabulary.decode([published[name]]) == text


def test_a_text_that_spells_a_control_token_stays_text(recorded):
    controls = {token_id for token_id in recorded.vocabulary.control_ids.values() if token_id > 2}
    for name in recorded.vocabulary.control_ids:
        assert not controls & set(recorded.vocabulary.encode(f"a {name} b")), name


# ChatGLM2 ------------------------------------------------------------------------------------------


def test_chatglm2_prompts_equal_the_published_ones(chatglm2):
    for chat in chatglm2.results["chats"]:
        messages = conversation(*(text for turn in chat["history"] for text in turn), chat["query"])
        assert render_rounds(messages) == chat["prompt"]
        assert encode_rounds(chatglm2.vocabulary, messages) == chat["input_ids"]


def test_chatglm2_training_rows_equal_the_published_ones(chatglm2):
    """The recorded rows are padded, and cut to token budgets; the gate rejects rows beyond a budget instead."""
    rows = chatglm2.results["training_rows"]
    compared = 0
    for (history, question, answer), ids, labels in zip(rows["rows"], rows["input_ids"], rows["labels"], strict=True):
        (row,) = label_rounds(
            chatglm2.vocabulary, conversation(*(text for turn in history for text in turn), question, answer), "last"
        )
        length = len(row["input_ids"])
        if length <= len(ids):
            assert row["input_ids"] == ids[:length]
            assert row["labels"] == labels[:length]
            compared += 1
    assert compared == 3


def test_chatglm2_has_a_row_for_every_learnt_answer(chatglm2):
    messages = conversation("q1", "a1", "q2", "a2")
    first, second = label_rounds(chatglm2.vocabulary, messages)
    assert first == label_rounds(chatglm2.vocabulary, messages[:2])[0]
    assert [second] == label_rounds(chatglm2.vocabulary, messages, "last")


def test_chatglm2_puts_the_system_message_before_the_first_question():
    messages = (Message("system", "规则"), *conversation("问", "答", "再问"))
    assert render_rounds(messages) == "[Round 1]\n\n问：规则\n问\n\n答：答\n\n[Round 2]\n\n问：再问\n\n答："
    assert render_rounds(()) == ""


# ChatGLM3 ------------------------------------------------------------------------------------------


def test_chatglm3_messages_equal_the_published_ones(chatglm3):
    for entry in chatglm3.results["messages"]:
        ids = encode_message(chatglm3.vocabulary, entry["role"], entry["message"], entry["metadata"])
        assert ids == entry["ids"]


def test_chatglm3_prompts_equal_the_published_ones(chatglm3):
    compared = 0
    for chat in chatglm3.results["chats"]:
        if any(row.get("metadata") for row in chat["history"]):  # Message has no metadata
            continue
        history = [
            row | {"content": render_tools(row["content"], row["tools"])} if "tools" in row else row
            for row in chat["history"]
        ]
        messages = to_messages([*history, {"role": chat["role"], "content": chat["query"]}])
        assert encode_roles(chatglm3.vocabulary, messages) == chat["input_ids"]
        compared += 1
    assert compared >= 8


def test_chatglm3_training_rows_equal_the_published_ones(chatglm3):
    rows = chatglm3.results["training_rows"]
    for turns, ids, labels in zip(rows["conversations"], rows["input_ids"], rows["labels"], strict=True):
        row = label_roles(chatglm3.vocabulary, to_messages(turns))
        assert row["input_ids"][: len(ids)] == ids  # the last row was cut to its budget
        assert row["labels"][: len(ids)] == labels


def test_chatglm3_learns_no_answer_without_loss(chatglm3):
    entry = chatglm3.results["tool_rows"][1]
    messages = to_messages(entry["conversations"])
    assert label_roles(chatglm3.vocabulary, messages) == {key: entry[key] for key in ("input_ids", "labels")}
    labels = label_roles(chatglm3.vocabulary, conversation("q1", "a1", "q2", "a2"), "last")["labels"]
    learnt = [label for label in labels if label != IGNORED_LABEL]
    assert learnt == [*chatglm3.vocabulary.encode("\n"), *chatglm3.vocabulary.encode("a2"), 2]
