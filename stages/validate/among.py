"""What can only be said of a row among all others: copies, near-duplicates, answers that differ, and its side.

A row's side of the split depends on a hash of its *group*. Rows with the same group key, which is made
from how their conversation begins, are always together. A near-duplicate joins the side of the first
row that it resembles. Rows are taken in the order in which they were read, so that rows which arrive
later, behind the old ones, never move an old one; a row that resembles rows on both sides can be on
neither, and is quarantined.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

from models.prompt import normalize
from models.sample import Message, sample_id
from stages.validate.grams import jaccard

OPENING = 10  # characters; a conversation that opens with less, as with a greeting, is told apart by what follows
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
        group: of how the conversation begins.
    """

    sample: np.ndarray
    prompt: np.ndarray
    answer: np.ndarray
    group: np.ndarray

    @classmethod
    def joined(cls, parts: Sequence["Keys"]) -> "Keys":
        return cls(*(np.concatenate(column) for column in zip(*(vars(part).values() for part in parts), strict=True)))


def keys_of(conversations: Sequence[Sequence[Message] | None]) -> Keys:
    """Keys of conversations, None standing for a row that has none."""
    none = (0, 0, 0, 0)
    rows = [none if messages is None else _keys_of(messages) for messages in conversations]
    return Keys(*np.array(rows, np.uint64).reshape(-1, 4).T)


def _keys_of(messages: Sequence[Message]) -> tuple[int, int, int, int]:
    prompt = "\n".join([f"{message.role}:{normalize(message.content)}" for message in messages[:-1]])
    answer = normalize(messages[-1].content)
    return int(sample_id(messages), 16), hashed(prompt), hashed(answer), hashed(_opening(messages))


def _opening(messages: Sequence[Message]) -> str:
    """The first questions of a conversation, as many as it takes to tell it from others."""
    opening = ""
    for message in messages:
        if message.role == "user" and len(opening) < OPENING:
            opening += normalize(message.content)
    return opening


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
        bands: shape (rows, bands), from :func:`stages.validate.grams.bands`.
        grams_of: the 4-grams of a row.

    Returns:
        Pairs in the order of the later row, then of the earlier.
    """
    pairs = []
    for later, earlier in tqdm(_candidates(bands).tolist(), desc="compare · 比较", unit=" pairs", delay=2):
        alike = jaccard(grams_of(later), grams_of(earlier))
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


# Sides ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """Where rows go.

    Attributes:
        evaluated: bool of shape (rows,): kept for evaluation, else for training.
        torn: rows that are nearly the same as rows of both sides, and one of the other side for each.
    """

    evaluated: np.ndarray
    torn: dict[int, int]


def split(groups: np.ndarray, pairs: Sequence[tuple[int, int, float]], eval_share: float) -> Split:
    """Divide rows into training and evaluation.

    Args:
        groups: group key of each row, of shape (rows,).
        pairs: near-duplicates among them: later row, earlier row, similarity.
    """
    by_hash = groups.astype(np.float64) < eval_share * 2.0**64
    first = first_of(groups)
    moved: dict[int, bool] = {}  # groups that follow the side of a near-duplicate instead of their own hash
    torn: dict[int, int] = {}

    def side_of(row: int) -> bool:
        return moved.get(int(groups[row]), bool(by_hash[row]))

    for later, neighbours in _by_later(pairs).items():
        sides = {side_of(row): row for row in reversed(neighbours) if row not in torn}
        if first[later] == later and len(sides) == 1:
            moved[int(groups[later])] = next(iter(sides))
        elif (not side_of(later)) in sides:
            torn[later] = sides[not side_of(later)]
    evaluated = np.array([side_of(row) for row in range(len(groups))], bool) if moved else by_hash
    return Split(_never_one_sided(evaluated, groups, pairs), torn)


def _never_one_sided(evaluated: np.ndarray, groups: np.ndarray, pairs: Sequence[tuple]) -> np.ndarray:
    """The same, but where few rows all fell to one side, those with the most extreme hash change over."""
    if len(groups) == 0 or evaluated.any() != evaluated.all():
        return evaluated
    edges = np.array([[later, earlier] for later, earlier, _ in pairs] or [[0, 0]])
    linked = np.concatenate([edges, np.stack([np.arange(len(groups)), first_of(groups)], axis=1)])
    graph = coo_array((np.ones(len(linked)), (linked[:, 0], linked[:, 1])), shape=(len(groups), len(groups)))
    count, component = connected_components(graph, directed=False)
    if count == 1:
        return evaluated
    lowest = [groups[component == index].min() for index in range(count)]
    changing = int(np.argmax(lowest) if evaluated.all() else np.argmin(lowest))
    return np.where(component == changing, ~evaluated, evaluated)


def _by_later(pairs: Sequence[tuple[int, int, float]]) -> dict[int, list[int]]:
    grouped = defaultdict(list)
    for later, earlier, _ in pairs:
        grouped[later].append(earlier)
    return dict(sorted(grouped.items()))
