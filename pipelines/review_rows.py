"""The rows of a review: quarantined ones, and accepted ones that a check or the ranking of question fit warns of."""

import json
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from models.errors import UserError
from models.storage import read_json, write_jsonl
from pipelines.processes import run_module
from pipelines.stage_paths import TOKENIZER, path_options

QUARANTINE, WARNED = Path("data/quarantine/rows.jsonl"), Path("data/warned.jsonl")
QUESTION_FIT = Path("data/question_fit.jsonl")
# A decision is about content, so dropping a copy would also drop the row that it is a copy of.
HIDDEN_CHECKS = frozenset({"unique"})


@dataclass(frozen=True)
class ReviewRow:
    """A row as a review shows it; see ``stages.validate.rows_for_review``.

    Attributes:
        place: file and line.
        content_sha256: identifies the row in decisions.
        failed: checks that the row fails, as ``{check, severity, seen, limit}``.
        messages: ``{role, content}`` in order; empty if the row has no conversation.
        text: the row itself if it has no conversation.
        unread: keys of the row that nothing reads.
        is_masked: whether personal data or secrets are masked.
        content: JSON of the row; None if it is masked.
    """

    place: str
    content_sha256: str
    failed: Sequence[Mapping]
    messages: Sequence[Mapping]
    text: str
    unread: Sequence[str]
    is_masked: bool
    content: str | None

    @property
    def checks(self) -> list[str]:
        """The names of the checks that the row fails."""
        return [reason["check"] for reason in self.failed]


def load_rows(unmasked: bool) -> list[ReviewRow]:
    """Return all rows of a review, without copies of other rows.

    Args:
        unmasked: whether personal data and secrets are shown.

    Raises:
        UserError: stage validate has not run, or a file is damaged.
    """
    for path in (QUARANTINE, WARNED):
        if not path.is_file():
            raise UserError(f"{path} does not exist; run `dvc repro validate`, which writes the rows to review.")
    files = [path for path in (QUARANTINE, WARNED, QUESTION_FIT) if path.is_file()]
    rows: dict[str, ReviewRow] = {}
    for row in _describe(files, *(["--unmasked"] if unmasked else [])):
        if HIDDEN_CHECKS.isdisjoint(row.checks):
            earlier = rows.get(row.content_sha256)
            failed = [reason for reason in row.failed if earlier is None or reason not in earlier.failed]
            rows[row.content_sha256] = row if earlier is None else replace(earlier, failed=[*earlier.failed, *failed])
    return list(rows.values())


def check_edited(edited: Sequence[dict], unmasked: bool = False) -> list[ReviewRow]:
    """Return edited rows with the row checks that they fail.

    Raises:
        UserError: the tokenizer that counts their tokens is missing, or params.yaml is wrong.
    """
    if not TOKENIZER.is_dir():
        raise UserError(f"There is no tokenizer in {TOKENIZER}; run `dvc repro tokenizer`.")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "edited.jsonl")
        write_jsonl(path, ({"content": json.dumps(row, ensure_ascii=False)} for row in edited))
        return _describe([path], "--check", str(TOKENIZER), *(["--unmasked"] if unmasked else []))


def _describe(files: Iterable[Path], *options: str) -> list[ReviewRow]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "rows.json")
        arguments = ["--rows", *map(str, files), *path_options({"out": out}), *options]
        if run_module("stages.validate.rows_for_review", *arguments) != 0:
            raise UserError("The rows cannot be reviewed; the reason is in the output above.")
        return [ReviewRow(**row) for row in read_json(out)]


def select_rows(rows: Sequence[ReviewRow], checks: Collection[str], decided: Collection[str] = ()) -> list[ReviewRow]:
    """Return the rows that fail one of the checks, or any if there are none, without decided ones.

    Raises:
        UserError: no row fails a check of that name.
    """
    counts: dict[str, int] = {}
    for check in (check for row in rows for check in row.checks):
        counts[check] = counts.get(check, 0) + 1
    if unknown := sorted(set(checks) - counts.keys()):
        listed = ", ".join(f"{check} ({count})" for check, count in sorted(counts.items())) or "none"
        raise UserError(f"--check: no row to review fails {unknown[0]!r}. Checks with rows: {listed}.")
    return [
        row
        for row in rows
        if row.content_sha256 not in decided and (not checks or not set(checks).isdisjoint(row.checks))
    ]


def split_at_faults(text: str, failed: Sequence[Mapping]) -> list[tuple[str, bool]]:
    """Return a text in pieces, each with whether it is an excerpt that a check reports."""
    excerpts = []
    for reason in failed:
        if isinstance(seen := reason["seen"], str):
            seen = seen.removesuffix("…")
            # The excerpt of personal data is preceded by their kind.
            excerpts += [seen, seen.rpartition(" ")[2]] if seen.endswith("***") else [seen]
    excerpt = next((excerpt for excerpt in excerpts if excerpt.strip() and excerpt in text), None)
    if excerpt is None:
        return [(text, False)]
    pieces = []
    for index, piece in enumerate(text.split(excerpt)):
        pieces += [(excerpt, True)] if index else []
        pieces += [(piece, False)] if piece else []
    return pieces
