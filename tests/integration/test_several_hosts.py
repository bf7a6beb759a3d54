"""Several hosts that share only a git repository, a DVC remote, and a server with PostgreSQL."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from sites import TIMEOUT, Site, wait_until

pytestmark = pytest.mark.integration


class Postgres:
    """A temporary PostgreSQL server from Debian's package; root starts it as user ``postgres``."""

    def __init__(self):
        if not shutil.which("initdb") or not shutil.which("pg_ctl"):
            pytest.skip("needs PostgreSQL's initdb and pg_ctl on PATH (Debian's postgresql)")
        self.folder = Path(tempfile.mkdtemp())
        self.as_user = ("runuser", "-u", "postgres", "--") if os.geteuid() == 0 else ()
        if self.as_user:
            shutil.chown(self.folder, "postgres", "postgres")
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            self.port = unused.getsockname()[1]
        self.call("initdb", "--pgdata", f"{self.folder}/data", "--auth", "trust", "--username", "tuneline")
        self.start()

    @property
    def url(self) -> str:
        return f"postgresql+asyncpg://tuneline@127.0.0.1:{self.port}/postgres"

    def call(self, *command: str) -> None:
        subprocess.run([*self.as_user, *command], check=True, stdout=subprocess.DEVNULL, cwd=self.folder)

    def start(self) -> None:
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1"
        log = f"{self.folder}/log"
        self.call("pg_ctl", "--pgdata", f"{self.folder}/data", "--wait", "--log", log, "--options", options, "start")

    def stop(self) -> None:
        self.call("pg_ctl", "--pgdata", f"{self.folder}/data", "--mode", "immediate", "stop")


@pytest.fixture(scope="module")
def database():
    server = Postgres()
    yield server
    server.stop()
    shutil.rmtree(server.folder, ignore_errors=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory, database, prepared_project):
    """Server and keeper, and a CPU and a GPU agent with a TUNELINE_HOME each, which clone a bare repository."""
    login, folder = "team:a password", tmp_path_factory.mktemp("hosts")
    site = Site(
        folder,
        prepared_project.copy_to(folder / "project"),
        PREFECT_API_DATABASE_CONNECTION_URL=database.url,
        PREFECT_SERVER_API_AUTH_STRING=login,
        PREFECT_API_AUTH_STRING=login,
        TUNELINE_REPOSITORY=f"file://{folder}/origin.git",
    )
    site.project.run("dvc", "remote", "add", "--default", "store", str(folder / "store"))
    site.set_epochs(30)
    assert site.project.run("dvc", "push").returncode == 0
    site.project.run("git", "clone", "--quiet", "--bare", ".", str(folder / "origin.git"))
    site.program_environment = {name: {"TUNELINE_HOME": str(folder / f"home-{name}")} for name in ("cpu", "gpu")}
    with site.open():
        yield site


def test_run_survives_a_minute_without_the_servers_database(site, database, tmp_path):
    """The champion is the adapter that the GPU host has trained, and a further host can pull both."""
    assert httpx.post(f"{site.api}/flow_runs/filter", json={}).status_code == 401
    run = site.run("finetune-adapters", cause="hosts")
    site.wait_for_training()
    database.stop()
    time.sleep(60)
    database.start()
    assert site.final_state(run) == "Completed"
    # A run that could not report its end to the server repeats its last step once.
    assert all(child["run_count"] <= 2 for child in site.children(run))
    assert all((site.folder / home / "cache").is_dir() for home in ("home-cpu", "home-gpu"))
    elsewhere, origin = tmp_path / "elsewhere", site.folder / "origin.git"
    site.project.run("git", "clone", "--quiet", "-b", "tuneline/retrained", str(origin), str(elsewhere))
    for target in ("train@lora", "models/champion.dvc"):
        done = subprocess.run(["dvc", "pull", "--quiet", target], cwd=elsewhere, env=site.environment, check=False)
        assert done.returncode == 0, target
    adapter, champion = (
        elsewhere / folder / "adapter_model.safetensors" for folder in ("models/weights/lora", "models/champion")
    )
    assert adapter.read_bytes() == champion.read_bytes()


def test_another_host_resumes_the_training_of_a_host_that_lost_power(site):
    """The remote is unavailable at the end of the training; the second host retries."""
    site.set_epochs(60)
    site.project.run("git", "push", "--quiet", str(site.folder / "origin.git"), "HEAD")
    run = site.run("finetune-adapters", cause="moved")
    site.wait_for_training()

    def uploaded_checkpoints() -> list[Path]:
        return list(site.folder.glob("store/tuneline/checkpoints/*/lora.*/*/progress.json"))

    wait_until(uploaded_checkpoints, "a checkpoint in the remote")
    site.kill("gpu")
    site.programs["other"] = site.programs["gpu"]
    site.program_environment["other"] = {"TUNELINE_HOME": str(site.folder / "home-other")}
    site.start("other")
    wait_until(lambda: "resuming from" in site.log("other"), "the other host to train", TIMEOUT)
    assert "from another host" in site.log("other")
    with unavailable(site.folder / "store"):
        wait_until(lambda: "Retry in" in site.log("other"), "the other host to retry", TIMEOUT)
    assert site.final_state(run) == "Completed"
    assert site.lora_run(run)["run_count"] == 2
    assert not uploaded_checkpoints()


@contextmanager
def unavailable(remote: Path) -> Iterator[None]:
    """Move a remote away while the block runs."""
    moved = remote.with_name("unavailable")
    remote.rename(moved)
    remote.write_text("")  # a file, so that DVC cannot create the folder
    yield
    remote.unlink()
    moved.rename(remote)


def test_no_log_contains_the_password(site):
    for log in site.folder.glob("*.log"):
        assert "a password" not in log.read_text(errors="replace"), log.name
