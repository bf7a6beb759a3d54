"""Decisions of a person on quarantined and warned rows: ``data/decisions.jsonl``, one line for each raw row.

Written by ``pipelines.review``, applied by stage validate. A row is identified by the SHA-256 of its own bytes, so that
a decision still applies when the row moves to another line or file, and no longer applies when its content changes.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from models.errors import UserError
from models.storage import read_numbered_jsonl, write_text

DECISIONS = Path("data/decisions.jsonl")
_MAX_REASON = 1000  # characters
Text = Annotated[str, Field(min_length=1, max_length=_MAX_REASON, pattern=r"\S")]


class ReviewDecision(BaseModel):
    """A decision on one row.

    Attributes:
        content_sha256: hash of the bytes of the raw row.
        decision: ``keep`` overrides the checks of severity ``warn`` and ``quarantine``, except required ones; ``drop``
            quarantines the row; ``edit`` replaces its content before all checks.
        reason: of the person who decided.
        checks: names of the checks that the row failed when the decision was made.
        edited: the new row, of ``edit``, or of ``keep`` if the new row is kept although it fails checks.
        date: local time of the decision, ISO 8601.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    content_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    decision: Literal["keep", "drop", "edit"]
    reason: Text
    checks: list[str] = Field(default_factory=list)
    edited: dict | None = None
    date: Annotated[str, Field(max_length=40)] = ""

    @model_validator(mode="after")
    def _check_edited(self):
        if (self.decision == "edit" and self.edited is None) or (self.decision == "drop" and self.edited is not None):
            raise ValueError("a decision 'edit' needs the key 'edited', a decision 'drop' must not have it")
        return self

    @property
    def content(self) -> bytes | None:
        """The bytes of the new row; None if the row is not edited."""
        return None if self.edited is None else json.dumps(self.edited, ensure_ascii=False).encode("utf-8", "replace")


def hash_content(content: bytes) -> str:
    """Return the hash by which a decision identifies a raw row."""
    return hashlib.sha256(content).hexdigest()


def read_decisions(path: Path) -> dict[str, ReviewDecision]:
    """Return the decisions of a file by the hash of their row, sorted by it.

    Raises:
        UserError: the file is missing or damaged, or decides on one row twice; the message names the line.
    """
    decisions, lines = {}, {}
    for number, record in read_numbered_jsonl(path):
        decision = _parse(record, f"{path}, line {number}")
        if (first := lines.setdefault(decision.content_sha256, number)) != number:
            raise UserError(f"{path}: lines {first} and {number} decide on the same row; delete one of them.")
        decisions[decision.content_sha256] = decision
    return dict(sorted(decisions.items()))


def _parse(record: object, where: str) -> ReviewDecision:
    try:
        return ReviewDecision.model_validate(record)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        reason = first["msg"].removeprefix("Value error, ")
        raise UserError(
            f"{where}, is not a decision of a review ({key + ': ' if key else ''}{reason}); correct or delete the line."
        ) from None


def write_decisions(path: Path, decisions: Iterable[ReviewDecision]) -> None:
    """Write decisions, sorted by the hash of their row, so that the order of a review leaves no trace."""
    ordered = sorted(decisions, key=lambda decision: decision.content_sha256)
    lines = [json.dumps(decision.model_dump(exclude_none=True), ensure_ascii=False) for decision in ordered]
    write_text(path, "\n".join(lines) + "\n")  # a blank line without decisions: DVC warns of an empty dependency


def merge_decisions(
    present: Mapping[str, ReviewDecision], added: Mapping[str, ReviewDecision]
) -> dict[str, ReviewDecision]:
    """Return all decisions; of two on the same row, the one with the later date, and the added one of equal dates."""
    newer = {
        row: decision for row, decision in added.items() if row not in present or decision.date >= present[row].date
    }
    return {**present, **newer}
