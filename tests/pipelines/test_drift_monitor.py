"""python -m pipelines.drift_monitor: new rows pass the same checks as the champion's training data."""

import json
import random
import shutil
from pathlib import Path

import pytest
from shared_data import ROOT, write_rows

from models.errors import UserError
from models.storage import write_json
from pipelines import check, drift_monitor, registry

WORDS = "的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会可主发年动同工也能下过"


def make_rows(count: int, bad_share: float, seed: int = 0) -> list[dict]:
    """Make rows, a share of which has personal data and a far longer answer, and so fails a row check."""
    generator = random.Random(seed)

    def text(least: int, most: int) -> str:
        return "".join(generator.choices(WORDS, k=generator.randint(least, most)))

    rows = [{"context": f"{text(8, 20)}？", "target": f"{text(10, 60)}。"} for _ in range(count)]
    for row in generator.sample(rows, round(count * bad_share)):
        row["target"] += f"请打 13812345678。{text(200, 300)}"
    return rows


@pytest.fixture
def workspace(base_folder, tmp_path, monkeypatch):
    """Make a folder with parameters and tokenizer, without a champion, the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(registry, "live_version", lambda: None)
    shutil.copyfile(ROOT / "params.yaml", "params.yaml")
    shutil.copytree(ROOT / "reports/data_docs", "reports/data_docs")
    shutil.copytree(base_folder, drift_monitor.TOKENIZER)
    return tmp_path


@pytest.mark.integration  # the gate and Evidently, several times
def test_file_with_quarantined_rows_has_no_drift_against_itself_and_a_worse_one_has(workspace):
    file = write_rows(workspace / "a.jsonl", make_rows(300, 0.15))
    out = ("--accepted", "accepted.json", "--section", "none")
    assert check.run_gate([file], drift_monitor.TOKENIZER, Path("data"), *out) == 0
    books = json.loads(Path("data/checked/receipt.json").read_text())["books"]
    assert books["failed_row_checks"] == books["quarantined"] == 45
    same = drift_monitor.detect_drift([file])
    assert (same["verdict"], same["drifted"]) == ("steady", [])
    assert same["rows"] == {"reference": books["train"], "current": 255, "quarantined": 45, "unreadable": 0}
    share = same["columns"][-1]
    assert (share["column"], share["reference_mean"], share["current_mean"]) == ("quarantined_share", 0.15, 0.15)
    # Half of the rows fail, which blocks the data; the rows that pass are as before.
    worse = drift_monitor.detect_drift([write_rows(workspace / "worse.jsonl", make_rows(300, 0.5, seed=1))])
    assert (worse["verdict"], worse["drifted"]) == ("drift", ["quarantined_share"])
    none = drift_monitor.detect_drift(
        [write_rows(workspace / "none.jsonl", [{"context": "", "target": str(i)} for i in range(60)])]
    )
    assert (none["verdict"], none["rows"]["current"]) == ("drift", 0)


def test_missing_file_and_tokenizer_are_reported(workspace):
    write_json(Path("data/checked/receipt.json"), {})
    write_rows(Path("data/checked/train.jsonl"), [])
    with pytest.raises(UserError, match="could not be checked"):
        drift_monitor.detect_drift([workspace / "nowhere.jsonl"])
    shutil.rmtree(drift_monitor.TOKENIZER)
    with pytest.raises(UserError, match="run `dvc repro tokenizer`"):
        drift_monitor.detect_drift([workspace / "nowhere.jsonl"])


def test_gate_gets_the_new_rows_and_stage_drift_the_rows_that_pass(workspace, monkeypatch):
    """Also if the data is blocked as a whole (exit code 2)."""
    write_json(Path("data/checked/receipt.json"), {})
    write_rows(Path("data/checked/train.jsonl"), [])
    started = []

    def run(name: str, *arguments: str) -> int:
        options = dict(zip(arguments[::2], arguments[1::2], strict=False))
        started.append((name, arguments))
        if name == "stages.validate":
            Path(options["--passed"]).mkdir()
            return 2
        write_json(drift_monitor.REPORT, {"verdict": "steady", "drifted": []})
        return 0

    monkeypatch.setattr(drift_monitor, "run_module", run)
    monkeypatch.setattr(check, "run_module", run)
    assert drift_monitor.detect_drift([Path("a.jsonl")])["verdict"] == "steady"
    (gate, gated), (drift, compared) = started
    assert (gate, drift) == ("stages.validate", "stages.drift")
    assert gated[:2] == ("--raw", "a.jsonl")
    passed = Path(gated[gated.index("--passed") + 1])
    current = compared[compared.index("--current") + 1 :]
    assert current == (str(passed / "train.jsonl"), str(passed / "eval.jsonl"), str(passed / "test.jsonl"))
    assert compared[compared.index("--current-facts") + 1] == str(passed / "facts.json")
    assert compared[compared.index("--reference-facts") + 1] == "data/checked/receipt.json"


@pytest.mark.parametrize(
    ("file", "is_of_source"), [("data/mine/a.jsonl", True), ("data/mine", True), ("data/b.jsonl", False)]
)
def test_lengths_are_only_compared_with_accepted_data_of_the_same_source(workspace, monkeypatch, file, is_of_source):
    params = Path("params.yaml").read_text(encoding="utf-8")
    Path("params.yaml").write_text(params.replace("source: data/demo/raw", "source: data/mine"), encoding="utf-8")
    for name in ("data/mine/a.jsonl", "data/b.jsonl"):
        write_rows(Path(name), [])
    sections = []

    def run(name: str, *arguments: str) -> int:
        sections.extend(arguments[arguments.index("--section") + 1 :][:1] if "--section" in arguments else [])
        return 0

    monkeypatch.setattr(check, "run_module", run)
    check.check([Path(file)], Path("out"))
    assert sections == ["source" if is_of_source else "none"]
