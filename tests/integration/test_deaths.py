"""What is left when something dies, on a whole site: a Prefect server, its keeper, agents."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from shared_data import ROOT
from sites import LONG, TRAINING, Site, until

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    made = Site(tmp_path_factory.mktemp("site"))
    with made.open():
        yield made


def cancel(site, run: str) -> None:
    """As the UI does it; the GPU must be free within 30 s."""
    site.ask("POST", f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})
    until(lambda: not site.processes(TRAINING), "the training to end", 30)
    until(lambda: site.state(run) == "Cancelled", "the run to be cancelled", 120)
    until(lambda: all(child["state"]["type"] in ("CANCELLED", "COMPLETED") for child in site.children(run)), "children")


def test_a_run_cancelled_in_the_ui_frees_the_gpu_within_30_seconds(site):
    site.set_epochs(6)
    run = site.run("finetune-adapters", cause="cancelled")
    site.training()
    cancel(site, run)


def test_a_run_goes_on_when_its_training_its_flow_and_its_agent_end_one_after_another(site):
    """The training and the flow that had started it again are killed, their worker lives on; then the agent is told
    to stop, and takes the third training with it."""
    site.set_epochs(5)
    run = site.run("finetune-adapters", cause="killed")
    first = site.training()
    first.kill()
    until(lambda: "The training was killed" in (site.folder / "gpu.log").read_text(), "it to be noticed", 120)
    second = another_than(site, first)
    dvc = next(each for each in second.parents() if {"dvc", "repro"} <= set(each.cmdline()))
    dvc.parent().kill()  # the flow
    another_than(site, first, second)
    site.stop("gpu")
    assert not site.processes(TRAINING)
    site.start("gpu")
    assert site.ended(run) == "Completed"
    lora = next(child for child in site.children(run) if "lora" in child["name"])
    assert lora["run_count"] == 3
    log = (site.folder / "gpu.log").read_text()
    assert "going on from" in log
    assert "what they left was ended" in log  # the second training, which had lost its flow
    assert "broke down" not in log
    assert not site.processes(TRAINING)


def another_than(site, *earlier):
    """The training, once it is none of these."""
    gone = {each.pid for each in earlier}
    return until(lambda: [each for each in site.processes(TRAINING) if each.pid not in gone], "another", LONG)[0]


def test_a_host_that_loses_power_and_a_server_that_restarts_cost_nothing(site, tmp_path):
    """Both agents die with all that they do, in the middle of a training; when that was noticed, the server goes."""
    site.set_epochs(2)
    run = site.run("finetune-adapters", cause="power")
    site.training()
    site.power_loss("cpu", "gpu")
    assert not site.processes(TRAINING)
    died = time.monotonic()
    site.start("cpu", "gpu")
    until(lambda: (site.folder / "keeper.log").read_text().count("No sign of life") >= 2, "it to be noticed", LONG)
    assert time.monotonic() - died < 120
    site.stop("server")
    time.sleep(5)
    site.start("server")
    assert site.ended(run) == "Completed"
    lora = next(child for child in site.children(run) if "lora" in child["name"])
    assert lora["run_count"] == 2
    assert "going on from" in (site.folder / "gpu.log").read_text()
    assert not any((site.folder / "home/runs").iterdir())  # those of the cancelled were removed by a later run
    assert site.git("for-each-ref", "refs/tuneline") == ""
    other = tmp_path / "undisturbed"
    subprocess.run(["git", "clone", "-q", "-b", "tuneline/retrained", site.project.folder, other], check=True)
    (other / "dvc.lock").unlink()
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "repro", "-q", "train@lora"], cwd=other, env=site.environment, check=False
    )
    assert done.returncode == 0
    locks = [
        yaml.safe_load(text)
        for text in (site.git("show", "tuneline/retrained:dvc.lock"), (other / "dvc.lock").read_text())
    ]
    weights = [
        next(out["md5"] for out in lock["stages"]["train@lora"]["outs"] if out["path"] == "models/weights/lora")
        for lock in locks
    ]
    files = [weights_in(site.project.folder, weights[0]), weights_in(other, weights[1])]
    assert files[0] == files[1]


def weights_in(project: Path, md5: str) -> str:
    """The hash of the adapter's weights, in a folder that DVC's cache has."""
    listed = project / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
    return next(each["md5"] for each in json.loads(listed.read_text()) if each["relpath"].endswith(".safetensors"))


def test_a_clock_that_jumps_a_day_ahead_and_back_disturbs_nothing(site):
    """Of the whole host: server, keeper, agents, flows and training; longer each time than silence is suffered."""
    clock, library = site.folder / "clock", site.folder / "clock.so"
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler, for a clock that these programs alone see")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, ROOT / "tests/clock.c", "-ldl"], check=True)
    clock.write_text("0")
    site.restart_with({"LD_PRELOAD": str(library), "TUNELINE_TEST_CLOCK": str(clock)})
    site.set_epochs(100)
    run = site.run("finetune-adapters", cause="clock")
    training = until(lambda: site.processes(TRAINING), "a training", LONG)[0]
    for ahead in (86_400, 0):
        clock.write_text(str(ahead))
        time.sleep(15)
        assert training.is_running()
        training.suspend()  # its processor is for the tests beside this one, which would take longer
        time.sleep(80)
        training.resume()
    assert {child["state"]["type"] for child in site.children(run)} <= {"RUNNING", "COMPLETED"}
    assert all(child["run_count"] == 1 for child in site.children(run))
    cancel(site, run)
    site.restart_with({})


def test_of_the_ticks_that_nobody_served_one_is_enough(site):
    site.stop("cpu")
    retrain = site.ask("GET", "/deployments/name/retrain/retrain")["id"]
    site.ask("POST", f"/deployments/{retrain}/schedules", [{"active": True, "schedule": {"interval": 10}}])

    def states() -> list[str]:
        ticks = {"flow_runs": {"deployment_id": {"any_": [retrain]}, "name": {"like_": ""}}}
        runs = [run for run in site.ask("POST", "/flow_runs/filter", ticks) if run["auto_scheduled"]]
        return [run["state"]["name"] for run in runs]

    until(lambda: states().count("Cancelled") >= 3, "missed ticks to be dropped", LONG)
    assert states().count("Late") <= 2  # the latest, and one that has just become late
    site.deploy()  # as whenever a site starts; what was switched on stays on
    found = site.ask("GET", f"/deployments/{retrain}")["schedules"]
    assert sorted((each["active"], "interval" in each["schedule"]) for each in found) == [(False, False), (True, True)]
    schedule = next(each for each in found if each["active"])
    site.ask("DELETE", f"/deployments/{retrain}/schedules/{schedule['id']}")
    site.start("cpu")


def test_no_run_is_left_running(site):
    states = {run["state"]["type"] for run in site.ask("POST", "/flow_runs/filter", {})}
    assert states <= {"COMPLETED", "FAILED", "CANCELLED", "SCHEDULED"}
