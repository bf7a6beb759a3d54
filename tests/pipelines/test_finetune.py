"""Which data checks count as those of this run: whatever the clocks of this host and of the workspace's volume show."""

import os
import time

import pytest

from models.errors import DataBlocked
from models.storage import write_json
from pipelines.finetune import CHECKS, refuse_if_blocked, state_of_checks


@pytest.mark.parametrize("ahead", [-86_400, 0, 86_400])
def test_checks_count_if_they_were_written_anew(tmp_path, monkeypatch, ahead):
    monkeypatch.chdir(tmp_path)
    refuse_if_blocked(state_of_checks())
    verdict = {"verdict": "blocked", "reasons": ["too many duplicates"]}
    write_json(CHECKS, verdict)
    changed = time.time() + ahead
    os.utime(CHECKS, (changed, changed))  # the volume's clock
    with pytest.raises(DataBlocked, match="too many duplicates"):
        refuse_if_blocked(None)
    before = state_of_checks()
    refuse_if_blocked(before)  # it is that of an earlier run
    write_json(CHECKS, verdict)
    os.utime(CHECKS, (changed, changed + 0.01))
    with pytest.raises(DataBlocked):
        refuse_if_blocked(before)
    before = state_of_checks()
    write_json(CHECKS, verdict | {"verdict": "passed"})
    refuse_if_blocked(before)
    CHECKS.unlink()
    refuse_if_blocked(before)
