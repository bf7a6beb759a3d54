"""What can only be said of a row among all others: copies, near-duplicates and answers that differ."""

import hashlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from measures.ngrams import jaccard_similarity
from models.sample import Message, make_sample_id
from models.text_normalization import normalize_text

# Characters; what is shorter may be a greeting, with which many conversations open that have nothing in common.
SHORT, LONG = 10, 50
_PRIME, _BASE = 2**61 - 1, 0x1A5D_C3F7_90B1_6E2D  # of polynomial hashes, so that parts of any length take linear time
_SHARED_BANDS = 2  # that make two rows candidates
_CROWD = 30  # rows shortly before it that a row is paired with, among all that share a band with it
_DEPTH = 4  # bands in a row by which crowds are divided
_MOST_ALIKE = 30  # earlier rows that a row is compared with


# Keys ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Keys:
    """What identifies rows, as 64-bit hashes: uint64 arrays of shape (rows,), 0 where a row is no sample.

    Attributes:
        sample: of the whole conversation; in hexadecimal it is the sample's id.
        prompt: of everything before the answer, blanks left out.
        answer: of the answer, blanks left out.
        question: of the first question. The last two bits of this key, of ``prompt`` and of ``turns`` tell whether the
            text is short.
        counts: how many turns each row has: int32.
        turns: of every row the keys of its turns, as :func:`_turn_keys` gives them, one row after another.
        starts: where each row's begin in ``turns``, and where the last end: int64 of shape (rows + 1,).
    """

    sample: np.ndarray
    prompt: np.ndarray
    answer: np.ndarray
    question: np.ndarray
    counts: np.ndarray
    turns: np.ndarray
    starts: np.ndarray

    @classmethod
    def joined(cls, parts: Sequence["Keys"]) -> "Keys":
        columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in (*_COLUMNS, "turns")}
        lengths = [np.diff(part.starts) for part in parts]
        return cls(**columns, starts=np.cumsum(np.concatenate([[0], *lengths]), dtype=np.int64))


_COLUMNS = ("sample", "prompt", "answer", "question", "counts")


def keys_of(conversations: Sequence[Sequence[Message] | None]) -> Keys:
    """Keys of conversations, None standing for a row that has none."""
    rows, starts, turns = [], [0], array("Q")
    for messages in conversations:
        row, row_turns = ((0, 0, 0, 0, 0), ()) if messages is None else _keys_of(messages)
        rows.append(row)
        turns.extend(row_turns)
        starts.append(len(turns))
    *columns, counts = np.array(rows, np.uint64).reshape(-1, len(_COLUMNS)).T
    return Keys(*columns, counts.astype(np.int32), np.array(turns, np.uint64), np.array(starts, np.int64))


def _keys_of(messages: Sequence[Message]) -> tuple[tuple[int, int, int, int, int], list[int]]:
    texts = [normalize_text(message.content) for message in messages]
    prompt = "\n".join([f"{message.role}:{text}" for message, text in zip(messages[:-1], texts, strict=False)])
    answer = hashed(texts[-1])
    system = hashed(texts[0]) if messages[0].role == "system" else 0
    turns, question, question_length, first, said = [], 0, 0, 0, 0
    for message, text in zip(messages, texts, strict=True):
        if message.role == "user":
            question, question_length = hashed(text), len(text)
            first = first or question & ~3 | _length_class(question_length)
            said += len(text)
        elif message.role == "assistant":
            code = answer if message is messages[-1] else hashed(text)
            turns.append(((question * _BASE + code) % _PRIME, question_length + len(text)))
            said += len(text)
    before = hashed(prompt) & ~3 | _length_class(said - len(texts[-1]))
    return (int(make_sample_id(messages), 16), before, answer, first, len(turns)), _turn_keys(turns, system)


def _turn_keys(turns: Sequence[tuple[int, int]], system: int) -> list[int]:
    """Keys of a conversation's parts: equal parts of any conversations have equal keys.

    Args:
        turns: hash and length of each question with its answer.
        system: hash of the system message, 0 if there is none.

    Returns:
        Of n turns: the first 1, 2, … n; with a system message, those together with it; the last 1, 2, … n - 1.
    """
    first, first_with_system, last = [], [], []
    code, with_system, length = 0, system, 0
    for turn, turn_length in turns:
        code, with_system = (code * _BASE + turn) % _PRIME, (with_system * _BASE + turn) % _PRIME
        length += turn_length
        first.append(_marked(code, length))
        first_with_system.append(_marked(with_system, length))
    code, power, length = 0, 1, 0
    for turn, turn_length in reversed(turns[1:]):
        code, power = (turn * power + code) % _PRIME, power * _BASE % _PRIME
        length += turn_length
        last.append(_marked(code, length))
    return [*first, *(first_with_system if system else ()), *last]


def _marked(code: int, length: int) -> int:
    return code << 2 | _length_class(length)


def _length_class(length: int) -> int:
    """1, 2 or 3 for a short, middling or long text: the last two bits of its key, which so is never 0."""
    return 1 + (length >= SHORT) + (length >= LONG)


