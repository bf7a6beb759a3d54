"""Overhead of orchestration: of a training run, of a retraining without changes, and between queued runs.

``python -m benchmarks.orchestration prepare --repository FOLDER`` clones this project with LoRA alone, which trains for
some ten minutes on two cores (``--epochs``). ``TUNELINE_REPOSITORY=FOLDER python -m flows.server`` starts a site on it,
with a CPU agent and a GPU agent. The other parts call the server at ``PREFECT_API_URL`` with the password in
``PREFECT_API_AUTH_STRING``, preferably in this order, and write ``benchmarks/results/flows.json``:

- *around*: a retraining that trains LoRA. Seconds without any of the pipeline's programs running, in the adapter's run
  and in the whole retraining; and the seconds of the adapter's run outside the training loop, which include starting
  Python, loading the base, and the evaluation.
- *idle*: ``retrain`` from its schedule to its end, without changes.
- *between*: a sweep over many parameter sets, from the end of a run on the agent to the start of the next. The sweep is
  cancelled after some runs. They train as long as the repository configures: prepare another with ``--epochs 1``.
"""

import argparse
import itertools
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import httpx
import psutil
import yaml
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL

from benchmarks.random_checkpoint import ROOT, describe_machine
from flows.run_metadata import child_tag
from models.storage import read_json, write_json, write_text
from pipelines.processes import output_of
from pipelines.retraining import BRANCH

RESULTS = Path(__file__).parent / "results/flows.json"
POLL_SECONDS = 0.5  # between two lists of running processes
LastSeen = dict[tuple[int, float], float]  # process id and start time of a process: when it was last seen
LOGIN = (PREFECT_API_AUTH_STRING.value() or "").partition(":")[::2]
SERVER, BUSY = httpx.Client(timeout=60, auth=LOGIN), httpx.codes.SERVICE_UNAVAILABLE
FINAL_STATES = ("COMPLETED", "FAILED", "CANCELLED", "CRASHED")


def prepare(folder: Path, epochs: int) -> None:
    """Clone this project, and configure one adapter with short answers, so that orchestration takes a visible share."""
    output_of("git", "clone", "--quiet", str(ROOT), str(folder))
    params = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
    params["adapters"] = {"lora": params["adapters"]["lora"] | {"epochs": epochs}}
    params["base"]["tiny"]["steps"] = 30
    # Dumping resolves the YAML merge of the adapters into evaluate.models, so write both.
    models = {"base": None} | params["adapters"]
    params["evaluate"] |= {"max_new_tokens": 8, "samples": 0, "models": models}
    write_text(folder / "params.yaml", yaml.safe_dump(params, allow_unicode=True, sort_keys=False))
    output_of("git", "-C", str(folder), "commit", "--quiet", "--all", "--message", f"benchmark: train {epochs} epochs")


# Prefect's API -------------------------------------------------------------------------------------


def request(path: str, body: dict | None = None) -> dict | list:
    """Call the server and return its JSON; repeats the call while SQLite is busy, as Prefect's client does."""
    address = f"{PREFECT_API_URL.value()}{path}"
    while (response := SERVER.request("GET" if body is None else "POST", address, json=body)).status_code == BUSY:
        time.sleep(1)
    response.raise_for_status()
    return response.json()


def start_run(deployment: str, **parameters) -> str:
    """Schedule a run and return its id."""
    deployment_id = request(f"/deployments/name/{deployment}/{deployment}")["id"]
    body = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
    return request(f"/deployments/{deployment_id}/create_flow_run", body)["id"]


def wait_for_run(run_id: str) -> dict:
    """Wait until a run has completed, and return it."""
    while (run := request(f"/flow_runs/{run_id}"))["state"]["type"] not in FINAL_STATES:
        time.sleep(1)
    assert run["state"]["type"] == "COMPLETED", run["state"]
    return run


def child_runs(run_id: str) -> list[dict]:
    return request("/flow_runs/filter", {"flow_runs": {"tags": {"all_": [child_tag(run_id)]}}})


