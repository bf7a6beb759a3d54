"""Promotion and rollback in a real git and DVC repository."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import yaml
from commands import run_forked
from shared_data import ROOT, write_rows

import stages.promote.__main__  # noqa: F401  imported before the forks, which start faster
from formats import params_schema
from models import provenance
from models.errors import UserError
from models.manifest import CONFIG, WEIGHTS
from models.storage import read_json, read_jsonl, sha256_of, write_json
from pipelines import dvc, promotion, registry, start_from
from pipelines.processes import output_of


def git(*arguments: str) -> str:
    return output_of("git", *arguments)


def write_evaluation(name: str, loss: float, **more_figures) -> None:
    """Write a short form of what stage evaluate writes of a model."""
    folder, weights = promotion.PREDICTIONS / name, promotion.WEIGHTS / name / WEIGHTS
    question = {"messages": [{"role": "user", "content": "问"}]}
    rows = [question | {"id": str(number), "loss": loss + number / 50} for number in range(30)]
    for kind, answers in (("test", rows), ("general", rows[:20]), ("probes", rows[:8])):
        write_rows(folder / f"{kind}.jsonl", answers)
    figures = {
        "general": {"loss": 2.0, "rouge-l": 90.0, "rows": 20},
        "test": {"answered": 40, "empty_rate": 0.0, "refusal_rate": 0.0, "repetition": 0.0},
        "probes": {"rates": {"all": {"rate": 0.9, "low": 0.5, "high": 1.0, "of": 8}}},
        "of": {"weights_sha256": sha256_of(weights) if weights.is_file() else None},
    }
    write_json(folder / "figures.json", figures | more_figures)


def write_adapter(name: str, content: str) -> Path:
    folder = promotion.WEIGHTS / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS).write_text(content)
    write_json(folder / "manifest.json", {"name": content, "weights_sha256": sha256_of(folder / WEIGHTS)})
    return folder


def champion_weights() -> str:
    return (registry.FOLDER / WEIGHTS).read_text()


@pytest.fixture(scope="module")
def initialized_repository(author, tmp_path_factory):
    """Make a repository of git and DVC with one commit; a copy of it is made faster than another one."""
    folder = tmp_path_factory.mktemp("repository")
    with contextlib.chdir(folder):
        for name in ("params.yaml", "dvc.yaml"):
            shutil.copyfile(ROOT / name, folder / name)
        git("init", "--quiet")
        dvc.run("init", "--quiet")
        git("add", ".")
        git("commit", "--quiet", "--message", "start")
    return folder


@pytest.fixture
def repository(initialized_repository, tmp_path, monkeypatch):
    """Make a project with an evaluated LoRA that is better than the base, as working directory."""
    shutil.copytree(initialized_repository, tmp_path, symlinks=True, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(promotion, "run_module", partial(run_forked, folder=tmp_path))
    write_adapter("lora", "first")
    write_evaluation("base", 3.0)
    write_evaluation("lora", 1.0)
    seconds = {"base": 0.5, "champion": 0.5, "challenger": 0.5}
    write_json(tmp_path / "times.json", {"seconds_an_answer": seconds})
    # DVC's stages have made nothing here; tests/integration/test_pipeline.py promotes a result of `dvc repro`.
    monkeypatch.setattr(promotion, "require_up_to_date", lambda _: None)
    # These adapters are not real models; tests/stages/test_latency.py measures real ones.
    monkeypatch.setattr(promotion, "measure_latency", lambda *_: tmp_path / "times.json")
    return tmp_path


def test_promoted_champion_can_be_fetched_elsewhere_and_is_not_promoted_again(repository, tmp_path):
    (repository / "unrelated").write_text("staged by the user")
    git("add", "unrelated")
    result = promotion.promote("lora")
    assert (result.is_promoted, result.version, registry.live_version()) == (True, "v1.0.0", "v1.0.0")
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


def test_challenger_without_a_gain_is_not_promoted(repository):
    write_evaluation("lora", 2.99)
    first = promotion.promote("lora")
    assert not first.is_promoted
    assert not registry.FOLDER.exists()
    assert (registry.versions(), registry.live_version()) == ({}, None)
    assert "✗ Gain" in promotion.REASONS.read_text(encoding="utf-8")
    assert promotion.promote("lora") == first


def test_repetitive_challenger_is_not_promoted(repository):
    """Such as an adapter with a far better loss that answers everything with 不要的，要的，不要的，要的…"""
    write_evaluation("lora", 1.0, test={"answered": 40, "empty_rate": 0.0, "refusal_rate": 0.0, "repetition": 0.68})
    assert not promotion.promote("lora").is_promoted
    reasons = promotion.REASONS.read_text(encoding="utf-8")
    assert "✗ Repetition | 68%; at most 20% allowed" in reasons
    assert "✗ 重复率 | 68%，最多允许 20%" in reasons
    assert reasons.count("✗") == 2
    params = Path("params.yaml").read_text(encoding="utf-8")
    assert "    repetition: 0.2" in params
    Path("params.yaml").write_text(params.replace("    repetition: 0.2", "    repetition: 0.7"), encoding="utf-8")
    assert promotion.promote("lora").is_promoted


def test_two_rows_are_too_few_for_a_promotion(repository):
    for name in ("base", "lora"):
        path = promotion.PREDICTIONS / name / "test.jsonl"
        write_rows(path, read_jsonl(path)[:2])
    assert not promotion.promote("lora").is_promoted
    assert "2 rows are too few for an interval, at least 7 needed" in promotion.REASONS.read_text(encoding="utf-8")


def test_figures_of_different_metrics_versions_are_refused(repository, capfd):
    write_evaluation("base", 3.0, metrics_version=2)
    with pytest.raises(UserError, match="No decision was made"):
        promotion.promote("lora")
    errors = capfd.readouterr().err
    assert "their versions differ: base has version 2, lora has version 1" in errors
    assert "Traceback" not in errors


def test_answers_of_the_champion_are_cached_until_the_metrics_change(repository, monkeypatch):
    write_rows(promotion.DVC_LOCK, [{"stages": {"evaluate@lora": {"deps": [{"path": "data/checked", "md5": "1"}]}}}])
    champion, calls, version = write_adapter("champion", "first"), [], 2

    def run_evaluate(name, weights, folder):
        calls.append(weights)
        write_json(folder / "predictions/champion/figures.json", {"metrics_version": version})
        return 0

    monkeypatch.setattr(promotion.stage_paths, "run_evaluate", run_evaluate)
    write_evaluation("lora", 1.0, metrics_version=version)
    predictions = promotion.evaluate_champion(champion, "lora")
    assert promotion.evaluate_champion(champion, "lora") == predictions
    assert len(calls) == 1
    write_evaluation("lora", 1.0, metrics_version=3)
    monkeypatch.setattr(registry, "fetch_champion", lambda: champion)
    monkeypatch.setattr(promotion, "latency_file", lambda *_: Path("times.json"))
    assert not promotion.is_measured("lora")
    version = 3
    promotion.measure("lora")
    assert promotion.is_measured("lora")
    assert len(calls) == 2


def test_rollback_skips_versions_that_were_rolled_back(repository):
    for number, content in enumerate(("first", "second", "third"), start=1):
        assert registry.register(write_adapter("lora", content), (), content) == f"v{number}.0.0"
    for version, expected in (("v2.0.0", "second"), ("v1.0.0", "first")):
        assert promotion.roll_back() == version == registry.live_version()
        assert champion_weights() == expected
    with pytest.raises(UserError, match=r"no version before v1\.0\.0"):
        promotion.roll_back()
    assert registry.register(write_adapter("lora", "fourth"), (), "fourth") == "v4.0.0"
    assert promotion.roll_back() == "v1.0.0"  # the second and the third were rolled back
    assert champion_weights() == "first"


def test_trainings_can_start_from_the_champion_and_from_its_versions(repository):
    for content in ("first", "second"):
        registry.register(write_adapter("lora", content), (), content)
    assert start_from.fetch_version("v1.0.0") == start_from.VERSIONS / "v1.0.0"
    assert (start_from.VERSIONS / "v1.0.0" / WEIGHTS).read_text() == "first"
    shutil.rmtree(registry.FOLDER)
    params = params_schema.load()
    adapters = {"lora": {"start_from": "champion"}, "ptuning_v2": {"start_from": "v2.0.0"}}
    adapters = {name: params.adapters[name].model_copy(update=changes) for name, changes in adapters.items()}
    params = params.model_copy(update={"adapters": adapters})
    assert start_from.fetch_starts(params, ["base"]) == []
    assert start_from.fetch_starts(params) == [registry.FOLDER, start_from.VERSIONS / "v2.0.0"]
    assert champion_weights() == (start_from.VERSIONS / "v2.0.0" / WEIGHTS).read_text() == "second"
    with pytest.raises(UserError, match=r"start_from is v9\.0\.0, but the champion has v1\.0\.0, v2\.0\.0"):
        start_from.fetch_version("v9.0.0")


def test_start_from_a_champion_that_was_never_promoted_is_explained(repository):
    with pytest.raises(UserError, match="no adapter was promoted on this branch"):
        start_from.fetch_live_champion()
    assert start_from.fetch_starts(params_schema.load()) == []


def test_failed_promotion_and_rollback_change_nothing(repository, monkeypatch):
    registry.register(write_adapter("lora", "first"), (), "first")
    hook = Path(".git/hooks/pre-commit")
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho not today; exit 1\n")
    hook.chmod(0o755)
    before = registry.POINTER.read_text()
    with pytest.raises(UserError, match="not today"):
        registry.register(write_adapter("lora", "second"), (), "second")
    assert (registry.POINTER.read_text(), champion_weights(), registry.live_version()) == (before, "first", "v1.0.0")
    assert git("status", "--porcelain", "--", "models/champion.dvc") == ""
    hook.unlink()
    assert registry.register(write_adapter("lora", "second"), (), "second") == "v2.0.0"
    shutil.rmtree(".dvc/cache")
    with pytest.raises(UserError, match="neither in DVC's cache nor in a remote"):
        promotion.roll_back()
    assert registry.live_version() == "v2.0.0"
    assert git("status", "--porcelain", "--", "models/champion.dvc") == ""


KILL = """#!/bin/sh
# The parent of git: Python, or a library in it.
kill -9 $(ps -o ppid= -p $PPID)
exit 1
"""


@pytest.mark.parametrize(
    ("hook", "recovered"),
    [
        ("pre-commit", "v1.0.0"),  # pointer and folder are new, but not committed
        ("post-commit", "v2.0.0"),  # committed, but not tagged
    ],
)
def test_killed_promotion_is_recovered_by_the_next_process(repository, hook, recovered):
    registry.register(write_adapter("lora", "first"), (), "first")
    write_adapter("lora", "second")
    path = Path(".git/hooks", hook)
    path.parent.mkdir(exist_ok=True)
    path.write_text(KILL)
    path.chmod(0o755)
    code = "from pipelines import registry; registry.register(registry.Path('models/weights/lora'), (), 'second')"
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert killed.returncode == -9, killed.stderr
    path.unlink()
    assert registry.live_version() == "v1.0.0"
    assert champion_weights() == "second"
    with registry.lock():
        assert registry.live_version() == recovered
        assert champion_weights() == {"v1.0.0": "first", "v2.0.0": "second"}[recovered]
    assert git("status", "--porcelain", "--", str(registry.POINTER), str(registry.GITIGNORE)) == ""
    assert not registry.JOURNAL.exists()


def interrupt_promotion(repository) -> None:
    """Register a first version, and leave journal, pointer and folder of a second one as a kill does."""
    registry.register(write_adapter("lora", "first"), (), "first")
    change = {"head": git("rev-parse", "HEAD"), "branch": git("branch", "--show-current")}
    write_adapter("champion", "second")
    shutil.rmtree(registry.FOLDER)
    (promotion.WEIGHTS / "champion").rename(registry.FOLDER)
    dvc.capture("add", "--quiet", str(registry.FOLDER))
    write_json(registry.JOURNAL, change | {"version": "v2.0.0", "message": "second", "reports": []})


def test_interrupted_promotion_of_another_branch_is_not_recovered(repository):
    start = git("rev-parse", "HEAD")
    interrupt_promotion(repository)
    git("checkout", "--quiet", "--force", "-b", "old", start)
    with pytest.raises(UserError, match="interrupted on branch ma"), registry.lock():
        pass
    git("checkout", "--quiet", "--force", "-")
    with registry.lock():
        assert list(registry.versions()) == ["v1.0.0"]
        assert champion_weights() == "first"


def test_journal_of_a_deleted_branch_is_ignored(repository):
    interrupt_promotion(repository)
    change = json.loads(registry.JOURNAL.read_text())
    write_json(registry.JOURNAL, change | {"head": "0" * 40, "branch": "gone"})
    with registry.lock():
        assert champion_weights() == "first"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"head": 3}', '{"head": "x", "branch": "y"}', "null", "{"])
def test_damaged_journal_is_ignored(repository, text):
    interrupt_promotion(repository)
    registry.JOURNAL.write_text(text)
    with registry.lock():
        assert champion_weights() == "first"
        assert registry.live_version() == "v1.0.0"
    assert not registry.JOURNAL.exists()


@pytest.mark.parametrize("text", ["", "[]", "stages: {}", "stages: {evaluate@lora: 3}", "{", "\x00"])
def test_damaged_dvc_lock_is_reported(repository, text):
    promotion.DVC_LOCK.write_text(text)
    with pytest.raises(UserError, match="run `dvc repro evaluate@lora`"):
        promotion.evaluation_inputs("lora")


def test_pointer_written_by_an_orphaned_process_is_reverted(repository):
    interrupt_promotion(repository)
    registry.JOURNAL.unlink()
    with registry.lock():
        assert champion_weights() == "first"
        assert git("status", "--porcelain", "--", str(registry.POINTER)) == ""


def test_programs_of_a_killed_promotion_are_terminated_before_the_next(repository):
    os.environ[registry.MARK] = str(Path.cwd())
    orphan = subprocess.Popen(["sleep", "60"])
    del os.environ[registry.MARK]
    with registry.lock():
        assert orphan.poll() is not None


def test_failed_push_of_a_champion_is_repeated_by_the_next_promotion(repository, tmp_path_factory):
    store = tmp_path_factory.mktemp("store")
    promotion.promote("lora")
    dvc.capture("remote", "add", "--default", "store", str(store))
    with pytest.raises(UserError, match=r"the champion already, as v1\.0\.0"):
        promotion.promote("lora")
    assert len([path for path in store.rglob("*") if path.is_file()]) == 3  # two files and the list of them


def test_reports_record_a_rollback(repository):
    for content in ("first", "second"):
        registry.register(write_adapter("lora", content), (), content)
    promotion.roll_back()
    assert json.loads(promotion.DECISION.read_text()) == {"rolled_back": {"from": "v2.0.0", "to": "v1.0.0"}}
    assert git("status", "--porcelain", "--", "reports") == ""


def test_second_concurrent_promotion_is_refused(repository):
    with registry.lock():
        other = subprocess.run([sys.executable, "-m", "pipelines.promotion", "lora"], capture_output=True, text=True)
    assert other.returncode == 1
    assert "Another process is promoting 'champion' here" in other.stderr


def test_failed_first_promotion_leaves_no_champion(repository):
    hook = Path(".git/hooks/pre-commit")
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    with pytest.raises(UserError):
        promotion.promote("lora")
    assert not registry.FOLDER.exists()
    assert not registry.POINTER.exists()
    assert not promotion.REASONS.exists()  # they would name the adapter as promoted


def test_champion_is_checked_out_when_it_is_needed_and_a_retired_one_is_not(repository, monkeypatch):
    promotion.promote("lora")
    write_adapter("lora", "worse")
    write_evaluation("lora", 2.9)
    champions = []

    def evaluate_champion(folder, challenger):
        champions.append(folder)
        return promotion.PREDICTIONS / "best"

    monkeypatch.setattr(promotion, "evaluate_champion", evaluate_champion)
    write_evaluation("best", 1.0)
    shutil.rmtree(registry.FOLDER)
    assert not promotion.promote("lora").is_promoted
    assert champions == [registry.FOLDER]
    assert champion_weights() == "first"
    git("rm", "--quiet", str(registry.POINTER))
    git("commit", "--quiet", "--message", "retire")
    assert registry.fetch_champion() is None


def test_small_losses_of_several_champions_do_not_add_up(repository, monkeypatch):
    """Each version falls by 4 % of the probes, which one promotion allows."""

    def probes(rate: float) -> dict:
        return {"rates": {"all": {"rate": rate, "low": 0.0, "high": 1.0, "of": 8}}}

    write_evaluation("base", 3.0, probes=probes(0.2))
    monkeypatch.setattr(promotion, "evaluate_champion", lambda *_: promotion.PREDICTIONS / "champion")
    for content, loss, rate, version in (
        ("first", 1.0, 0.9, "v1.0.0"),
        ("second", 0.5, 0.86, "v2.0.0"),
        ("third", 0.1, 0.82, None),
    ):
        write_adapter("lora", content)
        write_evaluation("lora", loss, probes=probes(rate))
        result = promotion.promote("lora")
        assert result.version == version
        shutil.copytree(promotion.PREDICTIONS / "lora", promotion.PREDICTIONS / "champion", dirs_exist_ok=True)
    assert [condition.name for condition in result.unmet_conditions] == ["probes"]
    assert "champion v1.0.0: 90%" in promotion.REASONS.read_text(encoding="utf-8")


def test_answers_of_other_weights_are_refused(repository):
    write_adapter("lora", "write_adapter again")
    with pytest.raises(UserError, match="are not those of models/weights/lora"):
        promotion.promote("lora")


@pytest.fixture
def pair(tmp_path, monkeypatch):
    """Return two adapters with the same weights, the first of them evaluated; there is no repository."""
    monkeypatch.chdir(tmp_path)
    first, second = (write_adapter(name, "the same") for name in ("lora", "other"))
    write_evaluation("lora", 1.0)
    return first, second


def write_configuration(folder: Path, content: str) -> dict:
    """Write an adapter's configuration, and its hash into the manifest; return all hashes."""
    (folder / CONFIG).write_text(content)
    manifest = read_json(folder / "manifest.json") | {"config_sha256": sha256_of(folder / CONFIG)}
    write_json(folder / "manifest.json", manifest)
    return {key: manifest[key] for key in promotion.HASHED_FILES}


