"""Similarity of texts by their sets of 4-grams."""

import pytest

from measures import ngrams
from measures.ngrams import compute_repetition, has_near_duplicate

TEXTS = ["甲乙丙丁戊己庚辛壬癸"[i:] + "子丑寅卯辰巳午未申酉戌亥" + "天地玄黄"[:k] for i in range(6) for k in range(5)]
TEXTS += ["啊哦", "啊", "", "甲乙丙丁" * 4, "东南西北中子丑寅卯天", "东南西北中子丑寅卯地玄"]


def sets_of(text: str) -> set[str]:
    padded = text.ljust(4, "\0")
    return {padded[i : i + 4] for i in range(len(padded) - 3)}


def jaccard(text: str, reference: str) -> float:
    return len(sets_of(text) & sets_of(reference)) / len(sets_of(text) | sets_of(reference))


@pytest.mark.parametrize("similarity", [0.5, 0.7, 1.0])
@pytest.mark.parametrize("pairs_at_once", [1, 20_000_000])
def test_near_duplicates_are_found_by_sets_of_4_grams(monkeypatch, similarity, pairs_at_once):
    monkeypatch.setattr(ngrams, "_MAX_PAIRS", pairs_at_once)
    for references in (TEXTS[:1], TEXTS[7:9], TEXTS[30:31], TEXTS[33:]):
        expected = [
            any(
                len(sets_of(text) & sets_of(reference)) >= similarity * len(sets_of(text) | sets_of(reference))
                for reference in references
            )
            for text in TEXTS
        ]
        assert has_near_duplicate(TEXTS, references, similarity).tolist() == expected
        assert True in expected
        assert False in expected


def test_without_references_there_is_no_near_duplicate():
    assert has_near_duplicate([], TEXTS, 0.7).tolist() == []
    assert has_near_duplicate(TEXTS[:2], [], 0.7).tolist() == [False, False]


def test_repetition_is_the_share_of_repeated_4_grams():
    assert compute_repetition(["一二三四五六七", "一二三四一二三四", "好" * 100, ""]).tolist() == [0, 0.2, 0.9897, 0]
    assert compute_repetition(["好" * 49, "好" * 50], min_length=50).tolist() == [0, 0.9787]
