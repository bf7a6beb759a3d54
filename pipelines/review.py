"""Review quarantined and warned rows: ``python -m pipelines.review``.

Shows the rows that stage validate has quarantined, and those that checks warn of, one after another in the terminal.
Each is kept, dropped or edited, with a reason. ``--html FILE`` writes a page for the same review in a browser, which
downloads the decisions; ``--import FILE`` adds a downloaded file. Decisions go to ``data/decisions.jsonl`` and apply at
the next ``dvc repro``. Personal data and secrets are masked unless ``--unmasked``.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from formats.review_decisions import DECISIONS, ReviewDecision, merge_decisions, read_decisions, write_decisions
from models.command_line import entry_point
from models.errors import UserError
from models.storage import read_json, write_json, write_text
from pipelines.review_page import MAX_ROWS, render_page
from pipelines.review_rows import ReviewRow, check_edited, load_rows, select_rows
from pipelines.review_terminal import ReviewSession
from pipelines.stage_paths import require_html
from texts import translate

POSITION = Path("data/.review.json")  # the row at which the last session ended; not tracked


def load_decisions() -> dict[str, ReviewDecision]:
    """Return the decisions so far; none without a file."""
    return read_decisions(DECISIONS) if DECISIONS.is_file() else {}


def review_in_terminal(rows: Sequence[ReviewRow], decisions: dict[str, ReviewDecision], unmasked: bool) -> None:
    """Run a session over rows, and record each decision at once."""
    session = ReviewSession(
        rows,
        decisions,
        lambda: write_decisions(DECISIONS, decisions.values()),
        Console(markup=False, emoji=False, highlight=False),
        input,
        find_position(rows),
        unmasked,
    )
    try:
        session.run()
    finally:
        at_end = session.position >= len(rows)
        write_json(POSITION, {"content_sha256": None if at_end else rows[session.position].content_sha256})


def find_position(rows: Sequence[ReviewRow]) -> int:
    """Return the index of the row at which the last session ended; 0 if the row is not among the rows."""
    last = read_json(POSITION).get("content_sha256") if POSITION.is_file() else None
    return next((index for index, row in enumerate(rows) if row.content_sha256 == last), 0)


def import_decisions(path: Path) -> None:
    """Add the decisions of a file, check their edited rows, and print what was added.

    Raises:
        UserError: the file is damaged.
    """
    present, added = load_decisions(), read_decisions(path)
    merged = merge_decisions(present, added)
    edits = [decision for decision in added.values() if decision.decision == "edit"]
    checked = check_edited([decision.edited for decision in edits]) if edits else []
    write_decisions(DECISIONS, merged.values())
    new = len(merged) - len(present)
    changed = sum(merged[row] != decision for row, decision in present.items())
    print(
        translate(
            "{added:,} decisions read: {new:,} new, {changed:,} replace an earlier one.",
            added=len(added),
            new=new,
            changed=changed,
        )
    )
    for decision, row in zip(edits, checked, strict=True):
        if failed := [reason["check"] for reason in row.failed if reason["severity"] != "warn"]:
            print(
                translate(
                    "The edited row {row} still fails {checks} and stays in quarantine.",
                    row=decision.content_sha256[:12],
                    checks=", ".join(failed),
                )
            )


def write_review_page(path: Path, rows: Sequence[ReviewRow], decisions: Mapping[str, ReviewDecision]) -> None:
    """Write the page for a review in a browser."""
    require_html(path, "--html")
    write_text(path, render_page(rows[:MAX_ROWS], decisions))
    print(translate("{path}: {shown:,} of {rows:,} rows.", path=path, shown=min(len(rows), MAX_ROWS), rows=len(rows)))


def print_outcome(decisions: Mapping[str, ReviewDecision]) -> None:
    """Print how many decisions there are, and how to apply them."""
    print(
        translate(
            "{count:,} decisions in {path}. `dvc repro` applies them; commit the file.",
            count=len(decisions),
            path=DECISIONS,
        )
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Review quarantined and warned rows.")
    parser.add_argument("--check", action="append", default=[], metavar="NAME", help="only rows that fail this check")
    parser.add_argument("--all", action="store_true", help="also rows with a decision")
    parser.add_argument("--unmasked", action="store_true", help="show personal data and secrets")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--html", type=Path, metavar="FILE", help="write a page for a review in a browser")
    group.add_argument(
        "--import", type=Path, metavar="FILE", dest="file", help="add decisions that the page downloaded"
    )
    return parser.parse_args()


@entry_point
def main() -> None:
    arguments = parse_arguments()
    if arguments.file:
        import_decisions(arguments.file)
        print_outcome(load_decisions())
        return
    if not arguments.html and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UserError("A review needs a terminal; run it in one, or write a page for the browser with --html FILE.")
    decisions = load_decisions()
    rows = select_rows(load_rows(arguments.unmasked), arguments.check, () if arguments.all else decisions)
    if arguments.html:
        write_review_page(arguments.html, rows, decisions)
    elif rows:
        review_in_terminal(rows, decisions, arguments.unmasked)
        print_outcome(decisions)
    else:
        print(translate("There is no row without a decision; --all shows decided rows again."))


if __name__ == "__main__":
    main()
