"""The comparison as Markdown, for a pull request, in one language."""

import re
from collections.abc import Sequence

from stages.compare import section_texts, verdicts
from stages.compare.evaluated_models import EvaluatedModel, answers_to_first_wordings, question_text
from stages.compare.metric_rows import QUALITY, RESOURCES, MetricRow, are_best, rows_with_values
from stages.compare.paired_differences import paired_differences
from stages.compare.text_quality import TextQualityResult, group_by_threshold
from texts import translate


def render_markdown(models: Sequence[EvaluatedModel], text_quality: Sequence[TextQualityResult], language: str) -> str:
    """Return the comparison as Markdown.

    Args:
        text_quality: results of all models.
        language: ``en`` or ``zh``.
    """

    def text(message: str, **values: object) -> str:
        return translate(message, language, **values)

    names = ", ".join(_escape(model.name) for model in models)
    return "\n\n".join(
        [
            f"# {text(section_texts.TITLE)}: {names}",
            _verdict_list(models, language),
            text(verdicts.NOTE),
            *_lead(models, language),
            f"## {text(section_texts.QUALITY_TITLE)}",
            _metric_table(QUALITY, models, language),
            f"## {text(section_texts.DIFFERENCES_TITLE)}",
            text(section_texts.DIFFERENCES_NOTE, **section_texts.differences_values(models)),
            _difference_table(models, language),
            f"## {text(section_texts.TEXT_QUALITY_TITLE)}",
            text(section_texts.TEXT_QUALITY_NOTE),
            _text_quality_table(models, text_quality, language),
            *_probe_section(models, language),
            f"## {text(section_texts.RESOURCES_TITLE)}",
            _metric_table(RESOURCES, models, language),
            f"{text(section_texts.LOSS_CURVES_NOTE)}\n",
        ]
    )


def _escape(text: str) -> str:
    """Return a text such that a Markdown table shows it literally."""
    return re.sub(r"([\\`*_\[\]|!])", r"\\\1", text).replace("<", "&lt;").replace("\n", "<br>")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _names(models: Sequence[EvaluatedModel]) -> list[str]:
    return [_escape(model.name) for model in models]


def _metric_table(rows: Sequence[MetricRow], models: Sequence[EvaluatedModel], language: str) -> str:
    lines = []
    for row in rows_with_values(rows, models):
        values = [row.format(model).replace("|", "\\|") for model in models]
        cells = [f"**{value}**" if best else value for value, best in zip(values, are_best(row, models), strict=True)]
        lines.append([translate(row.label, language), *cells])
    return _table(["", *_names(models)], lines)


def _difference_table(models: Sequence[EvaluatedModel], language: str) -> str:
    lines = []
    for difference in paired_differences(models):
        gain = f"**{difference.gain_text}**" if difference.is_significant else difference.gain_text
        label = translate(difference.metric.label, language)
        lines.append([_escape(difference.pair), label, gain, difference.interval_text, difference.counts_text])
    return _table([translate(title, language) for title in section_texts.DIFFERENCES_HEADER], lines)


def _verdict_list(models: Sequence[EvaluatedModel], language: str) -> str:
    """Return a list of the verdicts; below each sentence the numbers behind it."""
    lines = []
    for verdict in verdicts.judge_models(models, list(paired_differences(models))):
        numbers = "; ".join(f"{label}: {value}" for label, value in verdict.numbers(language))
        lines.append(f"- **{_escape(verdict.sentence(language))}**  \n  {numbers}")
    return "\n".join(lines)


def _text_quality_table(
    models: Sequence[EvaluatedModel], text_quality: Sequence[TextQualityResult], language: str
) -> str:
    lines = [
        [
            translate(results[0].threshold.label, language),
            results[0].bounds_text,
            *(f"{_mark(result.is_passed)} {result.value:.2f}" for result in results),
        ]
        for results in group_by_threshold(text_quality)
    ]
    return _table(["", translate(section_texts.LIMITS, language), *_names(models)], lines)


def _lead(models: Sequence[EvaluatedModel], language: str) -> list[str]:
    """Return the paragraphs on what the models were evaluated on."""
    messages = [section_texts.lead(models), section_texts.general_note(models)]
    return [
        translate(message, language, **{name: _escape(str(value)) for name, value in values.items()})
        for message, values in filter(None, messages)
    ]


def _probe_section(models: Sequence[EvaluatedModel], language: str) -> list[str]:
    """Return title, notes and table of the probes; nothing without probes."""
    if not models[0].probes:
        return []
    title = f"## {translate(section_texts.PROBES_TITLE, language)}"
    notes = [translate(message, language) for message in section_texts.probe_notes(models)]
    return [title, *notes, _probe_table(models, language)]


def _probe_table(models: Sequence[EvaluatedModel], language: str) -> str:
    lines = []
    for answers in answers_to_first_wordings(models):
        cells = [
            f"{_mark(answer['met'])} {_escape(answer['answer'])} <sub>{met_count} {answer['seconds']:.2f} s</sub>"
            for answer, met_count in zip(answers.answers, answers.met_counts, strict=True)
        ]
        question, label = _escape(question_text(answers.probe)), section_texts.seen_label(answers.probe)
        question += f" <sub>{translate(label, language)}</sub>" if label else ""
        lines.append([question, _escape(answers.probe["reference"]), *cells])
    header = [translate(title, language) for title in (section_texts.QUESTION, section_texts.REFERENCE)]
    return _table([*header, *_names(models)], lines)


def _mark(is_passed: bool) -> str:
    return "✓" if is_passed else "✗"
