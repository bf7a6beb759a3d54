"""A whole site for integration tests: server, keeper and agents as separate processes, over a small project."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import httpx
import psutil
from project import PATH, Project, create_project
from shared_data import ROOT

LOGIN = "tests:the password of a test's site"
TIMEOUT = 1200.0  # seconds for anything that runs in parallel with other tests on a slow machine
TRAINING = "stages.train"
FINAL_STATES = ("Completed", "Failed", "Cancelled")
DEMO_ROWS = {"dialogues": 20, "identity": 40, "skills": 60, "dirty": 8}  # rows of each file that are kept

Value = TypeVar("Value")


class Site:
    """Server, keeper and agents over a project, as separate processes.

    Args:
        folder: for logs, databases and clones.
        project: the repository that runs clone.
        environment: variables for all programs.

    Attributes:
        programs: arguments of Python, by program name.
        program_environment: additional variables, by program name.
        running: the processes, by program name.
    """

    def __init__(self, folder: Path, project: Project, **environment: str):
        self.folder, self.project = folder, project
        self.running: dict[str, subprocess.Popen] = {}
        self.program_environment: dict[str, dict[str, str]] = {}
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            port = unused.getsockname()[1]
        self.api = f"http://127.0.0.1:{port}/api"
        self.client = httpx.Client(timeout=30)  # shared: creating a client takes longer than a request
        self.environment = {
            **os.environ,
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_API_URL": self.api,
            **dict.fromkeys(("PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_AUTH_STRING"), LOGIN),
            "TUNELINE_HOME": str(folder / "home"),
            "TUNELINE_REPOSITORY": str(project.folder),
            "TUNELINE_LANG": "en",
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

    # Programs ----------------------------------------------------------------------------------------

    @contextmanager
    def open(self) -> Iterator["Site"]:
        """Run server, keeper and agents with all deployments; pytest shows their logs if a test fails."""
        try:
            self.start(*self.programs)
            self.deploy()
            yield self
        finally:
            for log in self.folder.glob("*.log"):
                print(f"--- {log.name}\n{log.read_text(errors='replace')[-4000:]}")
            self.kill(*self.running)

    def start(self, *names: str) -> None:
        """Start programs, whose output is appended to ``NAME.log``."""
        for name in names:
            with (self.folder / f"{name}.log").open("a") as log:
                self.running[name] = subprocess.Popen(
                    [sys.executable, "-m", *self.programs[name]],
                    cwd=ROOT,
                    env=self.environment | self.program_environment.get(name, {}),
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )

    def deploy(self) -> None:
        """Create the deployments, as at every start of a site."""
        done = subprocess.run([sys.executable, "-m", "flows.deployments"], cwd=ROOT, env=self.environment, check=False)
        assert done.returncode == 0

    def stop(self, *names: str) -> None:
        """Send SIGTERM to programs (by default all) and wait until they end."""
        for name in names or tuple(self.running):
            process = self.running.pop(name)
            process.send_signal(signal.SIGTERM)
            process.wait(60)

    def kill(self, *names: str) -> None:
        """Send SIGKILL to programs and all their descendants, as in a power failure."""
        roots = [psutil.Process(pid) for name in names if psutil.pid_exists(pid := self.running.pop(name).pid)]
        processes = [*roots, *(child for root in roots for child in root.children(recursive=True))]
        for process in processes:
            process.kill()
        psutil.wait_procs(processes, timeout=10)

    def restart_with(self, environment: dict[str, str]) -> None:
        """Restart all programs with additional variables."""
        self.stop()
        self.program_environment = dict.fromkeys(self.programs, environment)
        self.start(*self.programs)

    def log(self, name: str) -> str:
        """Return the output of a program so far."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def processes(self, module: str) -> list[psutil.Process]:
        """Return the processes ``python -m module`` of this site; not the shells that DVC starts them with."""
        processes = []
        for process in psutil.process_iter():
            try:
                if module in process.cmdline() and process.environ().get("TUNELINE_TEST_SITE") == str(self.folder):
                    processes.append(process)
            except (psutil.Error, OSError):
                continue
        return processes

    def wait_for_training(self) -> psutil.Process:
        """Wait for a training run that has saved a checkpoint, and return its process."""

        def find_training() -> psutil.Process | None:
            for process in self.processes(TRAINING):
                with suppress(psutil.Error, OSError):  # the clone of another run may have checkpoints, too
                    if list(Path(process.cwd()).glob("models/checkpoints/lora.*/checkpoint-*/progress.json")):
                        return process
            return None

        return wait_until(find_training, "a training run with a checkpoint", TIMEOUT)

    # Runs --------------------------------------------------------------------------------------------

    def request(self, method: str, path: str, body: dict | None = None):
        """Send a request to the server's API and return the JSON of the response; retry like Prefect's own client."""
        auth = tuple(self.environment["PREFECT_API_AUTH_STRING"].split(":"))
        deadline = time.monotonic() + TIMEOUT
        while True:
            try:
                response = self.client.request(method, f"{self.api}{path}", json=body, auth=auth)
            except httpx.TransportError:  # the server restarts
                response = None
            # 503: the SQLite database was locked.
            if time.monotonic() > deadline or (response is not None and response.status_code != 503):
                break
            time.sleep(1)
        response.raise_for_status()
        return response.json() if response.content else None

    def run(self, deployment: str, **parameters) -> str:
        """Start a run of a deployment and return its id."""
        deployment_id = self.request("GET", f"/deployments/name/{deployment}/{deployment}")["id"]
        body = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
        return self.request("POST", f"/deployments/{deployment_id}/create_flow_run", body)["id"]

    def cancel(self, run: str) -> None:
        """Cancel a run as the UI does."""
        self.request("POST", f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})

    def state(self, run: str) -> str:
        """Return the name of a run's state."""
        return self.request("GET", f"/flow_runs/{run}")["state"]["name"]

    def final_state(self, run: str) -> str:
        """Wait until a run has ended and return the name of its state."""
        return wait_until(
            lambda: state if (state := self.state(run)) in FINAL_STATES else None, f"run {run} to end", TIMEOUT
        )

    def children(self, run: str) -> list[dict]:
        """Return the runs that a run has started."""
        return self.request("POST", "/flow_runs/filter", {"flow_runs": {"tags": {"all_": [f"of {run}"]}}})

    def lora_run(self, run: str) -> dict:
        """Return the child of a run that trains LoRA."""
        return next(child for child in self.children(run) if "lora" in child["name"])

    def artifacts(self) -> set[str]:
        """Return the keys of all artifacts."""
        return {artifact["key"] for artifact in self.request("POST", "/artifacts/filter", {})}

    def assert_no_run_is_active(self) -> None:
        """Assert that every run has ended or is scheduled."""
        states = {run["state"]["type"] for run in self.request("POST", "/flow_runs/filter", {})}
        assert states <= {"COMPLETED", "FAILED", "CANCELLED", "SCHEDULED"}

    # Repository --------------------------------------------------------------------------------------

    def git(self, *arguments: str) -> str:
        """Run git in the project and return its output."""
        return self.project.run("git", *arguments).stdout.strip()

    def commit_params(self, change: Callable[[dict], object], message: str) -> None:
        """Change params.yaml and commit it."""
        self.project.edit_params(change)
        self.project.commit(message)

    def set_epochs(self, epochs: int) -> None:
        """Change and commit the length of LoRA's training."""
        self.commit_params(lambda params: params["adapters"]["lora"].update(epochs=epochs), f"{epochs} epochs")


