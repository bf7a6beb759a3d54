"""The comparison's summary for the terminal: verdicts, metrics and the beginnings of the answers, in one language."""

import io
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from stages.compare import section_texts
from stages.compare.evaluated_models import EvaluatedModel, answers_to_first_wordings, question_text
from stages.compare.metric_rows import QUALITY, RESOURCES, rows_with_values
from stages.compare.paired_differences import paired_differences
from stages.compare.verdicts import judge_models
from texts import translate

_WIDTH = 110  # columns


def render_summary(models: Sequence[EvaluatedModel], answer_characters: int, language: str) -> str:
    """Return the summary as plain text.

    Args:
        answer_characters: maximum number of characters to show of a question or an answer.
        language: ``en`` or ``zh``.
    """
    console = Console(
        file=io.StringIO(), width=_WIDTH, force_terminal=False, markup=False, emoji=False, highlight=False
    )
    for verdict in judge_models(models, list(paired_differences(models))):
        console.print(verdict.sentence(language))
        for label, value in verdict.numbers(language):
            console.print(f"  {label}: {value}")
    console.print(_metric_table(models, language))
    if models[0].probes:
        console.print(_answer_table(models, answer_characters, language))
    return console.file.getvalue()


def _metric_table(models: Sequence[EvaluatedModel], language: str) -> Table:
    table = Table(title=translate(section_texts.SUMMARY_TITLE, language), title_justify="left")
    table.add_column("")
    for model in models:
        table.add_column(model.name, justify="right")
    for rows in (QUALITY, RESOURCES):
        for row in rows_with_values(rows, models):
            table.add_row(translate(row.label, language), *(row.format(model) for model in models))
        table.add_section()
    return table


def _answer_table(models: Sequence[EvaluatedModel], characters: int, language: str) -> Table:
    table = Table(
        title=translate(section_texts.PROBES_TITLE, language),
        title_justify="left",
        caption=translate(section_texts.PROBES_NOTE, language),
        caption_justify="left",
        show_lines=True,
    )
    table.add_column(translate(section_texts.QUESTION, language), ratio=2)
    for model in models:
        table.add_column(model.name, ratio=3)
    for answers in answers_to_first_wordings(models):
        cells = (
            _answer_cell(answer, met_count, characters)
            for answer, met_count in zip(answers.answers, answers.met_counts, strict=True)
        )
        table.add_row(_shorten(question_text(answers.probe), characters), *cells)
    return table


def _answer_cell(answer: dict, met_count: str, characters: int) -> str:
    mark = f"{'✓' if answer['met'] else '✗'} {met_count}".rstrip()
    return f"{mark} {_shorten(answer['answer'], characters)} ({answer['seconds']:.2f} s)"


def _shorten(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[: characters - 1] + "…"
