"""Clones of runs, of real repositories with DVC in them."""

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
from pipelines.clone import Clone, RemoteUnavailable, clones, existing_clone, open_clone, repository
from pipelines.processes import ProgramFailed, output_of


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


def test_a_repository_without_dvc_is_refused_and_leaves_nothing(origin, tmp_path):
    git(tmp_path, "init", "--quiet", "--initial-branch", "main", "plain")
    commit(tmp_path / "plain", "a", "1")
    with pytest.raises(UserError, match="plain is no repository of DVC's"):
        open_clone("run", "HEAD", str(tmp_path / "plain"))
    assert not any((tmp_path / "home/runs").iterdir())


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
    assert existing_clone("run") == again
    again.discard()
    assert existing_clone("run") is None


def test_a_repository_elsewhere_needs_a_remote(origin, tmp_path):
    clone = open_clone("run", "HEAD", f"file://{origin}")
    assert not clone.shares_cache
    with pytest.raises(UserError, match="names no DVC remote"):
        clone.push_data()
    assert str(tmp_path / "home/cache") in (clone.folder / ".dvc/config.local").read_text()


def test_a_clone_that_was_removed_by_half_is_removed_and_hinders_nobody(origin, tmp_path):
    left = tmp_path / "home/runs/run/reports/training/lora/metrics.json"
    left.parent.mkdir(parents=True)
    left.write_text("{}")
    retraining.abandon("run")
    assert existing_clone("run") is None


def damage(folder: Path, how: str) -> None:
    """Leave of a clone what a half-made or half-removed one has."""
    if how == "empty":
        shutil.rmtree(folder)
        folder.mkdir()
    elif how == "a file":
        shutil.rmtree(folder)
        folder.write_text("x")
    elif how in (".git", ".dvc"):
        shutil.rmtree(folder / how)
    else:
        (folder / ".git" / how).write_text("")


def test_a_half_made_clone_is_made_anew_and_the_repository_above_it_is_left_alone(origin, monkeypatch):
    monkeypatch.setenv("TUNELINE_HOME", str(origin / "home"))  # git looks above a folder that is no repository
    for how in ("empty", "a file", ".git", ".dvc", "HEAD"):
        damage(open_clone("run", "HEAD").folder, how)
        again = open_clone("run", "HEAD")
        assert (again.folder / "a").read_text() == "1"
        assert again.git("rev-parse", "--show-toplevel") == str(again.folder)
        assert [path.name for path in (origin / "home/runs").iterdir()] == ["run"]
    damage(again.folder, "HEAD")
    assert again.setting("remote.origin.url") is None  # that of the repository above is another's
    retraining.abandon("run")
    assert existing_clone("run") is None


def test_a_clone_that_is_somebody_else_s_is_not_thrown_away_and_a_repository_is_no_option(origin, tmp_path):
    with pytest.raises(UserError):
        open_clone("run", "HEAD", f"--upload-pack=touch {tmp_path}/called")
    assert not (tmp_path / "called").exists()
    clone = open_clone("run", "HEAD")
    if os.geteuid() != 0:
        pytest.skip("needs the right to give files away (root)")
    for folder in (clone.folder, clone.folder / ".git"):
        os.chown(folder, 12345, 12345)
    with pytest.raises(UserError, match="dubious ownership"):
        open_clone("run", "HEAD")
    assert (clone.folder / "a").exists()


def test_whoever_has_no_home_is_told_what_to_set(monkeypatch):
    monkeypatch.delenv("TUNELINE_HOME", raising=False)

    def has_none() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", has_none)
    with pytest.raises(UserError, match="set TUNELINE_HOME"):
        clones()


