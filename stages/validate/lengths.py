"""Lengths of the accepted data in tokens, and how far they moved since the data that were accepted before.

Drift is the population stability index over bins that double in width, as credit scoring uses it:
below 0.1 nothing moved, from 0.25 on the data are of another kind (Siddiqi 2006).
"""

from pathlib import Path

import numpy as np

from models.storage import read_json, write_json

_EDGES = [0, *(2**power for power in range(3, 13)), np.inf]
_SLIGHT, _LARGE = 0.1, 0.25


def histogram(tokens: np.ndarray) -> list[int]:
    """How many rows have up to 8, 16, 32 … 4096 and more tokens."""
    return np.histogram(tokens, bins=_EDGES)[0].tolist()


def drift(former: list[int], current: list[int]) -> float:
    """Population stability index of two histograms; half a row is added to every bin, for the empty ones."""
    shares = [(np.array(counts) + 0.5) / (sum(counts) + 0.5 * len(counts)) for counts in (former, current)]
    return round(float(((shares[1] - shares[0]) * np.log(shares[1] / shares[0])).sum()), 4)


def drift_class(index: float | None) -> str:
    """``none``, ``slight`` or ``large``; ``unknown`` where no data were accepted before."""
    if index is None:
        return "unknown"
    return "none" if index < _SLIGHT else "slight" if index < _LARGE else "large"


def last_accepted(record: Path, data: str) -> list[int] | None:
    """Histogram of the data that were accepted last, other than these themselves; None if there were none.

    Args:
        record: what :func:`accept` wrote.
        data: hash of the data that are judged now.
    """
    if not record.is_file():
        return None
    accepted = read_json(record)
    entry = accepted["former"] if accepted["current"]["data"] == data else accepted["current"]
    return entry and entry["lengths"]


def accept(record: Path, data: str, lengths: list[int]) -> None:
    """Put these data on record; the same data again change nothing."""
    current = {"data": data, "lengths": lengths}
    former = None
    if record.is_file():
        accepted = read_json(record)
        former = accepted["former"] if accepted["current"]["data"] == data else accepted["current"]
    write_json(record, {"current": current, "former": former})
