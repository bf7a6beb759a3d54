"""Options of multiple-choice questions, as lines below the question."""

from collections.abc import Collection, Mapping
from string import ascii_uppercase

from models.sample import is_empty

_NAMES = ("options", "option", "choices")
_LETTERS = ascii_uppercase[:8]


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
    present = {key: value for key, value in values.items() if not is_empty(value)}
    key, options = next(iter(present.items()), ("", ""))
    if isinstance(options, str) and key not in _LETTERS:
        return options
    if key not in _LETTERS:
        present = _by_letter(options)
    if not all(isinstance(part, str) for option in present.items() for part in option):
        raise ValueError("options must be texts")
    return "\n".join(f"{letter}. {text}" for letter, text in present.items())


def _by_letter(options: object) -> Mapping:
    if isinstance(options, dict):
        return options
    if not isinstance(options, list) or len(options) > len(_LETTERS):
        raise ValueError("options must be an object or a short list")
    if all(isinstance(option, dict) and {"key", "value"} <= option.keys() for option in options):
        return {option["key"]: option["value"] for option in options}
    return dict(zip(_LETTERS, options, strict=False))
