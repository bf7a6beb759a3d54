"""Input and output of the gate: raw files to the row table, and the decided rows to the files of their split."""

import base64
import json
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from tqdm import tqdm

from formats.receipt import SPLITS
from models.errors import UserError
from stages.validate.checks import Check
from stages.validate.expectations import Finding
from stages.validate.row_decisions import Decision
from stages.validate.row_table import GateConfig, RaggedFile, RaggedFiles, RowTable, build_chunk_table, read_chunks
from stages.validate.worker_pool import WorkerPool

DESTINATIONS = (*SPLITS, "quarantine")


def build_row_table(config: GateConfig, files: Mapping[str, Path], pool: WorkerPool) -> RowTable:
    """Read all rows and run the row checks.

    Args:
        files: paths by name.

    Raises:
        UserError: there are no rows, or a file cannot be read.
    """
    parts = []
    with tqdm(desc="check", unit=" rows", delay=2) as bar:
        for part in pool.map_ordered(partial(build_chunk_table, config), read_chunks(files)):
            parts.append(part)
            bar.update(len(part.lines))
    if not parts:
        raise UserError(f"No rows in {', '.join(files)}; add rows to the files, or name other files.")
    return RowTable.concatenate(parts)


def write_rows(table: RowTable, decision: Decision, checks: Sequence[Check], folder: Path) -> dict[str, int]:
    """Write every row to the file of its split or to ``quarantine.jsonl`` in a folder.

    Returns:
        Number of rows written by destination.
    """
    written = dict.fromkeys(DESTINATIONS, 0)
    # Index of the destination of every row that passed the row checks.
    is_quarantined = decision.is_quarantined[table.passed]
    destinations = np.where(is_quarantined, len(SPLITS), decision.splits[table.passed])
    with ExitStack() as stack:
        *splits, quarantine = (stack.enter_context((folder / f"{name}.jsonl").open("wb")) for name in DESTINATIONS)
        bar = stack.enter_context(tqdm(desc="write", unit=" rows", delay=2, total=len(table.lines)))
        for destination, line in zip(destinations.tolist(), _read_all(table.samples), strict=True):
            if destination < len(SPLITS):
                splits[destination].write(line)
                written[DESTINATIONS[destination]] += 1
                bar.update()
        for line in quarantine_lines(table, decision, checks):
            quarantine.write(line)
            written["quarantine"] += 1
            bar.update()
    return written


def _read_all(files: Sequence[RaggedFile]) -> Iterator[bytes]:
    """Yield the values of a spooled column in order, one file in memory at a time."""
    for file in files:
        content = file.path.read_bytes()
        yield from (content[start:end] for start, end in pairwise(file.starts.tolist()))


def quarantine_lines(table: RowTable, decision: Decision, checks: Sequence[Check]) -> Iterator[bytes]:
    """Yield the quarantined rows as lines of JSON: location, raw content, and the checks that the row fails."""
    contents, check_by_name = RaggedFiles(table.contents), {check.name: check for check in checks}
    for row in np.flatnonzero(decision.is_quarantined).tolist():
        failed = []
        for finding in decision.findings:
            if (index := _find_row(finding, row)) is not None:
                check = check_by_name[finding.check]
                reason = {"check": check.name, "severity": check.severity}
                failed.append(reason | {"seen": finding.values[index], "limit": check.limit})
        location = {"file": table.files[row], "line": int(table.lines[row]), "offset": int(table.offsets[row])}
        if number := int(table.numbers[row]):
            location["number"] = number
        record = {**location, **_encode_content(contents[row].tobytes()), "failed": failed}
        yield json.dumps(record, ensure_ascii=False).encode("utf-8") + b"\n"


def _find_row(finding: Finding, row: int) -> int | None:
    """Return the index of a row in a finding, whose rows are sorted; None if the row passes the check."""
    index = bisect_left(finding.rows, row)
    return index if index < len(finding.rows) and finding.rows[index] == row else None


def _encode_content(content: bytes) -> dict[str, str]:
    try:
        return {"content": content.decode("utf-8")}
    except UnicodeDecodeError:
        return {"content_base64": base64.b64encode(content).decode("ascii")}
