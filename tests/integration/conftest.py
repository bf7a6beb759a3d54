"""Fixtures that the integration tests share."""

import os
from pathlib import Path

import pytest
from filelock import FileLock
from project import Project
from sites import Site, create_small_project

# A worker of pytest-xdist takes two files at first, so the longest ones are first, one for each worker.
LONGEST = ("test_recovery", "test_several_hosts", "test_flows", "test_pipeline", "test_deaths")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of the longest files first."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory) -> Path:
    """A folder that all workers of pytest-xdist share."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if os.environ.get("PYTEST_XDIST_WORKER") else folder


@pytest.fixture(scope="session")
def prepared_project(session_folder) -> Project:
    """A small project with data, base model and the base's evaluation in its cache and in dvc.lock; for copying only.

    The first worker that needs it creates it.
    """
    folder = session_folder / "prepared_project"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            draft = create_small_project(session_folder / "draft_project")
            code, _, output = draft.repro("evaluate@base")
            assert code == 0, output
            draft.commit("prepared")
            draft.folder.rename(folder)
    return Project(folder)


@pytest.fixture(scope="module")
def site(tmp_path_factory, prepared_project):
    folder = tmp_path_factory.mktemp("site")
    site = Site(folder, prepared_project.copy_to(folder / "project"))
    with site.open():
        yield site
