"""Features of a row: the columns that Great Expectations validates.

A ``…_fault`` column holds None, or an excerpt of the first fault. The other columns hold numbers, NaN where a row has
none.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from formats.params_schema import Params
from measures.boilerplate import find_boilerplate
from measures.ngrams import compute_repetition
from models.prompt import find_learnt
from models.sample import Message, is_blank, is_null_marker
from models.thinking import has_thinking, unwrap_thinking
from stages.validate import characters, privacy
from stages.validate.artifacts_in_text import find_html, find_placeholder
from stages.validate.assistant_names import find_other_name
from stages.validate.chat_markup import find_role_mark, find_truncation
from stages.validate.escapes import find_escape
from stages.validate.learnt_answers import LearntAnswers
from stages.validate.mojibake import find_mojibake
from stages.validate.row_parsing import ParseFault

WORDS, SENTENCE = 40, 160  # characters of a text and of a message in reports, which must not become a copy of the data
_MAX_NULL_MARKERS = 20  # null markers of a conversation that are compared with the messages before them
_MAX_NO_INPUT = 60  # characters at the end of a message that are searched for the mark of a missing input
_MASKED_LENGTH = 4096  # characters that are searched for secrets before an excerpt; longer than any secret
MIN_REPETITIVE = 50  # characters; a shorter answer does not count as repetitive
# The input of a row without one: a template wrote it into the question, or the answer repeats it.
_NO_INPUT = re.compile(
    r"(?:\A|\n)(?:[\s`<>＜＞()（）\[\]]|&lt;|&gt;){0,8}"
    r"(?:(?:无|没有|无需|不需要)输[入出]|no ?(?:in|out)put(?: (?:needed|required|provided|given))?)"
    r"(?:[\s`<>＜＞()（）\[\]。.]|&lt;|&gt;){0,8}\Z",
    re.IGNORECASE,
)
# Code, tables and drawings, in which repetition is intended: fences, and lines of code, tags and frames.
_LAYOUT = re.compile(
    r"```.*?(?:```|\Z)|^[ \t]*+(?:[|+<│┌├└─═╔║╚][^\n]*|[\w.]{1,40} ?[+*-]?= ?[^\n]*"
    r"|(?:import|from|def|class|return|public|private) [^\n]*|(?=[^\n]*[A-Za-z])[^\n\u4e00-\u9fff]*[;{}\])][ \t]*"
    r"|[{}()\[\];]{1,4}[ \t]*)$",
    re.DOTALL | re.MULTILINE,
)
MIN_LETTERS = 10  # letters from which a language is recognized; fewer may be a formula or a name


# Features ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Features:
    """Features of rows.

    Attributes:
        table: arrays of float64 or object by column, of shape (rows,). A feature is None or NaN where a row cannot have
            it, which passes every check.
        turn_tokens: tokens of the answer of each turn with ``<eop>``, 0 if it is not learnt; the turns of a row are
            consecutive: int32 of shape (turns,).
    """

    table: dict[str, np.ndarray]
    turn_tokens: np.ndarray


def compute_features(parsed: Sequence[Sequence[Message] | ParseFault], vocabulary, params: Params) -> Features:
    """Return the features of rows.

    A conversation with several learnt answers has the first fault and the maximum of all of them. Excerpts of texts
    have personal data and secrets masked.

    Args:
        parsed: messages or parse fault of every row.
        vocabulary: see :meth:`models.families.family.Family.load_vocabulary`.
    """
    count = len(parsed)
    table = {f"{check}_fault": np.full(count, None, object) for check in ("parseable", "known_format")}
    for index, fault in enumerate(parsed):
        if isinstance(fault, ParseFault):
            table[f"{fault.check}_fault"][index] = excerpt(fault.message, SENTENCE)
    indices = [index for index, messages in enumerate(parsed) if not isinstance(messages, ParseFault)]
    conversations = [parsed[index] for index in indices]
    learnt = LearntAnswers.collect(conversations, params.train.learn)
    token_counts, turn_tokens = _count_tokens(conversations, learnt, vocabulary, params)
    if any(map(has_thinking, conversations)):  # its tags are part of an answer, but no role marks
        conversations = [unwrap_thinking(messages) for messages in conversations]
        learnt = LearntAnswers.collect(conversations, params.train.learn)
    for features in (
        find_text_faults(conversations, vocabulary, params, learnt),
        _measure_texts(conversations, learnt, params),
        token_counts,
    ):
        for name, values in features.items():
            table[name] = np.full(count, None if values.dtype == object else np.nan, values.dtype)
            table[name][indices] = values
    return Features(table, turn_tokens)


def excerpt(text: str, max_length: int = WORDS) -> str:
    """Return the beginning of a text for reports: private data masked, non-printable characters as ``\\u001b``."""
    masked = privacy.mask(text[:_MASKED_LENGTH])[: max_length + 1]
    printable = "".join(character if character.isprintable() else f"\\u{ord(character):04x}" for character in masked)
    return printable if len(printable) <= max_length else f"{printable[:max_length]}…"


def find_text_faults(
    conversations: Sequence[Sequence[Message]],
    vocabulary,
    params: Params,
    learnt: LearntAnswers | None = None,
) -> dict[str, np.ndarray]:
    """Return the ``…_fault`` columns of the text checks: object arrays of shape (conversations,).

    Args:
        learnt: the learnt answers of the conversations; None to collect them.
    """
    learnt = learnt or LearntAnswers.collect(conversations, params.train.learn)
    prompts, answers, questions = learnt.prompts, learnt.answers, learnt.questions
    texts = ["\n".join([message.content for message in messages]) for messages in conversations]
    flags = characters.detect_flags(texts)
    all_rows = np.ones(len(texts), bool)
    has_question_marks = np.array(["???" in text for text in texts], bool)
    has_escapes = np.array(["\\" in text or "_x" in text for text in texts], bool)
    assistant = params.validate_.checks.right_name.assistant

    def has(*names: str) -> np.ndarray:
        return flags & sum(characters.FLAGS[name] for name in names) > 0

    def find_name(answer: str, prompt: str, question: str) -> str | None:
        return find_other_name(assistant, answer, prompt, question)

    # Name of the check: function, its arguments, and the conversations in which it can find something.
    searches = {
        "roles_alternate": (find_role_fault, (conversations,), all_rows),
        "clean_characters": (characters.find_bad_character, (texts,), has("bad")),
        "no_mojibake": (find_mojibake, (texts,), has("mojibake") | has_question_marks),
        "no_control_tokens": (_token_finder(vocabulary.control_tokens()), (texts,), has("opener")),
        "no_personal_data": (privacy.find_personal_data, (texts,), has("number", "at")),
        "no_secrets": (privacy.find_secret, (texts,), has("word")),
        "no_null_marks": (find_null_marker, (conversations,), all_rows),
        "no_escapes": (find_escape, (conversations,), has_escapes),
    }
    answer_searches = {
        "no_placeholders": (find_placeholder, (answers, prompts), has("opener")),
        "no_html": (find_html, (answers, prompts), has("opener")),
        "no_role_marks": (find_role_mark, (answers, prompts), all_rows),
        "no_boilerplate": (find_boilerplate, (answers, prompts, questions), all_rows),
        "right_name": (find_name, (answers, prompts, questions), all_rows),
        "answer_whole": (find_truncation, (answers,), all_rows),
    }
    faults = {name: _search(name, *search) for name, search in searches.items()}
    for name, (find, arguments, where) in answer_searches.items():
        faults[name] = learnt.first_faults(_search(name, find, arguments, where[learnt.owners]))
    return {f"{name}_fault": values for name, values in faults.items()}


def _search(
    check: str, find: Callable[..., str | None], arguments: tuple[Sequence, ...], where: np.ndarray
) -> np.ndarray:
    """Return the first fault of each row in which the check can find one: object array of shape (rows,).

    Args:
        find: returns the fault of one row, None if it has none.
        arguments: columns of the arguments of ``find``.
        where: the rows to search, bool of shape (rows,).
    """
    faults = np.full(len(where), None, object)
    for index in np.flatnonzero(where):
        if (fault := find(*(column[index] for column in arguments))) is not None:
            faults[index] = fault if check in _MASKED_CHECKS else excerpt(fault)
    return faults


_MASKED_CHECKS = ("no_personal_data", "no_secrets")  # their faults are masked already


@lru_cache(maxsize=1)
def _token_finder(tokens: tuple[str, ...]) -> Callable[[str], str | None]:
    """Return a function that returns the first of these tokens in a text, or None."""
    pattern = re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))))

    def find_token(text: str) -> str | None:
        match = pattern.search(text)
        return match[0] if match else None

    return find_token


def find_null_marker(messages: Sequence[Message]) -> str | None:
    """Return the first message that is only the marker of a missing value, such as ``nan``."""
    for message in messages:
        if message.role != "system" and (no_input := _NO_INPUT.search(message.content[-_MAX_NO_INPUT:])):
            return no_input[0].strip()
    indices = [index for index, message in enumerate(messages) if is_null_marker(message.content)]
    for index in indices[:_MAX_NULL_MARKERS]:
        context = "\n".join(message.content for message in (messages[0], messages[max(index - 1, 0)]) if index)
        if is_null_marker(messages[index].content, context):
            return messages[index].content
    return None


def find_role_fault(messages: Sequence[Message]) -> str | None:
    """Return what is wrong with the roles: user and assistant must alternate, and the assistant must be last.

    A plain text stands alone. At least one answer must be learnt.
    """
    roles = [message.role for message in messages]
    turns = roles[1:] if roles[0] == "system" else roles
    if "text" in roles:
        if len(roles) > 1:
            return "a text beside other messages"
    elif turns[-1:] != ["assistant"]:
        return "does not end with the assistant"
    elif len(turns) % 2 or turns != ["user", "assistant"] * (len(turns) // 2):
        return "user and assistant do not alternate"
    return None if find_learnt(messages) else "no answer is learnt"


def _measure_texts(
    conversations: Sequence[Sequence[Message]], learnt: LearntAnswers, params: Params
) -> dict[str, np.ndarray]:
    """Return the numeric columns of the text checks: counts and shares, float64 of shape (conversations,)."""
    kinds = characters.count_character_kinds(["".join(m.content for m in messages) for messages in conversations])
    letters = kinds[:, [characters.HAN, characters.LATIN, characters.OTHER_LETTER]].sum(axis=1)
    kind_of_language = {"zh": characters.HAN, "en": characters.LATIN}
    languages = params.validate_.checks.known_language.languages
    known = sum(kinds[:, kind_of_language[language]] for language in languages)
    visible = kinds.sum(axis=1) - kinds[:, characters.BLANK]
    return {
        "blank_texts": np.array([sum(is_blank(m.content) for m in messages) for messages in conversations], np.float64),
        "repetition": learnt.maxima(measure_repetition(learnt.answers, params)),
        "symbol_share": (kinds[:, characters.SYMBOL] / np.maximum(visible, 1)).round(4),
        "other_language_share": np.where(letters < MIN_LETTERS, 0, (letters - known) / np.maximum(letters, 1)).round(4),
    }


def measure_repetition(answers: Sequence[str], params: Params) -> np.ndarray:
    """Return the repetition of every answer, of its prose alone if that of the whole is over the limit."""
    repetition = compute_repetition(answers, MIN_REPETITIVE)
    repetitive = np.flatnonzero(repetition > params.validate_.checks.not_repetitive.limit)
    prose = [re.sub(r"\n\s+", "\n", _LAYOUT.sub("", answers[index])).strip() for index in repetitive]
    repetition[repetitive] = compute_repetition(prose, MIN_REPETITIVE)
    return repetition


# Tokens --------------------------------------------------------------------------------------------


def _count_tokens(
    conversations: Sequence[Sequence[Message]], learnt: LearntAnswers, vocabulary, params: Params
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Count the tokens that stage encode will get, and how many of the oldest turns are cut to fit the budget.

    Returns:
        The columns: tokens of the longest prompt, which is that of the last learnt answer, and of the longest learnt
        answer, and the turns cut. And the tokens of each turn, see :class:`Features`; 0 for turns that are cut.
    """
    is_ordered = np.array([find_role_fault(messages) is None for messages in conversations], bool)
    # Empty prompts where the roles are wrong.
    last = [index if ordered else 0 for index, ordered in zip(learnt.last, is_ordered, strict=True)]
    prompts = [messages[:index] for messages, index in zip(conversations, last, strict=True)]
    prompt_tokens = np.array(vocabulary.count_prompts(prompts), np.float64)
    answer_tokens = np.array(vocabulary.count_answers(learnt.answers), np.float64)
    turn_tokens, is_turn = np.zeros(learnt.turn_starts[-1], np.int32), learnt.turns >= 0
    turn_tokens[learnt.turns[is_turn]] = answer_tokens[is_turn]
    turns_cut = np.zeros(len(conversations))
    if params.validate_.cut_history:
        limit = params.encode.max_prompt_tokens
        for index in np.flatnonzero(is_ordered & (prompt_tokens > limit)):
            turns_cut[index], prompt_tokens[index] = _cut_turns(
                conversations[index][: last[index] + 1], vocabulary, limit, prompt_tokens[index]
            )
            first = learnt.turn_starts[index]
            turn_tokens[first : first + int(turns_cut[index])] = 0
        answer_tokens[is_turn] = turn_tokens[learnt.turns[is_turn]]
    prompt_tokens[~is_ordered] = np.nan
    columns = {
        "prompt_tokens": prompt_tokens,
        "answer_tokens": learnt.maxima(answer_tokens),
        "turns_cut": turns_cut,
    }
    return columns, turn_tokens


def _cut_turns(messages: Sequence[Message], vocabulary, limit: int, tokens: float) -> tuple[int, float]:
    """Return how many of the oldest turns to drop so that the prompt fits the limit, and its tokens then.

    Nothing is dropped if the newest question alone exceeds the limit.

    Args:
        tokens: of the whole prompt.
    """

    def count_without(turns: int) -> int:
        (count,) = vocabulary.count_prompts([drop_oldest_turns(messages, turns)[:-1]])
        return count

    # Binary search: a linear search would be quadratic in the length of a row.
    earlier = count_earlier_turns(messages)
    turns = 1 + bisect_left(range(1, earlier), True, key=lambda turns: count_without(turns) <= limit)
    if turns <= earlier and (remaining := count_without(turns)) <= limit:
        return turns, remaining
    return 0, tokens


def count_earlier_turns(messages: Sequence[Message]) -> int:
    """Return the number of turns before the newest question."""
    return sum(message.role == "user" for message in messages) - 1


def drop_oldest_turns(messages: Sequence[Message], turns: int) -> tuple[Message, ...]:
    """Return the conversation without its oldest turns; a system message is kept."""
    first = 1 if messages[0].role == "system" else 0
    return (*messages[:first], *messages[first + 2 * turns :])
