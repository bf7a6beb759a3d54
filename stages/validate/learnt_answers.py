"""The learnt answers of many conversations in columns, so that each check runs once over all of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.prompt import ANSWER_ROLES, Learn, find_learnt
from models.sample import Message

# Context of an answer before the turns that no other answer is checked with. Bounded, so that a conversation of n turns
# costs n times a constant rather than n² / 2.
_RECENT_MESSAGES, _RECENT_LENGTH = 16, 2000
_OPENING_LENGTH = 400  # characters of the first messages, which may set a role or a topic


@dataclass(frozen=True)
class LearntAnswers:
    """The learnt answers of conversations, at least one of each: without any, its last message.

    Attributes:
        owners: index of the conversation of each answer, ascending: int64 of shape (answers,).
        starts: index of the first answer of each conversation: int64 of shape (conversations,).
        last: index of the last learnt answer among the messages of each conversation.
        answers, questions: texts of each answer and of the message before it.
        prompts: messages before each answer, one per line: for the first answer of a conversation all of them, for a
            later one those since the answer before, after a bounded part of the earlier ones.
        turns: index of each answer among all turns of all conversations, -1 without one: int64 of shape (answers,).
        turn_starts: index of the first turn of each conversation, and of the end: int64 of shape (conversations + 1,).
    """

    owners: np.ndarray
    starts: np.ndarray
    last: list[int]
    answers: list[str]
    questions: list[str]
    prompts: list[str]
    turns: np.ndarray
    turn_starts: np.ndarray

    @classmethod
    def collect(cls, conversations: Sequence[Sequence[Message]], learn: Learn) -> "LearntAnswers":
        """Collect the learnt answers of conversations.

        Args:
            learn: see :func:`models.prompt.find_learnt`.
        """
        owners, starts, last, answers, questions, prompts, turns, turn_starts = [], [], [], [], [], [], [], [0]
        for owner, messages in enumerate(conversations):
            starts.append(len(owners))
            first_turn, previous = turn_starts[-1], 0
            turn_of_index = _number_turns(messages, first_turn)
            for index in find_learnt(messages, learn) or (len(messages) - 1,):
                owners.append(owner)
                answers.append(messages[index].content)
                questions.append(messages[index - 1].content if index else "")
                prompts.append(_join_context(messages, previous, index))
                turns.append(turn_of_index.get(index, -1))
                previous = index + 1
            last.append(previous - 1)
            turn_starts.append(first_turn + len(turn_of_index))
        arrays = (np.array(column, np.int64) for column in (owners, starts, turns, turn_starts))
        owners, starts, turns, turn_starts = arrays
        return cls(owners, starts, last, answers, questions, prompts, turns, turn_starts)

    def first_faults(self, faults: np.ndarray) -> np.ndarray:
        """Return the first fault of each conversation: object array of shape (conversations,).

        Args:
            faults: of each answer, None without one: object array of shape (answers,).
        """
        if len(self.owners) == len(self.starts):
            return faults
        first = np.full(len(self.starts), None, object)
        for index in np.flatnonzero(faults != None)[::-1]:  # noqa: E711 (elementwise)
            first[self.owners[index]] = faults[index]
        return first

    def maxima(self, values: np.ndarray) -> np.ndarray:
        """Return the maximum of each conversation from the values of all answers: shape (conversations,)."""
        return np.maximum.reduceat(values, self.starts) if len(self.starts) else values


def _number_turns(messages: Sequence[Message], first: int) -> dict[int, int]:
    """Return the turn that each answer ends, by its index among the messages; turns are counted from ``first``."""
    indices = [index for index, message in enumerate(messages) if message.role in ANSWER_ROLES]
    return {index: first + position for position, index in enumerate(indices)}


def _join_context(messages: Sequence[Message], previous: int, index: int) -> str:
    """Return the messages before an answer, one per line.

    Args:
        previous: index after the learnt answer before; earlier messages are shortened.
    """
    prompt = "\n".join([message.content for message in messages[previous:index]])
    if not previous:
        return prompt
    first = max(previous - _RECENT_MESSAGES, 0)
    recent = "\n".join([message.content for message in messages[first:previous]])
    if not first and len(recent) <= _RECENT_LENGTH:
        return f"{recent}\n{prompt}"
    opening = "\n".join([message.content[:_OPENING_LENGTH] for message in messages[:2]])
    return f"{opening}\n{recent[-_RECENT_LENGTH:]}\n{prompt}"
