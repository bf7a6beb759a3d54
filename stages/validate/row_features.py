"""The flat table that Great Expectations judges: one row of features for each row of the data."""

import json
import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np

from formats.foreign_files import encoding_of
from formats.params_schema import Params
from measures.boilerplate import find_boilerplate
from measures.ngrams import compute_repetition
from models.prompt import ANSWER_SPECIAL_TOKENS, PROMPT_SPECIAL_TOKENS, render_prompt
from models.sample import Message, UnknownFormat, UnknownLayout, is_null_marker, quote_value, read_row
from models.sample import is_blank as _is_blank
from models.vocabulary import Vocabulary
from stages.validate import artifacts_in_text, assistant_names, characters, escapes, privacy
from stages.validate.chat_markup import cut_off, role_mark
from stages.validate.layouts import Layout, recognize
from stages.validate.mojibake import mojibake

# A few words of a text, so that a report shows what was seen without becoming a copy of the data.
EXCERPT, SENTENCE = 40, 160
_MARKS = 20  # that are looked at in a conversation: each is compared with what stands before it
_MASKED_PART = 4096  # characters: far more than a report shows and than any secret is long
MIN_REPETITIVE = 50  # characters; a shorter answer does not count as repetitive
FEW_LETTERS = 10  # too few to tell a language by: a formula, a smiley


@dataclass(frozen=True)
class Fault:
    """Why a row holds no conversation: the check that it fails, what was seen, and the layout if that is the reason."""

    check: str
    seen: str
    layout: Layout | None = None


# Parsing -------------------------------------------------------------------------------------------


def parse(content: bytes, max_bytes: int) -> tuple[tuple[Message, ...] | Fault, set[str]]:
    """The conversation in a row's bytes, or why there is none, and the keys that nothing reads."""
    row = _decode(content, max_bytes)
    if isinstance(row, Fault):
        return row, set()
    try:
        return read_row(row)
    except UnknownLayout as error:
        layout = recognize(row)
        # The names of the keys stand there already.
        known = f"; it looks like {layout.name}" if layout and layout.is_known and layout.name[0] != "'" else ""
        return Fault("known_format", f"{error}{known}", layout), set()
    except UnknownFormat as error:
        return Fault("known_format", str(error)), set()


