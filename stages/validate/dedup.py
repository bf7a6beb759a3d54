"""Deduplication: copies, near-duplicates and conflicting answers among all rows.

Near-duplicates are found by MinHash with a search of our own. datasketch's ``MinHashLSH`` keeps all bands in Python
dictionaries and returns every row of a bucket: thousands of rows made from one template give millions of pairs.
The search below sorts arrays of bands and bounds the pairs per row. Its pairs among the first rows do not depend on the
rows after them, so that the split of old rows stays the same when rows are appended.
"""

import hashlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from measures.ngrams import jaccard_similarity
from models.prompt import ANSWER_ROLES
from models.sample import Message, make_sample_id
from models.text_normalization import normalize_text

# Characters. A short text may be a greeting, which opens many unrelated conversations.
SHORT, LONG = 10, 50
_PRIME, _BASE = 2**61 - 1, 0x1A5D_C3F7_90B1_6E2D  # of polynomial hashes, which extend by a turn in constant time
_SHARED_BANDS = 2  # bands that two rows share to be a candidate pair
_MAX_NEIGHBOURS = 30  # preceding rows of the same bucket that a row is paired with
_MAX_DEPTH = 4  # consecutive bands by which large buckets are divided
_MAX_CANDIDATES = 30  # candidates per row whose similarity is computed


# Keys ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RowKeys:
    """64-bit hashes that identify rows and their parts.

    The last two bits of ``prompt``, ``question`` and ``turns`` are the length class of the text, 1 to 3.

    Attributes:
        sample: of the whole conversation; its hexadecimal form is the id of the sample. uint64 of shape (rows,), as
            ``prompt``, ``answer`` and ``question``; all are 0 for a row that has no conversation.
        prompt: of all messages before the answer, normalized.
        answer: of the answer, normalized.
        question: of the first question, normalized.
        counts: number of turns, int32 of shape (rows,).
        turns: of the parts of all rows, as returned by :func:`_part_keys`: uint64 of shape (parts,).
        starts: offset of each row in ``turns``, and of the end: int64 of shape (rows + 1,).
    """

    sample: np.ndarray
    prompt: np.ndarray
    answer: np.ndarray
    question: np.ndarray
    counts: np.ndarray
    turns: np.ndarray
    starts: np.ndarray

    @classmethod
    def concatenate(cls, parts: Sequence["RowKeys"]) -> "RowKeys":
        """Return the keys of consecutive chunks of rows as one."""
        columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in (*_COLUMNS, "turns")}
        lengths = [np.diff(part.starts) for part in parts]
        return cls(**columns, starts=np.cumsum(np.concatenate([[0], *lengths]), dtype=np.int64))


_COLUMNS = ("sample", "prompt", "answer", "question", "counts")


def compute_keys(conversations: Sequence[Sequence[Message] | None]) -> RowKeys:
    """Return the keys of rows; a row without a conversation is None."""
    rows, starts, turns = [], [0], array("Q")
    for messages in conversations:
        row, row_turns = ((0, 0, 0, 0, 0), ()) if messages is None else _conversation_keys(messages)
        rows.append(row)
        turns.extend(row_turns)
        starts.append(len(turns))
    *columns, counts = np.array(rows, np.uint64).reshape(-1, len(_COLUMNS)).T
    return RowKeys(*columns, counts.astype(np.int32), np.array(turns, np.uint64), np.array(starts, np.int64))


