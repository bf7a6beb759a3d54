"""Every row is read once and examined, and once all are decided on, put where it belongs."""

import base64
import json
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from tqdm import tqdm

from models.errors import UserError
from stages.validate.checks import Check
from stages.validate.row_decisions import Decision
from stages.validate.row_table import GateConfig, RaggedFiles, RowTable, Stored, examine, pieces
from stages.validate.worker_pool import WorkerPool

PLACES = ("train", "eval", "quarantine")


def read(setting: GateConfig, files: Mapping[str, Path], crew: WorkerPool) -> RowTable:
    """Examine every row.

    Raises:
        UserError: there are no rows, or a file cannot be read.
    """
    parts = []
    with tqdm(desc="check · 检查", unit=" rows", delay=2) as bar:
        for part in crew.in_order(partial(examine, setting), pieces(files)):
            parts.append(part)
            bar.update(len(part.lines))
    if not parts:
        raise UserError(f"No rows in {', '.join(files)}; fill the files, or name others.")
    return RowTable.joined(parts)


def put(examined: RowTable, decision: Decision, checks: Sequence[Check], folder: Path) -> dict[str, int]:
    """Write every row to ``train.jsonl``, ``eval.jsonl`` or ``quarantine.jsonl`` in a folder.

    Returns:
        How many rows went to each.
    """
    written = dict.fromkeys(PLACES, 0)
    going = decision.evaluated[examined.passed] + 2 * decision.quarantined[examined.passed].astype(int)
    with (
        (folder / "train.jsonl").open("wb") as train,
        (folder / "eval.jsonl").open("wb") as evaluation,
        (folder / "quarantine.jsonl").open("wb") as quarantine,
        tqdm(desc="write · 写出", unit=" rows", delay=2, total=len(examined.lines)) as bar,
    ):
        for where, line in zip(going.tolist(), _each(examined.samples), strict=True):
            if where < 2:
                (train, evaluation)[where].write(line)
                written[PLACES[where]] += 1
                bar.update()
        for line in quarantined_lines(examined, decision, checks):
            quarantine.write(line)
            written["quarantine"] += 1
            bar.update()
    return written


def _each(stored: Sequence[Stored]) -> Iterator[bytes]:
    for one in stored:
        content = one.file.read_bytes()
        yield from (content[start:end] for start, end in pairwise(one.starts.tolist()))


def quarantined_lines(examined: RowTable, decision: Decision, checks: Sequence[Check]) -> Iterator[bytes]:
    """Bad rows as they came, each with every check that it failed."""
    contents, by_name = RaggedFiles(examined.contents), {check.name: check for check in checks}
    for row in np.flatnonzero(decision.quarantined).tolist():
        failed = []
        for finding in decision.findings:
            index = bisect_left(finding.rows, row)
            if index < len(finding.rows) and finding.rows[index] == row:
                check = by_name[finding.check]
                told = {"check": check.name, "severity": check.severity}
                failed.append(told | {"seen": finding.seen[index], "limit": check.limit})
        where = {"file": examined.files[row], "line": int(examined.lines[row]), "offset": int(examined.offsets[row])}
        if number := int(examined.numbers[row]):
            where["number"] = number
        record = {**where, **_as_text(contents[row].tobytes()), "failed": failed}
        yield json.dumps(record, ensure_ascii=False).encode("utf-8") + b"\n"


def _as_text(content: bytes) -> dict[str, str]:
    try:
        return {"content": content.decode("utf-8")}
    except UnicodeDecodeError:
        return {"content_base64": base64.b64encode(content).decode("ascii")}
