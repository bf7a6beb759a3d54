"""Texts for users in English and Chinese, by gettext catalogues.

The code holds the English sentence, which is the message id; ``texts/zh.po`` holds the Chinese one. The terminal, logs
and Prefect's UI show one language, see :func:`terminal_language`. Reports and web pages show both with a switch, see
:func:`in_all_languages`. Error messages are English, so that a search for them finds answers.
"""

import os
from functools import cache
from pathlib import Path

from babel.messages.catalog import Catalog
from babel.messages.pofile import read_po

LANGUAGES = ("en", "zh")
LANGUAGE = "TUNELINE_LANG"  # environment variable that overrides the locale
_FOLDER = Path(__file__).parent


def terminal_language() -> str:
    """Return ``en`` or ``zh``: ``TUNELINE_LANG``, or else the locale's, by the variables and the order of gettext."""
    variables = (LANGUAGE, "LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG")
    locales = next((value for name in variables if (value := os.environ.get(name))), "en")
    return next((language for language in LANGUAGES if locales.lower().startswith(language)), "en")


def translatable(message: str) -> str:
    """Return the message as it is, marked for the catalogue: for constants that are translated when they are shown."""
    return message


def translate(message: str, language: str | None = None, **values: object) -> str:
    """Return a message in a language, with its values filled in.

    Args:
        message: the English sentence, with placeholders as for ``str.format``.
        language: ``en`` or ``zh``; None for :func:`terminal_language`.
        values: of the placeholders. Without any, the message is not formatted, and braces stay.
    """
    text = _translations(language or terminal_language()).get(message, message)
    return text.format(**values) if values else text


def in_all_languages(message: str, **values: object) -> dict[str, str]:
    """Return a message in every language, by language."""
    return {language: translate(message, language, **values) for language in LANGUAGES}


@cache
def _translations(language: str) -> dict[str, str]:
    return {entry.id: entry.string for entry in read_catalogue(language) if entry.id and entry.string}


def read_catalogue(language: str) -> Catalog:
    """Read ``texts/<language>.po``; English, the language of the message ids, has none and is empty."""
    path = _FOLDER / f"{language}.po"
    if not path.is_file():
        return Catalog(language)
    with path.open("rb") as file:
        return read_po(file, language)
