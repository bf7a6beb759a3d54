"""The Data Docs: one page of Great Expectations' tables with every check and what it found, which needs no network."""

from collections.abc import Callable, Sequence
from html import escape  # Great Expectations puts the values of tables into its pages as they are
from itertools import groupby
from pathlib import Path

from formats.foreign_files import ascii_if_odd
from stages.validate.checks import Check
from stages.validate.dataset_checks import Outcome
from stages.validate.expectations import Finding, expectation_of

_SHOWN = 20  # rows that the page lists for each check


def data_docs(checks: Sequence[Check], outcome: Outcome, place: Callable[[int], str], templates: Path) -> str:
    """The page, in HTML.

    Args:
        place: file and line of a row.
        templates: folder with ``page.html``, around Great Expectations' own templates, and its style sheet.
    """
    from great_expectations.render import RenderedDocumentContent
    from great_expectations.render.view import DefaultJinjaPageView

    checked = zip(checks, outcome.findings, strict=True)
    sections = [
        _section(group, list(items), outcome, place) for group, items in groupby(checked, lambda one: one[0].group)
    ]
    document = RenderedDocumentContent(
        sections=sections, page_title="Data checks · 数据检查", renderer_type="ValidationResultsPageRenderer"
    )
    view = DefaultJinjaPageView(custom_views_directory=str(templates))
    style = (templates / "bootstrap.css").read_text(encoding="utf-8")
    told = {"books": outcome.books, "reasons": outcome.reasons, "notes": outcome.notes}
    return view.render(document, template="page.html", style=style, **told)


def _section(group: str, checked: Sequence[tuple[Check, Finding]], outcome: Outcome, place: Callable[[int], str]):
    """A group of checks as Great Expectations' table of status, expectation, and what was observed."""
    from great_expectations.render.renderer import ValidationResultsColumnSectionRenderer

    results = [_result(check, finding, outcome.books, place) for check, finding in checked]
    section = ValidationResultsColumnSectionRenderer().render(results)
    section.section_name = group
    section.content_blocks[0].header.string_template["template"] = group
    return section


def _result(check: Check, finding: Finding, books: dict, place: Callable[[int], str]):
    """The result of a check over all tables, in the shape that Great Expectations gives for one."""
    from great_expectations.core.expectation_validation_result import ExpectationValidationResult

    hit = len(finding.rows)
    if check.scope == "data":
        result = {
            "observed_value": books["train"] + books["eval"] if check.column == "good_rows" else books[check.column]
        }
    else:
        rows = zip(finding.rows[:_SHOWN], finding.seen, strict=False)
        result = {
            "observed_value": f"{hit:,} rows · 行",
            "element_count": books["rows_in"],
            "unexpected_count": hit,
            "unexpected_percent": 100 * hit / books["rows_in"],
            "partial_unexpected_list": [escape(f"{ascii_if_odd(place(row))}: {seen}") for row, seen in rows],
        }
    config = expectation_of(check).configuration
    return ExpectationValidationResult(success=hit == 0, expectation_config=config, result=result, exception_info={})
