"""Instruction-following difficulty of answers: their loss after the question, divided by their loss without it.

Li et al., "From Quantity to Quality", arXiv:2308.12032. A question that fits lowers the loss, so the ratio is below 1.
At 1 or above, the question does not help: the answer may belong to another question. Very short or general answers are
near 1 as well, therefore the ranking is a warning.

A base that knows too little of the language or the task cannot rank: on the demo's training rows, the tiny base finds
shuffled answers as easy as the right ones. :func:`measure_separation` measures that on the rows themselves.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.prompt import encode_prompt, encode_sample
from models.row_losses import mean_row_losses
from models.sample import Sample

MAX_SHUFFLED, MIN_SHUFFLED = 500, 12  # answers that the separation is measured on
MIN_SEPARATION = 0.6  # area under the ROC curve below which the ranking is not shown in a review


@dataclass(frozen=True)
class Answer:
    """An answer of a conversation.

    Attributes:
        sample: the conversation.
        index: of the answer among the messages, from 0.
    """

    sample: Sample
    index: int

    @property
    def question(self) -> str:
        """The message before the answer."""
        return self.sample.messages[self.index - 1].content

    @property
    def text(self) -> str:
        return self.sample.messages[self.index].content


@dataclass(frozen=True)
class RankedAnswer:
    """An answer with its losses, in nats per token of the answer.

    Attributes:
        loss: after the question and all earlier turns.
        loss_alone: without any prompt.
    """

    answer: Answer
    loss: float
    loss_alone: float

    @property
    def difficulty(self) -> float:
        """The ratio of the losses: 1 if the question does not help, infinite if the answer is certain without it."""
        return self.loss / self.loss_alone if self.loss_alone > 0 else float("inf")


def select_answers(samples: Sequence[Sample], count: int) -> list[Answer]:
    """Return at most ``count`` answers that are trained on: of the conversations with the lowest ids, which are hashes.

    The choice is random in effect, and stays the same when other rows are added or removed, apart from its end.
    """
    answers = []
    for sample in sorted(samples, key=lambda sample: sample.id):
        answers += [
            Answer(sample, index)
            for index, message in enumerate(sample.messages)
            if index and message.role == "assistant" and message.learn
        ]
        if len(answers) >= count:
            break
    return answers[:count]


def encode_answers(tokenizer, answers: Sequence[Answer]) -> list[dict]:
    """Return the token ids of each answer and of the prompt before it: ``answer`` and ``prompt``."""
    encoded = (encode_sample(tokenizer, answer.sample.messages[: answer.index + 1]) for answer in answers)
    return [{"prompt": prompt, "answer": ids} for prompt, ids in encoded]


def rank_answers(model, tokenizer, answers: Sequence[Answer], batch_size: int) -> list[RankedAnswer]:
    """Return the answers with their losses, the highest difficulty first.

    Args:
        model: the base, in evaluation mode.
        batch_size: rows of a batch at most.
    """
    empty_prompt = encode_prompt(tokenizer, ())
    rows = encode_answers(tokenizer, answers)
    losses = mean_row_losses(model, rows, batch_size)
    losses_alone = mean_row_losses(model, [row | {"prompt": empty_prompt} for row in rows], batch_size)
    ranked = [RankedAnswer(*entry) for entry in zip(answers, losses, losses_alone, strict=True)]
    return sorted(ranked, key=lambda entry: (-entry.difficulty, entry.answer.sample.id, entry.answer.index))


def worst_of_each_row(ranked: Sequence[RankedAnswer], count: int) -> list[RankedAnswer]:
    """Return the worst answer of each conversation, for the ``count`` conversations that fit worst."""
    worst: dict[str, RankedAnswer] = {}
    for entry in ranked:
        worst.setdefault(entry.answer.sample.id, entry)
    return list(worst.values())[:count]


def measure_separation(model, tokenizer, ranked: Sequence[RankedAnswer], batch_size: int) -> float | None:
    """Return how well the base tells fitting answers from those of other questions, on the ranked answers.

    Each of at most :data:`MAX_SHUFFLED` answers is put after the prompt of another one.

    Returns:
        The area under the ROC curve: the probability that a shuffled answer has a higher difficulty than a fitting one.
        0.5 means that the base cannot tell. None for fewer than :data:`MIN_SHUFFLED` answers.
    """
    entries = sorted(ranked, key=lambda entry: (entry.answer.sample.id, entry.answer.index))[:MAX_SHUFFLED]
    if len(entries) < MIN_SHUFFLED:
        return None
    rows = encode_answers(tokenizer, [entry.answer for entry in entries])
    shift = len(rows) // 3  # further than the answers of one conversation, which are neighbours
    prompts = [row["prompt"] for row in (*rows[shift:], *rows[:shift])]
    shuffled = [row | {"prompt": prompt} for row, prompt in zip(rows, prompts, strict=True)]
    losses = mean_row_losses(model, shuffled, batch_size)
    wrong = [loss / entry.loss_alone for loss, entry in zip(losses, entries, strict=True) if entry.loss_alone > 0]
    return area_under_curve([entry.difficulty for entry in entries], wrong)


def area_under_curve(low: Sequence[float], high: Sequence[float]) -> float:
    """Return the probability that a value of ``high`` exceeds one of ``low``; ties count half."""
    ordered = np.sort(low)
    below, up_to = (np.searchsorted(ordered, high, side=side) for side in ("left", "right"))
    return float((below + up_to).mean() / 2 / len(ordered))
