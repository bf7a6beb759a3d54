"""Answers that are kept as they come, so that an evaluation that was killed asks only what is left."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError
from tqdm import tqdm

from models.decoding import Decoder
from models.generation import Answer, generate_answers
from models.sample import Message

log = logging.getLogger("tuneline.evaluate")


class _Entry(BaseModel):
    """A line of kept answers."""

    model_config = ConfigDict(extra="forbid", strict=True)

    key: str
    text: str
    tokens: int
    seconds: float


class Kept:
    """A file of answers by key, one JSON a line; an answer whose line a kill cut off is asked for again.

    Args:
        path: named after everything that answers depend on. What lies beside it of the same model is removed.
    """

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        for other in path.parent.glob(f"{path.name.split('.')[0]}.*"):
            if other != path:
                other.unlink()
        self.answers = self._read()
        if self.answers:
            log.info("evaluate: going on behind %d answers that are there already", len(self.answers))

    def _read(self) -> dict[str, Answer]:
        """Answers by key, from the lines that hold one; a line that a kill or a disk has damaged is left out."""
        if not self.path.exists():
            return {}
        answers, kept = {}, []
        for line in self.path.read_bytes().split(b"\n"):
            try:
                entry = _Entry.model_validate_json(line)
            except ValidationError:
                continue
            answers[entry.key] = Answer(entry.text, entry.tokens, entry.seconds)
            kept.append(line + b"\n")
        self.path.write_bytes(b"".join(kept))
        return answers

    def add(self, key: str, answer: Answer) -> None:
        self.answers[key] = answer
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, **asdict(answer)}, ensure_ascii=False) + "\n")

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)


def ask(
    model,
    tokenizer,
    conversations: Mapping[str, Sequence[Message]],
    kept: Kept,
    *,
    max_new_tokens: int,
    batch_size: int,
    seed: int | None = None,
) -> list[Answer]:
    """Answers to conversations that end with a question, in their order: greedy, or sampled where there is a seed.

    Args:
        conversations: by a key of their own among all that ``kept`` has.
        seed: a sampled answer depends on its batch too, so ask one at a time.
    """
    open_keys = [key for key in conversations if key not in kept.answers]
    asked = [conversations[key] for key in open_keys]
    stream = generate_answers(model, tokenizer, asked, max_new_tokens, batch_size, Decoder(), seed)
    for index, answer in tqdm(stream, total=len(asked), desc="answer · 回答", unit="row", delay=2):
        kept.add(open_keys[index], answer)
    return [kept.answers[key] for key in conversations]
