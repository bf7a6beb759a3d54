"""The catalogue and the code: every text is translated, and with the same placeholders."""

import re
from string import Formatter

import pytest
from babel.messages.extract import extract_from_dir
from shared_data import ROOT

import texts

ROOMS = ("models", "measures", "formats", "stages", "pipelines", "flows", "chat")
KEYWORDS = {"translate": None, "translatable": None, "in_all_languages": None}
CHINESE = re.compile(r"[\u4e00-\u9fff]")


def messages_in_code() -> set[str]:
    methods = [("**.py", "python"), ("**.html", "jinja2"), ("**.md", "jinja2")]
    return {
        message for room in ROOMS for _, _, message, _, _ in extract_from_dir(ROOT / room, methods, keywords=KEYWORDS)
    }


def placeholders(text: str) -> set[str]:
    return {field for _, field, _, _ in Formatter().parse(text) if field is not None}


CATALOGUE = {entry.id: entry.string for entry in texts.read_catalogue("zh") if entry.id}


def test_the_catalogue_holds_the_messages_of_the_code_and_no_other():
    assert messages_in_code() == CATALOGUE.keys()


@pytest.mark.parametrize("message", CATALOGUE)
def test_a_translation_is_chinese_and_has_the_placeholders_of_its_message(message):
    assert placeholders(CATALOGUE[message]) == placeholders(message)
    assert CHINESE.search(CATALOGUE[message])
    assert not CHINESE.search(message)


@pytest.mark.parametrize(
    ("environment", "language"),
    [
        ({}, "en"),
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": "C"}, "en"),
        ({"LANG": "de_DE.UTF-8"}, "en"),
        ({"LANGUAGE": "zh_CN:en", "LANG": "en_US.UTF-8"}, "zh"),
        ({"LANG": "zh_CN.UTF-8", "TUNELINE_LANG": "en"}, "en"),
        ({"LC_ALL": "C", "TUNELINE_LANG": "zh"}, "zh"),
        ({"LANGUAGE": "zh_CN", "TUNELINE_LANG": "en"}, "en"),
    ],
)
def test_the_terminal_speaks_the_language_of_the_locale_unless_told_otherwise(monkeypatch, environment, language):
    for name in ("TUNELINE_LANG", "LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert texts.terminal_language() == language
