"""Prompts and training rows of ChatGLM2-6B and ChatGLM3-6B.

The rows of a conversation with two answers, learnt tokens in brackets::

    ChatGLM2   [gMASK] sop  [Round 1]…问：q1…答：              [a1 </s>]
               [gMASK] sop  [Round 1]…答：a1…[Round 2]…答：    [a2 </s>]
    ChatGLM3   [gMASK] sop <|user|> q1 <|assistant|> [a1 <|user|>] q2 <|assistant|> [a2 </s>]

ChatGLM2 needs a row for every answer, since the tokens of an answer within a prompt are not those of the answer alone.
Source: the published code of tokenization and fine-tuning.
"""

import json
from collections.abc import Sequence

from models.prompt import IGNORED_LABEL, Learn, find_learnt, label_sample, render_rounds
from models.sample import Message
from models.vocabulary import END_TOKEN, SuccessorVocabulary


def start_ids(vocabulary: SuccessorVocabulary) -> list[int]:
    """Return ``[gMASK] sop``, with which every row begins."""
    return [vocabulary.control_ids["[gMASK]"], vocabulary.control_ids["sop"]]


# ChatGLM2 ------------------------------------------------------------------------------------------


def encode_rounds(vocabulary: SuccessorVocabulary, messages: Sequence[Message]) -> list[int]:
    """Return the ids of ChatGLM2's prompt for the next answer."""
    return start_ids(vocabulary) + vocabulary.encode(render_rounds(messages))


def label_rounds(
    vocabulary: SuccessorVocabulary, messages: Sequence[Message], learn: Learn = "all"
) -> list[dict[str, list[int]]]:
    """Return a training row of ChatGLM2 for every learnt answer: ``input_ids`` and ``labels``."""
    end = vocabulary.control_ids[END_TOKEN]
    return [
        label_sample(encode_rounds(vocabulary, messages[:index]), [*vocabulary.encode(messages[index].content), end])
        for index in find_learnt(messages, learn)
    ]


# ChatGLM3 ------------------------------------------------------------------------------------------


def encode_message(vocabulary: SuccessorVocabulary, role: str, content: str, metadata: str = "") -> list[int]:
    """Return the ids of one message of ChatGLM3, from its role's token on.

    Args:
        role: ``system``, ``user``, ``assistant`` or ``observation``.
        metadata: of an assistant's message that calls a tool, the tool's name.
    """
    role_id = vocabulary.control_ids[f"<|{role}|>"]
    return [role_id, *vocabulary.encode(f"{metadata}\n"), *vocabulary.encode(content)]


def render_tools(content: str, tools: Sequence[dict]) -> str:
    """Return a system message's text with tools appended, as JSON with indent 4."""
    return "\n".join([content, json.dumps(tools, indent=4, ensure_ascii=False)])


def encode_roles(vocabulary: SuccessorVocabulary, messages: Sequence[Message]) -> list[int]:
    """Return the ids of ChatGLM3's prompt for the next answer, which ends with ``<|assistant|>``.

    Args:
        messages: conversation that ends with the user's question.
    """
    ids = start_ids(vocabulary)
    for message in messages:
        ids += encode_message(vocabulary, message.role, message.content)
    return [*ids, vocabulary.control_ids["<|assistant|>"]]


def label_roles(
    vocabulary: SuccessorVocabulary, messages: Sequence[Message], learn: Learn = "all"
) -> dict[str, list[int]]:
    """Return ChatGLM3's training row of a conversation: ``input_ids`` and ``labels``.

    A token has a label if the token before it belongs to a learnt answer: not ``<|assistant|>`` itself, but the token
    that ends the answer, which is the next role's token, or ``</s>`` at the end.
    """
    ids, in_answer = start_ids(vocabulary), [False, False]
    learnt = set(find_learnt(messages, learn))
    for index, message in enumerate(messages):
        encoded = encode_message(vocabulary, message.role, message.content)
        ids += encoded
        in_answer += [index in learnt] * len(encoded)
    ids.append(vocabulary.control_ids[END_TOKEN])
    labels = [
        token_id if follows_answer else IGNORED_LABEL
        for token_id, follows_answer in zip(ids, [False, *in_answer], strict=True)
    ]
    return {"input_ids": ids, "labels": labels}