def create_small_project(folder: Path) -> Project:
    """Create a project whose stages take seconds: a tiny base, one adapter, few rows, short answers."""
    project = create_project(folder)
    project.edit_params(_shrink)
    keep_rows(project.folder / "data/demo/probes.jsonl", 3)
    keep_rows(project.folder / "data/demo/general/conversations.jsonl", 40)
    for name, count in DEMO_ROWS.items():
        keep_rows(project.folder / f"data/demo/raw/{name}.jsonl", count)
    project.run("git", "config", "user.name", "test")
    project.run("git", "config", "user.email", "test@localhost")
    project.commit("small")
    return project


def _shrink(params: dict) -> None:
    params["validate"].update(eval_share=0.2, test_share=0.2)
    params["adapters"] = {"lora": params["adapters"]["lora"] | {"epochs": 4}}
    params["evaluate"].update(max_new_tokens=8, samples=0)


def keep_rows(path: Path, count: int) -> None:
    """Shorten a JSONL file to ``count`` lines, evenly spread."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:: max(1, len(lines) // count)][:count]), encoding="utf-8")


def wait_until(condition: Callable[[], Value], what: str, seconds: float = TIMEOUT) -> Value:
    """Poll a condition every second until it is true, and return its value.

    Raises:
        AssertionError: it is not true within ``seconds``.
    """
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"timed out after {seconds:.0f} s waiting for {what}"
        time.sleep(1)
    return value
