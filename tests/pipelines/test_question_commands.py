"""The commands for probes and predictions: which programs they run, and mistakes of the user."""

from pathlib import Path

import pytest
from shared_data import ROOT

from models.errors import UserError
from pipelines import predict, probes, registry
from pipelines.stage_paths import WEIGHTS


@pytest.fixture
def programs(monkeypatch, tmp_path):
    """Run in an empty folder with a params.yaml; programs are recorded instead of run."""
    calls = []
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for module in (predict, probes):
        monkeypatch.setattr(module, "run_module", lambda *arguments: calls.append(arguments) or 0)
    return calls


def run(monkeypatch, module, *arguments) -> int | None:
    monkeypatch.setattr("sys.argv", [module.__name__, *arguments])
    with pytest.raises(SystemExit) as error:
        module.main()
    return error.value.code


def test_predict_passes_model_and_options_on(programs, monkeypatch, capsys):
    assert run(monkeypatch, predict, "q.txt", "--out", "a.csv") == 1
    assert "There is no base model" in capsys.readouterr().err
    (WEIGHTS / "base").mkdir(parents=True)
    assert run(monkeypatch, predict, "q.txt", "--out", "a.csv", "--adapter", "lora", "--sample", "0") == 0
    assert run(monkeypatch, predict, "q.txt", "--out", "a.csv", "--bits", "4") == 0
    lora, base = (" ".join(arguments) for arguments in programs)
    assert "--adapter models/weights/lora" in lora
    assert "--sample 0" in lora
    assert "--adapter" not in base, "without a champion the base model answers"
    assert "--bits 4 --max-new-tokens 256 --batch-size 16" in base


def test_adapter_is_found_by_name(programs, monkeypatch):
    assert predict.find_adapter("base") is None
    with pytest.raises(UserError, match="no champion yet"):
        predict.find_adapter("champion")
    with pytest.raises(UserError):
        predict.find_adapter("lroa")
    Path("models/imported/external").mkdir(parents=True)
    assert predict.find_adapter("external") == Path("models/imported/external")
    monkeypatch.setattr(registry, "fetch_champion", lambda: registry.FOLDER)
    assert predict.find_adapter(None) == predict.find_adapter("champion") == registry.FOLDER


@pytest.mark.parametrize("options", [("--max-new-tokens", "0"), ("--sample", "-1"), ("--bits", "3")])
def test_invalid_options_are_refused(programs, monkeypatch, options):
    assert run(monkeypatch, predict, "q.txt", "--out", "a.csv", *options) == 2
    assert programs == []


def test_suggestions_need_checked_data(programs, monkeypatch, capsys):
    assert run(monkeypatch, probes, "suggest") == 1
    assert "dvc repro validate" in capsys.readouterr().err
    Path("data/checked").mkdir(parents=True)
    assert run(monkeypatch, probes, "suggest", "--count", "3", "--out", "p.jsonl") == 0
    expected = ("--count", "3", "--checked", "data/checked", "--out", "p.jsonl")
    assert programs == [("stages.probe_drafts", "suggest", *expected)]
    assert run(monkeypatch, probes, "suggest", "--count", "0") == 2


def test_check_uses_the_configured_probes_by_default(programs, monkeypatch):
    assert run(monkeypatch, probes, "check") == 0
    assert run(monkeypatch, probes, "check", "mine.jsonl") == 0
    assert programs == [
        ("stages.probe_drafts", "check", "--probes", "data/demo/probes.jsonl"),
        ("stages.probe_drafts", "check", "--probes", "mine.jsonl"),
    ]
    text = Path("params.yaml").read_text(encoding="utf-8")
    Path("params.yaml").write_text(text.replace("data/demo/raw", "mine"), encoding="utf-8")
    with pytest.raises(UserError, match="pass the file"):
        probes.check_options(None)
