"""What is compared of a conversation: lengths, language, the tokenizer's trouble with it, repetition, topics."""

from collections.abc import Sequence

import numpy as np
import pandas

from models.sample import Message
from models.vocabulary import Vocabulary

LABELS = {
    "question_characters": "Question, characters · 问题字数",
    "answer_characters": "Answer, characters · 回答字数",
    "question_tokens": "Question, tokens · 问题词元数",
    "answer_tokens": "Answer, tokens · 回答词元数",
    "turns": "Turns · 轮数",
    "chinese": "Share of Chinese among letters · 字母中的中文比例",
    "byte_fallback": "Share of tokens that are bytes · 按字节回退的词元比例",
    "repetition": "Repetition of 4-grams · 四字组重复率",
}
GRAM = 4
TOPIC_GRAMS = (1, 3)  # characters; Chinese needs no segmentation for topics
MOST_GRAMS = 20_000


def label(column: str) -> str:
    """A column's name for people."""
    if column == "quarantined_share":
        return "Rows that fail a row check · 未通过逐行检查的比例"
    return LABELS.get(column) or f"Topic {column.rpartition('_')[2]} · 主题 {column.rpartition('_')[2]}"


def features(conversations: Sequence[Sequence[Message]], vocabulary: Vocabulary) -> pandas.DataFrame:
    """A row for each conversation, a column for each of :data:`LABELS`."""
    return pandas.DataFrame([_of(messages, vocabulary) for messages in conversations], columns=list(LABELS))


def _of(messages: Sequence[Message], vocabulary: Vocabulary) -> dict[str, float]:
    question, answer = _last(messages, "user"), _last(messages, "assistant")
    pieces = [vocabulary.split(_encodable(text)) for text in (question, answer)]
    every = [piece for each in pieces for piece in each]
    letters = [character for character in question + answer if character.isalpha()]
    grams = [answer[start : start + GRAM] for start in range(len(answer) - GRAM + 1)]
    return {
        "question_characters": len(question),
        "answer_characters": len(answer),
        "question_tokens": len(pieces[0]),
        "answer_tokens": len(pieces[1]),
        "turns": sum(message.role == "user" for message in messages),
        "chinese": sum("\u3400" <= letter <= "\u9fff" for letter in letters) / max(len(letters), 1),
        "byte_fallback": sum(map(_is_byte, every)) / max(len(every), 1),
        "repetition": 1 - len(set(grams)) / len(grams) if grams else 0.0,
    }


def _last(messages: Sequence[Message], role: str) -> str:
    return next((message.content for message in reversed(messages) if message.role == role), "")


def _encodable(text: str) -> str:
    """A lone surrogate has no UTF-8 form, and counts as ``?``."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _is_byte(piece: str) -> bool:
    """Whether a piece stands for one byte of a character that the tokenizer does not know, as ``<0xE4>``."""
    return piece.startswith("<0x") and piece.endswith(">")


def topics(texts: Sequence[Sequence[str]], count: int) -> list[np.ndarray]:
    """Where each text of each group lies in a few topics: TF-IDF of its character n-grams, reduced by SVD.

    All groups are reduced together: fitted to one of them, the topics would suit it better, and set the others apart
    although they are alike.

    Returns:
        For each group, float64 of shape (texts, topics).
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    every = [text for group in texts for text in group]
    ends = np.cumsum([len(group) for group in texts])[:-1]
    weights = TfidfVectorizer(analyzer="char", ngram_range=TOPIC_GRAMS, max_features=MOST_GRAMS, sublinear_tf=True)
    matrix = weights.fit_transform(every)
    width = min(count, min(matrix.shape) - 1)
    reduced = TruncatedSVD(width, random_state=0).fit_transform(matrix) if width > 0 else np.zeros((len(every), 0))
    return np.split(reduced, ends)


def text_of(messages: Sequence[Message]) -> str:
    """What a conversation's topic is read from."""
    return "\n".join((_last(messages, "user"), _last(messages, "assistant")))