def test_answers_with_another_configuration_are_refused(pair):
    """The same weights answer differently with another lora_alpha."""
    predictions = promotion.PREDICTIONS / "lora"
    promotion.require_evaluated(pair[0], predictions)
    hashes = write_configuration(pair[0], "{}")
    with pytest.raises(UserError, match="are not those of"):
        promotion.require_evaluated(pair[0], predictions)
    write_json(predictions / "figures.json", {"of": hashes})
    promotion.require_evaluated(pair[0], predictions)
    (pair[0] / CONFIG).write_text("{ }")
    with pytest.raises(UserError, match="are not those of"):
        promotion.require_evaluated(pair[0], predictions)


def test_fingerprint_depends_on_the_configuration(pair):
    assert promotion.adapter_fingerprint(pair[0]) == promotion.adapter_fingerprint(pair[1])
    write_configuration(pair[0], "{}")
    assert promotion.adapter_fingerprint(pair[0]) != promotion.adapter_fingerprint(pair[1])
    write_configuration(pair[1], "[]")
    assert promotion.adapter_fingerprint(pair[0]) != promotion.adapter_fingerprint(pair[1])
    write_configuration(pair[1], "{}")
    assert promotion.adapter_fingerprint(pair[0]) == promotion.adapter_fingerprint(pair[1])