def test_the_ages_of_clones_do_not_depend_on_this_host_s_clock(origin, monkeypatch):
    assert clones() == []
    clone = open_clone("old", "HEAD")
    open_clone("new", "HEAD")
    (clone.folder.parent / ".left.tmp").mkdir()
    made = clone.folder.stat().st_mtime
    os.utime(clone.folder, (made - 86_400, made - 86_400))
    monkeypatch.setattr(time, "time", lambda: made + 10 * 86_400)
    assert {run: round(age / 86_400) for run, age in clones()} == {"old": 1, "new": 0}


def test_a_folder_is_the_same_repository_wherever_it_is_named(origin, monkeypatch):
    monkeypatch.chdir(origin.parent)
    monkeypatch.setenv("TUNELINE_REPOSITORY", "origin")
    assert repository() == str(origin)
    for elsewhere in ("https://host/a", "git@host:a", "user@[::1]:a", "host:a"):
        monkeypatch.setenv("TUNELINE_REPOSITORY", elsewhere)
        assert repository() == elsewhere


def test_a_bare_repository_on_this_host_has_no_cache_to_share(origin, tmp_path):
    bare = tmp_path / "bare.git"
    git(origin, "clone", "--quiet", "--bare", str(origin), str(bare))
    clone = open_clone("run", "HEAD", str(bare))
    assert not clone.shares_cache
    with pytest.raises(UserError, match="names no DVC remote"):
        clone.push_data()


