"""dvc.yaml as DVC itself reads it."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from given import ROOT


@pytest.fixture
def project(tmp_path):
    """A bare DVC project with our dvc.yaml and params.yaml."""
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    dvc(tmp_path, "init", "--no-scm", "-q")
    return tmp_path


def dvc(folder, *arguments) -> str:
    run = subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


def stages(folder) -> set[str]:
    return set(dvc(folder, "stage", "list", "--name-only").split())


def edges(folder) -> set[tuple[str, str]]:
    lines = dvc(folder, "dag", "--dot").splitlines()
    return {tuple(part.strip(' ";') for part in line.split("->")) for line in lines if "->" in line}


def test_the_stages(project):
    assert stages(project) == {
        "ingest",
        "tokenizer",
        "validate",
        "general",
        "base",
        "encode",
        "train@lora",
        "train@ptuning_v2",
        "evaluate@base",
        "evaluate@lora",
        "evaluate@ptuning_v2",
        "compare",
    }


def test_a_third_adapter_is_one_more_entry_in_params(project):
    entry = "  third:\n    {method: lora, rank: 2, alpha: 4, learning_rate: 1e-3, epochs: 1, batch_size: 8}\n"
    text = (project / "params.yaml").read_text(encoding="utf-8")
    (project / "params.yaml").write_text(text.replace("\ntrain:\n", f"{entry}\ntrain:\n"), encoding="utf-8")
    assert {"train@third", "evaluate@third"} <= stages(project)
    assert ("evaluate@third", "compare") in edges(project)


def test_nothing_costly_starts_before_the_gate(project):
    waits_for = edges(project)
    assert ("validate", "base") in waits_for
    assert {("general", "encode"), ("validate", "encode")} <= waits_for
    assert ("general", "train@lora") not in waits_for  # which runs again only if something of it is replayed
    assert {("validate", "train@lora"), ("encode", "train@lora"), ("base", "train@lora")} <= waits_for


def test_the_adapters_do_not_wait_for_each_other(project):
    assert not {("train@lora", "train@ptuning_v2"), ("train@ptuning_v2", "train@lora")} & edges(project)


def test_records_of_accepted_lengths_survive_a_run():
    """DVC removes a stage's outs before it runs, but for those that persist, and with a folder all that lies in it."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    records = []
    for name in ("validate", "general"):
        commands = stages[name]["cmd"]
        command = commands if isinstance(commands, str) else " ".join(commands)
        records.append(re.search(r"--accepted (\S+)", command)[1])
        assert {records[-1]: {"cache": False, "persist": True}} in stages[name]["outs"]
        folders = [out for out in stages[name]["outs"] if isinstance(out, str)]
        assert not [folder for folder in folders if Path(records[-1]).is_relative_to(folder)]
    assert len(set(records)) == 2
    assert "--knob general" in stages["general"]["cmd"][1]


def test_it_is_quiet_and_draws_without_a_network():
    import configparser

    config = configparser.ConfigParser()
    config.read(ROOT / ".dvc/config")
    assert config["core"]["analytics"] == "false"
    page = (ROOT / ".dvc" / config["plots"]["html_template"]).read_text(encoding="utf-8")
    assert "{plot_divs}" in page
    assert "<script src" not in page
    json.loads((ROOT / ".dvc/plots/adapters.json").read_text(encoding="utf-8"))
