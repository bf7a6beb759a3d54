"""Character 4-grams: Jaccard similarity of texts, and repetition within a text.

Two texts are near-duplicates by the Jaccard similarity of their sets of 4-grams. The data checks and replay share this
definition; repetition is shared by the data checks and stage evaluate.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.sparse import csr_array

from models.sample import Message

WIDTH = 4  # characters
_MAX_PAIRS = 20_000_000  # pairs of texts whose similarities are in memory at a time


def to_code_points(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Concatenate texts as Unicode code points.

    Returns:
        Code points, uint32 of shape (characters,), and the offset of each text and of the end, int64 of shape
        (texts + 1,).
    """
    offsets = np.cumsum([0, *map(len, texts)], dtype=np.int64)
    codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    return codes, offsets


def join_dialogue(messages: Sequence[Message]) -> str:
    """Return the user's and the assistant's messages, one per line.

    System messages are left out: one that all rows share would make them all near-duplicates.
    """
    return "\n".join(message.content for message in messages if message.role != "system")


def hash_ngrams(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the set of 4-grams of every text, hashed to 32 bits and sorted.

    A text of fewer than four characters has a single 4-gram: the text itself, padded.

    Returns:
        Hashes of all texts, uint32 of shape (4-grams,), and the offset of each text and of the end, int64 of shape
        (texts + 1,).
    """
    padded = [text if len(text) >= WIDTH else text.ljust(WIDTH, "\0") for text in texts]
    codes, offsets = to_code_points(padded)
    if not len(codes):
        return np.empty(0, np.uint32), np.zeros(1, np.int64)
    hashes = _hash(codes)
    row = np.repeat(np.arange(len(padded), dtype=np.uint64), np.diff(offsets))
    # A 4-gram must not span two texts.
    is_inside = np.ones(len(codes), bool)
    for back in range(1, WIDTH):
        is_inside[offsets[1:] - back] = False
    keyed = np.sort((row << np.uint64(32) | hashes)[is_inside])
    keyed = keyed[np.append(True, keyed[1:] != keyed[:-1])]
    starts = np.searchsorted(keyed, np.arange(len(padded) + 1, dtype=np.uint64) << np.uint64(32))
    return keyed.astype(np.uint32), starts


def _hash(codes: np.ndarray) -> np.ndarray:
    """Return the 32-bit hash of the 4-gram at each character, as uint64; the last three wrap around."""
    mixed = np.zeros(len(codes), np.uint64)
    for step in range(WIDTH):
        mixed = mixed * np.uint64(0x100000001B3) + np.roll(codes, -step).astype(np.uint64)
    mixed *= np.uint64(0x9E3779B97F4A7C15)
    return mixed >> np.uint64(32)


def jaccard_similarity(first: np.ndarray, second: np.ndarray) -> float:
    """Return the Jaccard similarity of two sets of 4-grams, each sorted and without duplicates."""
    shared = len(np.intersect1d(first, second, assume_unique=True))
    return shared / max(len(first) + len(second) - shared, 1)


def has_near_duplicate(texts: Sequence[str], references: Sequence[str], similarity: float) -> np.ndarray:
    """Return whether each text has at least this similarity to any of the references: bool of shape (texts,)."""
    is_near = np.zeros(len(texts), bool)
    for indices, _, _ in near_duplicate_pairs(texts, references, similarity):
        is_near[indices] = True
    return is_near


def near_duplicate_pairs(
    texts: Sequence[str], references: Sequence[str], similarity: float
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield the pairs of a text and a reference that have at least this similarity, in batches.

    Yields:
        Index of the text, index of the reference, and Jaccard similarity of each pair, each of shape (pairs,).
    """
    if not references:
        return
    hashes, starts = hash_ngrams(references)
    vocabulary, columns = np.unique(hashes, return_inverse=True)
    reference_grams = csr_array((np.ones(len(columns)), columns, starts), shape=(len(references), len(vocabulary)))
    batch = max(_MAX_PAIRS // len(references), 1)
    for first in range(0, len(texts), batch):
        text_grams, sizes = _gram_matrix(texts[first : first + batch], vocabulary)
        shared = (text_grams @ reference_grams.T).tocoo()
        union = sizes[shared.row] + np.diff(starts)[shared.col] - shared.data
        is_near = shared.data >= similarity * union
        yield first + shared.row[is_near], shared.col[is_near], shared.data[is_near] / union[is_near]


def _gram_matrix(texts: Sequence[str], vocabulary: np.ndarray) -> tuple[csr_array, np.ndarray]:
    """Return which 4-grams of the vocabulary each text has, of shape (texts, vocabulary), and its number of 4-grams."""
    hashes, starts = hash_ngrams(texts)
    is_known = np.isin(hashes, vocabulary)
    columns = np.searchsorted(vocabulary, hashes[is_known])
    known_starts = np.concatenate([[0], np.cumsum(is_known)])[starts]
    matrix = csr_array((np.ones(len(columns)), columns, known_starts), shape=(len(texts), len(vocabulary)))
    return matrix, np.diff(starts)


def compute_repetition(texts: Sequence[str], min_length: int = WIDTH) -> np.ndarray:
    """Return the share of each text's 4-grams that occur earlier in the same text.

    Args:
        texts: in the form to compare: the data checks pass raw answers, stage evaluate normalized ones.
        min_length: characters; shorter texts have repetition 0.

    Returns:
        Shares from 0 to 1, rounded to four digits: float64 of shape (texts,).
    """
    _, starts = hash_ngrams(texts)
    lengths = np.array([len(text) for text in texts], dtype=np.float64)
    total = lengths - WIDTH + 1
    shares = 1 - np.diff(starts) / np.maximum(total, 1)
    return np.where(lengths >= max(min_length, WIDTH), shares, 0.0).round(4)
