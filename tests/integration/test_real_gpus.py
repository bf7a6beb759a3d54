"""A whole site on the real GPUs of this host, observed through NVIDIA's driver."""

import os
import time
from contextlib import suppress
from datetime import datetime

import psutil
import pynvml
import pytest
from sites import FINAL_STATES, TIMEOUT, TRAINING, Site, wait_until

from flows import gpus

NAMED = os.environ.get("TUNELINE_TEST_GPU", "")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not NAMED, reason="needs NVIDIA GPUs, named as in TUNELINE_TEST_GPU=0,1"),
]


@pytest.fixture(scope="module")
def owned() -> list[gpus.Gpu]:
    return gpus.select_gpus(NAMED, gpus.list_gpus())


@pytest.fixture(scope="module")
def site(tmp_path_factory, prepared_project, owned):
    """A site with an agent for each GPU."""
    folder = tmp_path_factory.mktemp("site")
    site = Site(folder, prepared_project.copy_to(folder / "project"), CUDA_VISIBLE_DEVICES="")
    del site.programs["gpu"]
    site.programs |= {f"gpu-{gpu.name}": ("flows.agent", "--gpus", gpu.name) for gpu in owned}
    with site.open():
        yield site


def runs_on(gpu: gpus.Gpu) -> dict[int, str]:
    """Return the flow runs of this test's sites that use a GPU, by process id, as the driver reports them."""
    pynvml.nvmlInit()
    runs = {}
    for process in pynvml.nvmlDeviceGetComputeRunningProcesses(pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid)):
        with suppress(psutil.NoSuchProcess):
            environment = psutil.Process(process.pid).environ()
            if "TUNELINE_TEST_SITE" in environment:
                runs[process.pid] = environment.get("PREFECT__FLOW_RUN_ID", "no flow run")
    pynvml.nvmlShutdown()
    return runs


def observe(site: Site, owned: list[gpus.Gpu], *runs: str) -> list[list[set[str]]]:
    """Wait until runs complete; return for each observation the flow runs on each GPU."""
    observations, deadline = [], time.monotonic() + TIMEOUT
    while any(site.state(run) not in FINAL_STATES for run in runs):
        assert time.monotonic() < deadline, f"timed out waiting for runs {runs}"
        observations.append([set(runs_on(gpu).values()) for gpu in owned])
        time.sleep(0.3)
    assert [site.state(run) for run in runs] == ["Completed"] * len(runs)
    return observations


def assert_exclusive(observations: list[list[set[str]]]) -> None:
    """Assert that no GPU ever served two flow runs."""
    assert all(len(runs) <= 1 for observation in observations for runs in observation)


def set_training(site: Site, epochs: int, devices: int = 1, adapters: tuple[str, ...] = ("lora",)) -> None:
    def change(params: dict) -> None:
        lora = params["adapters"]["lora"] | {"epochs": epochs}
        # Different learning rates: the run cache would return the result of an identical adapter.
        params["adapters"] = {
            name: lora | {"learning_rate": 0.004 + index / 1e3} for index, name in enumerate(adapters)
        }
        params["train"]["devices"] = devices

    site.commit_params(change, f"{epochs} epochs of {adapters} on {devices}")


def test_concurrent_runs_use_all_gpus_and_share_none(site, owned):
    """Train as many adapters as GPUs at once."""
    set_training(site, 100, adapters=("lora", *(f"other{index}" for index in range(1, len(owned)))))
    run = site.run("finetune-adapters", cause="each its own")
    observations = observe(site, owned, run)
    assert_exclusive(observations)
    assert any(all(observation) for observation in observations), "the GPUs were never used at the same time"
    seen = {run_id for observation in observations for runs in observation for run_id in runs}
    assert seen == {child["id"] for child in site.children(run)}  # including evaluation and measurements