def _conversation_keys(messages: Sequence[Message]) -> tuple[tuple[int, int, int, int, int], list[int]]:
    """Return the keys of one row in the order of ``_COLUMNS``, and the keys of its parts."""
    texts = [normalize_text(message.content) for message in messages]
    prompt = "\n".join([f"{message.role}:{text}" for message, text in zip(messages[:-1], texts, strict=False)])
    answer = hash_text(texts[-1])
    system = hash_text(texts[0]) if messages[0].role == "system" else 0
    turns, question, question_length, first_question, length = [], 0, 0, 0, 0
    for message, text in zip(messages, texts, strict=True):
        if message.role == "user":
            question, question_length = hash_text(text), len(text)
            first_question = first_question or question & ~3 | _length_class(question_length)
            length += len(text)
        elif message.role in ANSWER_ROLES:
            code = answer if message is messages[-1] else hash_text(text)
            turns.append(((question * _BASE + code) % _PRIME, question_length + len(text)))
            length += len(text)
    if not question:  # of a plain text: its own hash, since all texts have the same empty prompt
        first_question = answer & ~3 | _length_class(length)
        prompt = f"text:{answer}"
    prompt_key = hash_text(prompt) & ~3 | _length_class(length - len(texts[-1]))
    row = (int(make_sample_id(messages), 16), prompt_key, answer, first_question, len(turns))
    return row, _part_keys(turns, system)


def _part_keys(turns: Sequence[tuple[int, int]], system: int) -> list[int]:
    """Return the keys of the prefixes and suffixes of a conversation; equal parts of two conversations have equal keys.

    Args:
        turns: hash and length of each question with its answer.
        system: hash of the system message, 0 without one.

    Returns:
        For n turns: the prefixes of 1, 2, … n turns; with a system message, the same prefixes after it; the suffixes of
        1, 2, … n - 1 turns.
    """
    prefixes, system_prefixes, suffixes = [], [], []
    code, system_code, length = 0, system, 0
    for turn, turn_length in turns:
        code, system_code = (code * _BASE + turn) % _PRIME, (system_code * _BASE + turn) % _PRIME
        length += turn_length
        prefixes.append(_add_length_class(code, length))
        system_prefixes.append(_add_length_class(system_code, length))
    code, power, length = 0, 1, 0
    for turn, turn_length in reversed(turns[1:]):
        code, power = (turn * power + code) % _PRIME, power * _BASE % _PRIME
        length += turn_length
        suffixes.append(_add_length_class(code, length))
    return [*prefixes, *(system_prefixes if system else ()), *suffixes]


def _add_length_class(code: int, length: int) -> int:
    return code << 2 | _length_class(length)


def _length_class(length: int) -> int:
    """Return 1, 2 or 3 for a short, medium or long text: the last two bits of its key, which is therefore never 0."""
    return 1 + (length >= SHORT) + (length >= LONG)


def hash_text(text: str) -> int:
    """Return a 64-bit hash of a text, never 0."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") or 1


# Copies --------------------------------------------------------------------------------------------


def first_occurrences(keys: np.ndarray) -> np.ndarray:
    """Return the index of the first row with the same key, for each row; its own index if its key is new or 0."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    return np.where(keys == 0, np.arange(len(keys)), first[inverse])


def find_conflicting_answers(keys: RowKeys, rows: np.ndarray) -> dict[int, int]:
    """Return the rows whose answer differs from that of the first row with the same prompt, with that first row.

    Args:
        rows: indices of the rows to compare, in order.
    """
    first = rows[first_occurrences(keys.prompt[rows])]
    differs = keys.answer[rows] != keys.answer[first]
    return dict(zip(rows[differs].tolist(), first[differs].tolist(), strict=True))


# Near-duplicates -----------------------------------------------------------------------------------


def find_near_duplicates(
    bands: np.ndarray, grams_of: Callable[[int], np.ndarray], similarity: float
) -> list[tuple[int, int, float]]:
    """Return the pairs of rows whose 4-grams have at least this Jaccard similarity.

    Args:
        bands: as returned by :func:`stages.validate.minhash.compute_bands`, of shape (rows, bands).
        grams_of: returns the 4-grams of a row, sorted.

    Returns:
        Later row, earlier row and similarity of each pair, ordered by the later and then the earlier row.
    """
    pairs = []
    for later, earlier in tqdm(_find_candidates(bands).tolist(), desc="compare", unit=" pairs", delay=2):
        pair_similarity = jaccard_similarity(grams_of(later), grams_of(earlier))
        if pair_similarity >= similarity:
            pairs.append((later, earlier, round(pair_similarity, 4)))
    return pairs


