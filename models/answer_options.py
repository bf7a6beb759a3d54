"""Options of multiple-choice questions, as lines below the question."""

import re
from collections.abc import Collection, Mapping
from string import ascii_uppercase

from models.sample import is_empty

_NAMES = ("options", "option", "choices")
_LETTERS = tuple(ascii_uppercase[:8])
_SEVERAL_OPTIONS = re.compile(r"\bA\b.*\bB\b", re.DOTALL)  # a text without them may be the answer itself


def find_option_keys(keys: Collection[str]) -> tuple[str, ...]:
    """Return the keys of a row's options: one for all of them, or columns named A, B, C, …; none without options."""
    letters = tuple(letter for letter in _LETTERS if letter in keys)
    if letters[:2] == ("A", "B"):
        return letters
    return tuple(key for key in keys if key.lower() in _NAMES)[:1]


def format_options(values: Mapping[str, object]) -> str:
    """Return options as text, such as ``A. red`` in the first line; empty if all values are missing.

    Args:
        values: of :func:`find_option_keys`. Options below one key are a text, a list of texts, an object of texts by
            letter, or a list of ``{"key": …, "value": …}``.

    Raises:
        ValueError: they have none of these forms.
    """
    if len(values) > 1:
        options = list(values.items())
    else:
        (value,) = values.values()
        if is_empty(value):
            return ""
        if isinstance(value, str) and _SEVERAL_OPTIONS.search(value):
            return value
        options = _list_options(value)
    present = [(letter, text) for letter, text in options if not is_empty(text)]
    if not all(isinstance(part, str) for option in present for part in option):
        raise ValueError("options must be texts")
    return "\n".join(f"{letter}. {text}" for letter, text in present)


def _list_options(value: object) -> list[tuple[object, object]]:
    if isinstance(value, dict):
        return list(value.items())
    if not isinstance(value, list) or len(value) > len(_LETTERS):
        raise ValueError("options must be an object, a short list, or a text that lists A, B, …")
    if all(isinstance(option, dict) and {"key", "value"} <= option.keys() for option in value):
        return [(option["key"], option["value"]) for option in value]
    return list(zip(_LETTERS, value, strict=False))
