"""Lengths of the accepted data in tokens, and how far they moved since the data that were accepted before.

Drift is the population stability index over bins that double in width, as credit scoring uses it: below 0.1 nothing
moved, from 0.25 on the data are of another kind (Siddiqi 2006). The index grows where rows are few: two samples of one
distribution have about (bins - 1) (1 / n + 1 / m) in the mean (Yurdakul and Naranjo 2020), which is 0.3 for 30 rows.
So what chance alone reaches is subtracted, as permutations of the very rows give it.

The record knows for each source, and for each tokenizer that counted, which data were accepted last and before. Data
of another source are compared with none of them.
"""

import logging
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.storage import read_json, write_json

log = logging.getLogger("tuneline.validate")
_EDGES = [0, *(2**power for power in range(3, 13)), np.inf]
_SLIGHT, _LARGE = 0.1, 0.25
_PERMUTATIONS = 2_000
_CHANCE = 0.99  # share of permutations whose index is no larger than what counts as chance
_MANY = 10**9  # rows; NumPy permutes no more, and of so many chance gives nothing


# Drift ---------------------------------------------------------------------------------------------


def histogram(tokens: np.ndarray) -> list[int]:
    """How many rows have up to 8, 16, 32 … 4096 and more tokens."""
    return np.histogram(tokens, bins=_EDGES)[0].tolist()


def drift(former: list[int], current: list[int]) -> float:
    """By how much the population stability index of two histograms exceeds what chance gives; at least 0.

    If both were drawn from one distribution, this is above 0 in at most 1 of 100 cases, however few rows there are.
    """
    if len(former) != len(current):  # of another version, with other bins
        return 0.0
    pooled = np.array([former, current], np.int64)
    pooled = pooled[:, pooled.sum(axis=0) > 0]  # a bin that is empty in both tells nothing
    if pooled.shape[1] < 2 or not pooled.sum(axis=1).all():
        return 0.0
    return round(max(float(_index(*pooled) - _by_chance(pooled)), 0.0), 4)


def _by_chance(pooled: np.ndarray) -> float:
    """The index that rows dealt to two sides at random stay within, in 99 of 100 deals.

    Args:
        pooled: histograms of both sides, of shape (2, bins).
    """
    both, rows = pooled.sum(axis=0), pooled[0].sum()
    if both.sum() >= _MANY:
        return 0.0
    dealt = np.random.default_rng(0).multivariate_hypergeometric(both, rows, _PERMUTATIONS, method="marginals")
    return float(np.quantile(_index(dealt, both - dealt), _CHANCE, method="higher"))


def _index(former: np.ndarray, current: np.ndarray) -> np.ndarray:
    """Population stability index of histograms of shape (…, bins); half a row is added to every bin."""
    smoothed = [counts + 0.5 for counts in (former, current)]
    shares = [counts / counts.sum(axis=-1, keepdims=True) for counts in smoothed]
    return ((shares[1] - shares[0]) * np.log(shares[1] / shares[0])).sum(axis=-1)


def drift_class(index: float | None) -> str:
    """``none``, ``slight`` or ``large``; ``unknown`` where no data were accepted before."""
    if index is None:
        return "unknown"
    return "none" if index < _SLIGHT else "slight" if index < _LARGE else "large"


# Record --------------------------------------------------------------------------------------------


class _Accepted(BaseModel):
    """Data that were accepted: their hash, and the histogram of their lengths."""

    model_config = ConfigDict(strict=True, extra="forbid")

    data: str
    lengths: list[Annotated[int, Field(ge=0, le=2**40)]]


class _History(BaseModel):
    """What was accepted of one source last, and other data before."""

    model_config = ConfigDict(strict=True, extra="forbid")

    current: _Accepted
    former: _Accepted | None = None


class _Record(BaseModel):
    """What was accepted, by source and tokenizer."""

    model_config = ConfigDict(strict=True, extra="forbid")

    sources: dict[str, _History] = {}


def last_accepted(record: Path, data: str, origin: str = "") -> list[int] | None:
    """Histogram of the data of this origin that were accepted last, other than these themselves; None if none were.

    Args:
        record: what :func:`accept` wrote.
        data: hash of the data that are judged now.
        origin: where they come from, and what counts their tokens.
    """
    accepted = _read(record)
    if accepted is None:
        log.warning("%s is of an older version, or damaged: lengths are compared from the next data on", record)
    history = accepted and accepted.sources.get(origin)
    if history is None:
        return None
    entry = history.former if history.current.data == data else history.current
    return entry and entry.lengths


def accept(record: Path, data: str, lengths: list[int], origin: str = "") -> None:
    """Put these data of an origin on record; the same data again change nothing of what came before them."""
    accepted = _read(record) or _Record()
    history = accepted.sources.get(origin)
    former = None
    if history is not None:
        former = history.former if history.current.data == data else history.current
    current = _Accepted(data=data, lengths=lengths)
    accepted.sources[origin] = _History(current=current, former=former)
    write_json(record, accepted.model_dump())


def _read(record: Path) -> _Record | None:
    """The record, empty if there is none; None if it is not of this version.

    Raises:
        UserError: it is no JSON.
    """
    if not record.is_file():
        return _Record()
    try:
        return _Record.model_validate(read_json(record))
    except ValidationError:
        return None
