"""What orchestration costs: an idle retraining, a training's surroundings, and the pause between queued runs.

``python -m benchmarks.orchestration prepare --repository FOLDER`` makes what is measured: a clone of this project with
LoRA alone, which trains for some ten minutes on two cores (``--epochs``). ``TUNELINE_REPOSITORY=FOLDER python -m
flows.server`` starts a site on it, with one CPU and one GPU agent. The other parts ask the server of
``PREFECT_API_URL`` with the password of ``PREFECT_API_AUTH_STRING``, best in this order, and write
``benchmarks/results/flows.json``:

- *around*: of a retraining that trains LoRA for longer than before, what flow and DVC cost: the seconds in which no
  program of the pipeline ran, in the adapter's run once it had begun and in the whole; and what of that run was not the
  training itself, starting Python, loading the base and the evaluation included.
- *idle*: from the schedule of ``retrain`` to its end, where nothing changed.
- *between*: of a sweep of many parameter sets, from the end of one run on the agent to the start of the next, while
  the others wait. The sweep is cancelled after some. Its runs train as long as the repository says: prepare another
  with ``--epochs 1`` for it.
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

from benchmarks.random_checkpoint import ROOT, machine
from models.storage import read_json, write_json, write_text
from pipelines.processes import output_of
from pipelines.retraining import BRANCH

RESULTS = Path(__file__).parent / "results/flows.json"
LOOKS = 0.5  # seconds between two looks at which stages run
Spans = dict[tuple[int, float], float]  # of a process, by its number and start: when it was seen last
LOGIN = (PREFECT_API_AUTH_STRING.value() or "").partition(":")[::2]
SERVER, BUSY = httpx.Client(timeout=60, auth=LOGIN), httpx.codes.SERVICE_UNAVAILABLE


def prepare(folder: Path, epochs: int) -> None:
    """Clone this project and set it so that orchestration is what is seen: one adapter, short answers."""
    output_of("git", "clone", "--quiet", str(ROOT), str(folder))
    params = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
    params["adapters"] = {"lora": params["adapters"]["lora"] | {"epochs": epochs}}
    params["base"]["tiny"]["steps"] = 30
    # Read and written, YAML's merge of the adapters into the models to evaluate is none any more.
    models = {"base": None} | params["adapters"]
    params["evaluate"] |= {"max_new_tokens": 8, "samples": 0, "models": models}
    write_text(folder / "params.yaml", yaml.safe_dump(params, allow_unicode=True, sort_keys=False))
    output_of("git", "-C", str(folder), "commit", "--quiet", "--all", "--message", f"{epochs} epochs, to be measured")


def ask(path: str, body: dict | None = None) -> dict | list:
    address = f"{PREFECT_API_URL.value()}{path}"
    while (answer := SERVER.request("GET" if body is None else "POST", address, json=body)).status_code == BUSY:
        time.sleep(1)  # as Prefect's own client does where SQLite was busy
    answer.raise_for_status()
    return answer.json()


def start(deployment: str, **parameters) -> str:
    found = ask(f"/deployments/name/{deployment}/{deployment}")
    body = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
    return ask(f"/deployments/{found['id']}/create_flow_run", body)["id"]


def ended(run: str) -> dict:
    while (found := ask(f"/flow_runs/{run}"))["state"]["type"] not in ("COMPLETED", "FAILED", "CANCELLED", "CRASHED"):
        time.sleep(1)
    assert found["state"]["type"] == "COMPLETED", found["state"]
    return found


def seconds(earlier: str, later: str) -> float:
    return round((datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds(), 2)


def children(run: str) -> list[dict]:
    return ask("/flow_runs/filter", {"flow_runs": {"tags": {"all_": [f"of {run}"]}}})


def idle(times: int) -> dict:
    found = [ended(start("retrain")) for _ in range(times)]
    took = [seconds(run["created"], run["end_time"]) for run in found]
    return {"seconds": took, "median": statistics.median(took)}


@contextmanager
def watching() -> Iterator[Spans]:
    """From when to when each of the pipeline's programs ran on this machine, while the block runs."""
    spans, ended = {}, threading.Event()

    def watch() -> None:
        while not ended.wait(LOOKS):
            for process in psutil.process_iter(["cmdline", "create_time"]):
                if any(part.startswith("stages.") for part in (process.info["cmdline"] or ())[1:3]):
                    spans[process.pid, process.info["create_time"]] = time.time()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield spans
    finally:
        ended.set()
        watcher.join()


def without(spans: Spans, earlier: str, later: str) -> float:
    """Seconds between two moments in which none of these processes ran."""
    now, end = (datetime.fromisoformat(moment).timestamp() for moment in (earlier, later))
    idle = 0.0
    for (_, begun), seen in sorted(spans.items(), key=lambda each: each[0][1]):
        idle += max(min(begun, end) - now, 0.0)
        now = min(max(now, seen), end)
    return round(idle + end - now, 2)


def around(repository: Path, adapter: str) -> dict:
    """Retrain what the repository holds, and take apart the time of the adapter's run and of the whole."""
    with watching() as spans:
        whole = ended(start("finetune-adapters", cause="benchmark"))
    run = next(each for each in children(whole["id"]) if each["name"].startswith(f"finetune {adapter}"))
    with tempfile.TemporaryDirectory() as folder:
        metrics = Path(folder) / "metrics.json"
        file = f"data/predictions/{adapter}/figures.json"
        output_of("dvc", "get", str(repository), file, "--rev", BRANCH, "--out", str(metrics))
        training = read_json(metrics)["training"]["seconds"]
    took = seconds(run["start_time"], run["end_time"])
    return {
        "training": training,
        "run": took,
        "around": round(took - training, 2),
        "run_without_stages": without(spans, run["start_time"], run["end_time"]),
        "whole": seconds(whole["created"], whole["end_time"]),
        "whole_without_stages": without(spans, whole["created"], whole["end_time"]),
    }


def between(sets: int, completed: int) -> dict:
    """Queue a sweep over learning rates; gives the pauses between the first runs that completed."""
    rates = [round(0.001 + 0.00001 * index, 5) for index in range(sets)]
    run = start("sweep", adapter="lora", sets={"learning_rate": rates})
    try:
        while len(done := [each for each in children(run) if each["state"]["type"] == "COMPLETED"]) <= completed:
            time.sleep(5)
        queued = len(children(run))
    finally:
        ask(f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})
    done.sort(key=lambda each: each["start_time"])
    pauses = [seconds(one["end_time"], other["start_time"]) for one, other in itertools.pairwise(done)]
    lengths = [seconds(each["start_time"], each["end_time"]) for each in done]
    return {"queued": queued, "pauses": pauses, "longest": max(pauses), "median_run": statistics.median(lengths)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="+", choices=("prepare", "around", "idle", "between"))
    parser.add_argument("--repository", type=Path, required=True, help="what the agents clone")
    parser.add_argument("--epochs", type=int, default=155, help="of the training that is measured")
    parser.add_argument("--sets", type=int, default=200)
    parser.add_argument("--completed", type=int, default=10)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if "prepare" in arguments.parts:
        prepare(arguments.repository, arguments.epochs)
    measures = {
        "around": lambda: around(arguments.repository, "lora"),
        "idle": lambda: idle(5),
        "between": lambda: between(arguments.sets, arguments.completed),
    }
    kept = read_json(arguments.out) if arguments.out.is_file() else {}
    for part in (each for each in arguments.parts if each in measures):
        kept[part] = measures[part]() | {"machine": machine()}
        print(part, kept[part], flush=True)
        write_json(arguments.out, kept)


if __name__ == "__main__":
    main()
