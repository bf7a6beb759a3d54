"""dvc.yaml as DVC itself reads it."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from project import PATH
from shared_data import ROOT

from models import provenance

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]


@pytest.fixture
def project(tmp_path):
    """A bare DVC project with our dvc.yaml and params.yaml."""
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    dvc(tmp_path, "init", "--no-scm", "-q")
    return tmp_path


def dvc(folder, *arguments) -> str:
    command = [sys.executable, "-m", "dvc", *arguments]
    run = subprocess.run(command, cwd=folder, env={**os.environ, "PATH": PATH}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


def stages(folder) -> set[str]:
    return set(dvc(folder, "stage", "list", "--name-only").split())


def edges(folder) -> set[tuple[str, str]]:
    lines = dvc(folder, "dag", "--dot").splitlines()
    return {tuple(part.strip(' ";') for part in line.split("->")) for line in lines if "->" in line}


def test_the_stages(project):
    assert stages(project) == {
        "params",
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


def modules_of(name: str) -> list[str]:
    return re.findall(r"python -m (\S+)", str(STAGES[name].get("do", STAGES[name])["cmd"]))


def covers(dependency: str, path: str) -> bool:
    return path == dependency or path.startswith(f"{dependency}/")


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_the_code_that_it_imports_and_on_no_other(name):
    files = {path for module in modules_of(name) for path in provenance.imported_files(module)}
    imported = {str(path.relative_to(ROOT)) for path in files}
    if name != "params":
        imported.discard("formats/params_schema.py")  # in whose place stand the resolved parameters
    dependencies = STAGES[name].get("do", STAGES[name])["deps"]
    declared = [path for path in dependencies if re.match(r"(formats|measures|models|stages)/(?!weights)", path)]
    assert not [path for path in imported if not any(covers(dependency, path) for dependency in declared)]
    assert not [dependency for dependency in declared if not any(covers(dependency, path) for path in imported)]


SECTIONS = "base|ingest|validate|encode|adapters|train|evaluate|compare"


@pytest.mark.parametrize("name", sorted(STAGES.keys() - {"params"}))
def test_a_stage_depends_on_the_sections_of_the_parameters_that_its_code_reads(name):
    entries = STAGES[name].get("do", STAGES[name])["params"]
    declared = {key.split(".")[0] for entry in entries for key in entry["data/params.json"]}
    folders = [ROOT.joinpath(*module.split(".")) for module in modules_of(name)]
    files = [file for folder in folders for file in (folder.rglob("*.py") if folder.is_dir() else [f"{folder}.py"])]
    code = "\n".join(Path(file).read_text(encoding="utf-8") for file in files)
    read = set(re.findall(rf"(?:params|knobs|settings|load\(\))\.({SECTIONS})_?\b(?!\()", code))
    assert read
    assert read <= declared


def test_a_changed_default_runs_its_stages_again_and_no_other(project):
    """Stage params as DVC runs it, with copies of the code: other stages only write down that they ran."""
    for folder in ("formats", "models", "stages"):
        shutil.copytree(ROOT / folder, project / folder, ignore=shutil.ignore_patterns("weights", "__pycache__"))
    stubs = {
        name: {"cmd": f"touch {name}", "params": [{"data/params.json": sections}], "outs": [name]}
        for name, sections in {"split": ["validate"], "fit": ["adapters.lora", "train"]}.items()
    }
    content = {"stages": {"params": STAGES["params"], **stubs}}
    (project / "dvc.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    (project / "data").mkdir()
    dvc(project, "repro", "-q")
    assert ran(project) == set()
    change(
        project / "formats/params_schema.py",
        "weight_decay: Annotated[float, Field(ge=0)] = 0.0",
        "weight_decay: float = 0.1",
    )
    assert ran(project) == {"params", "fit"}
    change(project / "params.yaml", "  seed: 42\n  precision", "  seed: 42 # the default\n  precision")
    assert ran(project) == {"params"}


def ran(folder) -> set[str]:
    return set(re.findall(r"Running stage '([^']+)'", dvc(folder, "repro")))


def change(path, former: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert former in text
    path.write_text(text.replace(former, new), encoding="utf-8")


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
    assert "--section general" in stages["general"]["cmd"][1]


def test_it_is_quiet_and_draws_without_a_network():
    import configparser

    config = configparser.ConfigParser()
    config.read(ROOT / ".dvc/config")
    assert config["core"]["analytics"] == "false"
    page = (ROOT / ".dvc" / config["plots"]["html_template"]).read_text(encoding="utf-8")
    assert "{plot_divs}" in page
    assert "<script src" not in page
    json.loads((ROOT / ".dvc/plots/adapters.json").read_text(encoding="utf-8"))
