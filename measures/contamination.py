"""Contamination: texts of the evaluation that occur in the training rows, exactly or nearly.

Two texts are equal if they differ in case, punctuation and whitespace only, and nearly equal by the Jaccard similarity
of their sets of character 4-grams (:mod:`measures.ngrams`). The time is linear in the length of the training rows.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

import regex

from measures.ngrams import near_duplicate_pairs
from models.sample import Message
from models.text_normalization import normalize_text

# Fixed: does not depend on params.yaml, where validate.checks.no_near_duplicate has the same default.
CONTAMINATION_SIMILARITY = 0.8
_BATCH = 20_000  # training texts whose 4-grams are in memory at a time
_NOT_WORD = regex.compile(r"[^\p{L}\p{M}\p{N}]+")


class Match(NamedTuple):
    """A training text that equals, or nearly equals, a text of the evaluation.

    Attributes:
        position: index of the training text.
        similarity: Jaccard similarity of the 4-grams, 1.0 for equal texts.
    """

    position: int
    similarity: float


def comparison_form(text: str) -> str:
    """Return a text without case, punctuation and whitespace; a text of punctuation alone keeps it."""
    text = normalize_text(text)
    return _NOT_WORD.sub("", text).casefold() or text


def questions_of(messages: Iterable[Message]) -> list[str]:
    """Return the user's messages of a conversation."""
    return [message.content for message in messages if message.role == "user"]


def find_in_training(texts: Sequence[str], training: Iterable[str]) -> dict[int, Match]:
    """Return the most similar training text, of equal ones the first, for each text that has one.

    Args:
        texts: questions or conversations of the evaluation.
        training: texts of the training rows, read once.

    Returns:
        Match by the index of the text; texts that do not occur in the training rows are absent.
    """
    forms = [comparison_form(text) for text in texts]
    unique_forms = dict.fromkeys(forms)
    best: dict[str, Match] = {}
    for first, batch in _number_batches(training) if unique_forms else ():
        for form, match in _match_forms(unique_forms, [comparison_form(text) for text in batch]):
            if form not in best or match.similarity > best[form].similarity:
                best[form] = Match(first + match.position, match.similarity)
    return {index: best[form] for index, form in enumerate(forms) if form in best}


def _number_batches(texts: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield batches of texts, each with the index of its first text."""
    first, iterator = 0, iter(texts)
    while batch := list(islice(iterator, _BATCH)):
        yield first, batch
        first += len(batch)


def _match_forms(forms: Mapping[str, None], training: Sequence[str]) -> Iterator[tuple[str, Match]]:
    """Yield the forms that stand in a batch of training texts, with the match: equal texts, then similar ones."""
    yield from ((form, Match(position, 1.0)) for position, form in enumerate(training) if form in forms)
    by_index = list(forms)
    for pairs in near_duplicate_pairs(training, by_index, CONTAMINATION_SIMILARITY):
        for position, index, similarity in zip(*(column.tolist() for column in pairs), strict=True):
            yield by_index[index], Match(position, similarity)
