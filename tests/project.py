"""Copies of this project in which tests work as a user does."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import yaml
from shared_data import ROOT

PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
EXCLUDED = shutil.ignore_patterns(
    ".git", ".venv", "tmp", "cache", "__pycache__", "weights", "predictions", "validation"
)
GENERATED_FOLDERS = (
    "data/raw",
    "data/checked",
    "data/quarantine",
    "data/encoded",
    "reports/metrics",
    "reports/training",
)
GENERATED_FILES = (
    "dvc.lock",
    "data/verdict",
    "data/sources.json",
    "data/warned.jsonl",
    "data/question_fit.jsonl",
    "reports/ingest.json",
    "reports/tokens.json",
    "reports/question_fit.json",
    "reports/question_fit.html",
)


class Project:
    """A git repository with DVC and all stages, in a folder of its own."""

    def __init__(self, folder: Path):
        self.folder = folder

    def copy_to(self, folder: Path) -> "Project":
        """Copy the repository with its history and DVC cache."""
        shutil.copytree(self.folder, folder, symlinks=True, ignore=shutil.ignore_patterns("tmp"))
        return Project(folder)

    def run(self, *command: str, typed: str | None = None) -> subprocess.CompletedProcess:
        """Run a command in the project, with ``typed`` on its standard input."""
        environment = {**os.environ, "PATH": PATH, "HF_HUB_OFFLINE": "1", "TUNELINE_LANG": "en"}
        return subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, input=typed, check=False
        )

    def commit(self, message: str) -> None:
        """Commit all changes."""
        author = ("-c", "user.name=test", "-c", "user.email=test@localhost")
        self.run("git", "add", "-A")
        assert self.run("git", *author, "commit", "-qm", message).returncode == 0

    def repro(self, *targets: str) -> tuple[int, set[str], str]:
        """Run ``dvc repro``; return the exit code, the stages that ran, and all output."""
        done = self.run("dvc", "repro", *targets)
        output = done.stdout + done.stderr
        return done.returncode, {line.split("'")[1] for line in output.splitlines() if "Running stage" in line}, output

    def edit_params(self, change: Callable[[dict], object]) -> None:
        """Apply a function to the content of params.yaml; all adapters are evaluated."""
        path = self.folder / "params.yaml"
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        change(content)
        content["evaluate"]["models"] = {"base": None, **content["adapters"]}
        path.write_text(yaml.safe_dump(content, allow_unicode=True, sort_keys=False), encoding="utf-8")

    def metrics(self, name: str) -> dict:
        """Read a file of reports/metrics."""
        return json.loads((self.folder / f"reports/metrics/{name}.json").read_text())


def create_project(folder: Path) -> Project:
    """Copy this project without generated files; the base model is small and trained for seconds."""
    shutil.copytree(ROOT, folder, ignore=EXCLUDED)
    for generated in GENERATED_FOLDERS:
        shutil.rmtree(folder / generated, ignore_errors=True)
    for generated in GENERATED_FILES:
        (folder / generated).unlink(missing_ok=True)
    project = Project(folder)
    project.edit_params(_make_small)
    project.run("git", "init", "-q")
    project.commit("start")
    return project


def _make_small(params: dict) -> None:
    params["base"]["tiny"].update(steps=60, hidden_size=128, layers=2, vocab_size=4500)
    params["evaluate"].update(max_new_tokens=16, samples=1)
    for adapter in params["adapters"].values():
        adapter.update(epochs=1)
    # Such models repeat themselves and answer with few tokens: any significant gain of the loss is a promotion.
    loose = {"forgetting": 100.0, "general": 0.0, "empty_rate": 1.0, "refusals": 1.0, "repetition": 1.0}
    loose |= {"probes": 1.0, "latency": 100.0}
    params["promote"] |= {"margin": 0.0, "seed_spread": 0.0, "guards": loose}
    params["train"].update(replay=0.0)
    params["question_fit"] = {"answers": 20}
