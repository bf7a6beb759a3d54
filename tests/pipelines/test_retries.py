"""Retries while a remote is unavailable."""

import pytest

from models.errors import UserError
from pipelines import retries
from pipelines.processes import RemoteUnavailable


@pytest.fixture
def sleeps(monkeypatch) -> list[float]:
    """Record pauses instead of sleeping; the first is 10 s."""
    pauses = []
    monkeypatch.setattr(retries, "PAUSES", (10, 30, 60))
    monkeypatch.setattr(retries.time, "sleep", pauses.append)
    return pauses


def failing(errors: list[Exception]):
    """Return a function that raises these errors one after another, and then returns its argument."""

    @retries.retry_while_unavailable
    def push(value: str) -> str:
        if errors:
            raise errors.pop(0)
        return value

    return push


def test_call_is_repeated_after_growing_pauses(sleeps, monkeypatch, capsys):
    monkeypatch.setenv("TUNELINE_LANG", "en")
    push = failing([RemoteUnavailable("The remote does not answer."), RemoteUnavailable("The remote is full.")])
    assert push("pushed") == "pushed"
    assert sleeps == [10, 30]
    assert capsys.readouterr().out == (
        "The remote does not answer. Retry in 10 s.\nThe remote is full. Retry in 30 s.\n"
    )


def test_last_error_is_raised_after_all_pauses(sleeps):
    with pytest.raises(RemoteUnavailable, match="4"):
        failing([RemoteUnavailable(str(number)) for number in range(1, 9)])("pushed")
    assert sleeps == [10, 30, 60]


def test_other_errors_are_not_retried(sleeps):
    with pytest.raises(UserError, match="rejected"):
        failing([UserError("rejected")])("pushed")
    assert sleeps == []
