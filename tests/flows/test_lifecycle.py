"""Failures of flow runs, and their notifications."""

import httpx
import pytest

from flows import lifecycle
from models.errors import DataBlocked, UserError


def test_failure_is_reported_although_server_and_origin_are_unavailable(monkeypatch, tmp_path):
    def raise_connect_error(**_):
        raise httpx.ConnectError("refused")

    notifications = []
    monkeypatch.setenv("TUNELINE_HOME", str(tmp_path))
    (tmp_path / "runs/run").mkdir(parents=True)
    monkeypatch.setattr(lifecycle, "get_client", raise_connect_error)
    monkeypatch.setattr(lifecycle.notifications, "notify", lambda *event: notifications.append(event))
    for error, text in (
        (UserError("because"), "because"),
        (ValueError("a sample"), "ValueError; see the log of the run for details"),
    ):
        with pytest.raises(type(error), match=str(error)), lifecycle.reporting_failure("run"):
            raise error
        assert notifications.pop() == ("failed", text)


def test_blocked_data_have_no_notification_of_a_failure(monkeypatch):
    notifications = []
    monkeypatch.setattr(lifecycle.notifications, "notify", lambda *event: notifications.append(event))
    with pytest.raises(DataBlocked), lifecycle.reporting_failure("run"):
        raise DataBlocked("dirty")
    assert notifications == []


def test_unavailable_origin_does_not_replace_the_error(monkeypatch, tmp_path):
    requests = []

    def fail(self, *arguments: str) -> str:
        requests.append(arguments)
        raise UserError("the origin does not answer")

    monkeypatch.setattr(lifecycle.run_refs.Clone, "git", fail)
    clone = lifecycle.run_refs.Clone(tmp_path, "ssh://host/x")
    monkeypatch.setattr(lifecycle, "existing_clone", lambda run: clone)
    monkeypatch.setattr(lifecycle, "get_client", lambda **_: (_ for _ in ()).throw(httpx.ConnectError("refused")))
    monkeypatch.setattr(lifecycle.notifications, "notify", lambda *event: None)
    with pytest.raises(UserError, match="because"), lifecycle.reporting_failure("run"):
        raise UserError("because")
    assert requests[0] == ("ls-remote", "origin", "refs/tuneline/runs/run")


@pytest.mark.parametrize("value", ["", "many", "-1"])
def test_invalid_number_of_restarts_is_reported(monkeypatch, value):
    monkeypatch.setenv("TUNELINE_RESTARTS", value)
    with pytest.raises(UserError, match="set it to a number"):
        lifecycle.max_restarts()