def _find_candidates(bands: np.ndarray) -> np.ndarray:
    """Return pairs of rows that share at least two bands: int64 of shape (pairs, 2), (later, earlier), in order.

    In large buckets, such as those of rows made from one template, only some pairs are tried, see :func:`_pairs`. Each
    row keeps the earlier rows that share most bands with it. Rows do not change the pairs among the rows before them.
    """
    pairs = np.empty(0, np.int64)  # as later * rows + earlier
    for band in tqdm(range(bands.shape[1]), desc="find near-duplicates", unit=" bands", delay=2):
        pairs = _keep_most_alike(np.unique(np.concatenate([pairs, *_pairs(bands, band)])), bands)
    return np.stack(np.divmod(pairs, max(len(bands), 1)), axis=1)


def _pairs(bands: np.ndarray, first: int) -> Iterator[np.ndarray]:
    """Yield pairs that share the band ``first`` and at least one more, as ``later * rows + earlier``.

    A row is paired with the first row of its bucket and with the rows shortly before it. A larger bucket is divided by
    the next bands, up to four, and paired again: near-duplicates share consecutive bands more often than other rows. Of
    the pairs with similarity 0.7, one of 1,250 shares four bands in a row.
    """
    rows, key = np.arange(len(bands)), np.zeros(len(bands), np.uint64)
    for depth in range(_MAX_DEPTH):
        key = (key ^ bands[rows, (first + depth) % bands.shape[1]]) * np.uint64(0x9E3779B97F4A7C15)
        order = np.argsort(key, kind="stable")
        start, rank = _find_runs(key[order])
        for back in range(1, min(_MAX_NEIGHBOURS, rank.max(initial=0)) + 1):
            later = np.flatnonzero(rank >= back)
            yield _filter_sharing(rows[order[later]], rows[order[later - back]], bands)
        later = np.flatnonzero(rank > _MAX_NEIGHBOURS)
        yield _filter_sharing(rows[order[later]], rows[order[start[later]]], bands)
        is_large = np.zeros(len(order), bool)
        is_large[start[later]] = True
        remaining = np.sort(order[is_large[start]])  # all rows of large buckets, in their own order
        rows, key = rows[remaining], key[remaining]
        if not len(rows):
            return


def _find_runs(sorted_keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return, for each of the sorted keys, where the run of equal keys starts, and its rank within the run."""
    position = np.arange(len(sorted_keys))
    same = np.append(False, sorted_keys[1:] == sorted_keys[:-1])[: len(position)]
    start = np.maximum.accumulate(np.where(same, 0, position))
    return start, position - start


def _filter_sharing(later: np.ndarray, earlier: np.ndarray, bands: np.ndarray) -> np.ndarray:
    """Return the pairs that share enough bands, as ``later * rows + earlier``."""
    is_candidate = (bands[later] == bands[earlier]).sum(axis=1) >= _SHARED_BANDS
    return later[is_candidate] * len(bands) + earlier[is_candidate]


def _keep_most_alike(pairs: np.ndarray, bands: np.ndarray) -> np.ndarray:
    """Return, for each later row, the pairs that share most bands, in order.

    Args:
        pairs: as ``later * rows + earlier``, sorted.
    """
    if not len(pairs):
        return pairs
    later, earlier = np.divmod(pairs, len(bands))
    _, rank = _find_runs(later)
    if rank.max() < _MAX_CANDIDATES:
        return pairs
    batches = np.array_split(np.arange(len(pairs)), len(pairs) // 10**6 + 1)  # bounds memory
    shared = np.concatenate([(bands[later[batch]] == bands[earlier[batch]]).sum(axis=1) for batch in batches])
    order = np.lexsort((earlier, -shared, later))
    _, rank = _find_runs(later[order])
    return np.sort(pairs[order[rank < _MAX_CANDIDATES]])
