"""Clones of runs, of real repositories with DVC in them."""

from pathlib import Path

import pytest

from models.errors import UserError
from pipelines import dvc, retrain
from pipelines.clone import left_of, open_clone
from pipelines.programs import output_of


def git(folder: Path, *arguments: str) -> str:
    return output_of("git", "-C", str(folder), *arguments)


def commit(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", f"{name}: {text}")
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def origin(tmp_path, monkeypatch):
    """A repository with one file that DVC tracks, in its cache."""
    monkeypatch.setenv("TUNELINE_HOME", str(tmp_path / "home"))
    for name in ("GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME"):
        monkeypatch.setenv(name, "test")
    for name in ("GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"):
        monkeypatch.setenv(name, "test@localhost")
    folder = tmp_path / "origin"
    folder.mkdir()
    git(folder, "init", "--quiet", "--initial-branch", "main")
    dvc.ask("--cd", str(folder), "init", "--quiet")
    (folder / "data.txt").write_text("data")
    dvc.ask("--cd", str(folder), "add", "--quiet", "data.txt")
    commit(folder, "a", "1")
    monkeypatch.chdir(folder)
    return folder


def test_a_clone_shares_cache_and_settings_of_a_repository_on_this_host(origin, tmp_path):
    dvc.ask("remote", "add", "--default", "store", "../store")
    dvc.ask("remote", "add", "far", "s3://bucket")
    dvc.ask("remote", "modify", "--local", "far", "secret_access_key", "secret")
    commit(origin, "a", "2")
    clone = open_clone("run", "HEAD")
    assert clone.folder == tmp_path / "home/runs/run"
    dvc.ask("--cd", str(clone.folder), "checkout", "--quiet")
    assert (clone.folder / "data.txt").read_text() == "data"
    config = clone.folder / ".dvc/config.local"
    assert "secret" in config.read_text()
    assert config.stat().st_mode & 0o077 == 0
    assert (tmp_path / "home/runs").stat().st_mode & 0o077 == 0
    clone.push_data()
    assert any(path.read_text() == "data" for path in (tmp_path / "store").rglob("*") if path.is_file())


def test_a_run_that_began_finds_its_clone_as_it_left_it_and_without_old_locks(origin):
    clone = open_clone("run", "main")
    (clone.folder / "checkpoint").write_text("x")
    (clone.folder / ".dvc/tmp").mkdir(exist_ok=True)
    (clone.folder / ".dvc/tmp/rwlock").write_text('{"/x": {"write": {"pid": 1, "cmd": "dvc repro"}}}')
    commit(origin, "a", "3")
    again = open_clone("run", "main")
    assert (again.folder / "checkpoint").exists()
    assert not (again.folder / ".dvc/tmp/rwlock").exists()
    assert (again.folder / "a").read_text() == "1"
    assert left_of("run") == again
    again.discard()
    assert left_of("run") is None


def test_a_repository_elsewhere_needs_a_remote(origin, tmp_path):
    clone = open_clone("run", "HEAD", f"file://{origin}")
    assert not clone.shares_cache
    with pytest.raises(UserError, match="names no DVC remote"):
        clone.push_data()
    assert str(tmp_path / "home/cache") in (clone.folder / ".dvc/config.local").read_text()


@pytest.mark.parametrize("revision", ["nowhere", "refs/tuneline/runs/none"])
def test_a_revision_that_is_not_there_leaves_no_clone(origin, tmp_path, revision):
    with pytest.raises(UserError):
        open_clone("run", revision)
    assert not list((tmp_path / "home/runs").iterdir())


@pytest.mark.parametrize("ref", ["main", "refs/heads/main", "refs/tuneline/runs/../../heads/main", "--upload-pack=x"])
def test_a_trainer_takes_nothing_but_what_was_handed_out(origin, ref):
    with pytest.raises(UserError, match="nothing that a retraining hands out"):
        retrain.take("run", ref, "lora")


# The branch ----------------------------------------------------------------------------------------


def entered(monkeypatch, run: str):
    """Go into a run's clone, for this test alone."""
    monkeypatch.chdir(Path.cwd())
    return retrain.enter(run)


def test_what_is_handed_out_is_taken_back_and_touches_no_branch(origin, monkeypatch):
    clone = entered(monkeypatch, "run")
    (clone.folder / "prepared").write_text("x")
    ref = retrain.hand_out(clone, "run")
    assert "prepared" in git(origin, "ls-tree", "--name-only", ref)
    assert git(clone.folder, "status", "--porcelain") == "?? prepared"
    assert git(origin, "branch", "--format=%(refname:short)") == "main"
    retrain.abandon("run")
    assert git(origin, "for-each-ref", "refs/tuneline") == ""
    assert not clone.folder.exists()


def test_two_retrainings_at_a_time_lose_nothing(origin, monkeypatch):
    first, second = entered(monkeypatch, "one"), None
    monkeypatch.chdir(origin)
    second = entered(monkeypatch, "two")
    for clone, name in ((first, "one"), (second, "two")):
        commit(clone.folder, name, "result")
    monkeypatch.chdir(first.folder)
    assert retrain.publish(first, "one")
    monkeypatch.chdir(second.folder)
    assert not retrain.publish(second, "two")
    retrain.merge(f"origin/{retrain.BRANCH}")
    assert retrain.publish(second, "two")
    assert {"one", "two"} <= set(git(origin, "ls-tree", "--name-only", retrain.BRANCH).split())


def test_the_branch_takes_in_what_the_revision_brings_and_on_both_sides_it_wins(origin, monkeypatch):
    clone = entered(monkeypatch, "one")
    commit(clone.folder, "dvc.lock", "of the branch")
    assert retrain.publish(clone, "one")
    commit(origin, "dvc.lock", "of main")
    monkeypatch.chdir(origin)
    again = entered(monkeypatch, "two")
    assert git(again.folder, "branch", "--show-current") == retrain.BRANCH
    assert (again.folder / "dvc.lock").read_text() == "of main"
    assert retrain.brought_anything()


def test_a_run_that_died_on_its_way_in_enters_again_and_one_that_is_in_stays_with_its_commit(origin, monkeypatch):
    clone = entered(monkeypatch, "one")
    clone.git("config", "--unset", retrain.ENTERED)
    commit(origin, "a", "newer")
    monkeypatch.chdir(origin)
    assert (entered(monkeypatch, "one").folder / "a").read_text() == "newer"
    commit(origin, "a", "newest")
    monkeypatch.chdir(origin)
    assert (entered(monkeypatch, "one").folder / "a").read_text() == "newer"


def test_a_branch_that_cannot_be_merged_is_one_sentence(origin, monkeypatch):
    clone = entered(monkeypatch, "one")
    git(clone.folder, "rm", "--quiet", "a")
    commit(clone.folder, "b", "x")
    assert retrain.publish(clone, "one")
    commit(origin, "a", "changed")
    monkeypatch.chdir(origin)
    with pytest.raises(UserError, match="cannot be merged"):
        entered(monkeypatch, "two")
