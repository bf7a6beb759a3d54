"""MinHash signatures of texts, cut into bands: near-duplicates share bands (locality-sensitive hashing).

Two rows are candidates if they share two of 20 bands of 5 hash values (Broder 1997; Leskovec, Rajaraman and Ullman,
*Mining of Massive Datasets*, chapter 3). A pair of similarity 0.8 is a candidate with probability 0.996, of 0.9 with
0.9999995, of 0.2 with 0.00002. The exact similarity of every candidate is computed afterwards.
"""

import numpy as np
from datasketch import MinHash

BANDS, ROWS = 20, 5
_MINHASH = MinHash(num_perm=BANDS * ROWS, seed=1, scheme="affine32", hashfunc=int)


def compute_bands(hashes: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return the MinHash signature of every text as hashed bands: uint32 of shape (texts, BANDS).

    Args:
        hashes, starts: 4-grams as returned by :func:`measures.ngrams.hash_ngrams`.
    """
    signatures = np.empty((len(starts) - 1, BANDS * ROWS), np.uint64)
    for index in range(len(starts) - 1):
        _MINHASH.clear()
        _MINHASH.update_batch(hashes[starts[index] : starts[index + 1]].tolist())
        signatures[index] = _MINHASH.hashvalues
    banded = signatures.reshape(-1, BANDS, ROWS)
    mixed = np.zeros(banded.shape[:2], np.uint64)
    for row in range(ROWS):
        mixed = (mixed ^ banded[:, :, row]) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return (mixed >> np.uint64(32)).astype(np.uint32)
