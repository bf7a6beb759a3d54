"""Promotion in a real git and DVC repository: versions, what they hold, and the way back."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from shared_data import ROOT, write_rows

from models import provenance
from models.errors import UserError
from models.manifest import CONFIG, WEIGHTS
from models.storage import read_json, read_jsonl, sha256_of, write_json
from pipelines import dvc, promotion, registry
from pipelines.processes import output_of


def git(*arguments: str) -> str:
    return output_of("git", *arguments)


def evaluated(name: str, loss: float, **of_all) -> None:
    """What stage evaluate leaves behind of a model, in short; ``of_all`` stands among its figures."""
    folder, weights = promotion.PREDICTIONS / name, promotion.WEIGHTS / name / WEIGHTS
    asked = {"messages": [{"role": "user", "content": "问"}]}
    rows = [asked | {"id": str(number), "loss": loss + number / 50} for number in range(30)]
    for kind, some in (("eval", rows), ("general", rows[:2]), ("probes", rows[:3])):
        write_rows(folder / f"{kind}.jsonl", some)
    figures = {
        "general": {"loss": 2.0},
        "eval": {"empty_rate": 0.0, "repetition": 0.0},
        "probes": {"rates": {"all": {"rate": 0.9}}},
        "of": {"weights_sha256": sha256_of(weights) if weights.is_file() else None},
    }
    write_json(folder / "figures.json", figures | of_all)


def trained(name: str, content: str) -> Path:
    folder = promotion.WEIGHTS / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS).write_text(content)
    write_json(folder / "manifest.json", {"name": content, "weights_sha256": sha256_of(folder / WEIGHTS)})
    return folder


def champion_said() -> str:
    return (registry.FOLDER / WEIGHTS).read_text()


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A project with a trained and evaluated LoRA that is better than the base."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in ("GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME"):
        monkeypatch.setenv(name, "test")
    for name in ("GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"):
        monkeypatch.setenv(name, "test@localhost")
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    git("init", "--quiet")
    dvc.run("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "start")
    trained("lora", "first")
    evaluated("base", 3.0)
    evaluated("lora", 1.0)
    seconds = {"champion": 0.5, "challenger": 0.5}
    write_json(tmp_path / "times.json", {"seconds_an_answer": seconds})
    # Nothing here was made by DVC's stages; tests/integration/test_pipeline.py promotes what was.
    monkeypatch.setattr(promotion, "refuse_what_changed", lambda _: None)
    # These adapters are no models that could be timed; tests/stages/test_promote_timing.py times real ones.
    monkeypatch.setattr(promotion, "times_of", lambda *_: tmp_path / "times.json")
    return tmp_path


def test_promoted_once_fetched_elsewhere_and_not_twice(repository, tmp_path):
    (repository / "unrelated").write_text("staged, and not to be committed")
    git("add", "unrelated")
    decision = promotion.promote("lora")
    assert (decision["promote"], decision["version"], registry.live()) == (True, "v1.0.0", "v1.0.0")
    assert set(git("show", "--name-only", "--format=").split()) == {
        "models/.gitignore",
        "models/champion.dvc",
        "reports/promotion.json",
        "reports/promotion.md",
    }
    assert "unrelated" in git("diff", "--cached", "--name-only")
    get = ["artifacts", "get", str(repository), "champion", "--stage", "live", "--out", "fetched"]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    subprocess.run([sys.executable, "-m", "dvc", *get], cwd=elsewhere, env=os.environ | {"DVC_NO_ANALYTICS": "1"})
    assert (elsewhere / "fetched" / WEIGHTS).read_text() == "first"
    with pytest.raises(UserError, match=r"is the champion already, as v1\.0\.0"):
        promotion.promote("lora")


def test_what_is_no_better_stays_where_it_is(repository):
    evaluated("lora", 2.99)
    first = promotion.promote("lora")
    assert not first["promote"]
    assert not registry.FOLDER.exists()
    assert (registry.versions(), registry.live()) == ({}, None)
    assert "✗ Gain" in promotion.REASONS.read_text(encoding="utf-8")
    assert promotion.promote("lora") == first


def test_what_repeats_itself_stays_out(repository):
    """As an adapter that says 不要的，要的，不要的，要的… to everything: the loss is far better, repetition 68 %."""
    evaluated("lora", 1.0, eval={"empty_rate": 0.0, "repetition": 0.68})
    assert not promotion.promote("lora")["promote"]
    reasons = promotion.REASONS.read_text(encoding="utf-8")
    assert "✗ Repetition | 68%; at most 20% allowed" in reasons
    assert "✗ 重复率 | 68%，最多允许 20%" in reasons
    assert reasons.count("✗") == 2
    params = Path("params.yaml").read_text(encoding="utf-8")
    assert "    repetition: 0.2" in params
    Path("params.yaml").write_text(params.replace("    repetition: 0.2", "    repetition: 0.7"), encoding="utf-8")
    assert promotion.promote("lora")["promote"]


def test_two_rows_promote_nothing(repository):
    for name in ("base", "lora"):
        path = promotion.PREDICTIONS / name / "eval.jsonl"
        write_rows(path, read_jsonl(path)[:2])
    assert not promotion.promote("lora")["promote"]
    assert "2 rows are too few for an interval, at least 6 needed" in promotion.REASONS.read_text(encoding="utf-8")


def test_figures_of_different_metrics_versions_decide_nothing(repository, capfd):
    evaluated("base", 3.0, metrics_version=2)
    with pytest.raises(UserError, match="No decision was made"):
        promotion.promote("lora")
    said = capfd.readouterr().err
    assert "their versions differ: base has version 2, lora has version 1" in said
    assert "Traceback" not in said


def test_answers_of_the_champion_are_kept_until_the_metrics_change(repository, monkeypatch):
    write_rows(promotion.LOCK, [{"stages": {"evaluate@lora": {"deps": [{"path": "data/checked", "md5": "1"}]}}}])
    champion, asked, version = trained("champion", "first"), [], 2

    def answer(name, weights, folder):
        asked.append(weights)
        write_json(folder / "predictions/champion/figures.json", {"metrics_version": version})
        return 0

    monkeypatch.setattr(promotion.evidence, "evaluate", answer)
    evaluated("lora", 1.0, metrics_version=version)
    predictions = promotion.answers_of_champion(champion, "lora")
    assert promotion.answers_of_champion(champion, "lora") == predictions
    assert len(asked) == 1
    evaluated("lora", 1.0, metrics_version=3)
    monkeypatch.setattr(registry, "champion", lambda: champion)
    monkeypatch.setattr(promotion, "times_key", lambda *_: Path("times.json"))
    assert not promotion.is_measured("lora")
    version = 3
    promotion.measure("lora")
    assert promotion.is_measured("lora")
    assert len(asked) == 2


def test_rolling_back_goes_through_what_was_live_and_not_through_what_was_rolled_back(repository):
    for number, content in enumerate(("first", "second", "third"), start=1):
        assert registry.register(trained("lora", content), (), content) == f"v{number}.0.0"
    for version, expected in (("v2.0.0", "second"), ("v1.0.0", "first")):
        assert promotion.roll_back() == version == registry.live()
        assert champion_said() == expected
    with pytest.raises(UserError, match=r"no version before v1\.0\.0"):
        promotion.roll_back()
    assert registry.register(trained("lora", "fourth"), (), "fourth") == "v4.0.0"
    assert promotion.roll_back() == "v1.0.0"  # the second and the third were rolled back
    assert champion_said() == "first"


def test_what_fails_on_the_way_changes_nothing(repository, monkeypatch):
    registry.register(trained("lora", "first"), (), "first")
    hook = Path(".git/hooks/pre-commit")
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho not today; exit 1\n")
    hook.chmod(0o755)
    before = registry.POINTER.read_text()
    with pytest.raises(UserError, match="not today"):
        registry.register(trained("lora", "second"), (), "second")
    assert (registry.POINTER.read_text(), champion_said(), registry.live()) == (before, "first", "v1.0.0")
    assert git("status", "--porcelain", "--", "models/champion.dvc") == ""
    hook.unlink()
    assert registry.register(trained("lora", "second"), (), "second") == "v2.0.0"
    shutil.rmtree(".dvc/cache")
    with pytest.raises(UserError, match="neither in DVC's cache nor in a remote"):
        promotion.roll_back()
    assert registry.live() == "v2.0.0"
    assert git("status", "--porcelain", "--", "models/champion.dvc") == ""


KILL = """#!/bin/sh
# git runs this, and Python runs git (a tag is made by a library that runs git, too)
kill -9 $(ps -o ppid= -p $PPID)
exit 1
"""


@pytest.mark.parametrize(
    ("hook", "stays"),
    [
        ("pre-commit", "v1.0.0"),  # pointer and folder are the new ones, nothing is committed
        ("post-commit", "v2.0.0"),  # committed, without a tag
    ],
)
def test_killed_on_the_way_the_next_one_ends_it(repository, hook, stays):
    registry.register(trained("lora", "first"), (), "first")
    trained("lora", "second")
    path = Path(".git/hooks", hook)
    path.parent.mkdir(exist_ok=True)
    path.write_text(KILL)
    path.chmod(0o755)
    code = "from pipelines import registry; registry.register(registry.Path('models/weights/lora'), (), 'second')"
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert killed.returncode == -9, killed.stderr
    path.unlink()
    assert registry.live() == "v1.0.0"
    assert champion_said() == "second"
    with registry.held():
        assert registry.live() == stays
        assert champion_said() == {"v1.0.0": "first", "v2.0.0": "second"}[stays]
    assert git("status", "--porcelain", "--", str(registry.POINTER), str(registry.IGNORED)) == ""
    assert not registry.JOURNAL.exists()


def interrupted(repository) -> None:
    """As a kill leaves it behind the first version: journal, pointer and folder of a second one, not committed."""
    registry.register(trained("lora", "first"), (), "first")
    begun = {"head": git("rev-parse", "HEAD"), "branch": git("branch", "--show-current")}
    trained("champion", "second")
    shutil.rmtree(registry.FOLDER)
    (promotion.WEIGHTS / "champion").rename(registry.FOLDER)
    dvc.ask("add", "--quiet", str(registry.FOLDER))
    write_json(registry.JOURNAL, begun | {"version": "v2.0.0", "message": "second", "reports": []})


def test_on_another_branch_an_interrupted_promotion_is_not_ended(repository):
    start = git("rev-parse", "HEAD")
    interrupted(repository)
    git("checkout", "--quiet", "--force", "-b", "old", start)
    with pytest.raises(UserError, match="interrupted on branch ma"), registry.held():
        pass
    git("checkout", "--quiet", "--force", "-")
    with registry.held():
        assert list(registry.versions()) == ["v1.0.0"]
        assert champion_said() == "first"


def test_a_journal_of_a_history_that_is_gone_blocks_nothing(repository):
    interrupted(repository)
    begun = json.loads(registry.JOURNAL.read_text())
    write_json(registry.JOURNAL, begun | {"head": "0" * 40, "branch": "gone"})
    with registry.held():
        assert champion_said() == "first"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"head": 3}', '{"head": "x", "branch": "y"}', "null", "{"])
def test_a_damaged_journal_is_as_none(repository, text):
    interrupted(repository)
    registry.JOURNAL.write_text(text)
    with registry.held():
        assert champion_said() == "first"
        assert registry.live() == "v1.0.0"
    assert not registry.JOURNAL.exists()


@pytest.mark.parametrize("text", ["", "[]", "stages: {}", "stages: {evaluate@lora: 3}", "{", "\x00"])
def test_a_damaged_lock_file_is_one_sentence(repository, text):
    promotion.LOCK.write_text(text)
    with pytest.raises(UserError, match="run `dvc repro evaluate@lora`"):
        promotion.asked_of("lora")


def test_what_an_orphan_wrote_into_the_pointer_is_put_back(repository):
    interrupted(repository)
    registry.JOURNAL.unlink()
    with registry.held():
        assert champion_said() == "first"
        assert git("status", "--porcelain", "--", str(registry.POINTER)) == ""


def test_programs_of_a_killed_promotion_are_ended_before_the_next(repository):
    os.environ[registry.MARK] = str(Path.cwd())
    orphan = subprocess.Popen(["sleep", "60"])
    del os.environ[registry.MARK]
    with registry.held():
        assert orphan.poll() is not None


def test_what_was_promoted_and_not_pushed_is_pushed_by_the_next(repository, tmp_path_factory):
    store = tmp_path_factory.mktemp("store")
    promotion.promote("lora")
    dvc.ask("remote", "add", "--default", "store", str(store))
    with pytest.raises(UserError, match=r"the champion already, as v1\.0\.0"):
        promotion.promote("lora")
    assert len([path for path in store.rglob("*") if path.is_file()]) == 3  # two files and their folder


def test_a_rollback_says_so_in_the_reports(repository):
    for content in ("first", "second"):
        registry.register(trained("lora", content), (), content)
    promotion.roll_back()
    assert json.loads(promotion.DECISION.read_text()) == {"rolled_back": {"from": "v2.0.0", "to": "v1.0.0"}}
    assert git("status", "--porcelain", "--", "reports") == ""


def test_two_promotions_at_a_time_are_refused(repository):
    with registry.held():
        other = subprocess.run([sys.executable, "-m", "pipelines.promotion", "lora"], capture_output=True, text=True)
    assert other.returncode == 1
    assert "Another process is promoting 'champion' here" in other.stderr


def test_the_first_promotion_that_fails_leaves_no_champion(repository):
    hook = Path(".git/hooks/pre-commit")
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    with pytest.raises(UserError):
        promotion.promote("lora")
    assert not registry.FOLDER.exists()
    assert not registry.POINTER.exists()
    assert not promotion.REASONS.exists()  # which would say that it was promoted


def test_a_champion_that_is_not_checked_out_is_fetched_and_a_retired_one_is_none(repository, monkeypatch):
    promotion.promote("lora")
    trained("lora", "worse")
    evaluated("lora", 2.9)
    asked = []

    def answered(folder, challenger):
        asked.append(folder)
        return promotion.PREDICTIONS / "best"

    monkeypatch.setattr(promotion, "answers_of_champion", answered)
    evaluated("best", 1.0)
    shutil.rmtree(registry.FOLDER)
    assert not promotion.promote("lora")["promote"]
    assert asked == [registry.FOLDER]
    assert champion_said() == "first"
    git("rm", "--quiet", str(registry.POINTER))
    git("commit", "--quiet", "--message", "retire")
    assert registry.champion() is None


def test_answers_of_other_weights_are_no_evidence(repository):
    trained("lora", "trained again")
    with pytest.raises(UserError, match="are not those of models/weights/lora"):
        promotion.promote("lora")


@pytest.fixture
def pair(tmp_path, monkeypatch):
    """Two adapters with the same weights, the first of them evaluated; no repository."""
    monkeypatch.chdir(tmp_path)
    first, second = (trained(name, "the same") for name in ("lora", "other"))
    evaluated("lora", 1.0)
    return first, second


def with_configuration(folder: Path, content: str) -> dict:
    """Give an adapter a configuration, with its hash in the manifest; gives the hashes."""
    (folder / CONFIG).write_text(content)
    manifest = read_json(folder / "manifest.json") | {"config_sha256": sha256_of(folder / CONFIG)}
    write_json(folder / "manifest.json", manifest)
    return {key: manifest[key] for key in promotion.HASHED}


def test_answers_with_another_configuration_are_no_evidence(pair):
    """The same weights answer differently with another lora_alpha."""
    predictions = promotion.PREDICTIONS / "lora"
    promotion.refuse_what_was_not_evaluated(pair[0], predictions)
    hashes = with_configuration(pair[0], "{}")
    with pytest.raises(UserError, match="are not those of"):
        promotion.refuse_what_was_not_evaluated(pair[0], predictions)
    write_json(predictions / "figures.json", {"of": hashes})
    promotion.refuse_what_was_not_evaluated(pair[0], predictions)
    (pair[0] / CONFIG).write_text("{ }")
    with pytest.raises(UserError, match="are not those of"):
        promotion.refuse_what_was_not_evaluated(pair[0], predictions)


def test_adapters_are_told_apart_by_their_configuration_too(pair):
    assert promotion.weights_of(pair[0]) == promotion.weights_of(pair[1])
    with_configuration(pair[0], "{}")
    assert promotion.weights_of(pair[0]) != promotion.weights_of(pair[1])
    with_configuration(pair[1], "[]")
    assert promotion.weights_of(pair[0]) != promotion.weights_of(pair[1])
    with_configuration(pair[1], "{}")
    assert promotion.weights_of(pair[0]) == promotion.weights_of(pair[1])


@pytest.mark.parametrize(
    "content",
    ['{"weights_sha256": {"a": 1}}', '{"weights_sha256": "a", "config_sha256": 1}', "[" * 99_999, "null", ""],
    ids=["no text", "no text for the configuration", "nested", "null", "empty"],
)
def test_a_manifest_of_odd_values_is_one_sentence(pair, content):
    (pair[0] / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"manifest\.json is"):
        promotion.weights_of(pair[0])


@pytest.mark.parametrize("name", ["code_sha256", "library_versions"])
def test_what_was_measured_by_other_code_or_libraries_is_measured_again(pair, monkeypatch, name):
    champion, challenger = pair
    write_json(promotion.WEIGHTS / "base/base.json", {})
    write_json(promotion.CHECKED / "receipt.json", {})
    shutil.copyfile(ROOT / "params.yaml", "params.yaml")
    deps = [{"path": "models/decoding.py", "md5": "0"}]
    Path("dvc.lock").write_text(yaml.safe_dump({"stages": {"evaluate@lora": {"deps": deps}}}))
    former = promotion.times_key(champion, challenger), promotion.asked_of("lora")
    assert former == (promotion.times_key(champion, challenger), promotion.asked_of("lora"))
    monkeypatch.setattr(provenance, name, lambda *_: "other")
    assert promotion.times_key(champion, challenger) != former[0]
    if name == "library_versions":  # DVC knows the code that the answers depended on
        assert promotion.asked_of("lora") != former[1]


def test_stray_tags_are_passed_over(repository):
    git("tag", "champion@vfoo")
    git("tag", "champion@v1")
    assert promotion.promote("lora")["version"] == "v1.0.0"


@pytest.mark.parametrize("kind", ["eval", "general", "probes"])
def test_other_rows_are_refused(repository, capfd, kind):
    other = {"id": "1", "loss": 1.0, "messages": [{"content": "别的"}]}
    write_rows(promotion.PREDICTIONS / f"base/{kind}.jsonl", [other])
    with pytest.raises(UserError, match="No decision was made"):
        promotion.promote("lora")
    assert "evaluated on different rows" in capfd.readouterr().err


def test_answers_of_another_version_are_one_sentence(repository, capfd):
    write_json(promotion.PREDICTIONS / "base/figures.json", {"general": {}})
    with pytest.raises(UserError, match="No decision was made"):
        promotion.promote("lora")
    said = capfd.readouterr().err
    assert "run `dvc repro` to evaluate again" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("content", ["[]", '{"a": 1}', "{"])
def test_a_manifest_that_is_none_is_one_sentence(repository, content):
    (promotion.WEIGHTS / "lora/manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"manifest\.json is"):
        promotion.promote("lora")


def test_rows_that_are_no_answers_are_one_sentence(repository, capfd):
    write_rows(promotion.PREDICTIONS / "lora/eval.jsonl", [{"id": "x"}])
    with pytest.raises(UserError, match="No decision was made"):
        promotion.promote("lora")
    assert "Traceback" not in capfd.readouterr().err


def test_one_sentence_without_git_or_adapter(repository, tmp_path_factory, monkeypatch):
    with pytest.raises(UserError, match="no adapter 'other'"):
        promotion.promote("other")
    git("checkout", "--quiet", "--detach")
    with pytest.raises(UserError, match="No branch is checked out"):
        promotion.promote("lora")
    git("switch", "--quiet", "-")
    shutil.rmtree(promotion.WEIGHTS)
    with pytest.raises(UserError, match="run `dvc repro` first"):
        promotion.promote("lora")
    shutil.rmtree(".git")
    with pytest.raises(UserError, match="run this in a git repository"):
        promotion.promote("lora")
