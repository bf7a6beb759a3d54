"""Clones of runs, from real git and DVC repositories."""

import contextlib
import hashlib
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from shared_data import ROOT

from models.errors import UserError
from pipelines import agent_training, dvc, registry, retraining, run_refs
from pipelines.clone import Clone, existing_clone, list_clones, open_clone, repository
from pipelines.processes import ProgramFailed, RemoteUnavailable, output_of
from pipelines.promotion import PromotionResult
from pipelines.promotion_report import Condition


def git(folder: Path, *arguments: str) -> str:
    return output_of("git", "-C", str(folder), *arguments)


def commit(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", f"{name}: {text}")
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture(scope="module")
def initialized_repository(author, tmp_path_factory):
    """Make a repository with one file that DVC tracks and has in its cache; a copy is made faster than another one."""
    folder = tmp_path_factory.mktemp("repository")
    git(folder, "init", "--quiet", "--initial-branch", "main")
    dvc.capture("--cd", str(folder), "init", "--quiet")
    (folder / "data.txt").write_text("data")
    dvc.capture("--cd", str(folder), "add", "--quiet", "data.txt")
    commit(folder, "a", "1")
    return folder


@pytest.fixture
def origin(initialized_repository, tmp_path, monkeypatch):
    """Return a repository with one file that DVC tracks and has in its cache."""
    monkeypatch.setenv("TUNELINE_HOME", str(tmp_path / "home"))
    folder = tmp_path / "origin"
    shutil.copytree(initialized_repository, folder, symlinks=True)
    monkeypatch.chdir(folder)
    return folder


def test_clone_uses_cache_and_settings_of_an_origin_on_this_host(origin, tmp_path):
    dvc.capture("remote", "add", "--default", "store", "../store")
    dvc.capture("remote", "add", "far", "s3://bucket")
    dvc.capture("remote", "modify", "--local", "far", "secret_access_key", "secret")
    commit(origin, "a", "2")
    clone = open_clone("run", "HEAD")
    assert clone.folder == tmp_path / "home/runs/run"
    dvc.capture("--cd", str(clone.folder), "checkout", "--quiet")
    assert (clone.folder / "data.txt").read_text() == "data"
    config = clone.folder / ".dvc/config.local"
    assert "secret" in config.read_text()
    assert config.stat().st_mode & 0o077 == 0
    assert (tmp_path / "home/runs").stat().st_mode & 0o077 == 0
    clone.push_data()
    assert any(path.read_text() == "data" for path in (tmp_path / "store").rglob("*") if path.is_file())


def test_repository_without_dvc_is_refused_and_no_clone_stays(origin, tmp_path):
    git(tmp_path, "init", "--quiet", "--initial-branch", "main", "plain")
    commit(tmp_path / "plain", "a", "1")
    with pytest.raises(UserError, match="plain is not a DVC repository"):
        open_clone("run", "HEAD", str(tmp_path / "plain"))
    assert not any((tmp_path / "home/runs").iterdir())


def test_restarted_run_finds_its_clone_unchanged_but_without_stale_locks(origin):
    clone = open_clone("run", "main")
    (clone.folder / "checkpoint").write_text("x")
    (clone.folder / ".dvc/tmp").mkdir(exist_ok=True)
    (clone.folder / ".dvc/tmp/rwlock").write_text('{"/x": {"write": {"pid": 1, "cmd": "dvc repro"}}}')
    commit(origin, "a", "3")
    again = open_clone("run", "main")
    assert (again.folder / "checkpoint").exists()
    assert not (again.folder / ".dvc/tmp/rwlock").exists()
    assert (again.folder / "a").read_text() == "1"
    assert existing_clone("run") == again
    again.discard()
    assert existing_clone("run") is None


def test_repository_elsewhere_needs_a_dvc_remote(origin, tmp_path):
    clone = open_clone("run", "HEAD", f"file://{origin}")
    assert not clone.shares_cache
    with pytest.raises(UserError, match="has no DVC remote"):
        clone.push_data()
    assert str(tmp_path / "home/cache") in (clone.folder / ".dvc/config.local").read_text()


def test_half_removed_clone_is_removed(origin, tmp_path):
    file = tmp_path / "home/runs/run/reports/training/lora/metrics.json"
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    retraining.discard_run("run")
    assert existing_clone("run") is None


def damage(folder: Path, kind: str) -> None:
    """Damage a clone as an interrupted creation or removal does."""
    if kind == "empty":
        shutil.rmtree(folder)
        folder.mkdir()
    elif kind == "a file":
        shutil.rmtree(folder)
        folder.write_text("x")
    elif kind in (".git", ".dvc"):
        shutil.rmtree(folder / kind)
    else:
        (folder / ".git" / kind).write_text("")


def test_damaged_clone_is_made_anew_and_the_repository_above_it_is_not_changed(origin, monkeypatch):
    monkeypatch.setenv(
        "TUNELINE_HOME", str(origin / "home")
    )  # in a folder without a repository, git uses one of a parent folder
    for kind in ("empty", "a file", ".git", ".dvc", "HEAD"):
        damage(open_clone("run", "HEAD").folder, kind)
        again = open_clone("run", "HEAD")
        assert (again.folder / "a").read_text() == "1"
        assert again.git("rev-parse", "--show-toplevel") == str(again.folder)
        assert [path.name for path in (origin / "home/runs").iterdir()] == ["run"]
    damage(again.folder, "HEAD")
    assert again.config("remote.origin.url") is None  # not that of the repository above
    retraining.discard_run("run")
    assert existing_clone("run") is None


def test_clone_of_another_user_is_not_removed_and_an_address_is_not_taken_for_an_option(origin, tmp_path):
    with pytest.raises(UserError):
        open_clone("run", "HEAD", f"--upload-pack=touch {tmp_path}/called")
    assert not (tmp_path / "called").exists()
    clone = open_clone("run", "HEAD")
    if os.geteuid() != 0:
        pytest.skip("needs root, to change the owner of files")
    for folder in (clone.folder, clone.folder / ".git"):
        os.chown(folder, 12345, 12345)
    with pytest.raises(UserError, match="dubious ownership"):
        open_clone("run", "HEAD")
    assert (clone.folder / "a").exists()


def test_missing_home_folder_is_reported_with_the_variable_to_set(monkeypatch):
    monkeypatch.delenv("TUNELINE_HOME", raising=False)

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(UserError, match="set TUNELINE_HOME"):
        list_clones()


def test_ages_of_clones_do_not_depend_on_the_clock_of_this_host(origin, monkeypatch):
    assert list_clones() == []
    clone = open_clone("old", "HEAD")
    open_clone("new", "HEAD")
    (clone.folder.parent / ".left.tmp").mkdir()
    made = clone.folder.stat().st_mtime
    os.utime(clone.folder, (made - 86_400, made - 86_400))
    monkeypatch.setattr(time, "time", lambda: made + 10 * 86_400)
    assert {run: round(age / 86_400) for run, age in list_clones()} == {"old": 1, "new": 0}


def test_repository_in_a_relative_folder_is_made_absolute_and_a_url_is_not_changed(origin, monkeypatch):
    monkeypatch.chdir(origin.parent)
    monkeypatch.setenv("TUNELINE_REPOSITORY", "origin")
    assert repository() == str(origin)
    for address in ("https://host/a", "git@host:a", "user@[::1]:a", "host:a"):
        monkeypatch.setenv("TUNELINE_REPOSITORY", address)
        assert repository() == address


def test_bare_repository_on_this_host_has_no_cache_to_share(origin, tmp_path):
    bare = tmp_path / "bare.git"
    git(origin, "clone", "--quiet", "--bare", str(origin), str(bare))
    clone = open_clone("run", "HEAD", str(bare))
    assert not clone.shares_cache
    with pytest.raises(UserError, match="has no DVC remote"):
        clone.push_data()


def test_unreachable_url_is_remote_unavailable_and_a_missing_folder_is_not(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNELINE_HOME", str(tmp_path / "home"))
    with pytest.raises(RemoteUnavailable, match="does not answer"):
        open_clone("run", "HEAD", "http://127.0.0.1:9/repository")
    for missing in (str(tmp_path / "nowhere"), f"file://{tmp_path}/nowhere"):
        with pytest.raises(UserError) as error:
            open_clone("run", "HEAD", missing)
        assert not isinstance(error.value, RemoteUnavailable)
    assert not list((tmp_path / "home/runs").iterdir())


def test_error_of_git_is_reported_without_the_token():
    with pytest.raises(UserError) as error:
        output_of("git", "ls-remote", "https://a-token@127.0.0.1:9/repository")
    assert "127.0.0.1:9" in str(error.value)
    assert "a-token" not in str(error.value)
    with pytest.raises(UserError, match=r"could not read Password for 'https://host'"):
        output_of("sh", "-c", "echo \"fatal: could not read Password for 'https://a-token@host'\" >&2; exit 128")


# The remote ----------------------------------------------------------------------------------------


def remote_objects(store: Path) -> set[str]:
    """Return the hashes of all objects in a remote, each of which must be complete."""
    objects = {path.parent.name + path.name: path for path in store.glob("files/md5/??/*") if len(path.name) == 30}
    for name, path in objects.items():
        assert hashlib.md5(path.read_bytes()).hexdigest() == name
    return set(objects)


def test_unavailable_remote_is_distinguished_from_a_stage_that_fails(origin, tmp_path):
    store = tmp_path / "store"
    dvc.capture("remote", "add", "--default", "store", str(store))
    stages = {
        "good": {"cmd": "cat data.txt data.txt > good", "deps": ["data.txt"], "outs": ["good"]},
        "bad": {"cmd": "false"},
    }
    (origin / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    commit(origin, "a", "2")
    clone = open_clone("run", "HEAD")
    clone.repro("good")
    clone.push_data()
    assert len(remote_objects(store)) == 2
    with pytest.raises(UserError) as error:
        clone.repro("bad")
    assert not isinstance(error.value, RemoteUnavailable)
    store.rename(tmp_path / "unplugged")
    store.write_text("")  # a file: nothing can be written below it
    shutil.rmtree(origin / ".dvc/cache")
    (clone.folder / "good").unlink()
    with pytest.raises(RemoteUnavailable):
        clone.repro("good")
    store.unlink()
    (tmp_path / "unplugged").rename(store)
    clone.repro("good")
    assert (clone.folder / "good").read_text() == "datadata"


@pytest.mark.parametrize(
    ("output", "is_unavailable"),
    [
        ("ERROR: unexpected error - s3 is supported, but requires 'dvc-s3' to be installed", False),
        ("ERROR: failed to transfer 'a' - 403, message='Forbidden', url='http://host/a'", False),
        ("ERROR: failed to transfer 'a' - [Errno 28] No space left on device", True),
        ("ERROR: failed to transfer 'a' - Cannot connect to host host:403", True),
    ],
)
def test_permanent_errors_of_a_remote_are_not_retried(tmp_path, monkeypatch, output, is_unavailable):
    def fail(*arguments: str, folder: Path) -> str:
        raise ProgramFailed("`dvc push` failed: the reason", f"{output}\nHaving any troubles?")

    monkeypatch.setattr(Clone, "has_remote", True)
    monkeypatch.setattr(dvc, "capture", fail)
    with pytest.raises(UserError, match="the reason") as error:
        Clone(tmp_path, str(tmp_path)).push_data()
    assert isinstance(error.value, RemoteUnavailable) == is_unavailable


def test_silent_remote_is_not_tested_again_before_a_retry(tmp_path, monkeypatch):
    """Another request would wait for the idle timeout once more."""

    def is_silent(*arguments: str, **options) -> str:
        raise RemoteUnavailable("made no progress")

    monkeypatch.chdir(tmp_path)
    shutil.copyfile(ROOT / "params.yaml", "params.yaml")
    for name in ("_push_data", "git"):
        monkeypatch.setattr(Clone, name, lambda *_: pytest.fail("another request"))
    for name in ("run_with_stage_error", "run"):
        monkeypatch.setattr(dvc, name, is_silent)
    monkeypatch.setattr(Clone, "has_remote", True)
    clone = Clone(tmp_path, "ssh://host/x")
    for step in (clone.repro, lambda: retraining.reproduce_data(clone)):
        with pytest.raises(RemoteUnavailable, match="made no progress"):
            step()
    with pytest.raises(RemoteUnavailable, match="made no progress"), clone.requiring_origin():
        is_silent()


def test_full_remote_has_only_complete_objects_and_a_later_push_adds_the_others(origin, tmp_path):
    store = tmp_path / "store"
    store.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", store], capture_output=True).returncode:
        pytest.skip("needs root, to mount a small file system")
    try:
        dvc.capture("remote", "add", "--default", "store", str(store))
        (origin / "big").write_bytes(bytes(400_000))
        dvc.capture("add", "--quiet", "big")
        commit(origin, "a", "2")
        clone = open_clone("run", "HEAD")
        dvc.capture("--cd", str(clone.folder), "checkout", "--quiet")
        with pytest.raises(RemoteUnavailable):
            clone.push_data()
        assert len(remote_objects(store)) < 2
        subprocess.run(["mount", "-o", "remount,size=4m", store], check=True)
        clone.push_data()
        assert len(remote_objects(store)) == 2
    finally:
        subprocess.run(["umount", store], check=True)


@pytest.mark.parametrize("secret", ["team:secret", "secret"])
def test_address_is_shown_without_its_secret(secret):
    assert Clone(Path("x"), f"https://{secret}@host.example/repo.git").masked_origin == "https://host.example/repo.git"
    assert Clone(Path("x"), "ssh://git@host.example/repo").masked_origin == "ssh://git@host.example/repo"
    assert Clone(Path("x"), "/a/folder").masked_origin == "/a/folder"


# Revisions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("revision", ["nowhere", "refs/tuneline/runs/none"])
def test_missing_revision_is_refused_and_no_clone_stays(origin, tmp_path, revision):
    with pytest.raises(UserError):
        open_clone("run", revision)
    assert not list((tmp_path / "home/runs").iterdir())


@pytest.mark.parametrize("ref", ["main", "refs/heads/main", "refs/tuneline/runs/../../heads/main", "--upload-pack=x"])
def test_agent_accepts_only_published_refs(origin, ref):
    with pytest.raises(UserError, match="not a ref that a retraining has published"):
        agent_training.open_job_clone("run", ref, "lora")


# The branch ----------------------------------------------------------------------------------------


def test_published_ref_is_deleted_with_its_run_and_no_branch_changes(origin):
    clone = retraining.open_branch_clone("run")
    (clone.folder / "prepared").write_text("x")
    ref = run_refs.publish(clone, "run")
    assert "prepared" in git(origin, "ls-tree", "--name-only", ref)
    assert git(clone.folder, "status", "--porcelain") == "?? prepared"
    assert git(origin, "branch", "--format=%(refname:short)") == "main"
    retraining.discard_run("run")
    assert git(origin, "for-each-ref", "refs/tuneline") == ""
    assert not clone.folder.exists()


def test_same_content_is_published_as_the_same_commit(origin):
    """A sweep finds the experiments before its restart by their base commit."""
    clone = retraining.open_branch_clone("run")
    (clone.folder / "prepared").write_text("x")
    first = git(origin, "rev-parse", run_refs.publish(clone, "run"))
    time.sleep(1.1)  # git's dates have a resolution of a second
    assert git(origin, "rev-parse", run_refs.publish(clone, "run")) == first


def test_rejected_push_is_reported_with_its_reason_and_an_unavailable_origin_as_unavailable(origin):
    clone = retraining.open_branch_clone("run")
    commit(clone.folder, "b", "result")
    git(origin, "switch", "--quiet", "--create", retraining.BRANCH)
    with pytest.raises(UserError, match=r"rejected.*checked out") as error:
        retraining.push_results(clone, "run")
    assert not isinstance(error.value, RemoteUnavailable)
    origin.rename(origin.with_name("elsewhere"))
    with pytest.raises(RemoteUnavailable, match="does not answer"):
        clone.push("origin", retraining.BRANCH)


def test_version_promoted_by_hand_in_the_meantime_is_merged(origin, monkeypatch):
    clone = retraining.open_branch_clone("run")
    assert register(clone.folder, "ours") == "v1.0.0"
    assert register(origin, "by hand") == "v1.0.0"
    assert not retraining.push_results(clone, "run")
    retraining.merge_remote_changes(clone)
    assert champion_weights(clone.folder) == "by hand"
    assert register(clone.folder, "ours") == "v2.0.0"
    assert retraining.push_results(clone, "run")
    assert retraining.promoted_version(clone) == "v2.0.0"


def test_two_concurrent_retrainings_both_push_their_results(origin):
    first, second = (retraining.open_branch_clone(run) for run in ("one", "two"))
    for clone, name in ((first, "one"), (second, "two")):
        commit(clone.folder, name, "result")
    assert retraining.push_results(first, "one")
    assert not retraining.push_results(second, "two")
    retraining.merge_revision(second, f"origin/{retraining.BRANCH}")
    assert retraining.push_results(second, "two")
    assert {"one", "two"} <= set(git(origin, "ls-tree", "--name-only", retraining.BRANCH).split())


def register(folder: Path, name: str) -> str:
    """Register an adapter with this name as its weights as champion of a repository; return the version."""
    with contextlib.chdir(folder):
        adapter = Path("tmp-adapter")
        adapter.mkdir(exist_ok=True)
        (adapter / "weights").write_text(name)
        return registry.register(adapter, (), f"Promote {name}")


def champion_weights(folder: Path) -> str:
    with contextlib.chdir(folder):
        return (registry.fetch_champion() / "weights").read_text()


def test_second_of_two_concurrent_promotions_gets_the_next_version(origin):
    first, second = (retraining.open_branch_clone(run) for run in ("one", "two"))
    for clone in (first, second):
        assert register(clone.folder, clone.folder.name) == "v1.0.0"
        assert retraining.promoted_version(clone) == "v1.0.0"
    assert retraining.push_results(first, "one")
    assert not retraining.push_results(second, "two")
    retraining.merge_remote_changes(second)
    assert retraining.live_version(second) == "v1.0.0"
    assert retraining.promoted_version(second) is None
    assert champion_weights(second.folder) == "one"
    assert register(second.folder, "two") == "v2.0.0"
    assert retraining.push_results(second, "two")
    assert retraining.promoted_version(second) == "v2.0.0"
    assert {"champion@v1.0.0", "champion@v2.0.0"} <= set(git(origin, "tag").split())


def test_run_restarted_after_its_promotion_reports_the_version_as_promoted(origin):
    clone = retraining.open_branch_clone("run")
    register(clone.folder, "one")
    assert retraining.push_results(clone, "run")
    assert retraining.promoted_version(retraining.open_branch_clone("run")) == "v1.0.0"
    assert retraining.promoted_version(retraining.open_branch_clone("next")) is None


def test_rejection_message_has_the_unmet_conditions():
    conditions = (
        Condition("probes", True, {"before": 0.5, "after": 0.6, "allowed": 0.1}),
        Condition("forgetting", False, {"loss": 2.3, "reference": "base", "before": 2.0, "allowed": 0.1}),
    )
    message = retraining.rejection_message([PromotionResult("lora", False, conditions)])
    assert message == (
        "Keep the champion: lora not promoted\n\n"
        "lora: Forgetting: general loss 2.3000, base: 2.0000; rise of at most 0.1 allowed"
    )


def test_revision_is_merged_into_the_branch_and_wins_conflicts(origin):
    clone = retraining.open_branch_clone("one")
    commit(clone.folder, "dvc.lock", "branch")
    assert retraining.push_results(clone, "one")
    commit(origin, "dvc.lock", "main")
    again = retraining.open_branch_clone("two")
    assert git(again.folder, "branch", "--show-current") == retraining.BRANCH
    assert (again.folder / "dvc.lock").read_text() == "main"
    assert retraining.has_changes(again)


def test_unavailable_origin_can_be_retried_before_the_branch_is_merged(origin, monkeypatch):
    ref = run_refs.publish(retraining.open_branch_clone("orchestrator"), "orchestrator")
    monkeypatch.chdir(origin.parent)
    monkeypatch.setenv("TUNELINE_REPOSITORY", str(origin))
    open_clone("run", "HEAD")
    origin.rename(origin.with_name("elsewhere"))
    with pytest.raises(RemoteUnavailable):
        retraining.open_branch_clone("run")
    assert Path.cwd() == origin.parent
    origin.with_name("elsewhere").rename(origin)
    assert git(retraining.open_branch_clone("run").folder, "branch", "--show-current") == retraining.BRANCH
    with pytest.raises(UserError) as error:
        agent_training.open_job_clone("agent", ref.replace("orchestrator", "nobody"), "lora")
    assert not isinstance(error.value, RemoteUnavailable)


def test_run_killed_during_the_merge_merges_again_and_a_merged_revision_stays(origin):
    clone = retraining.open_branch_clone("one")
    clone.git("config", "--unset", retraining.MERGED_REVISION)
    commit(origin, "a", "newer")
    assert (retraining.open_branch_clone("one").folder / "a").read_text() == "newer"
    commit(origin, "a", "newest")
    assert (retraining.open_branch_clone("one").folder / "a").read_text() == "newer"


def test_merge_conflict_is_reported(origin):
    clone = retraining.open_branch_clone("one")
    git(clone.folder, "rm", "--quiet", "a")
    commit(clone.folder, "b", "x")
    assert retraining.push_results(clone, "one")
    commit(origin, "a", "changed")
    with pytest.raises(UserError, match="cannot be merged"):
        retraining.open_branch_clone("two")