def _decode(content: bytes, max_bytes: int) -> object | Fault:
    """The JSON value in a row's bytes, or why there is none."""
    if len(content) > max_bytes:
        return Fault("parseable", f"{len(content)} bytes, more than {max_bytes}")
    try:
        return _JSON.decode(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        byte = content[error.start]
        encoding = f", perhaps {encoding_of(content).upper()}" if encoding_of(content) else ""
        return Fault("parseable", f"not UTF-8{encoding}: byte 0x{byte:02x} at byte {error.start + 1} of the row")
    except json.JSONDecodeError as error:
        what = error.msg.removesuffix(" at")
        return Fault("parseable", f"not JSON: {what} at character {error.pos + 1} of the row")
    except RecursionError:
        return Fault("parseable", "not JSON: nested too deeply")
    except ValueError as error:
        return Fault("parseable", f"not JSON: {error}")


def _refuse_twins(pairs: list[tuple[str, object]]) -> dict:
    """An object, unless a key stands in it twice: readers disagree on which of the two counts."""
    made = dict(pairs)
    if len(made) < len(pairs):
        seen = set()
        twin = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {quote_value(twin)} stands there twice")
    return made


def _refuse_constant(constant: str):
    raise ValueError(f"{constant} is no JSON value")


_JSON = json.JSONDecoder(object_pairs_hook=_refuse_twins, parse_constant=_refuse_constant)


# Describing ----------------------------------------------------------------------------------------


def describe(
    parsed: Sequence[Sequence[Message] | Fault], vocabulary: Vocabulary, params: Params
) -> dict[str, np.ndarray]:
    """Features of every row, by column.

    A feature that a row cannot have is None or NaN, which no check counts as a fault. Text that a feature shows
    is an excerpt, with personal data and secrets masked.

    Returns:
        float64 or object arrays of shape (rows,).
    """
    count = len(parsed)
    table = {f"{check}_fault": np.full(count, None, object) for check in ("parseable", "known_format")}
    for index, fault in enumerate(parsed):
        if isinstance(fault, Fault):
            table[f"{fault.check}_fault"][index] = shown(fault.seen, SENTENCE)
    whole = [index for index, messages in enumerate(parsed) if not isinstance(messages, Fault)]
    conversations = [parsed[index] for index in whole]
    for features in (
        _of_texts(conversations, vocabulary, params),
        _of_numbers(conversations, params),
        _of_tokens(conversations, vocabulary, params),
    ):
        for name, values in features.items():
            table[name] = np.full(count, None if values.dtype == object else np.nan, values.dtype)
            table[name][whole] = values
    return table


def shown(seen: str | None, longest: int = EXCERPT) -> str | None:
    """What a report may show of a text."""
    if seen is None:
        return None
    # What a terminal or a UTF-8 file cannot show, such as an escape sequence or a lone surrogate, is told by its code.
    text = "".join(
        one if one.isprintable() else f"\\u{ord(one):04x}" for one in privacy.mask(seen[:_MASKED_PART])[: longest + 1]
    )
    return text if len(text) <= longest else f"{text[:longest]}…"


def _of_texts(conversations: Sequence[Sequence[Message]], vocabulary: Vocabulary, params: Params) -> dict:
    """Features that are None, or the first fault that was seen."""
    asked = ["\n".join(message.content for message in messages[:-1]) for messages in conversations]
    answers = [messages[-1].content for messages in conversations]
    texts = [f"{before}\n{answer}" for before, answer in zip(asked, answers, strict=True)]
    both = list(zip(answers, asked, strict=True))
    signs = characters.signs(texts)
    anyway = np.ones(len(texts), bool)
    question_marks = np.array(["???" in text for text in texts], bool)

    def shows(*names: str) -> np.ndarray:
        return signs & sum(characters.SIGNS[name] for name in names) > 0

    right_name = partial(assistant_names.other_name, params.validate_.checks.right_name.assistant)
    looks = {
        "roles_alternate": (role_fault, conversations, anyway),
        "clean_characters": (characters.bad_character, texts, shows("bad")),
        "no_mojibake": (mojibake, texts, shows("mojibake") | question_marks),
        "no_control_tokens": (_finder(vocabulary.control_tokens()), texts, shows("opener")),
        "no_placeholders": (_of_both(artifacts_in_text.placeholder), both, shows("opener")),
        "no_html": (_of_both(artifacts_in_text.html), both, shows("opener")),
        "no_role_marks": (_of_both(role_mark), both, anyway),
        "no_boilerplate": (_of_both(find_boilerplate), both, anyway),
        "right_name": (_of_both(right_name), both, anyway),
        "answer_whole": (cut_off, answers, anyway),
        "no_personal_data": (privacy.personal_data, texts, shows("number", "at")),
        "no_secrets": (privacy.secret, texts, shows("word")),
        "no_null_marks": (null_mark, conversations, anyway),
        "no_escapes": (escapes.escape, conversations, np.array(["\\" in t or "_x" in t for t in texts], bool)),
    }
    return {f"{name}_fault": _look(name, *look) for name, look in looks.items()}


def _of_both(find: Callable[[str, str], str | None]) -> Callable[[tuple[str, str]], str | None]:
    """A function of the pair of an answer and what was asked."""
    return lambda both: find(*both)


def _look(name: str, find: Callable[[object], str | None], texts: Sequence, where: np.ndarray) -> np.ndarray:
    """What ``find`` sees in the texts where a look is worth while: object array of shape (texts,)."""
    seen = np.full(len(texts), None, object)
    for index in np.flatnonzero(where):
        if (found := find(texts[index])) is not None:
            seen[index] = found if name in _MASKED else shown(found)
    return seen


_MASKED = ("no_personal_data", "no_secrets")  # already


@lru_cache(maxsize=1)
def _finder(tokens: tuple[str, ...]) -> Callable[[str], str | None]:
    """A function that gives the first of the tokens in a text, or None."""
    pattern = re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))))

    def find(text: str) -> str | None:
        found = pattern.search(text)
        return found[0] if found else None

    return find


