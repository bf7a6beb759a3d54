"""Print the tokens of one row with their labels, to inspect what a model is trained on."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

from models.errors import UserError
from models.families.family import EncodedRow
from models.prompt import IGNORED_LABEL, find_learnt, label_parts
from models.row_layouts import UnknownFormat, read_messages
from models.sample import Message

TRAINED_STYLE, IGNORED_STYLE = "green", "dim red"


def read_conversation(path: Path, line: str) -> tuple[Message, ...]:
    """Read the conversation on one line of a JSON Lines file.

    Args:
        path: of a raw or checked file.
        line: number of the line, from 1.

    Raises:
        UserError: the file or the line does not exist, or the line is neither a conversation that ends with an answer
            nor a text, or no answer of it is learnt.
    """
    if not (line.isascii() and line.isdigit() and int(line)):
        raise UserError(f"--show: {line!r} is not a line number; the first line is 1.")
    location = f"{path}, line {line}"
    content = _read_line(path, int(line))
    try:
        messages = read_messages(json.loads(content.decode("utf-8-sig")))
    except UnicodeDecodeError as error:
        raise UserError(f"{location}: not UTF-8 at byte {error.start + 1}; convert the file to UTF-8.") from None
    except json.JSONDecodeError as error:
        raise UserError(
            f"{location}: not a JSON object ({error.msg} at character {error.pos + 1}); --show needs JSON Lines, one "
            "row per line."
        ) from None
    except UnknownFormat as error:
        raise UserError(f"{location}: {error}.") from None
    roles = [message.role for message in messages]
    if roles[-2:] != ["user", "assistant"] and roles != ["text"]:
        raise UserError(f"{location}: the conversation must end with a question and an answer.")
    if not find_learnt(messages):
        raise UserError(f"{location}: the loss flags of the row exclude all answers, so that nothing is learnt.")
    return messages


def _read_line(path: Path, number: int) -> bytes:
    count = 0
    with path.open("rb") as file:
        for count, content in enumerate(file, start=1):
            if count == number:
                return content
    raise UserError(f"{path} has no line {number}; its last line is {count}.")


def label_tokens(tokenizer, row: EncodedRow) -> list[tuple[str, bool]]:
    """Return the tokens of a training row, and which are learnt."""
    labelled = label_parts(row.parts)
    tokens = tokenizer.convert_ids_to_tokens(labelled["input_ids"])
    return [(token, label != IGNORED_LABEL) for token, label in zip(tokens, labelled["labels"], strict=True)]


def print_tokens(tokens: Sequence[tuple[str, bool]]) -> None:
    """Print tokens separated by ``|``: trained ones in green, ignored ones in dim red, with their number.

    Without a terminal, and with NO_COLOR, the text has no colours.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    for is_trained, run in itertools.groupby(tokens, key=lambda token: token[1]):
        texts = [token if token.isprintable() else repr(token) for token, _ in run]
        name, style = ("trained", TRAINED_STYLE) if is_trained else ("ignored", IGNORED_STYLE)
        console.print(f"{name} ({len(texts)} tokens):" if len(texts) > 1 else f"{name} (1 token):")
        console.print(Text("|".join(texts), style=style))
