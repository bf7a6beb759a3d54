"""Data checks of this run are recognized, whatever the clocks of this host and of the workspace's volume show."""

import os
import time

import pytest

from models.errors import DataBlocked
from models.storage import write_json
from pipelines.finetune import CHECKS, checks_state, raise_if_blocked


@pytest.mark.parametrize("ahead", [-86_400, 0, 86_400])
def test_checks_count_if_they_were_written_after_the_start(tmp_path, monkeypatch, ahead):
    monkeypatch.chdir(tmp_path)
    raise_if_blocked(checks_state())
    verdict = {"verdict": "blocked", "reasons": ["too many duplicates"]}
    write_json(CHECKS, verdict)
    changed = time.time() + ahead
    os.utime(CHECKS, (changed, changed))  # the volume's clock
    with pytest.raises(DataBlocked, match="too many duplicates"):
        raise_if_blocked(None)
    before = checks_state()
    raise_if_blocked(before)  # the checks of an earlier run
    write_json(CHECKS, verdict)
    os.utime(CHECKS, (changed, changed + 0.01))
    with pytest.raises(DataBlocked):
        raise_if_blocked(before)
    before = checks_state()
    write_json(CHECKS, verdict | {"verdict": "passed"})
    raise_if_blocked(before)
    CHECKS.unlink()
    raise_if_blocked(before)
