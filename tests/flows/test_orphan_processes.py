"""What dead flows left: found by who started it, ended once its flow is gone, and never beside a flow that lives."""

import os
import subprocess
import sys
import threading
import time
from contextlib import suppress

import psutil
import pytest

from flows import agent, orphan_processes
from pipelines.processes import terminate_by_environment

# A worker that starts a flow for each run, whose training sleeps; one flow leaves a helper that has left its parents.
SLEEPER = [sys.executable, "-c", "import time; time.sleep(60)", "stages.train"]
FLOW = f"import subprocess; subprocess.run({SLEEPER!r})"
HELPER = "import subprocess; subprocess.run(['sh', '-c', 'sleep 61 &'])"
WORKER = f"""
import os, subprocess, sys, time
for run, code in (("dead", {FLOW!r}), ("alive", {f"{HELPER}; {FLOW}"!r})):
    flow = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {{"PREFECT__FLOW_RUN_ID": run}})
    print(flow.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def flows(tmp_path):
    """An agent's mark, and the processes of its two flows."""
    mark = f"{tmp_path} host-gpu-0"
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER], env={**os.environ, "TUNELINE_AGENT": mark}, stdout=subprocess.PIPE, text=True
    )
    dead, alive = (psutil.Process(int(worker.stdout.readline())) for _ in range(2))
    wait_until(lambda: dead.children() and alive.children() and helper_of(mark))
    training = dead.children()[0]
    yield mark, dead, training, alive, helper_of(mark)
    terminate_by_environment("TUNELINE_AGENT", mark)
    worker.wait()


def helper_of(mark: str) -> psutil.Process | None:
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.cmdline() == ["sleep", "61"] and process.environ().get("TUNELINE_AGENT") == mark:
                return process
    return None


def wait_until(holds) -> None:
    until = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_of_flows_that_live_nothing_is_left_behind(flows):
    mark = flows[0]
    assert orphan_processes.find_orphans(mark) == {}
    assert orphan_processes.find_orphans(f"{mark}1") == {}


def test_what_a_killed_flow_left_is_found_and_what_lives_is_not(flows):
    mark, dead, training, _, _ = flows
    dead.kill()
    wait_until(lambda: dead.status() == psutil.STATUS_ZOMBIE)
    assert orphan_processes.find_orphans(mark) == {"dead": [training]}


def test_it_is_ended_and_the_flow_beside_it_goes_on(flows, monkeypatch):
    mark, dead, training, alive, helper = flows
    beside = (alive, *alive.children(), helper)
    monkeypatch.setattr(orphan_processes, "SCAN_INTERVAL", 0.2)
    ended = threading.Event()
    looker = threading.Thread(target=orphan_processes.watch_orphans, args=(mark, 5.0, ended))
    looker.start()
    dead.kill()
    wait_until(lambda: not runs(training))
    time.sleep(1)
    ended.set()
    looker.join()
    assert len(beside) == 3
    assert all(map(runs, beside))


def test_a_service_that_a_flow_started_may_outlive_it(flows):
    mark, _, _, alive, helper = flows
    training = alive.children()[0]
    alive.kill()
    wait_until(lambda: not runs(alive))
    assert set(orphan_processes.find_orphans(mark)["alive"]) == {training, helper}
    training.kill()
    wait_until(lambda: not runs(training))
    assert orphan_processes.find_orphans(mark) == {}
    assert runs(helper)


def test_when_its_worker_has_ended_nothing_is_looked_for(flows):
    mark, dead, training, _, _ = flows
    ended = threading.Event()
    ended.set()
    dead.kill()
    orphan_processes.watch_orphans(mark, 5.0, ended)
    assert runs(training)


def runs(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(("lived", "workers"), [(61.0, 2), (59.0, 1)])
def test_a_worker_that_breaks_down_is_started_again_unless_it_would_do_so_at_once(monkeypatch, lived, workers):
    """What it ran takes time to end, in which it does not live."""
    clock, codes, waited = [0.0], iter([1, 0]), []

    def run_module(*command, **how) -> int:
        clock[0] += lived
        return next(codes)

    def terminate_by_environment(*arguments, **how) -> None:
        clock[0] += 40.0

    monkeypatch.setattr(agent.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(agent, "run_module", run_module)
    monkeypatch.setattr(agent, "terminate_by_environment", terminate_by_environment)
    monkeypatch.setattr(agent, "wait_for_server", lambda: waited.append(clock[0]))
    assert agent.serve(("worker", "start"), "nobody", []) == 2 - workers
    assert waited == [each * (lived + 40.0) for each in range(workers)]
