"""Scores of one answer against its reference, for Chinese.

ROUGE and BLEU are computed as ChatGLM-6B's authors do: their P-Tuning evaluation segments with jieba for ROUGE and
takes BLEU-4 over characters with NLTK's third smoothing method. Two conventions are ours: both texts are scored in
their NFKC form, which is the form of every answer, and an answer that is the reference scores 100, however short it
is. An empty answer scores 0. A change of a score's meaning raises :data:`measures.metrics.METRICS_VERSION`.
"""

import logging

from measures.metrics import SCORES
from measures.ngrams import compute_repetition
from models.text_normalization import normalize_nfkc, normalize_text, restore_chinese_punctuation


def score(answer: str, reference: str) -> dict[str, float]:
    """ROUGE-1/2/L F, BLEU-4 and chrF of one answer, each from 0 to 100.

    chrF (Popović 2015) is over characters, n-grams of 1 to 6 and β = 2, blanks left out.
    """
    import jieba
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
    from nltk.translate.chrf_score import sentence_chrf
    from rouge_chinese import Rouge

    if not answer.strip() or not reference.strip():
        return dict.fromkeys(SCORES, 0.0)
    if matches_exactly(answer, reference):
        return dict.fromkeys(SCORES, 100.0)
    jieba.setLogLevel(logging.WARNING)
    answer, reference = restore_chinese_punctuation(normalize_nfkc(answer)), restore_chinese_punctuation(normalize_nfkc(reference))
    words, reference_words = " ".join(jieba.cut(answer)), " ".join(jieba.cut(reference))
    if not words.strip() or not reference_words.strip():
        return dict.fromkeys(SCORES, 0.0)
    rouge = Rouge().get_scores(words, reference_words)[0]
    bleu = sentence_bleu([list(reference)], list(answer), smoothing_function=SmoothingFunction().method3)
    longest = min(6, len("".join(reference.split())), len("".join(answer.split())))
    chrf = sentence_chrf(reference, answer, min_len=1, max_len=longest, beta=2.0)
    return {**{name: 100 * entry["f"] for name, entry in rouge.items()}, "bleu-4": 100 * bleu, "chrf": 100 * chrf}


def describe(answer: str, reference: str) -> dict[str, float | bool]:
    """Every measure of one answer: the scores, and whether it is exact, empty, repetitive, or of another length."""
    return {
        **{name: round(value, 4) for name, value in score(answer, reference).items()},
        "exact": matches_exactly(answer, reference),
        "empty": not answer.strip(),
        "repetition": float(compute_repetition([normalize_text(answer)])[0]),
        "length_ratio": round(len(normalize_text(answer)) / max(len(normalize_text(reference)), 1), 4),
    }


def matches_exactly(answer: str, reference: str) -> bool:
    """Whether an answer is the reference, blanks and forms of punctuation aside."""
    return normalize_text(answer) == normalize_text(reference)
