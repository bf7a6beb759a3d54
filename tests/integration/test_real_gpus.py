"""Agents on GPUs that are there: a whole site on the host's own, by what NVIDIA's driver sees of its processes."""

import os
import time
from contextlib import suppress

import psutil
import pynvml
import pytest
from sites import LONG, TRAINING, Site, until

from flows import gpus

NAMED = os.environ.get("TUNELINE_TEST_GPU", "")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not NAMED, reason="needs NVIDIA GPUs, named as in TUNELINE_TEST_GPU=0,1"),
]
ENDED = ("Completed", "Failed", "Cancelled")


@pytest.fixture(scope="module")
def owned() -> list[gpus.Gpu]:
    return gpus.select_gpus(NAMED, gpus.list_gpus())


@pytest.fixture(scope="module")
def site(tmp_path_factory, owned):
    """An agent for each GPU."""
    made = Site(tmp_path_factory.mktemp("site"), CUDA_VISIBLE_DEVICES="")
    del made.programs["gpu"]
    made.programs |= {f"gpu-{gpu.name}": ("flows.agent", "--gpus", gpu.name) for gpu in owned}
    with made.open():
        yield made


def at_work(gpu: gpus.Gpu) -> dict[int, str]:
    """The processes that the driver sees on a GPU, each with the flow run that it works for."""
    pynvml.nvmlInit()
    found = {}
    for process in pynvml.nvmlDeviceGetComputeRunningProcesses(pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid)):
        with suppress(psutil.NoSuchProcess):
            found[process.pid] = psutil.Process(process.pid).environ().get("PREFECT__FLOW_RUN_ID", "nobody's")
    pynvml.nvmlShutdown()
    return found


def watched(site: Site, run: str, owned: list[gpus.Gpu]) -> list[list[set[str]]]:
    """Wait for a run to complete; gives which runs were on each GPU, look by look."""
    looks, end = [], time.monotonic() + LONG
    while site.state(run) not in ENDED:
        assert time.monotonic() < end, f"waited in vain for run {run}"
        looks.append([set(at_work(gpu).values()) for gpu in owned])
        time.sleep(0.3)
    assert site.state(run) == "Completed"
    return looks


def train_for(site: Site, epochs: int, devices: int = 1, adapters: tuple[str, ...] = ("lora",)) -> None:
    def change(params: dict) -> None:
        lora = params["adapters"]["lora"] | {"epochs": epochs}
        # Another rate each: what is the same is trained once.
        params["adapters"] = {
            name: lora | {"learning_rate": 0.004 + place / 1e3} for place, name in enumerate(adapters)
        }
        params["train"]["devices"] = devices

    site.project.edit_params(change)
    site.project.commit(f"{epochs} epochs of {adapters} on {devices}")


def test_runs_share_no_gpu_and_use_each_that_is_there(site, owned):
    """As many adapters as GPUs are trained at once, and the base is evaluated when one of them is free."""
    train_for(site, 20, adapters=("lora", *(f"other{place}" for place in range(1, len(owned)))))
    run = site.run("finetune-adapters", cause="each its own")
    looks = watched(site, run, owned)
    assert all(len(runs) <= 1 for look in looks for runs in look)
    assert any(all(look) for look in looks), "the GPUs were never all at work"
    seen = {each for look in looks for runs in look for each in runs}
    assert seen == {child["id"] for child in site.children(run)}  # evaluation and measurements, too


def test_a_cancelled_training_leaves_its_gpu_within_30_seconds(site, owned):
    train_for(site, 300)
    run = site.run("finetune-adapters", cause="cancelled")
    site.training()
    assert any(map(at_work, owned))
    began = time.monotonic()
    site.ask("POST", f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})
    until(lambda: not any(map(at_work, owned)), "the GPUs to be free", 30)
    print(f"free after {time.monotonic() - began:.0f} s")
    until(lambda: site.state(run) == "Cancelled", "the run to be cancelled", LONG)


def test_what_a_killed_agent_left_on_its_gpu_ends_before_the_next_agent_goes_on(site, owned):
    """The agent alone is killed with -9; its worker, the flow and the training live on without it."""
    train_for(site, 60)
    run = site.run("finetune-adapters", cause="agent killed")
    first = site.training()
    (gpu,) = (gpu for gpu in owned if first.pid in at_work(gpu))
    agent = f"gpu-{gpu.name}"
    site.running[agent].kill()
    site.running.pop(agent).wait()
    assert first.is_running()
    site.start(agent)
    looks = watched(site, run, owned)
    assert not first.is_running()
    assert all(len(runs) <= 1 for look in looks for runs in look)
    lora = next(child for child in site.children(run) if "lora" in child["name"])
    assert lora["run_count"] == 2
    assert "going on from" in "".join((site.folder / f"{name}.log").read_text() for name in site.running)


def test_a_run_that_needs_two_gpus_goes_to_the_agent_that_owns_two(site, owned):
    if len(owned) < 2:
        pytest.skip("needs two GPUs")
    site.stop(*(f"gpu-{gpu.name}" for gpu in owned))
    site.programs["both"] = ("flows.agent", "--gpus", ",".join(gpu.name for gpu in owned[:2]))
    train_for(site, 30, devices=2)
    run = site.run("finetune-adapters", cause="two at once")
    until(lambda: site.children(run), "its parts to wait for an agent", LONG)
    site.start("both")
    looks = watched(site, run, owned[:2])
    assert all(len(runs) <= 1 for look in looks for runs in look)
    lora = next(child["id"] for child in site.children(run) if "lora" in child["name"])
    assert any(look == [{lora}, {lora}] for look in looks)
    assert not site.processes(TRAINING)
