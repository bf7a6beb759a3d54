"""The one place where a conversation becomes a prompt: encode, evaluate and chat all use it.

The published code numbers the turns differently in training and in evaluation; here both go
through :func:`render`, which follows the published ``chat()``.
"""

from collections.abc import Sequence

from models.sample import Message

PROMPT_VERSION = "chatglm-6b/1"  # stands in manifests; raise it whenever the same messages give other tokens

IGNORED_LABEL = -100
PROMPT_SPECIAL_TOKENS, ANSWER_SPECIAL_TOKENS = 2, 1  # tokens beside those of the text: ``[gMASK] <sop>``, and ``<eop>``


def render_prompt(messages: Sequence[Message]) -> str:
    """The context that asks for the next answer.

    A single question stands as it is. With earlier turns, each becomes ``[Round i]\\n问：…\\n答：…``
    and the last ``答：`` stays open. A system message is put before the first question.

    Args:
        messages: ending with the user's question.
    """
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
    """Ids of ``context [gMASK] <sop>``. A control token that somebody spells stays plain text."""
    return tokenizer(render_prompt(messages), split_special_tokens=True)["input_ids"]


def encode_sample(tokenizer, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
    """Ids of the prompt, and of the last answer with its ``<eop>``."""
    prompt = encode_prompt(tokenizer, messages[:-1])
    return prompt, [*encode_text(tokenizer, messages[-1].content), tokenizer.eop_token_id]


def encode_text(tokenizer, text: str) -> list[int]:
    """Ids of a text alone. A control token that somebody spells stays plain text."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def label_sample(prompt: list[int], answer: list[int]) -> dict[str, list[int]]:
    """A training row: the answer is learnt, the prompt is not."""
    return {"input_ids": prompt + answer, "labels": [IGNORED_LABEL] * len(prompt) + answer}
