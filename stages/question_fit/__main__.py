"""``python -m stages.question_fit``: see the package's docstring."""

import argparse
import base64
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from formats import params_schema, receipt
from formats.raw_row import NO_OFFSET, RawRow, format_location
from formats.raw_rows import find_files, read_rows
from models import base_model, model_loading
from models.command_line import entry_point
from models.sample import Sample
from models.storage import write_json, write_text
from stages.question_fit.answer_ranking import (
    MIN_SEPARATION,
    RankedAnswer,
    measure_separation,
    rank_answers,
    select_answers,
    worst_of_each_row,
)
from texts import in_all_languages
from texts.html_templates import load_template

log = logging.getLogger("tuneline.question_fit")
_EXCERPT = 300  # characters of a question or answer on the page


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Rank training answers by how little their question helps the base.")
    for name in ("raw", "checked", "base", "ranking", "rows", "page"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    return parser.parse_args()


def read_training_samples(folder: Path, base: base_model.Base) -> list[Sample]:
    """Read the checked training rows.

    Raises:
        DataBlocked: the receipt does not match, or names another tokenizer than the base's.
    """
    checked = receipt.read(folder)
    checked.require_tokenizer(base.tokenizer_sha256, base.name)
    return [Sample.from_json(row) for row in checked.rows("train")]


def rank(
    samples: Sequence[Sample], base: base_model.Base, params: params_schema.Params
) -> tuple[list[RankedAnswer], float | None]:
    """Return the ranked answers and the separation; none if the ranking is off, without loading the base."""
    answers, batch_size = select_answers(samples, params.question_fit.answers), params.question_fit.batch_size
    if not answers:
        return [], None
    model = model_loading.load_model(base, params.base.dtype).eval()
    tokenizer = model_loading.load_tokenizer(base)
    ranked = rank_answers(model, tokenizer, answers, batch_size)
    return ranked, measure_separation(model, tokenizer, ranked, batch_size)


# Output --------------------------------------------------------------------------------------------


def describe(entry: RankedAnswer) -> dict:
    """Return an answer's entry of the report."""
    sample = entry.answer.sample
    return {
        "id": sample.id,
        "place": format_location(sample.file, sample.line, sample.number or 0),
        "message": entry.answer.index + 1,
        "difficulty": round(entry.difficulty, 4),
        "loss": round(entry.loss, 4),
        "loss_alone": round(entry.loss_alone, 4),
    }


def find_raw_rows(raw: Path, samples: Sequence[Sample], encoding: str) -> dict[tuple, RawRow]:
    """Return the raw rows of samples by file, line and number; the file of a row may be within an archive."""
    wanted = {(sample.file, sample.line, sample.number or 0) for sample in samples}
    wanted_files = {file for file, _, _ in wanted}
    names = {
        name: path for name, path in find_files(raw).items() if any(file.startswith(name) for file in wanted_files)
    }
    return {
        key: row
        for name, path in names.items()
        for row in read_rows(path, name, encoding)
        if (key := (row.file, row.line, row.number)) in wanted
    }


def review_record(entry: RankedAnswer, raw_rows: Mapping[tuple, RawRow]) -> dict:
    """Return the row of an answer as the gate writes warned rows."""
    sample = entry.answer.sample
    row = raw_rows[sample.file, sample.line, sample.number or 0]
    reason = {"check": "question_fit", "severity": "warn", "seen": round(entry.difficulty, 4), "limit": None}
    location = {"file": row.file, "line": row.line}
    if row.offset != NO_OFFSET:
        location["offset"] = row.offset
    if row.number:
        location["number"] = row.number
    try:
        content = {"content": row.content.decode("utf-8")}
    except UnicodeDecodeError:  # an edited row
        content = {"content_base64": base64.b64encode(row.content).decode("ascii")}
    return {**location, **content, "failed": [reason]}


def render_page(worst: Sequence[RankedAnswer], count: int, separation: float | None) -> str:
    """Return the page with the answers that fit worst.

    Args:
        count: number of ranked answers.
        separation: see :func:`stages.question_fit.answer_ranking.measure_separation`.
    """
    entries = [
        describe(entry) | {"question": shorten(entry.answer.question), "answer": shorten(entry.answer.text)}
        for entry in worst
    ]
    return load_template(Path(__file__).with_name("question_fit_page.html")).render(
        in_all_languages=in_all_languages,
        entries=entries,
        count=count,
        separation=separation,
        is_reliable=is_reliable(separation),
    )


def is_reliable(separation: float | None) -> bool:
    """Return whether the base tells fitting answers from others well enough to bother a person with the ranking."""
    return separation is None or separation >= MIN_SEPARATION


def shorten(text: str) -> str:
    """Return the beginning of a text for the page."""
    return text if len(text) <= _EXCERPT else f"{text[:_EXCERPT]}…"


@entry_point
def main() -> None:
    arguments, params = parse_arguments(), params_schema.load()
    base = base_model.read_record(arguments.base)
    ranked, separation = rank(read_training_samples(arguments.checked, base), base, params)
    worst = worst_of_each_row(ranked, params.question_fit.shown)
    raw_rows = find_raw_rows(arguments.raw, [entry.answer.sample for entry in worst], params.ingest.encoding)
    not_helped = sum(entry.difficulty >= 1 for entry in ranked)
    report = {
        "answers": len(ranked),
        "not_helped": not_helped,
        "separation": None if separation is None else round(separation, 3),
        "worst": [describe(entry) for entry in worst],
    }
    write_json(arguments.ranking, report)
    shown = worst if is_reliable(separation) else []
    lines = [json.dumps(review_record(entry, raw_rows), ensure_ascii=False) for entry in shown]
    write_text(arguments.rows, "\n".join(lines) + "\n")  # a blank line without rows: DVC warns of an empty file
    write_text(arguments.page, render_page(worst, len(ranked), separation))
    if ranked and not shown:
        log.info("question_fit: this base cannot tell which answers fit their question; none is shown in a review")
        return
    log.info(
        "question_fit: of %d answers, the question helps the base with %d; the worst are in %s and in "
        "`python -m pipelines.review --check question_fit`",
        len(ranked),
        len(ranked) - not_helped,
        arguments.page,
    )


if __name__ == "__main__":
    main()
