"""Suggested probes: a question of every topic of the data, with its wordings and an expectation on the answer.

Topics are clusters (k-means) of the questions' words, weighted by TF-IDF. Questions that do not occur in the training
rows come first, because only those show what a model has learnt. The same data give the same probes.
"""

import logging
import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from formats.probe_file import Expectation, find_numbers
from measures.contamination import comparison_form, find_in_training, questions_of
from models.sample import Sample
from models.text_normalization import normalize_text

MAX_CANDIDATES = 20_000  # rows that are clustered, evenly spaced
MAX_WORDINGS = 3  # besides the question itself
_MAX_TERMS = 2  # texts of an expectation
_MAX_FEATURES = 20_000
_SHORT_ANSWER = 6  # characters, up to which the whole answer is expected
_PLAIN_ANSWER = 40  # characters, up to which a number is the point of the answer
_MIN_SHARED_ANSWER = 8  # characters; a shorter answer is shared by questions that are no paraphrases
_ID_CHARACTERS = 24
_ASKS_NUMBER = re.compile(r"\d|多少|几|how (?:many|much)", re.IGNORECASE)
_LATIN_WORD = re.compile(r"([A-Za-z0-9]+(?:[-._+][A-Za-z0-9]+)*)")


def suggest_probes(held_out: Sequence[Sample], training: Sequence[Sample], count: int) -> list[dict]:
    """Return at most ``count`` probes as rows of a probe file, the largest topics first.

    Args:
        held_out: samples that no adapter is trained on; training samples fill up only if these are too few.
        training: samples for training.
    """
    is_asked = find_in_training(
        [_question(sample) for sample in held_out],
        (question for sample in training for question in questions_of(sample.messages)),
    )
    unseen = [sample for index, sample in enumerate(held_out) if index not in is_asked]
    candidates = _distinct(unseen)
    if len(candidates) < count:
        candidates = _distinct([*unseen, *held_out, *training])
    candidates = candidates[:: len(candidates) // MAX_CANDIDATES + 1]
    if not candidates:
        return []
    wordings, weights = (
        _Wordings([*held_out, *training]),
        _TermWeights([sample.messages[-1].content for sample in candidates]),
    )
    chosen = _central_samples(candidates, count)
    rows: dict[str, dict] = {}
    for sample in chosen:
        identifier = _unique_id(_question(sample), rows)
        rows[identifier] = _probe_row(identifier, sample, wordings, weights)
    return list(rows.values())


def _question(sample: Sample) -> str:
    return sample.messages[-2].content


def _distinct(samples: Sequence[Sample]) -> list[Sample]:
    """Return the samples with distinct questions that have an answer to expect something of."""
    first_by_form: dict[str, Sample] = {}
    for sample in samples:
        if normalize_text(sample.messages[-1].content):
            first_by_form.setdefault(comparison_form(_question(sample)), sample)
    return list(first_by_form.values())


def _unique_id(question: str, taken: dict) -> str:
    text = " ".join(question.split())[:_ID_CHARACTERS]
    number = next(number for number in range(1, len(taken) + 2) if _numbered(text, number) not in taken)
    return _numbered(text, number)


def _numbered(text: str, number: int) -> str:
    return text if number == 1 else f"{text} ({number})"


def _probe_row(identifier: str, sample: Sample, wordings: "_Wordings", weights: "_TermWeights") -> dict:
    question, answer = sample.messages[-2:]
    if len(sample.messages) == 2:
        conversation = {"context": question.content, "target": answer.content}
    else:
        messages = [{"role": message.role, "content": message.content} for message in sample.messages]
        conversation = {"messages": messages}
    row = {"id": identifier} | conversation | expect(question.content, answer.content, weights.rank)
    others = wordings.of(sample)
    return row | ({"ask": others} if others else {})


# Topics --------------------------------------------------------------------------------------------


def _central_samples(samples: Sequence[Sample], count: int) -> list[Sample]:
    """Return a sample near the centre of each of ``count`` clusters, single-turn if possible; large clusters first."""
    from sklearn.cluster import KMeans
    from sklearn.feature_extraction.text import TfidfVectorizer

    if len(samples) <= count:
        return list(samples)
    vectorizer = TfidfVectorizer(
        tokenizer=cut_words, token_pattern=None, lowercase=False, sublinear_tf=True, max_features=_MAX_FEATURES
    )
    matrix = vectorizer.fit_transform([_question(sample) for sample in samples])
    clusters = KMeans(count, n_init=2, max_iter=50, random_state=0).fit(matrix)
    distances = np.round(clusters.transform(matrix)[np.arange(len(samples)), clusters.labels_], 9)
    # A follow-up question says little by itself: single-turn samples first.
    order = np.lexsort((np.arange(len(samples)), distances, [len(sample.messages) > 2 for sample in samples]))
    labels = clusters.labels_[order]
    _, first = np.unique(labels, return_index=True)
    sizes = np.bincount(clusters.labels_, minlength=count)
    nearest = sorted(order[first].tolist(), key=lambda index: (-sizes[clusters.labels_[index]], index))
    return [samples[index] for index in nearest]


def cut_words(text: str) -> list[str]:
    """Return the words of a text by jieba, in lower case, without punctuation; names such as GPT-4 stay whole."""
    import jieba

    jieba.setLogLevel(logging.WARNING)
    words: list[str] = []
    for part in _LATIN_WORD.split(normalize_text(text)):
        words += [part] if _LATIN_WORD.fullmatch(part) else jieba.cut(part)
    return [word.lower() for word in words if any(map(str.isalnum, word))]


class _TermWeights:
    """How telling each word of the answers is: rare words more than frequent ones."""

    def __init__(self, answers: Sequence[str]):
        self._documents = Counter(word for answer in answers for word in set(cut_words(answer)))
        self._total = len(answers)

    def rank(self, answer: str) -> list[str]:
        """Return the words of two or more characters, the most telling first: a high TF-IDF, then a great length."""
        words = [word for word in cut_words(answer) if len(word) > 1]
        weight = {
            word: words.count(word) * np.log((1 + self._total) / (1 + self._documents[word])) for word in set(words)
        }
        return sorted(weight, key=lambda word: (-round(weight[word], 9), -len(word), words.index(word)))


# Expectations and wordings -------------------------------------------------------------------------


def expect(question: str, answer: str, rank: Callable[[str], list[str]]) -> dict:
    """Return an expectation that an answer meets, as keys of a probe.

    Args:
        question: words and numbers that it has are expected last, because an answer may repeat the question.
        rank: returns the words of a text, the most telling first.
    """
    text = normalize_text(answer)
    if len(text) <= _SHORT_ANSWER:
        return {"equals": answer}
    if (
        len(text) <= _PLAIN_ANSWER
        and _ASKS_NUMBER.search(question)
        and (numbers := sorted(find_numbers(answer) - find_numbers(question)))
    ):
        largest = numbers[-1]
        expected = {"number": int(largest) if largest.is_integer() else largest}
        if Expectation(**expected).is_met_by(answer):
            return expected
    asked = normalize_text(question).lower()
    terms = sorted(_spelled_as_in(answer, rank(answer)), key=lambda term: term.lower() in asked)  # a stable sort
    met = [term for term in terms if Expectation(contains=(term,)).is_met_by(answer)]
    return {"contains": met[:_MAX_TERMS]} if met else {"equals": answer}


def _spelled_as_in(answer: str, words: Sequence[str]) -> list[str]:
    """Return lower-case words as the answer spells them."""
    text = normalize_text(answer)
    lower = text.lower()
    starts = [(lower.find(word), word) for word in words]
    return [text[start : start + len(word)] for start, word in starts if start >= 0]


class _Wordings:
    """Questions of single-turn samples by their answer: questions with the same answer are paraphrases."""

    def __init__(self, samples: Sequence[Sample]):
        self._questions: dict[str, dict[str, str]] = {}
        for sample in samples:
            form = comparison_form(sample.messages[-1].content)
            if len(sample.messages) == 2 and len(form) >= _MIN_SHARED_ANSWER:
                question = _question(sample)
                self._questions.setdefault(form, {}).setdefault(comparison_form(question), question)

    def of(self, sample: Sample) -> list[str]:
        """Return other wordings of a sample's question, held-out ones first."""
        if len(sample.messages) != 2:
            return []
        questions = self._questions.get(comparison_form(sample.messages[-1].content), {})
        own = comparison_form(_question(sample))
        return [question for form, question in questions.items() if form != own][:MAX_WORDINGS]
