"""Promotion in a real git and DVC repository: versions, what they hold, and the way back."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from given import ROOT, write_rows

from models.errors import UserError
from models.storage import write_json
from pipelines import dvc, promote, registry
from pipelines.programs import output_of


def git(*arguments: str) -> str:
    return output_of("git", *arguments)


def evaluated(name: str, loss: float) -> None:
    """What stage evaluate leaves behind of a model, in short."""
    rows = [{"id": str(number), "loss": loss + number / 50} for number in range(30)]
    write_rows(promote.PREDICTIONS / name / "eval.jsonl", rows)
    figures = {
        "general": {"loss": 2.0},
        "eval": {"empty_rate": 0.0},
        "probes": {"rates": {"all": {"rate": 0.9}}},
        "generation": {"seconds_an_answer": 0.5},
    }
    write_json(promote.PREDICTIONS / name / "figures.json", figures)


def trained(name: str, content: str) -> Path:
    folder = promote.WEIGHTS / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps({"name": content}))
    return folder


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
    return tmp_path


def test_promoted_once_fetched_elsewhere_and_not_twice(repository, tmp_path):
    (repository / "unrelated").write_text("staged, and not to be committed")
    git("add", "unrelated")
    decision = promote.promote("lora")
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
    assert json.loads((elsewhere / "fetched/manifest.json").read_text()) == {"name": "first"}
    with pytest.raises(UserError, match=r"is the champion already, as v1\.0\.0"):
        promote.promote("lora")


def test_what_is_no_better_stays_where_it_is(repository):
    evaluated("lora", 2.99)
    first = promote.promote("lora")
    assert not first["promote"]
    assert not registry.FOLDER.exists()
    assert (registry.versions(), registry.live()) == ([], None)
    assert "✗ gain" in promote.REASONS.read_text(encoding="utf-8")
    assert promote.promote("lora") == first


def test_rolling_back_goes_one_version_at_a_time(repository):
    for number, content in enumerate(("first", "second", "third"), start=1):
        assert registry.register(trained("lora", content), (), content) == f"v{number}.0.0"
    content = registry.FOLDER / "manifest.json"
    for version, expected in (("v2.0.0", "second"), ("v1.0.0", "first")):
        assert promote.roll_back() == version == registry.live()
        assert json.loads(content.read_text()) == {"name": expected}
    with pytest.raises(UserError, match=r"no version before v1\.0\.0"):
        promote.roll_back()
    assert registry.register(trained("lora", "fourth"), (), "fourth") == "v4.0.0"
    assert promote.roll_back() == "v3.0.0"


def test_other_rows_are_refused(repository, capfd):
    write_rows(promote.PREDICTIONS / "base/eval.jsonl", [{"id": "another", "loss": 1.0}])
    with pytest.raises(UserError, match="No decision was made"):
        promote.promote("lora")
    assert "evaluated on different rows" in capfd.readouterr().err


def test_one_sentence_without_git_or_adapter(repository, tmp_path_factory, monkeypatch):
    with pytest.raises(UserError, match="no adapter 'other'"):
        promote.promote("other")
    shutil.rmtree(promote.WEIGHTS)
    with pytest.raises(UserError, match="run `dvc repro` first"):
        promote.promote("lora")
    shutil.rmtree(".git")
    with pytest.raises(UserError, match="run this in a git repository"):
        promote.promote("lora")
