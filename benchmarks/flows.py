"""What orchestration costs: an idle retraining, a training's surroundings, and the pause between queued runs.

``python -m benchmarks.flows prepare --repository FOLDER`` makes what is measured: a clone of this project with LoRA
alone, which trains for some ten minutes on two cores (``--epochs``). ``TUNELINE_REPOSITORY=FOLDER python -m
flows.server`` starts a site on it, with one CPU and one GPU agent. The other parts ask the server of
``PREFECT_API_URL``, best in this order, and write ``benchmarks/results/flows.json``:

- *around*: of a run of ``train-adapter``, what was not training as the stage itself took its time: clone, DVC, checks,
  starting Python, loading the base, and the evaluation.
- *idle*: from the schedule of ``retrain`` to its end, where nothing changed.
- *between*: of a sweep of many parameter sets, from the end of one run on the agent to the start of the next, while
  the others wait. The sweep is cancelled after some.
"""

import argparse
import itertools
import json
import statistics
import time
from datetime import datetime
from pathlib import Path

import httpx
import yaml
from prefect.settings import PREFECT_API_URL

from benchmarks.checkpoint import ROOT, machine
from models.storage import read_json, write_json, write_text
from pipelines.programs import output_of
from pipelines.retrain import BRANCH

RESULTS = Path(__file__).parent / "results/flows.json"


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
    answer = httpx.request("GET" if body is None else "POST", f"{PREFECT_API_URL.value()}{path}", json=body, timeout=60)
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


def around(repository: Path, adapter: str) -> dict:
    """Retrain what the repository holds, and take apart the time of the adapter's run."""
    whole = ended(start("finetune-adapters", cause="benchmark"))
    run = next(each for each in children(whole["id"]) if each["name"].startswith(f"finetune {adapter}"))
    metrics = output_of("git", "-C", str(repository), "show", f"{BRANCH}:reports/metrics/{adapter}.json")
    training, took = json.loads(metrics)["training_seconds"], seconds(run["start_time"], run["end_time"])
    figures = {"training": training, "run": took, "around": round(took - training, 2)}
    return figures | {"whole": seconds(whole["created"], whole["end_time"])}


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
