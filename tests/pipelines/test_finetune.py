"""Summary of a fine-tuning, and recognition of data checks that were written in this run."""

import os
import shutil
import time

import pytest
from shared_data import ROOT

from models.errors import DataBlocked, UserError
from models.storage import write_json, write_text
from pipelines import dvc, finetune
from pipelines.finetune import CHECKS, raise_if_blocked, read_report_state


@pytest.mark.parametrize("ahead", [-86_400, 0, 86_400])
def test_checks_count_if_they_were_written_after_the_start(tmp_path, monkeypatch, ahead):
    """The clocks of this host and of the workspace's volume may differ."""
    monkeypatch.chdir(tmp_path)
    raise_if_blocked(read_report_state())
    verdict = {"verdict": "blocked", "reasons": ["too many duplicates"]}
    write_json(CHECKS, verdict)
    changed = time.time() + ahead
    os.utime(CHECKS, (changed, changed))  # the volume's clock
    with pytest.raises(DataBlocked, match="too many duplicates"):
        raise_if_blocked(None)
    before = read_report_state()
    raise_if_blocked(before)  # the checks of an earlier run
    write_json(CHECKS, verdict)
    os.utime(CHECKS, (changed, changed + 0.01))
    with pytest.raises(DataBlocked):
        raise_if_blocked(before)
    before = read_report_state()
    write_json(CHECKS, verdict | {"verdict": "passed"})
    raise_if_blocked(before)
    CHECKS.unlink()
    raise_if_blocked(before)


@pytest.mark.parametrize(
    ("targets", "summary"), [((), "summary"), (("encode",), None), (("encode", "compare"), "summary")]
)
def test_summary_is_returned_only_if_the_comparison_was_a_target(tmp_path, monkeypatch, targets, summary):
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dvc, "run", lambda *arguments: None)
    for path in finetune.SUMMARIES.values():
        write_text(path, "summary")
    assert finetune.finetune(targets) == summary


def test_missing_summary_is_reported(tmp_path, monkeypatch):
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dvc, "run", lambda *arguments: None)
    assert finetune.finetune(["train@lora"]) is None
    with pytest.raises(UserError, match="dvc repro compare"):
        finetune.finetune()