@pytest.mark.parametrize(
    "content",
    ['{"weights_sha256": {"a": 1}}', '{"weights_sha256": "a", "config_sha256": 1}', "[" * 99_999, "null", ""],
    ids=["hash is no string", "hash of the configuration is no string", "nested", "null", "empty"],
)
def test_manifest_with_invalid_values_is_reported(pair, content):
    (pair[0] / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"manifest\.json is"):
        promotion.adapter_fingerprint(pair[0])


@pytest.mark.parametrize("name", ["code_sha256", "library_versions"])
def test_measurements_are_repeated_with_other_code_or_libraries(pair, monkeypatch, name):
    champion, challenger = pair
    write_json(promotion.WEIGHTS / "base/base.json", {})
    write_json(promotion.CHECKED / "receipt.json", {})
    shutil.copyfile(ROOT / "params.yaml", "params.yaml")
    deps = [{"path": "models/decoding.py", "md5": "0"}]
    Path("dvc.lock").write_text(yaml.safe_dump({"stages": {"evaluate@lora": {"deps": deps}}}))
    before = promotion.latency_file(champion, challenger), promotion.evaluation_inputs("lora")
    assert before == (promotion.latency_file(champion, challenger), promotion.evaluation_inputs("lora"))
    monkeypatch.setattr(provenance, name, lambda *_: "other")
    assert promotion.latency_file(champion, challenger) != before[0]
    if name == "library_versions":  # the code is among the dependencies in dvc.lock
        assert promotion.evaluation_inputs("lora") != before[1]


