"""The side of the split that every row goes to.

A row's side depends on a hash of its first question. It goes to the side of an earlier row instead if both are parts
of one dialogue: if one begins with the whole other one, as the rows of a growing history do, if one begins where the
other one ends, as rows with a cut history do, or if they ask the same. A near-duplicate goes to the side of the first
row that it resembles. With a greeting open many dialogues that have nothing else in common: only the first few that
continue the same short opening are kept together.

Rows are taken in the order in which they were read, so that rows which arrive later, behind the old ones, never move
an old one to the other side. A row that belongs to rows on both sides can be on neither, and is quarantined; so is a
greeting that stands as a row of its own, once dialogues on both sides begin with it.
"""

from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from stages.validate.dedup import Keys

# Conversations that continue one opening, and answers to one prompt, that are kept together. The shorter it is, the
# more likely it is a greeting; a long one may be a document that many questions are about.
FEW, MANY, ALL = 8, 100, 2**62
MOST_GOING_ON, MOST_ANSWERS = (FEW, FEW, FEW, MANY), (FEW, FEW, MANY, ALL)  # by the last two bits of a key
_SPREAD, _WORD = 0x9E3779B97F4A7C15, 2**64  # make 64 random bits of a key
_NONE = -1


@dataclass(frozen=True)
class Split:
    """Where rows go.

    Attributes:
        evaluated: bool of shape (rows,): kept for evaluation, else for training.
        torn: rows that belong to rows of both sides, and one of the other side for each.
    """

    evaluated: np.ndarray
    torn: dict[int, int]


def split(keys: Keys, rows: np.ndarray, pairs: Sequence[tuple[int, int, float]], eval_share: float) -> Split:
    """Divide rows into training and evaluation.

    Args:
        keys: of all rows.
        rows: numbers of the rows to divide, in order.
        pairs: near-duplicates by their positions among these: later row, earlier row, similarity.
    """
    neighbours = defaultdict(list)
    for later, earlier, _ in pairs:
        neighbours[later].append(earlier)
    openings = _Openings.of(keys, rows, list(neighbours))
    sides = _Sides(openings.repeated, keys.question[rows], eval_share)
    for row, opening in openings:
        sides.place(row, opening, neighbours.get(row, ()))
    sides.never_one_sided()
    if sides.is_crowded:
        for row, opening in openings:
            sides.note_continuation(row, opening)
        for row, opening in openings:
            sides.tear_greeting(row, opening)
    return Split(sides.evaluated, sides.torn)


# Openings ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Opening:
    """The parts of a conversation that other rows may have too, each by its number among :attr:`_Openings.repeated`.

    -1 stands for a part that no other row has.

    Attributes:
        prompt: everything before the answer.
        question: the first question.
        first: the first 1, 2, … n turns.
        own: the same together with the system message; ``first`` itself where there is none.
        last: the last 1, 2, … n - 1 turns.
        values: keys of the parts from the most general to the most special one.
    """

    prompt: int
    question: int
    first: list[int]
    own: list[int]
    last: list[int]
    values: list[int]

    @property
    def growing(self) -> list[int]:
        """From the most general part to the most special one, in the order of ``values``."""
        if self.own is self.first:
            return [self.question, *self.first]
        return [self.question, *chain.from_iterable(zip(self.first, self.own, strict=True))]


