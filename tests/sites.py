"""A whole site for tests: a Prefect server, its keeper and agents, as programs of their own over a small project."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil
from project import PATH, Project
from shared_data import ROOT, write_rows

LOGIN = "tests:the password of a test's site"
LONG = 1200.0  # seconds that anything may take here, beside other tests on a slow machine
TRAINING = "stages.train"


class Site:
    """Server, keeper, and agents over a project of their own, as separate programs."""

    def __init__(self, folder: Path, **environment: str):
        """``environment``: for all programs; ``self.own`` may have more for one of them."""
        self.folder, self.running = folder, {}
        self.own: dict[str, dict[str, str]] = {}
        self.project = Project(folder / "project")
        make_small(self.project)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.api = f"http://127.0.0.1:{port}/api"
        self.client = httpx.Client(timeout=30)  # one for all: making each takes longer than what it asks for
        self.environment = {
            **os.environ,
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_API_URL": self.api,
            **dict.fromkeys(("PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_AUTH_STRING"), LOGIN),
            "TUNELINE_HOME": str(folder / "home"),
            "TUNELINE_REPOSITORY": str(self.project.folder),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "PATH": PATH,
            "TUNELINE_TEST_SITE": str(folder),
            **environment,
        }
        self.programs = {
            "server": ("flows.api_server", "--host", "127.0.0.1", "--port", str(port)),
            "keeper": ("flows.keeper",),
            "cpu": ("flows.agent", "--cpu"),
            "gpu": ("flows.agent", "--gpus", "none"),
        }

    def start(self, *names: str) -> None:
        for name in names:
            with (self.folder / f"{name}.log").open("a") as log:
                self.running[name] = subprocess.Popen(
                    [sys.executable, "-m", *self.programs[name]],
                    cwd=ROOT,
                    env=self.environment | self.own.get(name, {}),
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )

    def deploy(self) -> None:
        done = subprocess.run([sys.executable, "-m", "flows.deployments"], cwd=ROOT, env=self.environment, check=False)
        assert done.returncode == 0

    def power_loss(self, *names: str) -> None:
        """Kill programs with -9 and everything that they started, whatever session it is in, all at once."""
        roots = [psutil.Process(pid) for name in names if psutil.pid_exists(pid := self.running.pop(name).pid)]
        every = [*roots, *(child for root in roots for child in root.children(recursive=True))]
        for process in every:
            process.kill()
        psutil.wait_procs(every, timeout=10)

    def stop(self, *names: str) -> None:
        for name in names or tuple(self.running):
            process = self.running.pop(name)
            process.send_signal(signal.SIGTERM)
            process.wait(60)

    def restart_with(self, environment: dict[str, str]) -> None:
        """All programs anew, with this besides in their environment."""
        self.stop()
        self.own = dict.fromkeys(self.programs, environment)
        self.start(*self.programs)

    def ask(self, method: str, path: str, body: dict | None = None):
        auth = tuple(self.environment["PREFECT_API_AUTH_STRING"].split(":"))
        until = time.monotonic() + 60
        while True:
            try:
                answer = self.client.request(method, f"{self.api}{path}", json=body, auth=auth)
            except httpx.TransportError:  # the server restarts
                answer = None
            # 503: SQLite was busy. Prefect's own client asks again in both cases, too.
            if time.monotonic() > until or (answer is not None and answer.status_code != 503):
                break
            time.sleep(1)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def run(self, deployment: str, **parameters) -> str:
        """Start a run; gives its id."""
        found = self.ask("GET", f"/deployments/name/{deployment}/{deployment}")
        body = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
        return self.ask("POST", f"/deployments/{found['id']}/create_flow_run", body)["id"]

    def state(self, run: str) -> str:
        return self.ask("GET", f"/flow_runs/{run}")["state"]["name"]

    def ended(self, run: str) -> str:
        until(lambda: self.state(run) in ("Completed", "Failed", "Cancelled"), f"run {run} to end", LONG)
        return self.state(run)

    def children(self, run: str) -> list[dict]:
        return self.ask("POST", "/flow_runs/filter", {"flow_runs": {"tags": {"all_": [f"of {run}"]}}})

    def artifacts(self) -> set[str]:
        return {each["key"] for each in self.ask("POST", "/artifacts/filter", {})}

    def processes(self, module: str) -> list[psutil.Process]:
        """Those of this site that are ``python -m module``; DVC's shell, which may stand above one, is none."""
        found = []
        for process in psutil.process_iter():
            try:
                if module in process.cmdline() and process.environ().get("TUNELINE_TEST_SITE") == str(self.folder):
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return found

    def training(self) -> psutil.Process:
        """The training, once it has a checkpoint to go on from; other clones may have some, too."""

        def under_way() -> psutil.Process | None:
            for process in self.processes(TRAINING):
                with suppress(psutil.Error, OSError):
                    if list(Path(process.cwd()).glob("models/checkpoints/lora.*/checkpoint-*/progress.json")):
                        return process
            return None

        return until(under_way, "a training with a checkpoint", LONG)

    def set_epochs(self, epochs: int) -> None:
        self.project.edit_params(lambda params: params["adapters"]["lora"].update(epochs=epochs))
        self.project.commit(f"{epochs} epochs")

    @contextmanager
    def open(self) -> Iterator["Site"]:
        """Server, keeper and agents with all deployments; pytest prints what they logged if a test fails."""
        try:
            self.start(*self.programs)
            self.deploy()
            yield self
        finally:
            for log in self.folder.glob("*.log"):
                print(f"--- {log.name}\n{log.read_text(errors='replace')[-4000:]}")
            self.power_loss(*self.running)

    def git(self, *arguments: str) -> str:
        return self.project.run("git", *arguments).stdout.strip()


def make_small(project: Project) -> None:
    """One adapter, few probes, short answers: the orchestration is what is tested."""

    def shrink(params: dict) -> None:
        params["adapters"] = {"lora": params["adapters"]["lora"]}
        params["base"]["tiny"].update(steps=30)
        params["evaluate"].update(max_new_tokens=8, samples=0)

    project.edit_params(shrink)
    probes = project.folder / "data/demo/probes.jsonl"
    write_rows(probes, [json.loads(line) for line in probes.read_text(encoding="utf-8").splitlines()[:3]])
    general = project.folder / "data/demo/general/conversations.jsonl"
    write_rows(general, [json.loads(line) for line in general.read_text(encoding="utf-8").splitlines()[:60]])
    project.run("git", "config", "user.name", "test")
    project.run("git", "config", "user.email", "test@localhost")
    project.commit("small")


def until(condition, what: str, seconds: float = 120.0):
    """Wait until something holds; gives it."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(1)
    return found
