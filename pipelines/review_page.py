"""A review as a static HTML page: it needs no network, works by keyboard and on a phone, and downloads decisions."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from formats.review_decisions import ReviewDecision
from models.storage import sha256_of_json
from pipelines.review_rows import ReviewRow, split_at_faults
from texts import in_all_languages
from texts.html_templates import load_template

MAX_ROWS = 2000  # rows of a page, which a phone still shows without delay
_TEMPLATE = "review_page.html"


def render_page(rows: Sequence[ReviewRow], decisions: Mapping[str, ReviewDecision]) -> str:
    """Return the page.

    Args:
        rows: rows to show, with personal data masked as the terminal shows them.
        decisions: decisions so far, which the page shows and downloads with its own.
    """
    checks = sorted({check for row in rows for check in row.checks})
    hashes = [row.content_sha256 for row in rows]
    return load_template(Path(__file__).with_name(_TEMPLATE)).render(
        in_all_languages=in_all_languages,
        split_at_faults=split_at_faults,
        rows=rows,
        checks=checks,
        decisions={
            content_sha256: decisions[content_sha256].model_dump(exclude_none=True)
            for content_sha256 in hashes
            if content_sha256 in decisions
        },
        page=sha256_of_json(hashes)[:16],
    )
