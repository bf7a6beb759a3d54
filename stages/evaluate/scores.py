"""Scores of Chinese answers, computed as ChatGLM-6B's authors do.

Their P-Tuning evaluation segments with jieba for ROUGE and takes BLEU-4 over characters with
NLTK's third smoothing method. An empty answer scores 0.
"""

import logging
from collections.abc import Sequence
from statistics import fmean

from models.prompt import normalize

SCORES = ("rouge-1", "rouge-2", "rouge-l", "bleu-4")


def score(answer: str, reference: str) -> dict[str, float]:
    """ROUGE-1/2/L F and BLEU-4 of one answer, each from 0 to 100."""
    import jieba
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
    from rouge_chinese import Rouge

    jieba.setLogLevel(logging.WARNING)
    words, reference_words = " ".join(jieba.cut(answer)), " ".join(jieba.cut(reference))
    if not words.strip() or not reference_words.strip():
        return dict.fromkeys(SCORES, 0.0)
    rouge = Rouge().get_scores(words, reference_words)[0]
    bleu = sentence_bleu([list(reference)], list(answer), smoothing_function=SmoothingFunction().method3)
    return {**{name: 100 * entry["f"] for name, entry in rouge.items()}, "bleu-4": 100 * bleu}


def mean_scores(pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
    """Mean of :func:`score` over pairs of answer and reference."""
    scores = [score(answer, reference) for answer, reference in pairs]
    return {name: round(fmean(each[name] for each in scores), 4) for name in SCORES}


def meets(answer: str, probe: dict) -> bool:
    """Whether an answer contains all that its probe expects and nothing that it rules out."""
    text = normalize(answer)
    return all(normalize(piece) in text for piece in probe.get("contains", [])) and not any(
        normalize(piece) in text for piece in probe.get("absent", [])
    )


def matches_exactly(answer: str, reference: str) -> bool:
    """Whether an answer is the reference, blanks and forms of punctuation aside."""
    return normalize(answer) == normalize(reference)
