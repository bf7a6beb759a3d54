"""What Great Expectations judges: one flat row of features for each sample."""

import re
import unicodedata
from collections.abc import Iterator, Sequence

from models.sample import Message, Sample, UnknownFormat, read_messages, sample_id
from stages.validate.reading import RawRow

# Special tokens of the ChatGLM-6B vocabulary: spelled in text, they break a row's labels.
CONTROL_TOKENS = re.compile(r"\[[gs]?MASK\]|<(?:sop|eop|s|pad|unk|ENC|dBLOCK|unused_0|n)>|</s>|<\|(?:tab|blank_\d+)\|>")
# <UNK> is no placeholder: data sets such as ADGEN mark a word that was unknown to them by it.
PLACEHOLDERS = re.compile(r"<(?!UNK>)[A-Z][A-Z_]{2,}>|\{\{.*?\}\}|\$\{.*?\}|\{%.*?%\}")
_HAN_RUN = re.compile(r"[\u4e00-\u9fff]{3,}")
_KEPT_CONTROLS = "\t\n\r"


def parse(rows: Sequence[RawRow]) -> list[Sample | UnknownFormat]:
    """The sample of every row, or why it is none."""
    return [_sample_of(row) for row in rows]


def _sample_of(row: RawRow) -> Sample | UnknownFormat:
    if row.error is not None:
        return UnknownFormat("unparsed")
    try:
        messages = read_messages(row.value)
        return Sample(sample_id(messages), row.file, row.line, messages)
    except UnknownFormat as error:
        return error


def describe(rows: Sequence[RawRow], samples: Sequence[Sample | UnknownFormat]) -> Iterator[dict]:
    """Features of every row. A feature that a row cannot have is None, which no check counts as a fault."""
    first_seen: dict[str, str] = {}
    for index, (row, sample) in enumerate(zip(rows, samples, strict=True)):
        features = {"row": index, "parse_error": row.error, "format_error": None}
        if isinstance(sample, Sample):
            place = f"{row.file}:{row.line}"
            original = first_seen.setdefault(sample.id, place)
            features |= _of_messages(sample.messages) | {"duplicate_of": original if original != place else None}
        elif row.error is None:
            features["format_error"] = str(sample)
        yield features


def _of_messages(messages: Sequence[Message]) -> dict:
    texts = [message.content for message in messages]
    everything = "\n".join(texts)
    return {
        "role_fault": role_fault(messages),
        "blank_texts": sum(not text.strip() for text in texts),
        "bad_characters": sum(map(_is_bad, everything)),
        "mojibake": sum(map(_is_mojibake, _HAN_RUN.findall(everything))),
        "control_tokens": len(CONTROL_TOKENS.findall(everything)),
        "placeholders": len(PLACEHOLDERS.findall(everything)),
        "characters": len(everything),
        "repetition": round(max(map(repetition, texts)), 4),
    }


def role_fault(messages: Sequence[Message]) -> str | None:
    """What is wrong with the order of roles, if anything: user and assistant alternate, the assistant ends."""
    roles = [message.role for message in messages]
    turns = roles[1:] if roles[0] == "system" else roles
    if turns[-1:] != ["assistant"]:
        return "does not end with the assistant"
    if len(turns) % 2 or turns != ["user", "assistant"] * (len(turns) // 2):
        return "user and assistant do not alternate"
    return None


def repetition(text: str) -> float:
    """Share of 4-character pieces that stood before in the text; 0 for texts under 50 characters."""
    pieces = [text[index : index + 4] for index in range(len(text) - 3)]
    return 1 - len(set(pieces)) / len(pieces) if len(text) >= 50 else 0.0


def _is_bad(character: str) -> bool:
    """Replacement characters, control characters and unpaired surrogates."""
    return character == "\ufffd" or (
        unicodedata.category(character) in ("Cc", "Cs") and character not in _KEPT_CONTROLS
    )


def _is_mojibake(han: str) -> bool:
    """Whether Chinese characters are UTF-8 that was read as GBK: their GBK bytes are then Chinese in UTF-8."""
    code = han.encode("gbk", "ignore")
    reread = code.decode("utf-8", "ignore")
    reread_han = sum("\u4e00" <= character <= "\u9fff" for character in reread)
    return reread_han >= 2 and 3 * reread_han >= 0.7 * len(code)
