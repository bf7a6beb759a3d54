import pytest

from pipelines import retries


@pytest.fixture(autouse=True)
def no_retries(monkeypatch):
    """Fail at the first attempt if a remote is unavailable."""
    monkeypatch.setattr(retries, "PAUSES", ())


@pytest.fixture(autouse=True, scope="module")
def author():
    """Set the author of commits."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        for role in ("AUTHOR", "COMMITTER"):
            monkeypatch.setenv(f"GIT_{role}_NAME", "test")
            monkeypatch.setenv(f"GIT_{role}_EMAIL", "test@localhost")
        yield
