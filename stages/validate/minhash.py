"""MinHash signatures of texts, cut into bands, which near-duplicates share.

Candidates share two of 20 bands of 5 rows (Broder 1997; Leskovec, Rajaraman and Ullman, *Mining of Massive Datasets*,
chapter 3): a pair with similarity 0.8 does so with probability 0.996, one with 0.9 with 0.9999995, one with 0.2 with
0.00002. Every candidate is then compared exactly.
"""

import numpy as np
from datasketch import MinHash

BANDS, ROWS = 20, 5
_MINHASH = MinHash(num_perm=BANDS * ROWS, seed=1, scheme="affine32", hashfunc=int)


def bands(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """MinHash signatures of texts, each band hashed: uint32 of shape (texts, BANDS).

    Args:
        values, starts: 4-grams as :func:`measures.ngrams.grams` returns them.
    """
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