def hashed(text: str) -> int:
    """64 bits that only the text decides, never 0."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") or 1


# Copies --------------------------------------------------------------------------------------------


def first_of(keys: np.ndarray) -> np.ndarray:
    """For each row, the first row with the same key; itself where it is the first or has no key."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    return np.where(keys == 0, np.arange(len(keys)), first[inverse])


def other_answers(keys: Keys, rows: np.ndarray) -> dict[int, int]:
    """Rows whose answer differs from that of the first row with the same prompt, and that row."""
    first = rows[first_of(keys.prompt[rows])]
    differ = keys.answer[rows] != keys.answer[first]
    return dict(zip(rows[differ].tolist(), first[differ].tolist(), strict=True))


# Near-duplicates -----------------------------------------------------------------------------------


def near_duplicates(
    bands: np.ndarray, grams_of: Callable[[int], np.ndarray], similarity: float
) -> list[tuple[int, int, float]]:
    """Pairs of rows whose 4-grams are at least so similar: the later row, the earlier one, their similarity.

    Args:
        bands: shape (rows, bands), from :func:`stages.validate.minhash.bands`.
        grams_of: the 4-grams of a row.

    Returns:
        Pairs in the order of the later row, then of the earlier.
    """
    pairs = []
    for later, earlier in tqdm(_candidates(bands).tolist(), desc="compare · 比较", unit=" pairs", delay=2):
        alike = jaccard_similarity(grams_of(later), grams_of(earlier))
        if alike >= similarity:
            pairs.append((later, earlier, round(alike, 4)))
    return pairs


def _candidates(bands: np.ndarray) -> np.ndarray:
    """Pairs of rows that share at least two bands, (later, earlier), in order: int64 of shape (pairs, 2).

    In a crowd, as rows made from one template are, not all pairs that share a band are looked at: see
    :func:`_pairs`. Of what is found a row keeps the earlier ones that share most bands with it. Rows that
    come later change no pair of those before them.
    """
    found = np.empty(0, np.int64)  # as later * rows + earlier
    for first in tqdm(range(bands.shape[1]), desc="look for near-duplicates · 查找近似重复", unit=" bands", delay=2):
        found = _most_alike(np.unique(np.concatenate([found, *_pairs(bands, first)])), bands)
    return np.stack(np.divmod(found, max(len(bands), 1)), axis=1)


def _pairs(bands: np.ndarray, first: int) -> Iterator[np.ndarray]:
    """Pairs that share the band ``first`` and at least one more, as ``later * rows + earlier``.

    A row is paired with the first row that has the band and with those shortly before it. Where these are
    not all, it is also paired with those shortly before it that share the next bands too, which near-duplicates
    do more than others: in a crowd whose rows have similarity 0.7, one of 1,250 shares four bands in a row.
    """
    rows, key = np.arange(len(bands)), np.zeros(len(bands), np.uint64)
    for step in range(_DEPTH):
        key = (key ^ bands[rows, (first + step) % bands.shape[1]]) * np.uint64(0x9E3779B97F4A7C15)
        order = np.argsort(key, kind="stable")
        start, rank = _runs(key[order])
        for back in range(1, min(_CROWD, rank.max(initial=0)) + 1):
            later = np.flatnonzero(rank >= back)
            yield _sharing(rows[order[later]], rows[order[later - back]], bands)
        later = np.flatnonzero(rank > _CROWD)
        yield _sharing(rows[order[later]], rows[order[start[later]]], bands)
        crowded = np.zeros(len(order), bool)
        crowded[start[later]] = True
        kept = np.sort(order[crowded[start]])  # all rows of such crowds, in their own order
        rows, key = rows[kept], key[kept]
        if not len(rows):
            return


def _runs(sorted_keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each of some sorted keys, where its like begin, and how many of them stand before it."""
    position = np.arange(len(sorted_keys))
    same = np.append(False, sorted_keys[1:] == sorted_keys[:-1])[: len(position)]
    start = np.maximum.accumulate(np.where(same, 0, position))
    return start, position - start


def _sharing(later: np.ndarray, earlier: np.ndarray, bands: np.ndarray) -> np.ndarray:
    enough = (bands[later] == bands[earlier]).sum(axis=1) >= _SHARED_BANDS
    return later[enough] * len(bands) + earlier[enough]


def _most_alike(coded: np.ndarray, bands: np.ndarray) -> np.ndarray:
    """Of the pairs of each later row, in order, those that share most bands."""
    if not len(coded):
        return coded
    later, earlier = np.divmod(coded, len(bands))
    _, rank = _runs(later)
    if rank.max() < _MOST_ALIKE:
        return coded
    pieces = np.array_split(np.arange(len(coded)), len(coded) // 10**6 + 1)
    shared = np.concatenate([(bands[later[piece]] == bands[earlier[piece]]).sum(axis=1) for piece in pieces])
    order = np.lexsort((earlier, -shared, later))
    _, rank = _runs(later[order])
    return np.sort(coded[order[rank < _MOST_ALIKE]])
