import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.text_normalization import normalize_nfkc, normalize_text, restore_chinese_punctuation


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("你好,你是谁?", "你好，你是谁？"),
        (" 是的!3,141 和 a:b ", "是的！3,141 和 a:b"),
        ("x,y;好", "x,y；好"),
        ("", ""),
    ],
)
def test_punctuation_beside_chinese_becomes_chinese(raw, clean):
    assert restore_chinese_punctuation(raw) == clean


def test_normalization_ignores_whitespace_and_forms_of_punctuation():
    assert normalize_text("我是 A，你 呢？") == normalize_text("我是A,你呢?")
    assert normalize_text("我是（测试）１…") == normalize_text("我是(测试)1...")
    assert normalize_text("A  b") == "Ab" != normalize_text("a b")


@given(st.text(max_size=60))
def test_normalization_is_idempotent(text):
    assert normalize_text(normalize_text(text)) == normalize_text(text)


def test_normalization_takes_linear_time():
    """Python sorts combining marks in quadratic time: 80,000 marks take 7 s without the limit on runs."""
    marks = "a" + "\u0301\u0327" * 200_000
    started = time.perf_counter()
    normalize_text(marks)
    normalize_text(" ".join(marks))
    assert time.perf_counter() - started < 5
    assert normalize_text("e\u0301\u0327") == normalize_text("\u0229\u0301")
    assert normalize_nfkc("e" + "\u0301" * 30) == "é" + "\u0301" * 29
