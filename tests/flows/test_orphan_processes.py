"""Orphaned processes of killed flows: found by environment and parent, and ended."""

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

# A worker with two flows, each with a training run that sleeps; one flow has started a daemonized process.
SLEEPER = [sys.executable, "-c", "import time; time.sleep(60)", "stages.train"]
FLOW = f"import subprocess; subprocess.run({SLEEPER!r})"
DAEMON = "import subprocess; subprocess.run(['sh', '-c', 'sleep 61 &'])"
WORKER = f"""
import os, subprocess, sys, time
for run, code in (("dead", {FLOW!r}), ("alive", {f"{DAEMON}; {FLOW}"!r})):
    flow = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {{"PREFECT__FLOW_RUN_ID": run}})
    print(flow.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def flows(tmp_path):
    """TUNELINE_AGENT of an agent, a flow to kill with its training, and a flow with its daemon."""
    mark = f"{tmp_path} host-gpu-0"
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER], env={**os.environ, "TUNELINE_AGENT": mark}, stdout=subprocess.PIPE, text=True
    )
    dead, alive = (psutil.Process(int(worker.stdout.readline())) for _ in range(2))
    wait_until(lambda: dead.children() and alive.children() and find_daemon(mark))
    training = dead.children()[0]
    yield mark, dead, training, alive, find_daemon(mark)
    terminate_by_environment("TUNELINE_AGENT", mark)
    worker.wait()


def find_daemon(mark: str) -> psutil.Process | None:
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.cmdline() == ["sleep", "61"] and process.environ().get("TUNELINE_AGENT") == mark:
                return process
    return None


def wait_until(condition) -> None:
    deadline = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_running_flows_have_no_orphans(flows):
    mark = flows[0]
    assert orphan_processes.find_orphans(mark) == {}
    assert orphan_processes.find_orphans(f"{mark}1") == {}


def test_orphans_of_a_killed_flow_are_found(flows):
    mark, dead, training, _, _ = flows
    dead.kill()
    wait_until(lambda: dead.status() == psutil.STATUS_ZOMBIE)
    assert orphan_processes.find_orphans(mark) == {"dead": [training]}


def test_orphans_are_ended_and_other_flows_continue(flows, monkeypatch):
    mark, dead, training, alive, daemon = flows
    others = (alive, *alive.children(), daemon)
    monkeypatch.setattr(orphan_processes, "SCAN_INTERVAL", 0.2)
    stopped = threading.Event()
    watcher = threading.Thread(target=orphan_processes.watch_orphans, args=(mark, 5.0, stopped))
    watcher.start()
    dead.kill()
    wait_until(lambda: not is_alive(training))
    time.sleep(1)
    stopped.set()
    watcher.join()
    assert len(others) == 3
    assert all(map(is_alive, others))


def test_daemon_alone_is_no_orphan(flows):
    mark, _, _, alive, daemon = flows
    training = alive.children()[0]
    alive.kill()
    wait_until(lambda: not is_alive(alive))
    assert set(orphan_processes.find_orphans(mark)["alive"]) == {training, daemon}
    training.kill()
    wait_until(lambda: not is_alive(training))
    assert orphan_processes.find_orphans(mark) == {}
    assert is_alive(daemon)


def test_watch_ends_with_the_worker(flows):
    mark, dead, training, _, _ = flows
    stopped = threading.Event()
    stopped.set()
    dead.kill()
    orphan_processes.watch_orphans(mark, 5.0, stopped)
    assert is_alive(training)


def is_alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(("uptime", "workers"), [(61.0, 2), (59.0, 1)])
def test_crashed_worker_is_restarted_unless_it_crashed_at_once(monkeypatch, uptime, workers):
    """The time that its runs take to end does not count as uptime."""
    clock, codes, start_times = [0.0], iter([1, 0]), []

    def run_module(*command, **options) -> int:
        clock[0] += uptime
        return next(codes)

    def terminate_by_environment(*arguments, **options) -> None:
        clock[0] += 40.0

    monkeypatch.setattr(agent.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(agent, "run_module", run_module)
    monkeypatch.setattr(agent, "terminate_by_environment", terminate_by_environment)
    monkeypatch.setattr(agent, "wait_for_server", lambda: start_times.append(clock[0]))
    assert agent.supervise_worker(("worker", "start"), "nobody", []) == 2 - workers
    assert start_times == [number * (uptime + 40.0) for number in range(workers)]