@dataclass(frozen=True)
class _Openings:
    """Openings of the rows that share a part with another row or resemble one; all others go by their hash.

    Attributes:
        repeated: keys that stand there more than once, sorted.
        rows: positions of those rows, in order.
        counts: how many turns each has.
        heads: their prompts and questions, of shape (rows, 2).
        turns, starts: keys of their turns as in :class:`Keys`.
    """

    repeated: np.ndarray
    rows: np.ndarray
    counts: np.ndarray
    heads: np.ndarray
    turns: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, keys: Keys, rows: np.ndarray, alike: Sequence[int]) -> "_Openings":
        heads = np.stack([keys.prompt[rows], keys.question[rows]], axis=1)
        lengths = np.diff(keys.starts)[rows]
        owner = np.repeat(np.arange(len(rows)), lengths)
        within = np.arange(len(owner)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        turns = keys.turns[keys.starts[rows][owner] + within]
        ordered = np.sort(np.concatenate([heads.ravel(), turns]))
        repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
        is_shared = (_places(repeated, heads) != _NONE).any(axis=1)
        is_shared[owner[_places(repeated, turns) != _NONE]] = True
        is_shared[np.array(alike, np.int64)] = True
        kept = np.flatnonzero(is_shared)
        starts = np.cumsum([0, *lengths[kept]], dtype=np.int64)
        return cls(repeated, kept, keys.counts[rows[kept]], heads[kept], turns[is_shared[owner]], starts)

    def __iter__(self) -> Iterator[tuple[int, Opening]]:
        """Positions of rows, in order, and their openings."""
        heads, turns = _places(self.repeated, self.heads), _places(self.repeated, self.turns)
        starts = self.starts.tolist()
        for index, (row, count) in enumerate(zip(self.rows.tolist(), self.counts.tolist(), strict=True)):
            numbers = turns[starts[index] : starts[index + 1]].tolist()
            has_system = len(numbers) == 3 * count - 1 and count > 0
            ending = (1 + has_system) * count
            keys = self.turns[starts[index] : starts[index] + ending].reshape(1 + has_system, count).T
            values = [int(self.heads[index, 1]), *keys.ravel().tolist()]
            prompt, question = heads[index].tolist()
            first, last = numbers[:count], numbers[ending:]
            yield row, Opening(prompt, question, first, numbers[count:ending] or first, last, values)


def _places(ordered: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Where each key stands among keys in order, -1 where it does not: int64 of the shape of ``keys``."""
    if not len(ordered):
        return np.full(keys.shape, _NONE)
    places = np.minimum(np.searchsorted(ordered, keys), len(ordered) - 1)
    return np.where(ordered[places] == keys, places, _NONE)


# Sides ---------------------------------------------------------------------------------------------


class _Sides:
    """The sides that rows were given so far, and by which parts of conversations they are known.

    Attributes:
        evaluated, torn: as in :class:`Split`.
        is_crowded: whether some row was told apart from others with the same opening, because they are many.
    """

    def __init__(self, repeated: np.ndarray, questions: np.ndarray, eval_share: float):
        self.torn: dict[int, int] = {}
        self.is_crowded = False
        self._limit = eval_share * 2.0**64
        self._hashes = questions.astype(np.float64)
        self.evaluated = self._hashes < self._limit
        length_class = (repeated & np.uint64(3)).astype(np.int64)
        self._going_on, self._answers = (np.array(most)[length_class] for most in (MOST_GOING_ON, MOST_ANSWERS))
        # By the number of a part: the first row that begins with it, that ends with it, and how many went on from it.
        self._openers, self._closers = (array("q", [_NONE]) * len(repeated) for _ in range(2))
        self._singles: set[int] = set()  # parts that are a whole row of one turn
        self._followers = array("q", [0]) * len(repeated)
        # By side, training first: the first row that continues the part.
        self._continued = [array("q", [_NONE]) * len(repeated) for _ in range(2)]
        self._bonds: list[tuple[int, int]] = []

    def place(self, row: int, opening: Opening, neighbours: Sequence[int]) -> None:
        """Give a row its side: that of the earlier rows it belongs to, or by a hash.

        Args:
            neighbours: earlier rows that it resembles.
        """
        bonds = [*self._kin(opening), *(earlier for earlier in neighbours if earlier not in self.torn)]
        bonds = bonds or [*self._follow(self._openers, [opening.question], self._going_on)]
        for earlier in bonds[1:]:
            if self.evaluated[earlier] != self.evaluated[bonds[0]]:
                self.torn[row] = earlier
                return
        if bonds:
            self.evaluated[row] = self.evaluated[bonds[0]]
            self._bonds += [(row, earlier) for earlier in bonds]
        else:
            self._hashes[row] = self._hash_of(opening)
            self.evaluated[row] = self._hashes[row] < self._limit
        for number in (opening.prompt, *opening.growing):
            if number != _NONE and self._openers[number] == _NONE:
                self._openers[number] = row
        if len(opening.first) == 1 and opening.first[0] != _NONE:
            self._singles.add(opening.first[0])
        for number in opening.last:
            if number != _NONE and self._closers[number] == _NONE:
                self._closers[number] = row

    def _kin(self, opening: Opening) -> Iterator[int]:
        """Earlier rows of the same dialogue: one by how the row begins, two by where it and another one overlap."""
        whole = opening.own[-1] if opening.own else _NONE
        if self._known(self._openers, [whole]) != _NONE:
            yield self._openers[whole]
        elif self._known(self._openers, [opening.prompt]) != _NONE:
            most = self._answers if len(opening.first) < 2 else self._going_on
            yield from self._follow(self._openers, [opening.prompt], most)
        else:
            yield from self._follow(self._openers, opening.growing[1:], self._going_on)
        # A turn that stands alone too, such as a question of an identity, is no sign of one dialogue.
        if len(opening.first) > 1:
            single = self._singles.intersection((opening.first[0], *opening.last[:1]))
            yield from self._follow(
                self._closers, [part for part in opening.first if part not in single], self._going_on
            )
            yield from self._follow(
                self._openers, [part for part in opening.last if part not in single], self._going_on
            )

    def _follow(self, rows: array, parts: Sequence[int], most: np.ndarray) -> Iterator[int]:
        """The row known by the most special of the parts, unless as many as may have followed it already."""
        number = self._known(rows, reversed(parts))
        if number == _NONE:
            return
        if self._followers[number] >= most[number]:
            self.is_crowded = True
            return
        self._followers[number] += 1
        yield rows[number]

    def _known(self, rows: array, numbers) -> int:
        """The first of the numbers by which a row is known, or -1."""
        return next((number for number in numbers if number != _NONE and rows[number] != _NONE), _NONE)

    def _hash_of(self, opening: Opening) -> float:
        """The hash of the most general part that no earlier row has, so that all rows of a dialogue have the same."""
        for place, number in enumerate(opening.growing):
            if number == _NONE or self._openers[number] == _NONE:
                value = opening.values[place]
                return float(value if place == 0 else value * _SPREAD % _WORD)
        return float(opening.values[-1] * _SPREAD % _WORD)

    def never_one_sided(self) -> None:
        """Where few rows all fell to one side, let those with the most extreme hash change over."""
        going = np.ones(len(self.evaluated), bool)
        going[list(self.torn)] = False
        if not going.any() or self.evaluated[going].any() != self.evaluated[going].all():
            return
        count = len(going)
        later, earlier = np.array(self._bonds or [(0, 0)]).T
        graph = coo_array((np.ones(len(later)), (later, earlier)), shape=(count, count))
        _, component = connected_components(graph, directed=False)
        lowest = np.full(count, np.inf)
        np.minimum.at(lowest, component[going], self._hashes[going])
        whole, sizes = np.unique(component[going], return_counts=True)
        if len(whole) > 1:
            whole = whole[2 * sizes <= going.sum()]
            changing = np.argmax if self.evaluated[going].all() else np.argmin
            self.evaluated ^= component == whole[changing(lowest[whole])]

    def note_continuation(self, row: int, opening: Opening) -> None:
        """Note the side of a row for all shorter conversations that it begins with."""
        for number in opening.own[:-1] if row not in self.torn else ():
            continued = self._continued[int(self.evaluated[row])]
            if number != _NONE and continued[number] == _NONE:
                continued[number] = row

    def tear_greeting(self, row: int, opening: Opening) -> None:
        """Set a row aside with which a dialogue of the other side begins."""
        number = opening.own[-1] if opening.own else _NONE
        if number != _NONE and row not in self.torn:
            other = self._continued[int(not self.evaluated[row])][number]
            if other != _NONE:
                self.torn[row] = other
