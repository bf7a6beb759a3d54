"""Several hosts: nothing is shared but a git repository, a DVC remote and the server, which has a real PostgreSQL."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from sites import LONG, Site, until

pytestmark = pytest.mark.integration


class Postgres:
    """A PostgreSQL of this test's own, from Debian's package; root lets user ``postgres`` run it, as it must."""

    def __init__(self):
        if not shutil.which("initdb") or not shutil.which("pg_ctl"):
            pytest.skip("needs PostgreSQL's initdb and pg_ctl on PATH (Debian's postgresql)")
        self.folder = Path(tempfile.mkdtemp())
        self.user = ("runuser", "-u", "postgres", "--") if os.geteuid() == 0 else ()
        if self.user:
            shutil.chown(self.folder, "postgres", "postgres")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.call("initdb", "--pgdata", f"{self.folder}/data", "--auth", "trust", "--username", "tuneline")
        self.start()

    @property
    def url(self) -> str:
        return f"postgresql+asyncpg://tuneline@127.0.0.1:{self.port}/postgres"

    def call(self, *command: str) -> None:
        subprocess.run([*self.user, *command], check=True, stdout=subprocess.DEVNULL, cwd=self.folder)

    def start(self) -> None:
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1"
        log = f"{self.folder}/log"
        self.call("pg_ctl", "--pgdata", f"{self.folder}/data", "--wait", "--log", log, "--options", options, "start")

    def stop(self) -> None:
        self.call("pg_ctl", "--pgdata", f"{self.folder}/data", "--mode", "immediate", "stop")


@pytest.fixture(scope="module")
def database():
    made = Postgres()
    yield made
    made.stop()
    shutil.rmtree(made.folder, ignore_errors=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory, database):
    """Server and keeper, a CPU agent and a GPU agent with homes of their own; the repository is bare."""
    secret, folder = "team:a password", tmp_path_factory.mktemp("hosts")
    made = Site(
        folder,
        PREFECT_API_DATABASE_CONNECTION_URL=database.url,
        PREFECT_SERVER_API_AUTH_STRING=secret,
        PREFECT_API_AUTH_STRING=secret,
        TUNELINE_REPOSITORY=f"file://{folder}/origin.git",
    )
    made.project.run("dvc", "remote", "add", "--default", "store", str(folder / "store"))
    made.set_epochs(3)
    made.project.run("git", "clone", "--quiet", "--bare", ".", str(folder / "origin.git"))
    made.own = {name: {"TUNELINE_HOME": str(folder / f"home-{name}")} for name in ("cpu", "gpu")}
    with made.open():
        yield made


def test_hosts_that_share_a_remote_and_a_server_whose_database_is_gone_for_a_minute(site, database, tmp_path):
    import httpx

    assert httpx.post(f"{site.api}/flow_runs/filter", json={}).status_code == 401
    run = site.run("finetune-adapters", cause="hosts")
    site.training()
    database.stop()
    time.sleep(60)
    database.start()
    assert site.ended(run) == "Completed"
    # Who could not tell the server in all that time that it has done its work does the rest of it once more.
    assert all(child["run_count"] <= 2 for child in site.children(run))
    shared = {site.folder / "home-cpu/cache", site.folder / "home-gpu/cache"}
    assert all(path.is_dir() for path in shared)
    elsewhere, origin = tmp_path / "elsewhere", site.folder / "origin.git"
    site.project.run("git", "clone", "--quiet", "-b", "tuneline/retrained", str(origin), str(elsewhere))
    for target in ("train@lora", "models/champion.dvc"):
        done = subprocess.run(["dvc", "pull", "--quiet", target], cwd=elsewhere, env=site.environment, check=False)
        assert done.returncode == 0, target
    weights = [
        elsewhere / folder / "adapter_model.safetensors" for folder in ("models/weights/lora", "models/champion")
    ]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_another_host_goes_on_from_the_checkpoint_of_one_that_lost_power_and_waits_for_the_remote_at_its_end(site):
    site.set_epochs(6)
    site.project.run("git", "push", "--quiet", str(site.folder / "origin.git"), "HEAD")
    run = site.run("finetune-adapters", cause="moved")
    site.training()
    travelled = lambda: list(site.folder.glob("store/tuneline/checkpoints/*/lora.*/*/progress.json"))  # noqa: E731
    until(travelled, "its checkpoint to be copied", 120)
    site.power_loss("gpu")
    site.programs["other"] = site.programs["gpu"]
    site.own["other"] = {"TUNELINE_HOME": str(site.folder / "home-other")}
    site.start("other")
    said = lambda words: words in (site.folder / "other.log").read_text()  # noqa: E731
    until(lambda: said("going on from"), "the other host to train", LONG)
    assert said("was taken over from another host")
    with unplugged(site.folder / "store"):
        until(lambda: said("Trying again in"), "the remote to be missed", LONG)
    assert site.ended(run) == "Completed"
    lora = next(child for child in site.children(run) if "lora" in child["name"])
    assert lora["run_count"] == 2
    assert not travelled()


@contextmanager
def unplugged(store: Path):
    """A remote that is away while the block runs."""
    away = store.with_name("unplugged")
    store.rename(away)
    store.write_text("")  # so that DVC cannot make the folder anew
    yield
    store.unlink()
    away.rename(store)


def test_no_log_names_the_password(site):
    for log in site.folder.glob("*.log"):
        assert "a password" not in log.read_text(errors="replace"), log.name
