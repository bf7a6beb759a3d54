"""Reports of the checks: a summary of the findings, and the table on the terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from formats.foreign_files import printable_name
from stages.validate.checks import SEVERITIES, Check
from stages.validate.expectations import Finding
from stages.validate.row_table import RowTable
from texts import in_all_languages, terminal_language, translatable, translate

_MAX_EXAMPLES = 3


def summarize_findings(checks: Sequence[Check], findings: Sequence[Finding], table: RowTable) -> list[dict]:
    """Return number and share of failed rows, and examples, for all checks except those of all data."""
    finding_by_check = {finding.check: finding for finding in findings}
    summary = []
    for check in checks:
        if check.scope == "data":
            continue
        finding = finding_by_check[check.name]
        examples = [
            {"place": printable_name(table.locate(row)), "seen": value}
            for row, value in zip(finding.rows[:_MAX_EXAMPLES], finding.values, strict=False)
        ]
        share = round(len(finding.rows) / max(len(table.lines), 1), 4)
        summary.append(check.to_json() | {"rows": len(finding.rows), "share": share, "examples": examples})
    return summary


def print_report(
    row_findings: Sequence[dict], data_findings: Sequence[dict], row_counts: dict, notices: Sequence[dict]
) -> None:
    """Print to standard error: failed row checks, failed checks of all data, notices, and row counts."""
    console = Console(stderr=True, markup=False, emoji=False, highlight=False)
    failed = [finding for finding in row_findings if finding["rows"]]
    if failed:
        console.print(_findings_table(failed))
    passed = len(row_findings) - len(failed)
    console.print(translate("{passed} of {total} row checks passed", passed=passed, total=len(row_findings)))
    for finding in data_findings:
        if not finding["passed"]:
            console.print(_describe_data_finding(finding))
    for notice in notices:
        console.print(notice[terminal_language()], soft_wrap=True)  # not wrapped, so that a command can be copied
    console.print(
        translate(
            "{rows:,} rows = {train:,} training + {evaluation:,} evaluation + {test:,} test + "
            "{quarantined:,} quarantined",
            rows=row_counts["rows_in"],
            train=row_counts["train"],
            evaluation=row_counts["eval"],
            test=row_counts["test"],
            quarantined=row_counts["quarantined"],
        )
    )
    console.print(describe_learnt(row_counts)[terminal_language()])


def describe_learnt(row_counts: dict) -> dict[str, str]:
    """Return by language how many conversations, answers and tokens the training split has to learn."""
    learnt = row_counts["learnt"]["train"]
    message = translatable("Learnt: {answers:,} answers of {conversations:,} conversations, {tokens:,} tokens")
    if learnt["repeated"]:
        message = translatable(
            "Learnt: {answers:,} answers of {conversations:,} conversations, {tokens:,} tokens; {repeated:,} more "
            "answers repeat an earlier row and are learnt once"
        )
    return in_all_languages(message, **learnt)


def _describe_data_finding(finding: dict) -> str:
    return translate(
        "{check} ({severity}): {fault}: {value} (limit {limit})",
        check=finding["check"],
        severity=translate(SEVERITIES[finding["severity"]]),
        fault=finding["meaning"][terminal_language()],
        value=finding["seen"],
        limit=finding["limit"],
    )


def _findings_table(failed: Sequence[dict]) -> Table:
    """Return a table with each check above its examples, which need the width of a whole line."""
    table = Table(title=translate("Data checks"), title_justify="left")
    table.add_column(translate("Check and examples"), overflow="fold")
    table.add_column(translate("Rows"), justify="right", no_wrap=True)
    table.add_column(translate("Severity"), no_wrap=True)
    for finding in failed:
        rows = f"{finding['rows']:,}  {finding['share']:.1%}"
        table.add_row(finding["check"], rows, translate(SEVERITIES[finding["severity"]]))
        for example in finding["examples"]:
            table.add_row(f"  {example['place']}  {example['seen']}")
    return table
