"""The data gate for tests: runs on a folder of raw files, in the process of the test."""

import json
from pathlib import Path

import yaml
from shared_data import ROOT

from formats.params_schema import Params
from formats.raw_rows import find_files
from stages.validate.checks import build_checks
from stages.validate.row_decisions import decide_rows
from stages.validate.row_table import GateConfig
from stages.validate.rows import build_row_table, write_rows
from stages.validate.worker_pool import WorkerPool

GOOD = {"context": "你是谁？", "target": "我是一个小模型。"}


def params_with(**validate) -> Params:
    """Return the params of params.yaml with other values in section validate."""
    content = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    content["validate"] |= validate
    return Params.model_validate(content)


class GateRun:
    """Result of the gate for a folder of raw files.

    Attributes:
        table, decision, checks: see :mod:`stages.validate`.
        written: number of rows by destination: ``train``, ``eval``, ``quarantine``.
        rows: the written rows by destination.
    """

    def __init__(self, raw: Path, tokenizer: Path, out: Path, params: Params | None = None, decisions=None):
        params = params or params_with()
        out.mkdir(exist_ok=True)
        self.checks = checks = build_checks(params)
        with WorkerPool() as pool:
            self.table = build_row_table(GateConfig(params, tokenizer, out, decisions or {}), find_files(raw), pool)
            self.decision = decide_rows(self.table, checks, params.validate_, pool, decisions)
        self.written = write_rows(self.table, self.decision, checks, out)
        self.rows = {
            destination: [json.loads(line) for line in (out / f"{destination}.jsonl").read_bytes().split(b"\n") if line]
            for destination in self.written
        }

    def failed(self, line: int) -> set[str]:
        """Return the checks that the row on this line fails."""
        return {
            finding.check for finding in self.decision.findings for row in finding.rows if self.table.lines[row] == line
        }