def _of_numbers(conversations: Sequence[Sequence[Message]], params: Params) -> dict[str, np.ndarray]:
    """Counts and shares."""
    knobs = params.validate_.checks
    kinds = characters.kinds_of_characters(["".join(m.content for m in messages) for messages in conversations])
    letters = kinds[:, [characters.HAN, characters.LATIN, characters.OTHER_LETTER]].sum(axis=1)
    own = sum(kinds[:, {"zh": characters.HAN, "en": characters.LATIN}[code]] for code in knobs.known_language.languages)
    visible = kinds.sum(axis=1) - kinds[:, characters.BLANK]
    return {
        "blank_texts": np.array([sum(_is_blank(m.content) for m in each) for each in conversations], np.float64),
        "repetition": compute_repetition([messages[-1].content for messages in conversations], MIN_REPETITIVE),
        "symbol_share": (kinds[:, characters.SYMBOL] / np.maximum(visible, 1)).round(4),
        "other_language_share": np.where(letters < FEW_LETTERS, 0, (letters - own) / np.maximum(letters, 1)).round(4),
    }


def null_mark(messages: Sequence[Message]) -> str | None:
    """The first text that is nothing but the mark of a missing value, such as ``nan``."""
    marks = [index for index, message in enumerate(messages) if is_null_marker(message.content)]
    for index in marks[:_MARKS]:
        before = "\n".join(message.content for message in (messages[0], messages[max(index - 1, 0)]) if index)
        if is_null_marker(messages[index].content, before):
            return messages[index].content
    return None


def role_fault(messages: Sequence[Message]) -> str | None:
    """What is wrong with the order of roles, if anything: user and assistant alternate, the assistant ends."""
    roles = [message.role for message in messages]
    turns = roles[1:] if roles[0] == "system" else roles
    if turns[-1:] != ["assistant"]:
        return "does not end with the assistant"
    if len(turns) % 2 or turns != ["user", "assistant"] * (len(turns) // 2):
        return "user and assistant do not alternate"
    return None


# Tokens --------------------------------------------------------------------------------------------


def _of_tokens(conversations: Sequence[Sequence[Message]], vocabulary: Vocabulary, params: Params) -> dict:
    """Lengths as ``encode`` will find them, and how many of the oldest turns had to go."""
    ordered = np.array([role_fault(messages) is None for messages in conversations], bool)
    prompts = [render_prompt(m[:-1]) if fine else "" for m, fine in zip(conversations, ordered, strict=True)]
    prompt_tokens = np.array(vocabulary.count(prompts), np.float64) + PROMPT_SPECIAL_TOKENS
    answer_tokens = (
        np.array(vocabulary.count([m[-1].content for m in conversations]), np.float64) + ANSWER_SPECIAL_TOKENS
    )
    turns_cut = np.zeros(len(conversations))
    if params.validate_.cut_history:
        limit = params.encode.max_prompt_tokens
        for index in np.flatnonzero(ordered & (prompt_tokens > limit)):
            turns_cut[index], prompt_tokens[index] = _fit(conversations[index], vocabulary, limit, prompt_tokens[index])
    prompt_tokens[~ordered] = np.nan
    return {"prompt_tokens": prompt_tokens, "answer_tokens": answer_tokens, "turns_cut": turns_cut}


def _fit(messages: Sequence[Message], vocabulary: Vocabulary, limit: int, tokens: float) -> tuple[int, float]:
    """How many of the oldest turns to leave out for the prompt to fit, and the tokens it has then.

    A prompt whose newest question alone is too long keeps all of its turns and its length.
    """

    def tokens_without(turns: int) -> int:
        (count,) = vocabulary.count([render_prompt(without_oldest(messages, turns)[:-1])])
        return count + PROMPT_SPECIAL_TOKENS

    # The more turns go, the fewer tokens are left. Counting for every turn would be quadratic in a row's length.
    turns = 1 + bisect_left(range(1, turns_before(messages)), True, key=lambda turns: tokens_without(turns) <= limit)
    if turns <= turns_before(messages) and (fitting := tokens_without(turns)) <= limit:
        return turns, fitting
    return 0, tokens


def turns_before(messages: Sequence[Message]) -> int:
    """Turns that came before the newest question."""
    return sum(message.role == "user" for message in messages) - 1


def without_oldest(messages: Sequence[Message], turns: int) -> tuple[Message, ...]:
    """The conversation without its oldest turns; a system message stays."""
    first = 1 if messages[0].role == "system" else 0
    return (*messages[:first], *messages[first + 2 * turns :])
