"""Rows of one dialogue, which are no independent observations.

A file with one row per turn repeats each dialogue: the messages of a row are the beginning of the next. Several rows
may also answer the same prompt. An interval over such rows as if they were independent would be too narrow, so the rows
of one dialogue count once, with their mean.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from statistics import fmean

from models.text_normalization import normalize_text

# More rows than this that follow one row share a greeting, not a dialogue, as for stage validate's split.
MAX_CONTINUATIONS = 8


def mean_by_dialogue(rows: Sequence[dict], values: Sequence[float]) -> list[float]:
    """Return the mean of the values of each dialogue, in the order of its first row.

    Args:
        rows: with ``messages`` before the answer, and the ``reference`` answer.
        values: one for each row.
    """
    values_by_dialogue: dict[int, list[float]] = defaultdict(list)
    for dialogue, value in zip(find_dialogues(rows), values, strict=True):
        values_by_dialogue[dialogue].append(value)
    return [fmean(part) for part in values_by_dialogue.values()]


def find_dialogues(rows: Sequence[dict]) -> list[int]:
    """Return for each row the index of the row that stands for its dialogue; a row without messages stands alone."""
    keys = [_prefix_keys(row) for row in rows]
    row_by_whole: dict[int, int] = {}
    row_by_prompt: dict[int, int] = {}
    for index, prefixes in enumerate(keys):
        if prefixes:
            row_by_whole.setdefault(prefixes[-1], index)
            row_by_prompt.setdefault(prefixes[-2], index)
    parents = [_find_parent(prefixes, row_by_whole, row_by_prompt) for prefixes in keys]
    followers = Counter(parent for index, parent in enumerate(parents) if parent != index)
    dialogues = list(range(len(rows)))
    # A row is resolved after the row that it continues, which is shorter, and after the first row of its prompt.
    for index in sorted(range(len(rows)), key=lambda index: (len(keys[index]), index)):
        parent = parents[index]
        if parent is not None and followers[parent] <= MAX_CONTINUATIONS and keys[parent] != keys[index]:
            dialogues[index] = dialogues[parent]
    return dialogues


def _find_parent(prefixes: Sequence[int], row_by_whole: dict[int, int], row_by_prompt: dict[int, int]) -> int | None:
    """Return the row that is the longest proper beginning of a row, or else the first row with its prompt."""
    continued = next((row_by_whole[key] for key in reversed(prefixes[:-1]) if key in row_by_whole), None)
    return continued if continued is not None or not prefixes else row_by_prompt[prefixes[-2]]


def _prefix_keys(row: dict) -> list[int]:
    """Return a hash of the first message, of the first two, and so on, without system messages.

    Hashes are valid within one process. The reference is the last message. Empty for a row without a question.
    """
    messages = [message for message in row.get("messages", ()) if message.get("role") != "system"]
    contents = [message["content"] for message in messages]
    if not contents or "reference" not in row:
        return []
    keys, key = [], 0
    for content in [*contents, row["reference"]]:
        key = hash((key, normalize_text(content)))
        keys.append(key)
    return keys
