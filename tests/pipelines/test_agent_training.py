"""Restarts of killed training runs on an agent."""

import pytest

from models.errors import UserError
from pipelines import agent_training
from pipelines.clone import Clone


@pytest.fixture
def training(tmp_path, monkeypatch):
    """Return a function that trains; its attempts are killed, or fail, or complete."""
    monkeypatch.setenv("TUNELINE_LANG", "en")
    cleanups = []
    monkeypatch.setattr(agent_training, "terminate_agent_leftovers", lambda: cleanups.append("terminated"))

    def run(ends: list[str], max_restarts: int) -> int:
        """Return the number of attempts, after each of which leftovers were terminated."""
        monkeypatch.setattr(agent_training.checkpoints, "was_killed", lambda folder, name: ends[0] == "killed")
        attempts = 0
        for attempt in agent_training.attempts_while_killed(Clone(tmp_path, ""), "lora", max_restarts):
            with attempt:
                attempts += 1
                if attempts > 1:
                    del ends[0]
                if ends[0] != "completed":
                    raise UserError(ends[0])
        assert len(cleanups) == attempts - 1
        return attempts

    return run


def test_killed_training_is_restarted(training, capsys):
    assert training(["killed", "killed", "completed"], max_restarts=3) == 3
    assert capsys.readouterr().out.count("it resumes from its last checkpoint") == 2


def test_failed_training_is_not_restarted(training):
    with pytest.raises(UserError, match="diverged"):
        training(["diverged"], max_restarts=3)


def test_training_that_is_killed_too_often_fails(training):
    with pytest.raises(UserError, match="killed"):
        training(["killed"] * 5, max_restarts=2)
