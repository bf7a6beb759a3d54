"""Which samples are kept for evaluation: by a hash, so that old rows stay put when new ones come."""

import hashlib
from collections.abc import Sequence

from models.prompt import normalize
from models.sample import Sample


def split(samples: Sequence[Sample], eval_share: float) -> dict[str, list[Sample]]:
    """Divide samples into ``train`` and ``eval``.

    Samples that ask the same last question go to the same side. A sample's side depends on its
    own group alone; only where that leaves one side empty does the most extreme group change over.
    """
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(normalize(sample.messages[-2].content), []).append(sample)
    place = {group: _place(group) for group in groups}
    chosen = {group for group in groups if place[group] < eval_share}
    if not chosen and len(groups) > 1:
        chosen = {min(groups, key=place.get)}
    elif groups and len(chosen) == len(groups):
        chosen.discard(max(groups, key=place.get))
    sides = {"train": [], "eval": []}
    for sample in samples:
        side = "eval" if normalize(sample.messages[-2].content) in chosen else "train"
        sides[side].append(sample)
    return sides


def _place(group: str) -> float:
    """A number in [0, 1) that only the text decides."""
    return int(hashlib.sha256(group.encode()).hexdigest()[:13], 16) / 16**13
