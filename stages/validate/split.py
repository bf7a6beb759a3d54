"""The split of rows into training, evaluation and test, without leakage of a dialogue from one split to another.

The split of a row depends on a hash of its first question. A row joins the split of an earlier row instead if both
belong to one dialogue: one begins with the whole other row (growing history), one begins where the other ends
(truncated history), or both have the same prompt. A near-duplicate joins the split of the first row that it resembles.
A greeting opens many unrelated dialogues, so only a limited number of rows that continue the same short opening are
kept together.

Rows are assigned in the order in which they were read, so that appended rows never move an old row to another split.
A row that belongs to rows of two splits is a conflict and is quarantined; so is a greeting that is a row of its own,
if dialogues of another split begin with it.
"""

from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from formats.receipt import SPLITS
from stages.validate.dedup import RowKeys

# How many conversations that continue one opening, and how many answers to one prompt, are kept together. The shorter a
# text, the more likely it is a greeting; a long one may be a document that many questions refer to.
FEW, MANY, ALL = 8, 100, 2**62
MAX_CONTINUATIONS, MAX_ANSWERS = (FEW, FEW, FEW, MANY), (FEW, FEW, MANY, ALL)  # by the length class of a key
_MULTIPLIER, _WORD = 0x9E3779B97F4A7C15, 2**64  # spread a key over 64 random bits
_NONE = -1
TRAIN, EVAL, TEST = range(len(SPLITS))
_BY_HASH = (EVAL, TRAIN, TEST)  # from the lowest hashes to the highest


@dataclass(frozen=True)
class Split:
    """Assignment of rows to splits.

    Attributes:
        splits: int8 of shape (rows,): :data:`TRAIN`, :data:`EVAL` or :data:`TEST`.
        conflicts: rows that belong to rows of two splits, each with a row of a split that is not that of the first.
    """

    splits: np.ndarray
    conflicts: dict[int, int]


def split_rows(
    keys: RowKeys, rows: np.ndarray, pairs: Sequence[tuple[int, int, float]], shares: tuple[float, float]
) -> Split:
    """Assign rows to training, evaluation and test.

    Args:
        keys: of all rows.
        rows: indices of the rows to assign, in order.
        pairs: near-duplicates, as later and earlier position in ``rows``, and similarity.
        shares: of the rows for evaluation and for test, between 0 and 1.
    """
    neighbours = defaultdict(list)
    for later, earlier, _ in pairs:
        neighbours[later].append(earlier)
    openings = _Openings.collect(keys, rows, list(neighbours))
    assigner = _Assigner(openings.shared, keys.question[rows], shares)
    for row, opening in openings:
        assigner.assign(row, opening, neighbours.get(row, ()))
    assigner.fill_empty_splits()
    if assigner.exceeded_limit:
        for row, opening in openings:
            assigner.record_continuation(row, opening)
        for row, opening in openings:
            assigner.find_greeting_conflict(row, opening)
    return Split(assigner.splits, assigner.conflicts)


# Openings ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Opening:
    """The parts of a conversation, as indices into :attr:`_Openings.shared`; -1 for a part that no other row has.

    Attributes:
        prompt: all messages before the answer.
        question: the first question.
        prefixes: the first 1, 2, … n turns.
        system_prefixes: the same after the system message; ``prefixes`` itself without one.
        suffixes: the last 1, 2, … n - 1 turns.
        keys: keys of the parts of :attr:`growing`.
    """

    prompt: int
    question: int
    prefixes: list[int]
    system_prefixes: list[int]
    suffixes: list[int]
    keys: list[int]

    @property
    def growing(self) -> list[int]:
        """The first question and all prefixes, from the most general to the most specific, in the order of ``keys``."""
        if self.system_prefixes is self.prefixes:
            return [self.question, *self.prefixes]
        return [self.question, *chain.from_iterable(zip(self.prefixes, self.system_prefixes, strict=True))]