def test_other_tags_are_ignored(repository):
    git("tag", "champion@vfoo")
    git("tag", "champion@v1")
    assert promotion.promote("lora").version == "v1.0.0"


@pytest.mark.parametrize("kind", ["test", "general", "probes"])
def test_answers_to_other_rows_are_refused(repository, capfd, kind):
    other = {"id": "1", "loss": 1.0, "messages": [{"content": "别的"}]}
    write_rows(promotion.PREDICTIONS / f"base/{kind}.jsonl", [other])
    with pytest.raises(UserError, match="No decision was made"):
        promotion.promote("lora")
    assert "evaluated on different rows" in capfd.readouterr().err


def test_answers_of_another_format_version_are_reported(repository, capfd):
    write_json(promotion.PREDICTIONS / "base/figures.json", {"general": {}})
    with pytest.raises(UserError, match="No decision was made"):
        promotion.promote("lora")
    errors = capfd.readouterr().err
    assert "run `dvc repro` to evaluate again" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("content", ["[]", '{"a": 1}', "{"])
def test_invalid_manifest_is_reported(repository, content):
    (promotion.WEIGHTS / "lora/manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"manifest\.json is"):
        promotion.promote("lora")


def test_rows_without_answers_are_reported(repository, capfd):
    write_rows(promotion.PREDICTIONS / "lora/test.jsonl", [{"id": "x"}])
    with pytest.raises(UserError, match="No decision was made"):
        promotion.promote("lora")
    assert "Traceback" not in capfd.readouterr().err


def test_missing_git_repository_branch_or_adapter_is_reported(repository, tmp_path_factory, monkeypatch):
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
