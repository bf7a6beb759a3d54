"""Tests of dvc.yaml by DVC's own commands."""

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

from measures.metrics import select_dvc_metrics
from models import provenance

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]


@pytest.fixture
def project(tmp_path):
    """A DVC project with only dvc.yaml and params.yaml."""
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


@pytest.mark.parametrize("params", ["chatglm-6b-lora", "chatglm-6b-ptuning_v2"])
def test_stages_of_other_parameter_sets(project, params):
    shutil.copyfile(ROOT / f"params/{params}.yaml", project / "params.yaml")
    adapter = params.removeprefix("chatglm-6b-")
    names = {name for name in stages(project) if "@" in name}
    assert names == {f"train@{adapter}", f"evaluate@{adapter}", "evaluate@base"}


def test_stages(project):
    assert stages(project) == {
        "params",
        "ingest",
        "tokenizer",
        "validate",
        "general",
        "base",
        "encode",
        "question_fit",
        "train@lora",
        "train@ptuning_v2",
        "evaluate@base",
        "evaluate@lora",
        "evaluate@ptuning_v2",
        "compare",
    }


def test_adding_an_adapter_takes_one_entry_in_params(project):
    entry = "  third:\n    {method: lora, rank: 2, alpha: 4, learning_rate: 1e-3, epochs: 1, batch_size: 8}\n"
    text = (project / "params.yaml").read_text(encoding="utf-8")
    (project / "params.yaml").write_text(text.replace("\ntrain:\n", f"{entry}\ntrain:\n"), encoding="utf-8")
    assert {"train@third", "evaluate@third"} <= stages(project)
    assert ("evaluate@third", "compare") in edges(project)


@pytest.mark.parametrize("value", ["null", "/outside/of/the/project"])
def test_probes_may_be_null_or_outside_of_the_project(project, value):
    """Without a template of two parts, DVC fails on null with "unexpected error" before stage params can refuse it."""
    text = (project / "params.yaml").read_text(encoding="utf-8")
    changed = re.sub(r"(?m)^  probes: \S+", f"  probes: {value}", text, count=1)
    assert changed != text
    (project / "params.yaml").write_text(changed, encoding="utf-8")
    assert "evaluate@base" in stages(project)


def test_expensive_stages_depend_on_the_gate(project):
    pairs = edges(project)
    assert ("validate", "base") in pairs
    assert {("general", "encode"), ("validate", "encode")} <= pairs
    assert ("general", "train@lora") not in pairs  # training reruns for new general data only if they are replayed
    assert {("validate", "train@lora"), ("encode", "train@lora"), ("base", "train@lora")} <= pairs


def test_adapters_do_not_depend_on_each_other(project):
    assert not {("train@lora", "train@ptuning_v2"), ("train@ptuning_v2", "train@lora")} & edges(project)


def modules_of_stage(name: str) -> list[str]:
    return re.findall(r"python -m (\S+)", str(STAGES[name].get("do", STAGES[name])["cmd"]))


def covers(dependency: str, path: str) -> bool:
    return path == dependency or path.startswith(f"{dependency}/")


@pytest.mark.parametrize("name", STAGES)
def test_code_dependencies_are_the_imported_files(name):
    files = {path for module in modules_of_stage(name) for path in provenance.imported_files(module)}
    imported = {str(path.relative_to(ROOT)) for path in files}
    if name != "params":
        schema = re.compile(r"formats/(params_\w+|\w+_params)\.py")  # stages depend on the resolved parameters instead
        imported = {path for path in imported if not schema.fullmatch(path)}
    dependencies = STAGES[name].get("do", STAGES[name])["deps"]
    declared = [
        path for path in dependencies if re.match(r"(formats|measures|models|stages|texts)(/(?!weights)|$)", path)
    ]
    assert not [path for path in imported if not any(covers(dependency, path) for dependency in declared)]
    assert not [dependency for dependency in declared if not any(covers(dependency, path) for path in imported)]


SECTIONS = "base|ingest|validate|encode|question_fit|adapters|train|evaluate|compare"


@pytest.mark.parametrize("name", sorted(STAGES.keys() - {"params"}))
def test_parameter_dependencies_are_the_sections_that_the_code_reads(name):
    entries = STAGES[name].get("do", STAGES[name])["params"]
    declared = {key.split(".")[0] for entry in entries for key in entry["data/params.json"]}
    folders = [ROOT.joinpath(*module.split(".")) for module in modules_of_stage(name)]
    files = [file for folder in folders for file in (folder.rglob("*.py") if folder.is_dir() else [f"{folder}.py"])]
    code = "\n".join(Path(file).read_text(encoding="utf-8") for file in files)
    read = set(re.findall(rf"(?:params|load\(\))\.({SECTIONS})_?\b(?!\()", code))
    assert read
    assert read <= declared


