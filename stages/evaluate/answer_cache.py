"""Cache of answers on disk, so that an interrupted evaluation resumes without generating them again."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError
from tqdm import tqdm

from models.families import family_of_config
from models.generation import Answer, generate_answers
from models.sample import Message

log = logging.getLogger("tuneline.evaluate")


class _Line(BaseModel):
    """One line of the cache file."""

    model_config = ConfigDict(extra="forbid", strict=True)

    key: str
    text: str
    tokens: int
    seconds: float


class AnswerCache:
    """Answers by key in a JSON Lines file; incomplete and damaged lines are dropped when it is read.

    Args:
        path: ``<model>.<hash of everything that the answers depend on>``. Files of the same model with other hashes
            are deleted.
    """

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        for other in path.parent.glob(f"{path.name.split('.')[0]}.*"):
            if other != path:
                other.unlink()
        self.answers = self._read()
        if self.answers:
            log.info("evaluate: resuming with %d answers from the cache", len(self.answers))

    def _read(self) -> dict[str, Answer]:
        if not self.path.exists():
            return {}
        answers, valid_lines = {}, []
        for content in self.path.read_bytes().split(b"\n"):
            try:
                line = _Line.model_validate_json(content)
            except ValidationError:
                continue
            answers[line.key] = Answer(line.text, line.tokens, line.seconds)
            valid_lines.append(content + b"\n")
        self.path.write_bytes(b"".join(valid_lines))  # so that appended lines do not continue an incomplete one
        return answers

    def add(self, key: str, answer: Answer) -> None:
        self.answers[key] = answer
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, **asdict(answer)}, ensure_ascii=False) + "\n")

    def delete(self) -> None:
        self.path.unlink(missing_ok=True)


def generate_missing_answers(
    model,
    tokenizer,
    conversations: Mapping[str, Sequence[Message]],
    cache: AnswerCache,
    *,
    max_new_tokens: int,
    batch_size: int,
    seed: int | None = None,
) -> list[Answer]:
    """Return an answer per conversation, in their order; those that the cache lacks are generated and added.

    Args:
        conversations: by their key in the cache; each ends with a question.
        max_new_tokens: longest answer in tokens.
        batch_size: conversations per batch.
        seed: of sampling, or None for greedy decoding. A sampled answer depends on its whole batch, so use
            ``batch_size`` 1 for answers that do not depend on what the cache has.
    """
    missing = [key for key in conversations if key not in cache.answers]
    questions = [conversations[key] for key in missing]
    decoder = family_of_config(model.config).create_decoder()
    stream = generate_answers(model, tokenizer, questions, max_new_tokens, batch_size, decoder, seed)
    for index, answer in tqdm(stream, total=len(missing), desc="answer", unit="row", delay=2):
        cache.add(missing[index], answer)
    return [cache.answers[key] for key in conversations]
