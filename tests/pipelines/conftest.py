import pytest

from pipelines import retries


@pytest.fixture(autouse=True)
def no_retries(monkeypatch):
    """Fail at the first attempt if a remote is unavailable."""
    monkeypatch.setattr(retries, "PAUSES", ())