def test_sweep_keeps_all_agents_busy(site, owned):
    """Try twice as many sets as GPUs; until the last set has started, agents are rarely without one."""
    set_training(site, 100)
    sets = [{"learning_rate": 0.004 + index / 1e4} for index in range(2 * len(owned))]
    run = site.run("sweep", adapter="lora", sets=sets)
    observations = observe(site, owned, run)
    assert_exclusive(observations)
    assert any(all(observation) for observation in observations), "the GPUs were never used at the same time"
    tries = [child for child in site.children(run) if child["name"].startswith("try ")]
    assert len(tries) == len(sets)
    share = busy_share(tries, len(owned))
    print(f"agents were busy for {share:.0%} of the time until the last of {len(sets)} sets started")
    assert share > 0.7


def busy_share(runs: list[dict], agents: int) -> float:
    """Return the share of their time for which agents had a run, from the first start of a run to the last."""
    spans = [[datetime.fromisoformat(run[key]) for key in ("start_time", "end_time")] for run in runs]
    first, last = min(start for start, _ in spans), max(start for start, _ in spans)
    busy = sum((min(end, last) - start).total_seconds() for start, end in spans)
    return busy / (agents * (last - first).total_seconds())


def test_cancelled_training_frees_its_gpu_within_30_seconds(site, owned):
    set_training(site, 3000)
    run = site.run("finetune-adapters", cause="cancelled")
    site.wait_for_training()
    assert any(map(runs_on, owned))
    cancelled_at = time.monotonic()
    site.cancel(run)
    wait_until(lambda: not any(map(runs_on, owned)), "the GPUs to be free", 30)
    print(f"free after {time.monotonic() - cancelled_at:.0f} s")
    wait_until(lambda: site.state(run) == "Cancelled", "the run to be cancelled", TIMEOUT)


def test_processes_of_a_killed_agent_end_before_the_next_agent_starts_work(site, owned):
    """SIGKILL ends the agent alone; its worker, the flow and the training survive it."""
    set_training(site, 300)
    run = site.run("finetune-adapters", cause="agent killed")
    first = site.wait_for_training()
    (gpu,) = (gpu for gpu in owned if first.pid in runs_on(gpu))
    agent = f"gpu-{gpu.name}"
    site.running[agent].kill()
    site.running.pop(agent).wait()
    assert first.is_running()
    site.start(agent)
    observations = observe(site, owned, run)
    assert not first.is_running()
    assert_exclusive(observations)
    assert site.lora_run(run)["run_count"] == 2
    assert "resuming from" in "".join(map(site.log, site.running))


def test_run_on_two_gpus_shares_the_host_with_runs_on_one(site, owned):
    """An agent has two GPUs, the others have one each: runs for two GPUs and for one train at the same time."""
    if len(owned) < 2:
        pytest.skip("needs two GPUs")
    pair, singles = owned[:2], owned[2:]
    site.stop(*(f"gpu-{gpu.name}" for gpu in owned))
    site.programs["pair"] = ("flows.agent", "--gpus", ",".join(gpu.name for gpu in pair))
    runs = [schedule_training(site, devices=2)]
    if singles:
        runs.append(schedule_training(site, adapters=("lora", *(f"other{index}" for index in range(1, len(singles))))))
    site.start("pair", *(f"gpu-{gpu.name}" for gpu in singles))
    observations = observe(site, owned, *runs)
    assert_exclusive(observations)
    lora = site.lora_run(runs[0])["id"]
    together = [observation for observation in observations if observation[:2] == [{lora}, {lora}]]
    assert any(all(observation) for observation in together), "the GPUs were never used at the same time"
    assert not site.processes(TRAINING)


def schedule_training(site: Site, devices: int = 1, adapters: tuple[str, ...] = ("lora",)) -> str:
    """Commit parameters, start a run that trains with them, and wait until its trainings are scheduled."""
    set_training(site, 150, devices, adapters)
    run = site.run("finetune-adapters", cause=f"{len(adapters)} on {devices}")
    wait_until(lambda: len(site.children(run)) >= len(adapters), "its child runs to be scheduled", TIMEOUT)
    return run