def test_a_repository_elsewhere_is_waited_for_and_a_folder_that_is_not_there_is_not(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNELINE_HOME", str(tmp_path / "home"))
    with pytest.raises(RemoteUnavailable, match="does not answer"):
        open_clone("run", "HEAD", "http://127.0.0.1:9/repository")
    for nowhere in (str(tmp_path / "nowhere"), f"file://{tmp_path}/nowhere"):
        with pytest.raises(UserError) as told:
            open_clone("run", "HEAD", nowhere)
        assert not isinstance(told.value, RemoteUnavailable)
    assert not list((tmp_path / "home/runs").iterdir())


def test_what_git_says_is_told_without_a_token():
    with pytest.raises(UserError) as told:
        output_of("git", "ls-remote", "https://a-token@127.0.0.1:9/repository")
    assert "127.0.0.1:9" in str(told.value)
    assert "a-token" not in str(told.value)
    with pytest.raises(UserError, match=r"could not read Password for 'https://host'"):
        output_of("sh", "-c", "echo \"fatal: could not read Password for 'https://a-token@host'\" >&2; exit 128")


# The remote ----------------------------------------------------------------------------------------


def objects(store: Path) -> set[str]:
    """What a remote holds under the names of whole objects."""
    found = {path.parent.name + path.name: path for path in store.glob("files/md5/??/*") if len(path.name) == 30}
    for name, path in found.items():
        assert hashlib.md5(path.read_bytes()).hexdigest() == name  # none is there by half
    return set(found)


def test_a_remote_that_is_away_is_told_from_a_stage_that_fails(origin, tmp_path, monkeypatch):
    store = tmp_path / "store"
    dvc.ask("remote", "add", "--default", "store", str(store))
    stages = {
        "good": {"cmd": "cat data.txt data.txt > good", "deps": ["data.txt"], "outs": ["good"]},
        "bad": {"cmd": "false"},
    }
    (origin / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    commit(origin, "a", "2")
    clone = open_clone("run", "HEAD")
    monkeypatch.chdir(clone.folder)
    clone.repro("good")
    clone.push_data()
    assert len(objects(store)) == 2
    with pytest.raises(UserError) as failed:
        clone.repro("bad")
    assert not isinstance(failed.value, RemoteUnavailable)
    store.rename(tmp_path / "unplugged")
    store.write_text("")  # nothing can lie below it now
    shutil.rmtree(origin / ".dvc/cache")
    (clone.folder / "good").unlink()
    with pytest.raises(RemoteUnavailable):
        clone.repro("good")
    store.unlink()
    (tmp_path / "unplugged").rename(store)
    clone.repro("good")
    assert (clone.folder / "good").read_text() == "datadata"


@pytest.mark.parametrize(
    ("said", "is_away"),
    [
        ("ERROR: unexpected error - s3 is supported, but requires 'dvc-s3' to be installed", False),
        ("ERROR: failed to transfer 'a' - 403, message='Forbidden', url='http://host/a'", False),
        ("ERROR: failed to transfer 'a' - [Errno 28] No space left on device", True),
        ("ERROR: failed to transfer 'a' - Cannot connect to host host:403", True),
    ],
)
def test_a_remote_is_waited_for_unless_waiting_does_not_mend_it(tmp_path, monkeypatch, said, is_away):
    def fails(*arguments: str) -> str:
        raise ProgramFailed("`dvc push` failed: said so", f"{said}\nHaving any troubles?")

    monkeypatch.setattr(Clone, "has_remote", True)
    monkeypatch.setattr(dvc, "ask", fails)
    with pytest.raises(UserError, match="said so") as told:
        Clone(tmp_path, str(tmp_path)).push_data()
    assert isinstance(told.value, RemoteUnavailable) == is_away


def test_what_is_away_is_not_asked_once_more(tmp_path, monkeypatch):
    """Each question takes as long as the silence that ended the one before."""

    def is_silent(*arguments: str, **more) -> str:
        raise RemoteUnavailable("made no progress")

    monkeypatch.chdir(tmp_path)
    shutil.copyfile(ROOT / "params.yaml", "params.yaml")
    for name in ("push_data", "git"):
        monkeypatch.setattr(Clone, name, lambda *_: pytest.fail("asked once more"))
    for name in ("tell", "run"):
        monkeypatch.setattr(dvc, name, is_silent)
    monkeypatch.setattr(Clone, "has_remote", True)
    clone = Clone(tmp_path, "ssh://host/x")
    for what in (clone.repro, lambda: retraining.prepare(clone)):
        with pytest.raises(RemoteUnavailable, match="made no progress"):
            what()
    with pytest.raises(RemoteUnavailable, match="made no progress"), clone.needing_origin():
        is_silent()


def test_a_full_remote_takes_nothing_by_half_and_the_rest_once_there_is_room(origin, tmp_path):
    store = tmp_path / "store"
    store.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", store], capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system (root)")
    try:
        dvc.ask("remote", "add", "--default", "store", str(store))
        (origin / "big").write_bytes(bytes(400_000))
        dvc.ask("add", "--quiet", "big")
        commit(origin, "a", "2")
        clone = open_clone("run", "HEAD")
        dvc.ask("--cd", str(clone.folder), "checkout", "--quiet")
        with pytest.raises(RemoteUnavailable):
            clone.push_data()
        assert len(objects(store)) < 2
        subprocess.run(["mount", "-o", "remount,size=4m", store], check=True)
        clone.push_data()
        assert len(objects(store)) == 2
    finally:
        subprocess.run(["umount", store], check=True)


@pytest.mark.parametrize("secret", ["team:secret", "secret"])
def test_an_address_is_shown_without_its_secret(secret):
    assert Clone(Path("x"), f"https://{secret}@host.example/repo.git").address == "https://host.example/repo.git"
    assert Clone(Path("x"), "ssh://git@host.example/repo").address == "ssh://git@host.example/repo"
    assert Clone(Path("x"), "/a/folder").address == "/a/folder"


# Revisions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("revision", ["nowhere", "refs/tuneline/runs/none"])
def test_a_revision_that_is_not_there_leaves_no_clone(origin, tmp_path, revision):
    with pytest.raises(UserError):
        open_clone("run", revision)
    assert not list((tmp_path / "home/runs").iterdir())


@pytest.mark.parametrize("ref", ["main", "refs/heads/main", "refs/tuneline/runs/../../heads/main", "--upload-pack=x"])
def test_a_trainer_takes_nothing_but_what_was_handed_out(origin, ref):
    with pytest.raises(UserError, match="nothing that a retraining hands out"):
        agent_training.take("run", ref, "lora")


# The branch ----------------------------------------------------------------------------------------


def entered(monkeypatch, run: str):
    """Go into a run's clone, for this test alone."""
    monkeypatch.chdir(Path.cwd())
    return retraining.enter(run)


def test_what_is_handed_out_is_taken_back_and_touches_no_branch(origin, monkeypatch):
    clone = entered(monkeypatch, "run")
    (clone.folder / "prepared").write_text("x")
    ref = run_refs.hand_out(clone, "run")
    assert "prepared" in git(origin, "ls-tree", "--name-only", ref)
    assert git(clone.folder, "status", "--porcelain") == "?? prepared"
    assert git(origin, "branch", "--format=%(refname:short)") == "main"
    retraining.abandon("run")
    assert git(origin, "for-each-ref", "refs/tuneline") == ""
    assert not clone.folder.exists()


def test_what_is_handed_out_again_is_the_same_commit(origin, monkeypatch):
    """By which a sweep finds what was tried before its orchestrator was killed."""
    clone = entered(monkeypatch, "run")
    (clone.folder / "prepared").write_text("x")
    first = git(origin, "rev-parse", run_refs.hand_out(clone, "run"))
    time.sleep(1.1)  # git counts seconds
    assert git(origin, "rev-parse", run_refs.hand_out(clone, "run")) == first


def test_a_push_that_is_refused_is_told_with_its_reason_and_an_origin_that_is_away_as_such(origin, monkeypatch):
    clone = entered(monkeypatch, "run")
    commit(clone.folder, "b", "result")
    git(origin, "switch", "--quiet", "--create", retraining.BRANCH)
    with pytest.raises(UserError, match=r"rejected.*checked out") as told:
        retraining.publish(clone, "run")
    assert not isinstance(told.value, RemoteUnavailable)
    origin.rename(origin.with_name("elsewhere"))
    with pytest.raises(RemoteUnavailable, match="does not answer"):
        clone.push("origin", retraining.BRANCH)


def test_a_version_that_was_promoted_by_hand_meanwhile_is_met_like_another_retraining(origin, monkeypatch):
    clone = entered(monkeypatch, "run")
    assert promoted("ours") == "v1.0.0"
    monkeypatch.chdir(origin)
    assert promoted("by hand") == "v1.0.0"
    monkeypatch.chdir(clone.folder)
    assert not retraining.publish(clone, "run")
    retraining.take_in_others(clone)
    assert (registry.champion() / "weights").read_text() == "by hand"
    assert promoted("ours") == "v2.0.0"
    assert retraining.publish(clone, "run")
    assert retraining.new_champion(clone) == "v2.0.0"


def test_two_retrainings_at_a_time_lose_nothing(origin, monkeypatch):
    first, second = entered(monkeypatch, "one"), None
    monkeypatch.chdir(origin)
    second = entered(monkeypatch, "two")
    for clone, name in ((first, "one"), (second, "two")):
        commit(clone.folder, name, "result")
    monkeypatch.chdir(first.folder)
    assert retraining.publish(first, "one")
    monkeypatch.chdir(second.folder)
    assert not retraining.publish(second, "two")
    retraining.merge(f"origin/{retraining.BRANCH}")
    assert retraining.publish(second, "two")
    assert {"one", "two"} <= set(git(origin, "ls-tree", "--name-only", retraining.BRANCH).split())


def promoted(name: str) -> str:
    """Make an adapter of this name the champion of the clone that this process is in; gives the version."""
    adapter = Path("tmp-adapter")
    adapter.mkdir(exist_ok=True)
    (adapter / "weights").write_text(name)
    return registry.register(adapter, (), f"Promote {name}")


def test_of_two_promotions_at_a_time_the_second_meets_the_first_and_takes_the_next_number(origin, monkeypatch):
    first = entered(monkeypatch, "one")
    monkeypatch.chdir(origin)
    second = entered(monkeypatch, "two")
    for clone in (first, second):
        monkeypatch.chdir(clone.folder)
        assert promoted(clone.folder.name) == "v1.0.0"
        assert retraining.new_champion(clone) == "v1.0.0"
    monkeypatch.chdir(first.folder)
    assert retraining.publish(first, "one")
    monkeypatch.chdir(second.folder)
    assert not retraining.publish(second, "two")
    retraining.take_in_others(second)
    assert registry.live() == "v1.0.0"
    assert retraining.new_champion(second) is None
    assert (registry.champion() / "weights").read_text() == "one"
    assert promoted("two") == "v2.0.0"
    assert retraining.publish(second, "two")
    assert retraining.new_champion(second) == "v2.0.0"
    assert {"champion@v1.0.0", "champion@v2.0.0"} <= set(git(origin, "tag").split())


def test_a_version_is_new_to_a_run_that_was_killed_behind_its_promotion(origin, monkeypatch):
    clone = entered(monkeypatch, "run")
    promoted("one")
    assert retraining.publish(clone, "run")
    monkeypatch.chdir(origin)
    again = entered(monkeypatch, "run")
    assert retraining.new_champion(again) == "v1.0.0"
    monkeypatch.chdir(origin)
    assert retraining.new_champion(entered(monkeypatch, "next")) is None


def test_why_nobody_was_promoted_stands_in_a_commit():
    conditions = [
        {"condition": "gain", "found": "0.01", "met": True},
        {"condition": "forgetting", "found": "0.3 of 0.1", "met": False},
    ]
    said = retraining.verdict({"lora": {"promote": False, "conditions": conditions}})
    assert said == "Keep the champion: lora not promoted\n\nlora: forgetting: 0.3 of 0.1"


def test_the_branch_takes_in_what_the_revision_brings_and_on_both_sides_it_wins(origin, monkeypatch):
    clone = entered(monkeypatch, "one")
    commit(clone.folder, "dvc.lock", "of the branch")
    assert retraining.publish(clone, "one")
    commit(origin, "dvc.lock", "of main")
    monkeypatch.chdir(origin)
    again = entered(monkeypatch, "two")
    assert git(again.folder, "branch", "--show-current") == retraining.BRANCH
    assert (again.folder / "dvc.lock").read_text() == "of main"
    assert retraining.brought_anything()


def test_an_origin_that_is_away_on_the_way_in_is_told_as_such_and_can_be_tried_again(origin, monkeypatch):
    trainer_ref = run_refs.hand_out(entered(monkeypatch, "orchestrator"), "orchestrator")
    monkeypatch.chdir(origin.parent)
    monkeypatch.setenv("TUNELINE_REPOSITORY", str(origin))
    open_clone("run", "HEAD")
    origin.rename(origin.with_name("elsewhere"))
    with pytest.raises(RemoteUnavailable):
        retraining.enter("run")
    assert Path.cwd() == origin.parent
    origin.with_name("elsewhere").rename(origin)
    assert git(entered(monkeypatch, "run").folder, "branch", "--show-current") == retraining.BRANCH
    with pytest.raises(UserError) as told:
        agent_training.take("trainer", trainer_ref.replace("orchestrator", "nobody"), "lora")
    assert not isinstance(told.value, RemoteUnavailable)


def test_a_run_that_died_on_its_way_in_enters_again_and_one_that_is_in_stays_with_its_commit(origin, monkeypatch):
    clone = entered(monkeypatch, "one")
    clone.git("config", "--unset", retraining.ENTERED)
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
    assert retraining.publish(clone, "one")
    commit(origin, "a", "changed")
    monkeypatch.chdir(origin)
    with pytest.raises(UserError, match="cannot be merged"):
        entered(monkeypatch, "two")
