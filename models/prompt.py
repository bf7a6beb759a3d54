"""Prompt template of ChatGLM-6B, and encoding of conversations for training, evaluation and chat.

The published code numbers the turns differently in training and in evaluation. Here :func:`render_prompt` serves both,
and follows the published ``chat()``.
"""

from collections.abc import Sequence
from typing import Literal

from models.sample import Message

PROMPT_VERSION = "chatglm-6b/1"  # saved in manifests; increase it when the same messages give other tokens

IGNORED_LABEL = -100  # the ignore_index of cross_entropy
Learn = Literal["all", "last"]  # the answers of a conversation that are learnt
ANSWER_ROLES = ("assistant", "text")  # a text is the answer to an empty prompt
PROMPT_SPECIAL_TOKENS, ANSWER_SPECIAL_TOKENS = 2, 1  # ``[gMASK] <sop>`` after the prompt, ``<eop>`` after the answer


def render_prompt(messages: Sequence[Message]) -> str:
    """Return the text of the prompt for the next answer.

    Without messages it is empty: the prompt of a plain text. A single question is the prompt. With earlier turns, each
    turn becomes ``[Round i]\\n问：…\\n答：…``, and the last ``答：`` is left open. System messages are put before the
    first question.

    Args:
        messages: conversation that ends with the user's question; may be empty.
    """
    if not messages:
        return ""
    system = [message.content for message in messages if message.role == "system"]
    turns = [message.content for message in messages if message.role != "system"]
    turns[0] = "\n".join([*system, turns[0]])
    if len(turns) == 1:
        return turns[0]
    rounds = [
        f"[Round {index // 2}]\n问：{turns[index]}\n答：{turns[index + 1] if index + 1 < len(turns) else ''}"
        for index in range(0, len(turns), 2)
    ]
    return "\n".join(rounds)


def encode_prompt(tokenizer, messages: Sequence[Message]) -> list[int]:
    """Return the ids of ``prompt [gMASK] <sop>``. Control tokens spelled in a message are encoded as plain text."""
    return tokenizer(render_prompt(messages), split_special_tokens=True)["input_ids"]


def find_learnt(messages: Sequence[Message], learn: Learn = "all") -> list[int]:
    """Return the indices of the answers that are learnt: all whose ``learn`` is true, or only the last one of them."""
    indices = [index for index, message in enumerate(messages) if message.role in ANSWER_ROLES and message.learn]
    return indices[-1:] if learn == "last" else indices


def encode_sample(tokenizer, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
    """Return the ids of the prompt, and of the last answer with ``<eop>``.

    The prompt is a two-way prefix: its tokens attend to each other in both directions, so no answer within it can have
    a label. A conversation with several learnt answers is therefore encoded once for each, with all messages before it.
    """
    prompt = encode_prompt(tokenizer, messages[:-1])
    return prompt, [*encode_text(tokenizer, messages[-1].content), tokenizer.eop_token_id]


def encode_text(tokenizer, text: str) -> list[int]:
    """Return the ids of a text, without special tokens. Control tokens spelled in it are encoded as plain text."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def label_sample(prompt: list[int], answer: list[int]) -> dict[str, list[int]]:
    """Return a training row with its label mask (loss mask), which excludes the prompt.

    Returns:
        ``input_ids`` and ``labels``, each (length,); the labels of the prompt are IGNORED_LABEL.
    """
    return {"input_ids": prompt + answer, "labels": [IGNORED_LABEL] * len(prompt) + answer}
