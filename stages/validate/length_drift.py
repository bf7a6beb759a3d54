"""Drift of row lengths in tokens against the data that were accepted last, and the record of accepted lengths.

Drift is the population stability index (PSI) over bins that double in width, as in credit scoring: below 0.1 the
distributions are the same, from 0.25 on they differ (Siddiqi 2006). PSI grows with few rows: two samples of n and m
rows from one distribution have a mean PSI of (bins - 1) (1 / n + 1 / m) (Yurdakul and Naranjo 2020), which is 0.3 for
30 rows. The 99th percentile of a permutation test is therefore subtracted.

The record holds the last and the previous accepted data by origin (source and tokenizer). Data of different origins are
never compared.
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
_CHANCE_QUANTILE = 0.99
_MAX_PERMUTED = 10**9  # rows that NumPy can permute; PSI by chance is negligible for so many


# Drift ---------------------------------------------------------------------------------------------


def compute_histogram(tokens: np.ndarray) -> list[int]:
    """Return how many rows have up to 8, 16, 32 … 4096 and more tokens.

    Args:
        tokens: number of tokens per row, of shape (rows,).
    """
    return np.histogram(tokens, bins=_EDGES)[0].tolist()


def compute_drift(previous: list[int], current: list[int]) -> float:
    """Return by how much the PSI of two histograms exceeds its 99th percentile under permutation; at least 0.

    For samples of one distribution the result is above 0 in at most 1 of 100 cases, however few rows they have. It is 0
    if the histograms have different bins (another version) or all rows are in one bin.
    """
    if len(previous) != len(current):
        return 0.0
    histograms = np.array([previous, current], np.int64)
    histograms = histograms[:, histograms.sum(axis=0) > 0]  # bins without any row do not contribute
    if histograms.shape[1] < 2 or not histograms.sum(axis=1).all():
        return 0.0
    return round(max(float(_psi(*histograms) - _chance_psi(histograms)), 0.0), 4)


def _chance_psi(histograms: np.ndarray) -> float:
    """Return the 99th percentile of the PSI if the rows are permuted between two histograms, of shape (2, bins)."""
    total, rows = histograms.sum(axis=0), histograms[0].sum()
    if total.sum() >= _MAX_PERMUTED:
        return 0.0
    permuted = np.random.default_rng(0).multivariate_hypergeometric(total, rows, _PERMUTATIONS, method="marginals")
    return float(np.quantile(_psi(permuted, total - permuted), _CHANCE_QUANTILE, method="higher"))


def _psi(previous: np.ndarray, current: np.ndarray) -> np.ndarray:
    """Return the population stability index of histograms of shape (…, bins), with half a row added to every bin."""
    smoothed = [counts + 0.5 for counts in (previous, current)]
    shares = [counts / counts.sum(axis=-1, keepdims=True) for counts in smoothed]
    return ((shares[1] - shares[0]) * np.log(shares[1] / shares[0])).sum(axis=-1)


def classify_drift(drift: float | None) -> str:
    """Return ``none``, ``slight`` or ``large``; ``unknown`` for None, if no data were accepted before."""
    if drift is None:
        return "unknown"
    return "none" if drift < _SLIGHT else "slight" if drift < _LARGE else "large"


# Record --------------------------------------------------------------------------------------------


class _AcceptedData(BaseModel):
    """Hash of accepted data, and the histogram of their row lengths."""

    model_config = ConfigDict(strict=True, extra="forbid")

    data: str
    lengths: list[Annotated[int, Field(ge=0, le=2**40)]]


class _OriginHistory(BaseModel):
    """The last accepted data of an origin, and the previous ones if they are others."""

    model_config = ConfigDict(strict=True, extra="forbid")

    current: _AcceptedData
    former: _AcceptedData | None = None


class _Record(BaseModel):
    """Accepted data by origin."""

    model_config = ConfigDict(strict=True, extra="forbid")

    sources: dict[str, _OriginHistory] = {}


def read_last_accepted(path: Path, data: str, origin: str = "") -> list[int] | None:
    """Return the length histogram of the last accepted data of an origin other than the current data.

    Args:
        path: record, written by :func:`record_accepted`; missing before the first acceptance.
        data: hash of the current data.
        origin: source of the data and hash of the tokenizer.

    Returns:
        None if no other data were accepted, or the record is damaged or of another version.
    """
    record = _read_record(path)
    if record is None:
        log.warning("%s is damaged or of another version; lengths are compared from the next data on", path)
    history = record and record.sources.get(origin)
    if history is None:
        return None
    accepted = history.former if history.current.data == data else history.current
    return accepted and accepted.lengths


def record_accepted(path: Path, data: str, lengths: list[int], origin: str = "") -> None:
    """Record data of an origin as accepted; recording the same data again keeps the previous ones."""
    record = _read_record(path) or _Record()
    history = record.sources.get(origin)
    previous = None
    if history is not None:
        previous = history.former if history.current.data == data else history.current
    record.sources[origin] = _OriginHistory(current=_AcceptedData(data=data, lengths=lengths), former=previous)
    write_json(path, record.model_dump())


def _read_record(path: Path) -> _Record | None:
    """Return the record, empty if the file is missing; None if it is damaged or of another version.

    Raises:
        UserError: the file is not JSON.
    """
    if not path.is_file():
        return _Record()
    try:
        return _Record.model_validate(read_json(path))
    except ValidationError:
        return None
