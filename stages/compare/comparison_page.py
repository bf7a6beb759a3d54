"""The comparison as an HTML page that needs no network: tables, and charts with tooltips, in both languages."""

from collections.abc import Sequence
from pathlib import Path

from stages.compare import section_texts, verdicts
from stages.compare.charts import gain_charts, loss_charts
from stages.compare.evaluated_models import (
    EvaluatedModel,
    answers_to_first_wordings,
    answers_to_probes,
    question_text,
)
from stages.compare.metric_rows import QUALITY, RESOURCES, are_best, rows_with_values
from stages.compare.paired_differences import LossChange, largest_loss_changes, paired_differences
from stages.compare.text_quality import TextQualityResult, group_by_threshold
from stages.compare.verdicts import judge_models
from texts import LANGUAGES, in_all_languages, translatable
from texts.html_templates import load_template

_CONTENT_PLACEHOLDER = "{plot_divs}"  # DVC replaces it by its plots in the same frame
_TEMPLATE = "comparison_page.html"


def render_page(models: Sequence[EvaluatedModel], text_quality: Sequence[TextQualityResult], frame: str) -> str:
    """Return the comparison as an HTML page.

    Args:
        text_quality: results of all models.
        frame: HTML of the page around the content, with styles and Vega: ``reports/page.html``.
    """
    differences = list(paired_differences(models))
    content = load_template(Path(__file__).with_name(_TEMPLATE)).render(
        texts=section_texts,
        in_all_languages=in_all_languages,
        question_text=question_text,
        are_best=are_best,
        models=models,
        quality=rows_with_values(QUALITY, models),
        resources=rows_with_values(RESOURCES, models),
        differences=differences,
        verdicts=judge_models(models, differences),
        languages=LANGUAGES,
        verdict_note=verdicts.NOTE,
        text_quality=group_by_threshold(text_quality),
        loss_changes=_loss_changes(models),
        first_wordings=answers_to_first_wordings(models),
        all_wordings=answers_to_probes(models),
        gain_charts=gain_charts(differences),
        loss_charts=loss_charts(models),
    )
    return frame.replace("{refresh_tag}", "").replace(_CONTENT_PLACEHOLDER, content)


def _loss_changes(models: Sequence[EvaluatedModel]) -> list[tuple[str, EvaluatedModel, list[LossChange]]]:
    """Return title, adapter and rows of each table of the largest changes from the first model; no empty tables."""
    reference, *adapters = models
    tables = []
    for adapter in adapters:
        fell, rose = largest_loss_changes(reference, adapter)
        tables.append((translatable("{adapter}: rows whose loss fell most ({count})"), adapter, fell))
        tables.append((translatable("{adapter}: rows whose loss rose most ({count})"), adapter, rose))
    return [table for table in tables if table[-1]]
