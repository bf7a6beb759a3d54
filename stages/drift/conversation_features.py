"""Features of a conversation: lengths, language, tokens without a vocabulary entry, repetition, topics."""

from collections.abc import Sequence

import numpy as np
import pandas

from measures.ngrams import compute_repetition
from models.sample import Message
from texts import in_all_languages, translatable

QUARANTINED_SHARE = "quarantined_share"  # a feature of a set of rows; see stages.drift.quarantine_drift
LABELS = {
    "question_characters": translatable("Characters of the question"),
    "answer_characters": translatable("Characters of the answer"),
    "question_tokens": translatable("Tokens of the question"),
    "answer_tokens": translatable("Tokens of the answer"),
    "turns": translatable("Turns"),
    "chinese": translatable("Share of Chinese letters"),
    "byte_fallback": translatable("Share of byte-fallback tokens"),
    "repetition": translatable("Repetition of 4-grams in the answer"),
    QUARANTINED_SHARE: translatable("Share of rows that fail a row check"),
}
TOPIC_NGRAMS = (1, 3)  # characters; topics of Chinese text need no word segmentation
MAX_NGRAMS = 20_000  # features of the TF-IDF matrix


def feature_label(column: str) -> dict[str, str]:
    """Return the name of a feature, by language."""
    if column.startswith("topic_"):
        return in_all_languages("Topic {number}", number=column.removeprefix("topic_"))
    return in_all_languages(LABELS[column])


def compute_features(conversations: Sequence[Sequence[Message]], vocabulary) -> pandas.DataFrame:
    """Return a table with a row for each conversation, and a column for each feature but for topics."""
    table = pandas.DataFrame([_row_features(messages, vocabulary) for messages in conversations])
    return table.assign(repetition=compute_repetition([_last(messages, "assistant") for messages in conversations]))


def _row_features(messages: Sequence[Message], vocabulary) -> dict[str, float]:
    question, answer = _last(messages, "user"), _last(messages, "assistant")
    question_tokens, answer_tokens = (vocabulary.tokenize(_encodable(text)) for text in (question, answer))
    tokens = [*question_tokens, *answer_tokens]
    letters = [character for character in question + answer if character.isalpha()]
    return {
        "question_characters": len(question),
        "answer_characters": len(answer),
        "question_tokens": len(question_tokens),
        "answer_tokens": len(answer_tokens),
        "turns": sum(message.role == "user" for message in messages),
        "chinese": sum("\u3400" <= letter <= "\u9fff" for letter in letters) / max(len(letters), 1),
        "byte_fallback": sum(map(_is_byte, tokens)) / max(len(tokens), 1),
    }


def _last(messages: Sequence[Message], role: str) -> str:
    return next((message.content for message in reversed(messages) if message.role == role), "")


def _encodable(text: str) -> str:
    """Replace lone surrogates, which have no UTF-8 form, by ``?``."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _is_byte(token: str) -> bool:
    """Return whether a token is one byte of a character that is not in the vocabulary, such as ``<0xE4>``."""
    return token.startswith("<0x") and token.endswith(">")


def compute_topics(datasets: Sequence[Sequence[str]], count: int) -> list[np.ndarray]:
    """Return the coordinates of texts in a few topics: TF-IDF of character n-grams, reduced by SVD.

    The topics are fitted to all datasets together. If they were fitted to one of them, they would fit it better than
    the others, and equal datasets would look different.

    Args:
        datasets: the texts of each dataset.
        count: number of topics; fewer if there are few texts.

    Returns:
        For each dataset, float64 of shape (texts, topics).
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = [text for dataset in datasets for text in dataset]
    offsets = np.cumsum([len(dataset) for dataset in datasets])[:-1]
    vectorizer = TfidfVectorizer(analyzer="char", ngram_range=TOPIC_NGRAMS, max_features=MAX_NGRAMS, sublinear_tf=True)
    matrix = vectorizer.fit_transform(texts)
    width = min(count, min(matrix.shape) - 1)
    topics = TruncatedSVD(width, random_state=0).fit_transform(matrix) if width > 0 else np.zeros((len(texts), 0))
    return np.split(topics, offsets)


def topic_text(messages: Sequence[Message]) -> str:
    """Return the text of a conversation that its topics are computed from: the last question and answer."""
    return "\n".join((_last(messages, "user"), _last(messages, "assistant")))
