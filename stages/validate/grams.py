"""Character 4-grams: how much a text repeats itself, and which texts are nearly the same.

Similarity of two texts is the Jaccard similarity of their sets of 4-grams. Candidates come from
MinHash signatures cut into bands (Broder 1997; Leskovec, Rajaraman and Ullman, *Mining of Massive
Datasets*, chapter 3). A candidate shares two of 20 bands of 5 rows: a pair with similarity 0.8 does
so with probability 0.996, one with 0.9 with 0.9999995, one with 0.2 with 0.00002. Every candidate is
then compared exactly.
"""

from collections.abc import Sequence

import numpy as np
from datasketch import MinHash

from stages.validate.characters import code_points

WIDTH = 4
BANDS, ROWS = 20, 5
_MINHASH = MinHash(num_perm=BANDS * ROWS, seed=1, scheme="affine32", hashfunc=int)
_SHORT = 50  # characters; a shorter text does not count as repetitive


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


def repetition(texts: Sequence[str]) -> np.ndarray:
    """The share of each text's 4-grams that stood before in it; 0 for short texts. float64 of shape (texts,)."""
    _, starts = grams(texts)
    total = np.array([len(text) - WIDTH + 1 for text in texts], dtype=np.float64)
    return np.where(total >= _SHORT - WIDTH + 1, 1 - np.diff(starts) / np.maximum(total, 1), 0.0).round(4)


def bands(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """MinHash signatures of texts from their :func:`grams`, each band hashed: uint32 of shape (texts, BANDS)."""
    signatures = np.empty((len(starts) - 1, BANDS * ROWS), np.uint64)
    for index in range(len(starts) - 1):
        _MINHASH.clear()
        _MINHASH.update_batch(values[starts[index] : starts[index + 1]].tolist())
        signatures[index] = _MINHASH.hashvalues
    banded = signatures.reshape(-1, BANDS, ROWS)
    mixed = np.zeros(banded.shape[:2], np.uint64)
    for row in range(ROWS):
        mixed = (mixed ^ banded[:, :, row]) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return (mixed >> np.uint64(32)).astype(np.uint32)


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """Similarity of two sets of grams, each sorted and distinct."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / max(len(one) + len(other) - shared, 1)
