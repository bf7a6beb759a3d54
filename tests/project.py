"""A copy of this project, to be used as a user does."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml
from shared_data import ROOT

PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", "tmp", "cache", "__pycache__", "weights", "predictions", "validation"
)


class Project:
    """A copy of this project under git, with DVC and all stages as a user runs them."""

    def __init__(self, folder: Path):
        self.folder = folder
        shutil.copytree(ROOT, folder, ignore=LEFT_OUT)
        for made in (
            "data/raw",
            "data/checked",
            "data/quarantine",
            "data/encoded",
            "reports/metrics",
            "reports/training",
        ):
            shutil.rmtree(folder / made, ignore_errors=True)
        for made in ("dvc.lock", "data/verdict", "data/sources.json"):
            (folder / made).unlink(missing_ok=True)
        self.edit_params(lambda params: params["base"]["tiny"].update(steps=60))
        self.edit_params(lambda params: params["evaluate"].update(max_new_tokens=32, samples=1))
        # A base of 60 steps repeats itself in half of its text, and an adapter of one epoch learns little else.
        self.edit_params(lambda params: params["promote"]["guards"].update(repetition=1.0))
        for adapter in ("lora", "ptuning_v2"):
            self.edit_params(lambda params, adapter=adapter: params["adapters"][adapter].update(epochs=1))
        self.run("git", "init", "-q")
        self.commit("start")

    def run(self, *command: str, typed: str | None = None) -> subprocess.CompletedProcess:
        environment = {**os.environ, "PATH": PATH, "HF_HUB_OFFLINE": "1"}
        return subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, input=typed, check=False
        )

    def commit(self, message: str) -> None:
        author = ("-c", "user.name=test", "-c", "user.email=test@localhost")
        self.run("git", "add", "-A")
        assert self.run("git", *author, "commit", "-qm", message).returncode == 0

    def repro(self) -> tuple[int, set[str], str]:
        """Exit code, the stages that ran, and all output."""
        done = self.run("dvc", "repro")
        text = done.stdout + done.stderr
        return done.returncode, {line.split("'")[1] for line in text.splitlines() if "Running stage" in line}, text

    def edit_params(self, change) -> None:
        path = self.folder / "params.yaml"
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        change(content)
        content["evaluate"]["models"] = {"base": None, **content["adapters"]}
        path.write_text(yaml.safe_dump(content, allow_unicode=True, sort_keys=False), encoding="utf-8")

    def metrics(self, name: str) -> dict:
        return json.loads((self.folder / f"reports/metrics/{name}.json").read_text())