def test_changed_default_reruns_only_its_stages(project):
    """Stage params is the real one; the other stages only create a file."""
    for folder in ("formats", "models", "stages"):
        shutil.copytree(ROOT / folder, project / folder, ignore=shutil.ignore_patterns("weights", "__pycache__"))
    stubs = {
        name: {"cmd": f"touch {name}", "params": [{"data/params.json": sections}], "outs": [name]}
        for name, sections in {"split": ["validate"], "fit": ["adapters.lora", "train"]}.items()
    }
    content = {"stages": {"params": STAGES["params"], **stubs}}
    (project / "dvc.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    for path in ("raw", "general", "probes.jsonl"):
        (project / "data/demo" / path).mkdir(parents=True)
    dvc(project, "repro", "-q")
    assert stages_run(project) == set()
    change(
        project / "formats/training_params.py",
        "weight_decay: Annotated[float, Field(ge=0)] = 0.0",
        "weight_decay: float = 0.1",
    )
    assert stages_run(project) == {"params", "fit"}
    change(project / "params.yaml", "  seed: 42\n  precision", "  seed: 42 # the default\n  precision")
    assert stages_run(project) == {"params"}


def stages_run(folder) -> set[str]:
    return set(re.findall(r"Running stage '([^']+)'", dvc(folder, "repro")))


def change(path, former: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert former in text
    path.write_text(text.replace(former, new), encoding="utf-8")


def test_length_histograms_survive_a_run():
    """DVC deletes the outs of a stage before it runs, except for those with ``persist``."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    histograms = []
    for name in ("validate", "general"):
        commands = stages[name]["cmd"]
        command = commands if isinstance(commands, str) else " ".join(commands)
        histograms.append(re.search(r"--accepted (\S+)", command)[1])
        assert {histograms[-1]: {"cache": False, "persist": True}} in stages[name]["outs"]
        folders = [out for out in stages[name]["outs"] if isinstance(out, str)]
        assert not [folder for folder in folders if Path(histograms[-1]).is_relative_to(folder)]
    assert len(set(histograms)) == 2
    assert "--section general" in stages["general"]["cmd"][1]


def test_dvc_sends_no_analytics_and_plots_need_no_network():
    import configparser

    config = configparser.ConfigParser()
    config.read(ROOT / ".dvc/config")
    assert config["core"]["analytics"] == "false"
    page = (ROOT / ".dvc" / config["plots"]["html_template"]).read_text(encoding="utf-8")
    assert "{plot_divs}" in page
    assert "<script src" not in page
    json.loads((ROOT / ".dvc/plots/adapters.json").read_text(encoding="utf-8"))


def test_dvc_metrics_fit_a_terminal(project):
    """One row per file, one column per metric; values as wide as they get on an H100."""
    values = {"loss": 1.23456, "rouge-l": 45.678, "bleu-4": 33.219, "exact_match": 0.41234, "divergence": 0.12345}
    figures = {
        "eval": values,
        "test": values,
        "general": values,
        "probes": {"rates": {"all": {"rate": 0.88889}}},
        "training": {"tokens_per_second": 12345.6, "peak_memory_gib": 16.2345},
    }
    models = {name: select_dvc_metrics(figures) for name in ("base", "lora", "ptuning_v2")}
    folder = project / "reports/metrics"
    folder.mkdir(parents=True)
    for name, content in (models | {"data": {"train": 12345, "bad": 1234}}).items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    lines = dvc(project, "metrics", "show").splitlines()
    assert len(lines) == 5, "the header, three models and the data"
    assert max(map(len, lines)) <= 120
    assert lines[0].split() == ["Path", *sorted([*models["lora"], "train", "bad"])]


def test_columns_rerun_the_gate_and_not_the_copy():
    """Rows are copied byte for byte; their columns matter where they are parsed. General rows have their own layout."""
    read = {name: STAGES[name]["params"][0]["data/params.json"] for name in ("ingest", "validate", "general")}
    assert [name for name, keys in read.items() if "ingest.columns" in keys] == ["validate"]
    assert [name for name, keys in read.items() if "ingest.encoding" in keys] == ["ingest", "validate"]
