"""Disturbances on a whole site: cancelled runs, missed schedules and clock jumps."""

import shutil
import subprocess
import time

import pytest
from shared_data import ROOT
from sites import TIMEOUT, TRAINING, Site, wait_until

pytestmark = pytest.mark.integration


def wait_for_cancellation(site: Site, run: str) -> None:
    """Wait until a run is cancelled and its child runs have ended."""
    wait_until(lambda: site.state(run) == "Cancelled", "the run to be cancelled")
    wait_until(
        lambda: all(child["state"]["type"] in ("CANCELLED", "COMPLETED") for child in site.children(run)),
        "its child runs to end",
    )


def test_cancelling_a_run_frees_the_gpu_within_30_seconds(site):
    site.set_epochs(40)
    run = site.run("finetune-adapters", cause="cancelled")
    site.wait_for_training()
    site.cancel(run)
    wait_until(lambda: not site.processes(TRAINING), "the training to end", 30)
    wait_for_cancellation(site, run)


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
