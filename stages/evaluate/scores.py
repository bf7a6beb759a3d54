"""Scores of an answer against its reference, for Chinese.

ROUGE and BLEU follow the P-Tuning evaluation of ChatGLM-6B: jieba segments the texts for ROUGE, and BLEU-4 is over
characters with NLTK's smoothing method 3. Two conventions differ: both texts are normalized to NFKC, the form of every
answer, and an exact match scores 100 however short it is. An empty answer scores 0. Raise
:data:`measures.metrics.METRICS_VERSION` with every change of a score.
"""

import logging
from collections.abc import Sequence

from measures.boilerplate import find_boilerplate
from measures.metrics import SCORES
from measures.ngrams import compute_repetition
from models.sample import Message
from models.text_normalization import normalize_nfkc, normalize_text, restore_chinese_punctuation


def score_answer(answer: str, reference: str) -> dict[str, float]:
    """Return ROUGE-1/2/L F, BLEU-4 and chrF of an answer, each from 0 to 100.

    chrF (Popović 2015) uses character n-grams of 1 to 6 and β = 2, without whitespace.
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
    answer, reference = (restore_chinese_punctuation(normalize_nfkc(text)) for text in (answer, reference))
    words, reference_words = " ".join(jieba.cut(answer)), " ".join(jieba.cut(reference))
    if not words.strip() or not reference_words.strip():
        return dict.fromkeys(SCORES, 0.0)
    rouge = Rouge().get_scores(words, reference_words)[0]
    bleu = sentence_bleu([list(reference)], list(answer), smoothing_function=SmoothingFunction().method3)
    longest_ngram = min(6, len("".join(reference.split())), len("".join(answer.split())))
    chrf = sentence_chrf(reference, answer, min_len=1, max_len=longest_ngram, beta=2.0)
    return {**{name: 100 * entry["f"] for name, entry in rouge.items()}, "bleu-4": 100 * bleu, "chrf": 100 * chrf}


def describe_answer(answer: str, reference: str, context: Sequence[Message] = ()) -> dict[str, float | bool]:
    """Return the scores of an answer, and whether it is exact, empty, a refusal, repetitive, or of another length.

    Args:
        context: the messages before the answer.
    """
    text, reference_text = normalize_text(answer), normalize_text(reference)
    return {
        **{name: round(value, 4) for name, value in score_answer(answer, reference).items()},
        "exact": matches_exactly(answer, reference),
        "empty": not answer.strip(),
        "refusal": refuses(answer, context) and not refuses(reference, context),
        "repetition": float(compute_repetition([text])[0]),
        "length_ratio": round(len(text) / max(len(reference_text), 1), 4),
    }


def refuses(answer: str, context: Sequence[Message] = ()) -> bool:
    """Return whether an answer is a refusal or calls itself a language model, see :mod:`measures.boilerplate`."""
    contents = [message.content for message in context]
    return find_boilerplate(answer, "\n".join(contents), contents[-1] if contents else "") is not None


def matches_exactly(answer: str, reference: str) -> bool:
    """Return whether an answer equals the reference, apart from whitespace and punctuation forms."""
    return normalize_text(answer) == normalize_text(reference)
