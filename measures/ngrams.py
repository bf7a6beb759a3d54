"""Character 4-grams: how similar two texts are, and how much a text repeats itself.

Similarity of two texts is the Jaccard similarity of their sets of 4-grams. The data checks and replay compare texts by
the same sets, so that both mean the same by a near-duplicate.
"""

from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_array

from models.sample import Message

WIDTH = 4  # characters
_SHORT = 50  # characters; a shorter text does not count as repetitive
_PAIRS_AT_ONCE = 20_000_000  # of texts, of which similarity is computed in memory


def code_points(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The characters of all texts, one after another, as numbers, and where each text begins and the last ends.

    Returns:
        uint32 of shape (characters,) and int64 of shape (texts + 1,).
    """
    ends = np.cumsum([0, *map(len, texts)], dtype=np.int64)
    codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    return codes, ends


def text_of(messages: Sequence[Message]) -> str:
    """What user and assistant say; a system message may be the same in all rows, and would make them all alike."""
    return "\n".join(message.content for message in messages if message.role != "system")


def grams(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The distinct 4-grams of every text, hashed to 32 bits and sorted; a shorter text is one gram as a whole.

    Returns:
        uint32 of shape (grams of all texts,), and int64 of shape (texts + 1,): where each text's begin.
    """
    padded = [text if len(text) >= WIDTH else text.ljust(WIDTH, "\0") for text in texts]
    codes, ends = code_points(padded)
    if not len(codes):
        return np.empty(0, np.uint32), np.zeros(1, np.int64)
    hashed = _hash(codes)
    row = np.repeat(np.arange(len(padded), dtype=np.uint64), np.diff(ends))
    # A gram must not reach into the next text.
    inside = np.ones(len(codes), bool)
    for back in range(1, WIDTH):
        inside[ends[1:] - back] = False
    keyed = np.sort((row << np.uint64(32) | hashed)[inside])
    keyed = keyed[np.append(True, keyed[1:] != keyed[:-1])]
    starts = np.searchsorted(keyed, np.arange(len(padded) + 1, dtype=np.uint64) << np.uint64(32))
    return keyed.astype(np.uint32), starts


def _hash(codes: np.ndarray) -> np.ndarray:
    """32-bit hashes of the 4-grams that begin at each character, as uint64; the last three wrap around."""
    mixed = np.zeros(len(codes), np.uint64)
    for step in range(WIDTH):
        mixed = mixed * np.uint64(0x100000001B3) + np.roll(codes, -step).astype(np.uint64)
    mixed *= np.uint64(0x9E3779B97F4A7C15)
    return mixed >> np.uint64(32)


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """Similarity of two sets of grams, each sorted and distinct."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / max(len(one) + len(other) - shared, 1)


def resembles(texts: Sequence[str], others: Sequence[str], similarity: float) -> np.ndarray:
    """Whether each text has at least this similarity with any of the others: bool of shape (texts,)."""
    near = np.zeros(len(texts), bool)
    if not others:
        return near
    values, starts = grams(others)
    vocabulary, columns = np.unique(values, return_inverse=True)
    other_grams = csr_array((np.ones(len(columns)), columns, starts), shape=(len(others), len(vocabulary)))
    at_once = max(_PAIRS_AT_ONCE // len(others), 1)
    for first in range(0, len(texts), at_once):
        part, sizes = _rows_of(texts[first : first + at_once], vocabulary)
        shared = (part @ other_grams.T).tocoo()
        union = sizes[shared.row] + np.diff(starts)[shared.col] - shared.data
        near[first + shared.row[shared.data >= similarity * union]] = True
    return near


def _rows_of(texts: Sequence[str], vocabulary: np.ndarray) -> tuple[csr_array, np.ndarray]:
    """A row for each text with a 1 for each of its 4-grams in the vocabulary, and how many 4-grams each text has."""
    values, starts = grams(texts)
    is_known = np.isin(values, vocabulary)
    columns = np.searchsorted(vocabulary, values[is_known])
    known_starts = np.concatenate([[0], np.cumsum(is_known)])[starts]
    rows = csr_array((np.ones(len(columns)), columns, known_starts), shape=(len(texts), len(vocabulary)))
    return rows, np.diff(starts)


def repetition(texts: Sequence[str]) -> np.ndarray:
    """The share of each text's 4-grams that stood before in it; 0 for short texts. float64 of shape (texts,)."""
    _, starts = grams(texts)
    total = np.array([len(text) - WIDTH + 1 for text in texts], dtype=np.float64)
    return np.where(total >= _SHORT - WIDTH + 1, 1 - np.diff(starts) / np.maximum(total, 1), 0.0).round(4)
