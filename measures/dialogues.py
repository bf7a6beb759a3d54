"""Rows of one dialogue, which are no independent observations.

A file with one row per turn repeats each dialogue: the messages of a row are the beginning of the next. Several rows
may also answer the same prompt. An interval over such rows as if they were independent would be too narrow, so the rows
of one dialogue count once, with their mean.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from statistics import fmean

from models.text_normalization import normalize_text

# More rows than this that continue one row directly share a greeting, not a dialogue, as for stage validate's split.
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
            row_by_prompt.setdefault(prefixes[-2] if len(prefixes) > 1 else prefixes[-1], index)
    parents = [_find_parent(prefixes, row_by_whole) for prefixes in keys]
    continuations = Counter(parent for parent in parents if parent is not None)
    parents = [None if parent is None or continuations[parent] > MAX_CONTINUATIONS else parent for parent in parents]
    dialogues = list(range(len(rows)))
    # A parent is shorter than its continuation, so it comes first and is resolved already.
    for index in sorted(range(len(rows)), key=lambda index: len(keys[index])):
        same_prompt = row_by_prompt.get(keys[index][-2]) if len(keys[index]) > 1 else None
        parent = parents[index] if parents[index] is not None else same_prompt
        if parent is not None and parent != index:
            dialogues[index] = dialogues[parent]
    return dialogues


def _find_parent(prefixes: Sequence[int], row_by_whole: dict[int, int]) -> int | None:
    """Return the row that is the longest proper beginning of a row, if there is one."""
    return next((row_by_whole[key] for key in reversed(prefixes[:-1]) if key in row_by_whole), None)


def _prefix_keys(row: dict) -> list[int]:
    """Return a hash of the first message, of the first two, and so on, without system messages.

    Hashes are valid within one process. The reference is the last message.
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
