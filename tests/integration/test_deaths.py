"""Failures on a whole site: cancelled runs, killed processes, power failures, restarts and clock jumps."""

import shutil
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from shared_data import ROOT
from sites import TIMEOUT, TRAINING, Site, wait_until

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def site(tmp_path_factory, prepared_project):
    folder = tmp_path_factory.mktemp("site")
    site = Site(folder, prepared_project.copy_to(folder / "project"))
    with site.open():
        yield site


def wait_for_cancellation(site: Site, run: str) -> None:
    """Wait until a run is cancelled and its child runs have ended."""
    wait_until(lambda: site.state(run) == "Cancelled", "the run to be cancelled")
    wait_until(
        lambda: all(child["state"]["type"] in ("CANCELLED", "COMPLETED") for child in site.children(run)),
        "its child runs to end",
    )


def wait_for_new_training(site: Site, *previous):
    """Wait for a training process other than the previous ones."""
    pids = {process.pid for process in previous}
    return wait_until(
        lambda: [process for process in site.processes(TRAINING) if process.pid not in pids], "a new training", TIMEOUT
    )[0]


def test_cancelling_a_run_frees_the_gpu_within_30_seconds(site):
    site.set_epochs(40)
    run = site.run("finetune-adapters", cause="cancelled")
    site.wait_for_training()
    site.cancel(run)
    wait_until(lambda: not site.processes(TRAINING), "the training to end", 30)
    wait_for_cancellation(site, run)


def test_run_survives_every_death(site, tmp_path):
    """The training is killed, its flow, its agent is stopped, both hosts lose power, and the server restarts.

    The adapter has the same bytes as after an uninterrupted training.
    """
    site.set_epochs(42)  # not 40: the cancelled run has left checkpoints of that training
    run = site.run("finetune-adapters", cause="killed")
    first = site.wait_for_training()
    first.kill()
    wait_until(lambda: "The training run was killed" in site.log("gpu"), "the flow to restart the training")
    second = wait_for_new_training(site, first)
    kill_flow(second)
    third = wait_for_new_training(site, first, second)
    site.stop("gpu")
    assert not site.processes(TRAINING)
    site.start("gpu")
    wait_for_new_training(site, first, second, third)
    lose_power(site)
    site.stop("server")
    time.sleep(5)
    site.start("server")
    assert site.final_state(run) == "Completed"
    assert site.lora_run(run)["run_count"] == 4  # one by the flow's death, one by the agent's, one by the power failure
    log = site.log("gpu")
    assert "resuming from" in log
    assert "Ended orphaned processes" in log  # the second training, whose flow was killed
    assert "The worker crashed" not in log
    assert not site.processes(TRAINING)
    assert not any((site.folder / "home/runs").iterdir())  # later runs remove clones of cancelled runs
    assert site.git("for-each-ref", "refs/tuneline") == ""
    interrupted, uninterrupted = train_again(site, tmp_path / "undisturbed")
    assert interrupted == uninterrupted


def kill_flow(training: psutil.Process) -> None:
    """Kill the flow run that has started a training; its worker lives on."""
    dvc = next(process for process in training.parents() if {"dvc", "repro"} <= set(process.cmdline()))
    dvc.parent().kill()


def lose_power(site: Site) -> None:
    """Kill both agents and everything below them, start them again, and wait until the keeper notices."""
    noticed = site.log("keeper").count("No heartbeat")
    site.kill("cpu", "gpu")
    assert not site.processes(TRAINING)
    killed_at = time.monotonic()
    site.start("cpu", "gpu")
    wait_until(lambda: site.log("keeper").count("No heartbeat") >= noticed + 2, "the keeper to notice", TIMEOUT)
    assert time.monotonic() - killed_at < 120  # as documented: two missed heartbeats of 30 s and 20 s of delay


def train_again(site: Site, folder: Path) -> tuple[bytes, bytes]:
    """Repeat the last training in a new clone; return the weights before and after."""
    subprocess.run(["git", "clone", "-q", "-b", "tuneline/retrained", site.project.folder, folder], check=True)
    weights = folder / "models/weights/lora/adapter_model.safetensors"

    def dvc(*arguments: str) -> None:
        subprocess.run(["dvc", *arguments], cwd=folder, env=site.environment, check=True)

    dvc("config", "--local", "cache.dir", str(site.project.folder / ".dvc/cache"))
    dvc("checkout", "-q", "--with-deps", "train@lora")
    before = weights.read_bytes()
    dvc("repro", "-q", "--force", "--single-item", "train@lora")  # --force: not from the run cache
    return before, weights.read_bytes()


def test_missed_schedules_are_served_once(site):
    site.stop("cpu")
    retrain = site.request("GET", "/deployments/name/retrain/retrain")["id"]
    site.request("POST", f"/deployments/{retrain}/schedules", [{"active": True, "schedule": {"interval": 10}}])

    def scheduled_states() -> list[str]:
        filters = {"flow_runs": {"deployment_id": {"any_": [retrain]}, "name": {"like_": ""}}}
        runs = site.request("POST", "/flow_runs/filter", filters)
        return [run["state"]["name"] for run in runs if run["auto_scheduled"]]

    wait_until(lambda: scheduled_states().count("Cancelled") >= 3, "missed runs to be cancelled", TIMEOUT)
    assert scheduled_states().count("Late") <= 2  # the latest, and one that has just become late
    site.deploy()  # active schedules stay active
    schedules = site.request("GET", f"/deployments/{retrain}")["schedules"]
    kinds = sorted((schedule["active"], "interval" in schedule["schedule"]) for schedule in schedules)
    assert kinds == [(False, False), (True, True)]
    active = next(schedule for schedule in schedules if schedule["active"])
    site.request("DELETE", f"/deployments/{retrain}/schedules/{active['id']}")
    site.start("cpu")


def test_clock_jumps_of_a_day_disturb_no_run(site):
    """Set the clock of all processes ahead and back, each time for longer than the silence timeout of 80 s."""
    clock, library = site.folder / "clock", site.folder / "clock.so"
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler, to replace the clock of these processes")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, ROOT / "tests/clock.c", "-ldl"], check=True)
    clock.write_text("0")
    site.restart_with({"LD_PRELOAD": str(library), "TUNELINE_TEST_CLOCK": str(clock)})
    site.set_epochs(1000)
    run = site.run("finetune-adapters", cause="clock")
    training = wait_until(lambda: site.processes(TRAINING), "a training run", TIMEOUT)[0]
    for seconds_ahead in (86_400, 0):
        clock.write_text(str(seconds_ahead))
        time.sleep(10)
        assert training.is_running()
        training.suspend()  # leaves the processor to other tests; the flow sends the heartbeats
        time.sleep(80)
        training.resume()
    assert {child["state"]["type"] for child in site.children(run)} <= {"RUNNING", "COMPLETED"}
    assert all(child["run_count"] == 1 for child in site.children(run))
    site.cancel(run)
    wait_for_cancellation(site, run)


def test_no_run_stays_active(site):
    site.assert_no_run_is_active()