def seconds_between(start: str, end: str) -> float:
    return round((datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds(), 2)


# Parts ---------------------------------------------------------------------------------------------


def measure_idle(times: int) -> dict:
    runs = [wait_for_run(start_run("retrain")) for _ in range(times)]
    durations = [seconds_between(run["created"], run["end_time"]) for run in runs]
    return {"seconds": durations, "median": statistics.median(durations)}


@contextmanager
def record_stages() -> Iterator[LastSeen]:
    """Record when the pipeline's programs run on this machine, while the block runs."""
    last_seen, finished = {}, threading.Event()

    def poll() -> None:
        while not finished.wait(POLL_SECONDS):
            for process in psutil.process_iter(["cmdline", "create_time"]):
                if any(argument.startswith("stages.") for argument in (process.info["cmdline"] or ())[1:3]):
                    last_seen[process.pid, process.info["create_time"]] = time.time()

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield last_seen
    finally:
        finished.set()
        thread.join()


def seconds_without_stages(last_seen: LastSeen, start: str, end: str) -> float:
    """Return the seconds between two times without any of the recorded processes running."""
    now, end_time = (datetime.fromisoformat(moment).timestamp() for moment in (start, end))
    idle = 0.0
    for (_, started), seen in sorted(last_seen.items(), key=lambda item: item[0][1]):
        idle += max(min(started, end_time) - now, 0.0)
        now = min(max(now, seen), end_time)
    return round(idle + end_time - now, 2)


def measure_around(repository: Path, adapter: str) -> dict:
    """Retrain, and split the time of the adapter's run and of the whole retraining."""
    with record_stages() as last_seen:
        retraining = wait_for_run(start_run("finetune-adapters", cause="benchmark"))
    children = child_runs(retraining["id"])
    run = next(child for child in children if child["name"].startswith(f"finetune {adapter}"))
    with tempfile.TemporaryDirectory() as folder:
        metrics = Path(folder) / "metrics.json"
        file = f"data/predictions/{adapter}/figures.json"
        output_of("dvc", "get", str(repository), file, "--rev", BRANCH, "--out", str(metrics))
        training_seconds = read_json(metrics)["training"]["seconds"]
    run_seconds = seconds_between(run["start_time"], run["end_time"])
    return {
        "training": training_seconds,
        "run": run_seconds,
        "around": round(run_seconds - training_seconds, 2),
        "run_without_stages": seconds_without_stages(last_seen, run["start_time"], run["end_time"]),
        "whole": seconds_between(retraining["created"], retraining["end_time"]),
        "whole_without_stages": seconds_without_stages(last_seen, retraining["created"], retraining["end_time"]),
    }


def measure_between(sets: int, completed: int) -> dict:
    """Queue a sweep over learning rates, and return the pauses between the first completed runs."""
    rates = [round(0.001 + 0.00001 * index, 5) for index in range(sets)]
    sweep = start_run("sweep", adapter="lora", sets={"learning_rate": rates})
    try:
        while len(runs := [run for run in child_runs(sweep) if run["state"]["type"] == "COMPLETED"]) <= completed:
            time.sleep(5)
        queued = len(child_runs(sweep))
    finally:
        request(f"/flow_runs/{sweep}/set_state", {"state": {"type": "CANCELLING"}})
    runs.sort(key=lambda run: run["start_time"])
    pauses = [seconds_between(run["end_time"], following["start_time"]) for run, following in itertools.pairwise(runs)]
    durations = [seconds_between(run["start_time"], run["end_time"]) for run in runs]
    return {"queued": queued, "pauses": pauses, "longest": max(pauses), "median_run": statistics.median(durations)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="+", choices=("prepare", "around", "idle", "between"))
    parser.add_argument("--repository", type=Path, required=True, help="repository that the agents clone")
    parser.add_argument("--epochs", type=int, default=155, help="of the measured training")
    parser.add_argument("--sets", type=int, default=200)
    parser.add_argument("--completed", type=int, default=10)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if "prepare" in arguments.parts:
        prepare(arguments.repository, arguments.epochs)
    measurements = {
        "around": lambda: measure_around(arguments.repository, "lora"),
        "idle": lambda: measure_idle(5),
        "between": lambda: measure_between(arguments.sets, arguments.completed),
    }
    results = read_json(arguments.out) if arguments.out.is_file() else {}
    for part in (part for part in arguments.parts if part in measurements):
        results[part] = measurements[part]() | {"machine": describe_machine()}
        print(part, results[part], flush=True)
        write_json(arguments.out, results)


if __name__ == "__main__":
    main()
