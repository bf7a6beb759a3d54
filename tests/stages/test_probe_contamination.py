"""Probes and general rows that occur in the training rows are found by the gate and by the evaluation."""

import json
import logging

import pytest
from gate import GateRun, params_with
from shared_data import ROOT, conversation, write_rows

from formats import receipt
from formats.probe_file import Expectation, Probe, read_probes
from measures.contamination import find_in_training, questions_of
from models.row_layouts import UnknownFormat, read_messages
from models.sample import Sample
from stages.evaluate.contaminated_rows import mark_seen_probes, match_general_samples
from stages.validate import row_table
from stages.validate.__main__ import probes_of_section
from stages.validate.checks import build_checks
from stages.validate.dataset_checks import check_dataset
from stages.validate.probe_contamination import find_seen_probes
from stages.validate.split import TRAIN
from stages.validate.worker_pool import WorkerPool

LONG = "绿茶放在冰箱里可以保存多久，需要注意些什么？"
NEARLY = "绿茶放在冰箱里可以保存多久，需要注意些什么呢？"


def probe(question: str) -> Probe:
    return Probe(question, 0, conversation(question, "小茶"), Expectation(contains=("小茶",)))


@pytest.fixture
def gate(tmp_path, base_folder, monkeypatch):
    """A gate run in three chunks; returns a function for the outcome with probes."""
    monkeypatch.setattr(row_table, "_CHUNK_ROWS", 20)
    monkeypatch.setattr(WorkerPool, "_map_parallel", lambda self, function, chunks: map(function, chunks))
    rows = [{"context": f"第{number}种茶叶怎么存放？", "target": f"第{number}种要密封避光。"} for number in range(58)]
    rows.append({"context": LONG, "target": "密封后可以保存一年。", "history": [["在店里吗？", "在的，请讲。"]]})
    rows.append({"context": "<NAME>你好吗？", "target": "<NAME>我很好。"})
    run = GateRun(write_rows(tmp_path / "raw/a.jsonl", rows).parent, base_folder, tmp_path / "kept")

    def outcome(questions, **checks):
        params = params_with(checks=checks)
        with WorkerPool() as pool:
            seen = find_seen_probes(run.table, run.decision, [probe(question) for question in questions], pool)
        return run, check_dataset(run.table, run.decision, build_checks(params), None, seen)

    return outcome


def finding_of(outcome) -> dict:
    return next(finding for finding in outcome.data_findings if finding["check"] == "no_probe_in_training")


def test_probes_in_training_rows_are_counted_and_listed(gate):
    _, outcome = gate(["从没问过的", NEARLY, "在店里吗", LONG])
    assert (finding_of(outcome)["seen"], finding_of(outcome)["passed"]) == (3, False)
    assert outcome.block_reasons == []
    (notice,) = [notice for notice in outcome.notices if "Probe" in notice["en"]]
    assert notice["en"].startswith("Probe questions in training rows (3): 在店里吗 (a.jsonl:59, 100%)")
    assert f"{NEARLY} (a.jsonl:59, 9" in notice["en"]
    assert "从没问过的" not in notice["en"]
    assert "probes_in_training" not in outcome.row_counts, "a new probe is no reason to retrain"


def test_quarantined_and_held_out_rows_are_no_training_rows(gate):
    run, _ = gate([])
    held_out = [row["messages"][-2]["content"] for split in ("eval", "test") for row in run.rows[split]]
    trained = [row["messages"][-2]["content"] for row in run.rows["train"]]
    assert run.rows["eval"]
    assert run.rows["test"]
    probes = [probe(question) for question in ("<NAME>你好吗？", *held_out, trained[7])]
    with WorkerPool() as pool:
        seen = find_seen_probes(run.table, run.decision, probes, pool)
    assert {run.decision.splits[match.row] for match in seen} == {TRAIN}
    assert not any(run.decision.is_quarantined[match.row] for match in seen)
    assert [match.question for match in seen if match.similarity == 1] == [trained[7]]


def test_severity_block_stops_the_data(gate):
    _, outcome = gate([LONG], no_probe_in_training={"severity": "block", "limit": 0})
    assert any("no_probe_in_training" in reason for reason in outcome.block_reasons)
    _, outcome = gate([LONG], no_probe_in_training={"severity": "block", "limit": 1})
    assert not outcome.block_reasons


def test_only_task_data_are_compared_with_the_probes():
    params = params_with()
    assert probes_of_section("source", params) == read_probes(ROOT / "data/demo/probes.jsonl")
    assert probes_of_section("general", params) == probes_of_section("none", params) == []


# Evaluation ----------------------------------------------------------------------------------------


@pytest.fixture
def checked(tmp_path):
    folder = tmp_path / "checked"
    for split in receipt.SPLITS:
        texts = {"train": [("在店里吗？", "在的。", LONG, "一年。"), ("茶要密封吗？", "要密封。")]}.get(
            split, [("别的", "问题")]
        )
        samples = [Sample(str(line), "t.jsonl", line, conversation(*row)) for line, row in enumerate(texts, start=1)]
        write_rows(folder / f"{split}.jsonl", [sample.to_json() for sample in samples])
    receipt.write(folder)
    return receipt.read(folder)


def test_evaluation_marks_seen_wordings(checked):
    probes = [probe(question) for question in (NEARLY, "在店里吗", "别的", "从没问过的")]
    assert [marked.is_seen for marked in mark_seen_probes(probes, checked)] == [True, True, False, False]


def test_general_rows_of_the_training_rows_are_named(checked, caplog):
    samples = [
        Sample(str(line), "general.jsonl", line, conversation(*texts))
        for line, texts in enumerate([("你好", "您好"), ("茶要密封吗", "要密封！")], start=1)
    ]
    with caplog.at_level(logging.WARNING):
        assert match_general_samples(samples, checked) == {1: 1.0}
    assert "1 of 2 general rows occur in the training rows" in caplog.text
    assert "general.jsonl:2" in caplog.text


def test_the_demo_has_seen_and_unseen_wordings():
    asked = []
    for path in sorted((ROOT / "data/demo/raw").glob("*.jsonl")):
        for line in path.read_bytes().splitlines():
            try:
                asked += questions_of(read_messages(json.loads(line)))
            except (ValueError, UnknownFormat):
                continue  # dirty.jsonl has rows that the gate quarantines
    probes = read_probes(ROOT / "data/demo/probes.jsonl")
    seen = find_in_training([wording.question for wording in probes], asked)
    assert len(seen) >= 12
    assert len(probes) - len(seen) >= 12
    unseen_ids = {wording.id for index, wording in enumerate(probes) if index not in seen}
    assert unseen_ids == {wording.id for wording in probes}, "every probe has an unseen wording"
