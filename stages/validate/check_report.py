"""What a person reads of the checks: the table on the terminal, the Data Docs, the figures."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from formats.foreign_files import ascii_if_odd
from stages.validate.checks import SEVERITIES, Check
from stages.validate.expectations import Finding
from stages.validate.row_table import RowTable

_EXAMPLES = 3


def hits_of(checks: Sequence[Check], findings: Sequence[Finding], examined: RowTable) -> list[dict]:
    """For each check of rows: how many failed, their share, and three examples with place and value seen."""
    by_name = {finding.check: finding for finding in findings}
    table = []
    for check in checks:
        if check.scope == "data":
            continue
        found = by_name[check.name]
        examples = [
            {"place": ascii_if_odd(examined.place(row)), "seen": seen}
            for row, seen in zip(found.rows[:_EXAMPLES], found.seen[:_EXAMPLES], strict=True)
        ]
        share = round(len(found.rows) / max(len(examined.lines), 1), 4)
        table.append(check.told() | {"rows": len(found.rows), "share": share, "examples": examples})
    return table


def print_table(rows: Sequence[dict], data: Sequence[dict], books: dict, notes: Sequence[dict]) -> None:
    """Checks that some row failed, what was found of the data as a whole, notes, and the books."""
    console = Console(stderr=True, markup=False, emoji=False, highlight=False)
    failed = [line for line in rows if line["rows"]]
    if failed:
        console.print(_table_of(failed))
    passed = sum(not line["rows"] for line in rows)
    console.print(f"{passed} of {len(rows)} checks found nothing · {len(rows)} 项检查中 {passed} 项未发现问题")
    for line in data:
        if not line["passed"]:
            meaning = line["meaning"]
            limit = f"{line['seen']} (limit · 上限 {line['limit']})"
            console.print(
                f"{SEVERITIES[line['severity']]}: {line['check']}: {meaning['en']} · {meaning['zh']}: {limit}"
            )
    for note in notes:
        # Not wrapped, so that a command can be copied.
        console.print(f"{note['en']}\n{note['zh']}", soft_wrap=True)
    sides = "train · 训练 {train:,} + eval · 评测 {eval:,} + quarantined · 隔离 {quarantined:,}"
    console.print(f"rows in · 输入 {{rows_in:,}} = {sides}".format(**books))


def _table_of(failed: Sequence[dict]) -> Table:
    """Each check over its examples, which need the width of a whole line."""
    table = Table(title="Data checks · 数据检查", title_justify="left")
    table.add_column("check, examples · 检查与示例", overflow="fold")
    table.add_column("rows · 行", justify="right", no_wrap=True)
    table.add_column("severity · 级别", no_wrap=True)
    for line in failed:
        table.add_row(line["check"], f"{line['rows']:,}  {line['share']:.1%}", SEVERITIES[line["severity"]])
        for example in line["examples"]:
            table.add_row(f"  {example['place']}  {example['seen']}")
    return table
