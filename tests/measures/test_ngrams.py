import pytest

from measures import ngrams
from measures.ngrams import has_near_duplicate

TEXTS = ["甲乙丙丁戊己庚辛壬癸"[i:] + "子丑寅卯辰巳午未申酉戌亥" + "天地玄黄"[:k] for i in range(6) for k in range(5)]
TEXTS += ["啊哦", "啊", "", "甲乙丙丁" * 4, "东南西北中子丑寅卯天", "东南西北中子丑寅卯地玄"]


def sets_of(text: str) -> set[str]:
    padded = text.ljust(4, "\0")
    return {padded[i : i + 4] for i in range(len(padded) - 3)}


def jaccard(text: str, other: str) -> float:
    return len(sets_of(text) & sets_of(other)) / len(sets_of(text) | sets_of(other))


@pytest.mark.parametrize("similarity", [0.5, 0.7, 1.0])
@pytest.mark.parametrize("pairs_at_once", [1, 20_000_000])
def test_a_text_resembles_others_by_the_sets_of_their_4_grams(monkeypatch, similarity, pairs_at_once):
    monkeypatch.setattr(ngrams, "_MAX_PAIRS", pairs_at_once)
    for others in (TEXTS[:1], TEXTS[7:9], TEXTS[30:31], TEXTS[33:]):
        expected = [
            any(
                len(sets_of(text) & sets_of(other)) >= similarity * len(sets_of(text) | sets_of(other))
                for other in others
            )
            for text in TEXTS
        ]
        assert has_near_duplicate(TEXTS, others, similarity).tolist() == expected
        assert True in expected
        assert False in expected


def test_without_texts_nothing_resembles():
    assert has_near_duplicate([], TEXTS, 0.7).tolist() == []
    assert has_near_duplicate(TEXTS[:2], [], 0.7).tolist() == [False, False]
