"""The Data Docs: an HTML page with every check and its findings, in both languages, readable without a network."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from formats.foreign_files import printable_name
from stages.validate.check_report import describe_learnt
from stages.validate.checks import Check
from stages.validate.dataset_checks import Outcome
from stages.validate.expectations import Finding
from stages.validate.row_table import RowTable
from texts import LANGUAGES, in_all_languages
from texts.html_templates import load_template

_MAX_EXAMPLES = 20  # rows listed for each check


def render_data_docs(checks: Sequence[Check], outcome: Outcome, table: RowTable, templates: Path) -> str:
    """Return the page.

    Args:
        templates: folder with the template ``page.html`` and its style sheet ``bootstrap.css``.
    """
    checked = zip(checks, outcome.findings, strict=True)
    sections = [
        {
            "title": in_all_languages(group),
            "checks": [_check_entry(check, finding, outcome, table) for check, finding in pairs],
        }
        for group, pairs in groupby(checked, lambda pair: pair[0].group)
    ]
    return load_template(templates / "page.html").render(
        sections=sections,
        style=(templates / "bootstrap.css").read_text(encoding="utf-8"),
        block_reasons=outcome.block_reasons,
        notices=outcome.notices,
        texts=_page_texts(outcome.row_counts),
    )


def _check_entry(check: Check, finding: Finding, outcome: Outcome, table: RowTable) -> dict:
    """Return a row of the page: the check, whether it passed, the value or number of failed rows, and examples."""
    description = {language: check.describe(language) for language in LANGUAGES}
    if check.scope == "data":
        value = next(entry["seen"] for entry in outcome.data_findings if entry["check"] == check.name)
        observed = {language: "–" if value is None else str(value) for language in LANGUAGES}
        return {"description": description, "passed": not finding.rows, "observed": observed, "examples": []}
    share = len(finding.rows) / outcome.row_counts["rows_in"]
    return {
        "description": description,
        "passed": not finding.rows,
        "observed": in_all_languages("{rows:,} rows ({share:.1%})", rows=len(finding.rows), share=share),
        "examples": [
            f"{printable_name(table.locate(row))}: {value}"
            for row, value in zip(finding.rows[:_MAX_EXAMPLES], finding.values, strict=False)
        ],
    }


def _page_texts(row_counts: dict) -> dict[str, dict[str, str]]:
    """Return the texts of the page by name and language."""
    return {
        "title": in_all_languages("Data checks"),
        "blocked": in_all_languages("The data are blocked."),
        "passed": in_all_languages("The data passed."),
        "status": in_all_languages("Status"),
        "check": in_all_languages("Check and examples"),
        "observed": in_all_languages("Observed"),
        "learnt": describe_learnt(row_counts),
        "row_counts": in_all_languages(
            "{rows:,} rows = {train:,} training + {evaluation:,} evaluation + {test:,} test + "
            "{quarantined:,} quarantined",
            rows=row_counts["rows_in"],
            train=row_counts["train"],
            evaluation=row_counts["eval"],
            test=row_counts["test"],
            quarantined=row_counts["quarantined"],
        ),
    }
