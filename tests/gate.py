"""The data gate as tests run it: on a folder of raw files, in this process."""

import json

import yaml
from shared_data import ROOT

from formats.params_schema import Params
from formats.raw_rows import find_files
from stages.validate.checks import checks_of
from stages.validate.row_decisions import decide
from stages.validate.row_table import GateConfig
from stages.validate.rows import put, read
from stages.validate.worker_pool import WorkerPool

GOOD = {"context": "你是谁？", "target": "我是一个小模型。"}


def params_with(**validate) -> Params:
    content = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    content["validate"] |= validate
    return Params.model_validate(content)


class Outcome:
    """What the gate made of a folder of raw files."""

    def __init__(self, raw, tokenizer, kept, params=None):
        params = params or params_with()
        kept.mkdir(exist_ok=True)
        checks = checks_of(params)
        with WorkerPool() as crew:
            self.examined = read(GateConfig(params, tokenizer, kept), find_files(raw), crew)
            self.decision = decide(self.examined, checks, params.validate_, crew)
        self.written = put(self.examined, self.decision, checks, kept)
        self.rows = {
            place: [json.loads(line) for line in (kept / f"{place}.jsonl").read_bytes().split(b"\n") if line]
            for place in self.written
        }

    def failed(self, line: int) -> set[str]:
        return {
            finding.check
            for finding in self.decision.findings
            for row in finding.rows
            if self.examined.lines[row] == line
        }
