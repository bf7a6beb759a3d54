"""``python -m stages.validate``: see the package's docstring."""

import argparse
import base64
import shutil
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table

from models.errors import DataBlocked, UserError, program
from models.sample import Sample
from models.storage import sha256_of, sha256_of_json, write_json, write_jsonl, write_text, writing_folder
from stages import params, receipt
from stages.validate.expectations import Check, Failure, judge, suite
from stages.validate.features import describe, parse
from stages.validate.reading import RawRow, read_rows
from stages.validate.split import split


def quarantined_row(row: RawRow, failures: Sequence[Failure]) -> dict:
    """A bad row as it came, with every check it failed."""
    try:
        content = {"content": row.content.decode("utf-8")}
    except UnicodeDecodeError:
        content = {"content_base64": base64.b64encode(row.content).decode("ascii")}
    return {
        "file": row.file,
        "line": row.line,
        "offset": row.offset,
        **content,
        "failed": [{"check": each.check.name, "seen": each.seen, "limit": each.check.limit} for each in failures],
    }


def write_quarantine(folder: Path, rows: Sequence[RawRow], failed: dict[int, list[Failure]]) -> None:
    """All bad rows of all files, each with where it stood, in one file."""
    with writing_folder(folder) as temporary:
        bad = (quarantined_row(rows[index], failures) for index, failures in sorted(failed.items()))
        write_jsonl(temporary / "rows.jsonl", bad)


def keep_books(rows: Sequence[RawRow], sides: dict[str, list[Sample]], failed: dict[int, list[Failure]]) -> dict:
    """Rows in = train + eval + quarantined, always."""
    books = {
        "rows_in": len(rows),
        "train": len(sides["train"]),
        "eval": len(sides["eval"]),
        "quarantined": len(failed),
    }
    if books["rows_in"] != books["train"] + books["eval"] + books["quarantined"]:
        raise RuntimeError(f"the books do not close: {books}")
    return books | {"quarantined_share": round(len(failed) / max(len(rows), 1), 4)}


def hits_table(checks: Sequence[Check], failures: Sequence[Failure], rows: Sequence[RawRow]) -> list[dict]:
    """For each check: rows hit, their share, and the places of three."""
    table = []
    for check in checks:
        hit = [failure.row for failure in failures if failure.check == check]
        places = [f"{rows[index].file}:{rows[index].line}" for index in hit[:3]]
        share = len(hit) / max(len(rows), 1)
        table.append(
            {"check": check.name, "meaning": check.meaning, "rows": len(hit), "share": share, "places": places}
        )
    return table


def print_table(table: Sequence[dict], books: dict) -> None:
    shown = Table(title="Data checks · 数据检查", title_justify="left")
    columns = (("check · 检查", "left"), ("rows · 行", "right"), ("share · 占比", "right"), ("where · 位置", "left"))
    for column, justify in columns:
        shown.add_column(column, justify=justify)
    for line in table:
        shown.add_row(line["check"], str(line["rows"]), f"{line['share']:.1%}", ", ".join(line["places"]))
    console = Console(stderr=True, markup=False, emoji=False, highlight=False)
    console.print(shown)
    sides = "train · 训练 {train} + eval · 评测 {eval} + quarantined · 隔离 {quarantined}"
    console.print(f"rows in · 输入 {{rows_in}} = {sides}".format(**books))


def reason_to_block(books: dict, limits: params.Validate) -> str | None:
    """Why these data must not go on, if so."""
    if books["quarantined"] > limits.max_quarantined * books["rows_in"]:
        return (
            f"{books['quarantined']} of {books['rows_in']} rows ({books['quarantined_share']:.1%}) are bad, more than "
            f"validate.max_quarantined allows ({limits.max_quarantined:.0%})"
        )
    good = books["train"] + books["eval"]
    if good < max(limits.min_rows, 2):
        return f"only {good} good rows are left, fewer than validate.min_rows ({limits.min_rows})"
    if not books["train"] or not books["eval"]:
        return "all good rows ask the same question, so that none can be kept for evaluation"
    return None


def let_through(folder: Path, raw: Path, sides: dict[str, list[Sample]], checks: Sequence[Check], books: dict) -> None:
    """Write the checked rows and their receipt."""
    read = {str(path.relative_to(raw)): sha256_of(path) for path in sorted(raw.rglob("*")) if path.is_file()}
    with writing_folder(folder) as temporary:
        for side, samples in sides.items():
            write_jsonl(temporary / f"{side}.jsonl", (sample.to_json() for sample in samples))
        applied = {"checks": [vars(check) for check in checks], "sha256": sha256_of_json([vars(c) for c in checks])}
        receipt.write(temporary, read=read, suite=applied, books=books)


@program
def main() -> None:
    parser = argparse.ArgumentParser(description="Check the raw data and split what passes.")
    for name in ("raw", "checked", "quarantine", "docs", "metrics", "hits", "verdict"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    arguments = parser.parse_args()
    limits = params.load().validate_
    # What an earlier run let through must not stand beside a verdict on other data.
    shutil.rmtree(arguments.checked, ignore_errors=True)
    arguments.verdict.unlink(missing_ok=True)

    rows = list(read_rows(arguments.raw))
    if not rows:
        raise UserError(f"{arguments.raw} holds no rows; run `dvc repro ingest`.")
    samples = parse(rows)
    checks = suite(limits)
    features = pd.DataFrame(describe(rows, samples), columns=["row", *(check.column for check in checks)])
    failures = judge(features, checks, arguments.docs)

    failed: dict[int, list[Failure]] = defaultdict(list)
    for failure in failures:
        failed[failure.row].append(failure)
    good = [sample for index, sample in enumerate(samples) if index not in failed]
    sides = split(good, limits.eval_share)
    books = keep_books(rows, sides, failed)
    write_quarantine(arguments.quarantine, rows, failed)
    table = hits_table(checks, failures, rows)
    write_json(arguments.metrics, {"data": books})
    write_json(arguments.hits, table)
    print_table(table, books)
    if reason := reason_to_block(books, limits):
        raise DataBlocked(
            f"The data are blocked: {reason}. Look into {arguments.quarantine} and {arguments.docs}/index.html."
        )
    let_through(arguments.checked, arguments.raw, sides, checks, books)
    write_text(arguments.verdict, "passed\n")


if __name__ == "__main__":
    main()