@dataclass(frozen=True)
class _Openings:
    """Openings of the rows that share a part with another row or have a near-duplicate.

    Attributes:
        shared: keys that occur more than once, sorted.
        rows: positions of those rows, in order.
        counts: number of turns of each.
        heads: their prompts and questions, of shape (rows, 2).
        turns, starts: keys of their parts, as in :class:`RowKeys`.
    """

    shared: np.ndarray
    rows: np.ndarray
    counts: np.ndarray
    heads: np.ndarray
    turns: np.ndarray
    starts: np.ndarray

    @classmethod
    def collect(cls, keys: RowKeys, rows: np.ndarray, near_duplicates: Sequence[int]) -> "_Openings":
        """Collect the openings of rows.

        Args:
            rows: indices of rows in ``keys``.
            near_duplicates: positions in ``rows`` that are included in any case.
        """
        heads = np.stack([keys.prompt[rows], keys.question[rows]], axis=1)
        lengths = np.diff(keys.starts)[rows]
        owner = np.repeat(np.arange(len(rows)), lengths)
        within = np.arange(len(owner)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        turns = keys.turns[keys.starts[rows][owner] + within]
        ordered = np.sort(np.concatenate([heads.ravel(), turns]))
        shared = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
        is_included = (_find_indices(shared, heads) != _NONE).any(axis=1)
        is_included[owner[_find_indices(shared, turns) != _NONE]] = True
        is_included[np.array(near_duplicates, np.int64)] = True
        included = np.flatnonzero(is_included)
        starts = np.cumsum([0, *lengths[included]], dtype=np.int64)
        return cls(shared, included, keys.counts[rows[included]], heads[included], turns[is_included[owner]], starts)

    def __iter__(self) -> Iterator[tuple[int, Opening]]:
        """Yield position and opening of each row, in order."""
        heads, turns = _find_indices(self.shared, self.heads), _find_indices(self.shared, self.turns)
        starts = self.starts.tolist()
        for index, (row, count) in enumerate(zip(self.rows.tolist(), self.counts.tolist(), strict=True)):
            parts = turns[starts[index] : starts[index + 1]].tolist()
            has_system = len(parts) == 3 * count - 1 and count > 0
            prefix_count = (1 + has_system) * count
            keys = self.turns[starts[index] : starts[index] + prefix_count].reshape(1 + has_system, count).T
            prompt, question = heads[index].tolist()
            prefixes = parts[:count]
            yield (
                row,
                Opening(
                    prompt=prompt,
                    question=question,
                    prefixes=prefixes,
                    system_prefixes=parts[count:prefix_count] or prefixes,
                    suffixes=parts[prefix_count:],
                    keys=[int(self.heads[index, 1]), *keys.ravel().tolist()],
                ),
            )


def _find_indices(ordered: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Return the index of each key among sorted keys, -1 if it is missing: int64 of the shape of ``keys``."""
    if not len(ordered):
        return np.full(keys.shape, _NONE)
    indices = np.minimum(np.searchsorted(ordered, keys), len(ordered) - 1)
    return np.where(ordered[indices] == keys, indices, _NONE)


# Assignment ----------------------------------------------------------------------------------------


class _Assigner:
    """Splits of the rows assigned so far, and the parts of conversations by which later rows find them.

    Attributes:
        splits, conflicts: as in :class:`Split`.
        exceeded_limit: whether a row was not kept together with rows of the same opening because they are too many.
    """

    def __init__(self, shared: np.ndarray, questions: np.ndarray, shares: tuple[float, float]):
        self.conflicts: dict[int, int] = {}
        self.exceeded_limit = False
        # Evaluation rows are those of the lowest hashes, test rows those of the highest.
        eval_share, test_share = shares
        self._low, self._high = eval_share * 2.0**64, (1 - test_share) * 2.0**64
        self._hashes = questions.astype(np.float64)
        is_eval, is_test = self._hashes < self._low, self._hashes >= self._high
        self.splits = np.select([is_eval, is_test], [EVAL, TEST], default=TRAIN).astype(np.int8)
        length_class = (shared & np.uint64(3)).astype(np.int64)
        self._max_continuations, self._max_answers = (
            np.array(limits)[length_class] for limits in (MAX_CONTINUATIONS, MAX_ANSWERS)
        )
        # By the index of a part: the first row that begins with it, the first that ends with it, and their followers.
        self._first_with_prefix, self._first_with_suffix = (array("q", [_NONE]) * len(shared) for _ in range(2))
        self._followers = array("q", [0]) * len(shared)
        self._single_turns: set[int] = set()  # parts that are a row of one turn
        # By split and by part: the first row that continues the part.
        self._continued = [array("q", [_NONE]) * len(shared) for _ in SPLITS]
        self._links: list[tuple[int, int]] = []  # pairs of rows that are kept together

    def assign(self, row: int, opening: Opening, neighbours: Sequence[int]) -> None:
        """Assign a row to the split of the earlier rows it belongs to, or by its hash.

        Args:
            neighbours: earlier near-duplicates of the row.
        """
        related = [*self._find_dialogue(opening), *(earlier for earlier in neighbours if earlier not in self.conflicts)]
        related = related or [*self._follow(self._first_with_prefix, [opening.question], self._max_continuations)]
        for earlier in related[1:]:
            if self.splits[earlier] != self.splits[related[0]]:
                self.conflicts[row] = earlier
                return
        if related:
            self.splits[row] = self.splits[related[0]]
            self._links += [(row, earlier) for earlier in related]
        else:
            self._hashes[row] = self._hash(opening)
            self.splits[row] = self._split_of(self._hashes[row])
        self._register(row, opening)

    def _register(self, row: int, opening: Opening) -> None:
        """Record the parts of an assigned row that no earlier row has."""
        for part in (opening.prompt, *opening.growing):
            if part != _NONE and self._first_with_prefix[part] == _NONE:
                self._first_with_prefix[part] = row
        if len(opening.prefixes) == 1 and opening.prefixes[0] != _NONE:
            self._single_turns.add(opening.prefixes[0])
        for part in opening.suffixes:
            if part != _NONE and self._first_with_suffix[part] == _NONE:
                self._first_with_suffix[part] = row

    def _find_dialogue(self, opening: Opening) -> Iterator[int]:
        """Yield earlier rows of the same dialogue: one by its beginning, and up to two by an overlap."""
        whole = opening.system_prefixes[-1] if opening.system_prefixes else _NONE
        if self._first_known(self._first_with_prefix, [whole]) != _NONE:
            yield self._first_with_prefix[whole]
        elif self._first_known(self._first_with_prefix, [opening.prompt]) != _NONE:
            limits = self._max_answers if len(opening.prefixes) < 2 else self._max_continuations
            yield from self._follow(self._first_with_prefix, [opening.prompt], limits)
        else:
            yield from self._follow(self._first_with_prefix, opening.growing[1:], self._max_continuations)
        if len(opening.prefixes) > 1:
            # A turn that is also a row of its own, such as a question about identity, does not identify a dialogue.
            single = self._single_turns.intersection((opening.prefixes[0], *opening.suffixes[:1]))
            prefixes, suffixes = (
                [part for part in parts if part not in single] for parts in (opening.prefixes, opening.suffixes)
            )
            yield from self._follow(self._first_with_suffix, prefixes, self._max_continuations)
            yield from self._follow(self._first_with_prefix, suffixes, self._max_continuations)

    def _follow(self, rows: array, parts: Sequence[int], limits: np.ndarray) -> Iterator[int]:
        """Yield the row with the most specific of the parts, unless its limit of followers is reached.

        Args:
            rows: row by part.
            parts: from the most general to the most specific.
            limits: followers by part.
        """
        part = self._first_known(rows, reversed(parts))
        if part == _NONE:
            return
        if self._followers[part] >= limits[part]:
            self.exceeded_limit = True
            return
        self._followers[part] += 1
        yield rows[part]

    def _first_known(self, rows: array, parts: Iterable[int]) -> int:
        """Return the first part that some row has, or -1."""
        return next((part for part in parts if part != _NONE and rows[part] != _NONE), _NONE)

    def _hash(self, opening: Opening) -> float:
        """Return the hash of the most general part that no earlier row has; rows of one dialogue share it."""
        for position, part in enumerate(opening.growing):
            if part == _NONE or self._first_with_prefix[part] == _NONE:
                key = opening.keys[position]
                return float(key if position == 0 else key * _MULTIPLIER % _WORD)
        return float(opening.keys[-1] * _MULTIPLIER % _WORD)

    def _split_of(self, key: float) -> int:
        return EVAL if key < self._low else TEST if key >= self._high else TRAIN

    def fill_empty_splits(self) -> None:
        """For each split without rows, move the linked rows with the most extreme hash there from the largest split.

        At most half of the rows of that split are moved; nothing is moved if all of them are linked.
        """
        is_assigned = np.ones(len(self.splits), bool)
        is_assigned[list(self.conflicts)] = False
        if not is_assigned.any() or (np.bincount(self.splits[is_assigned], minlength=len(SPLITS)) > 0).all():
            return
        count = len(is_assigned)
        later, earlier = np.array(self._links or [(0, 0)]).T
        graph = coo_array((np.ones(len(later)), (later, earlier)), shape=(count, count))
        _, component = connected_components(graph, directed=False)
        lowest = np.full(count, np.inf)
        np.minimum.at(lowest, component[is_assigned], self._hashes[is_assigned])
        for split in range(len(SPLITS)):
            rows_by_split = np.bincount(self.splits[is_assigned], minlength=len(SPLITS))
            if not rows_by_split[split]:
                donor = int(rows_by_split.argmax())
                choose = np.argmax if _BY_HASH.index(split) > _BY_HASH.index(donor) else np.argmin
                self._fill_split(split, is_assigned & (self.splits == donor), component, lowest, choose)

    def _fill_split(
        self, split: int, donors: np.ndarray, component: np.ndarray, lowest: np.ndarray, choose: Callable
    ) -> None:
        """Move one component of the donor rows to an empty split.

        Args:
            donors: bool of shape (rows,).
            component: of linked rows, by row.
            lowest: hash by component.
            choose: ``np.argmin`` or ``np.argmax`` of the hashes.
        """
        components, sizes = np.unique(component[donors], return_counts=True)
        if len(components) > 1:
            components = components[2 * sizes <= donors.sum()]
            self.splits[component == components[choose(lowest[components])]] = split

    def record_continuation(self, row: int, opening: Opening) -> None:
        """Record the split of a row for all shorter conversations that it continues."""
        for part in opening.system_prefixes[:-1] if row not in self.conflicts else ():
            continued = self._continued[self.splits[row]]
            if part != _NONE and continued[part] == _NONE:
                continued[part] = row

    def find_greeting_conflict(self, row: int, opening: Opening) -> None:
        """Record a conflict if a dialogue of another split begins with the whole row."""
        part = opening.system_prefixes[-1] if opening.system_prefixes else _NONE
        if part != _NONE and row not in self.conflicts:
            others = (rows[part] for split, rows in enumerate(self._continued) if split != self.splits[row])
            if (other := next((row for row in others if row != _NONE), None)) is not None:
                self.conflicts[row] = other
