"""Every flow on a whole site: server, keeper and agents."""

import json
import random
import time

import pytest
import yaml
from shared_data import write_rows
from sites import TIMEOUT, TRAINING, Site, wait_until

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def site(tmp_path_factory, prepared_project):
    folder = tmp_path_factory.mktemp("site")
    (folder / "chats").mkdir()
    site = Site(
        folder,
        prepared_project.copy_to(folder / "project"),
        TUNELINE_CHATS=str(folder / "chats"),
        TUNELINE_COMMAND=f"tee -a {folder / 'notifications'}",
    )
    # Longer answers than in the prepared project, so that an agent evaluates the base.
    site.commit_params(lambda params: params["evaluate"].update(max_new_tokens=9), "longer answers")
    with site.open():
        yield site


def notifications(site: Site) -> list[dict]:
    """Return the events that TUNELINE_COMMAND has received, in order."""
    text, events = (site.folder / "notifications").read_text(encoding="utf-8"), []
    while text:
        event, end = json.JSONDecoder().raw_decode(text)
        events.append(event)
        text = text[end:].lstrip()
    return events


def test_first_of_two_simultaneous_retrainings_makes_commit_and_champion(site):
    """The second one waits, and finds nothing changed."""
    status = site.git("status", "--porcelain")
    runs = {cause: site.run("finetune-adapters", cause=cause) for cause in ("one", "other")}
    assert [site.final_state(run) for run in runs.values()] == ["Completed", "Completed"]
    ((cause, run),) = ((cause, run) for cause, run in runs.items() if site.children(run))
    names = sorted(child["name"] for child in site.children(run))
    assert [name.split(" · ")[0] for name in names] == ["evaluate base", "finetune lora", "measure champion"]
    assert names[1].endswith("rank 16")
    subjects = site.git("log", "--format=%s", "tuneline/retrained").splitlines()
    assert [subject for subject in subjects if subject.startswith("Retrain")] == [f"Retrain: {cause}"]
    assert subjects[0].startswith("Promote lora")
    assert "lora: loss" in site.git("log", f"--grep=Retrain: {cause}", "--format=%b", "tuneline/retrained")
    assert "champion@v1.0.0" in site.git("tag")
    assert site.git("status", "--porcelain") == status  # the user's workspace is unchanged
    assert site.git("for-each-ref", "refs/tuneline") == ""
    assert not any((site.folder / "home/runs").iterdir())
    assert {"data-checks", "comparison", "promotion", "training-lora", "loss-lora"} <= site.artifacts()
    (event,) = notifications(site)
    assert (event["event"], event["version"], event["cause"]) == ("promoted", "v1.0.0", cause)


def test_retrain_without_changes_starts_no_training(site):
    run = site.run("retrain")
    assert site.final_state(run) == "Completed"
    assert site.children(run) == []


def test_sweep_tries_every_set_and_retrains_with_the_best(site):
    """One set diverges and is left out. The orchestrating flow is killed meanwhile, and reuses the finished sets."""

    def forbid_promotion(params: dict) -> None:
        params["promote"]["margin"] = 1.0  # a gain of the champion's whole loss is impossible

    site.commit_params(forbid_promotion, "no promotion")
    run = site.run("sweep", adapter="lora", sets=[{"learning_rate": 1e12}, {"rank": 4}, {"rank": 8}])
    wait_until(lambda: site.processes(TRAINING), "the first set to be tried", TIMEOUT)
    for process in site.processes("-m"):
        if process.environ().get("PREFECT__FLOW_RUN_ID") == run:
            process.kill()
    assert site.final_state(run) == "Completed"
    diverged = [child for child in site.children(run) if "learning_rate" in child["name"]]
    assert diverged
    assert all("Training diverged" in child["state"]["message"] for child in diverged)
    tries = sorted(
        (child for child in site.children(run) if child["name"].startswith("try lora-rank")),
        key=lambda child: child["start_time"],
    )
    assert {child["name"] for child in tries} == {"try lora-rank-4", "try lora-rank-8"}
    assert tries[1]["created"] < tries[0]["end_time"]  # the queue is filled at once, so that no agent is idle
    message = site.git("log", "--format=%B", "--grep=the best of 3", "tuneline/retrained")
    assert "sweep: lora-rank-" in message
    adapter = yaml.safe_load(site.git("show", "tuneline/retrained:params.yaml"))["adapters"]["lora"]
    assert f"lora-rank-{adapter['rank']}," in message
    assert "sweep" in site.artifacts()
    last_message = site.git("log", "-1", "--format=%B", "tuneline/retrained")
    assert last_message.startswith("Keep the champion: lora not promoted")


def advertisement(draw: random.Random) -> dict:
    """Return a row unlike the demo's: attributes of clothes, and a long text that praises them."""
    kind, fabric, style = map(draw.choice, ("裙衫裤衣鞋", "麻棉绒纱丝", "雅洁潮萌酷"))
    praise = "".join(draw.sample(["版型显瘦，", "穿着舒适，", "面料透气，", "细节精致，", "百搭时尚，"], 4))
    answer = f"这款{fabric}{kind}{praise}尽显{style}的气质，" * 3
    return {"context": f"类型#{kind}*材质#{fabric}*风格#{style}", "target": answer}


def test_drift_starts_one_retraining_a_day(site):
    drift_runs = {"flow_runs": {"name": {"like_": "finetune · drift"}}}
    assert site.final_state(site.run("monitor-drift")) == "Completed"  # the folder of chats is still empty
    assert site.request("POST", "/flow_runs/filter", drift_runs) == []
    draw = random.Random(0)
    write_rows(site.folder / "chats/logged.jsonl", [advertisement(draw) for _ in range(200)])
    for _ in range(2):
        assert site.final_state(site.run("monitor-drift")) == "Completed"
    (retraining,) = site.request("POST", "/flow_runs/filter", drift_runs)
    assert "answer_characters" in retraining["parameters"]["cause"]
    assert site.final_state(retraining["id"]) == "Completed"
    assert [event["event"] for event in notifications(site)].count("drift") == 1
    assert "drift" in site.artifacts()
    assert len(list((site.folder / "home/reports").glob("drift-*.html"))) == 3
    (site.folder / "chats/logged.jsonl").unlink()


def test_blocked_data_fail_with_their_reasons_before_any_training(site):
    def limit_quarantine(params: dict) -> None:
        params["validate"]["checks"]["few_quarantined"]["limit"] = 0.01

    site.commit_params(limit_quarantine, "strict")
    run = site.run("finetune-adapters", cause="dirty")
    assert site.final_state(run) == "Failed"
    assert site.request("GET", f"/flow_runs/{run}")["state"]["message"].startswith("The data checks")
    filters = {"logs": {"flow_run_id": {"any_": [run]}}, "limit": 200}

    def log_lines() -> list[str]:
        return [line["message"] for line in site.request("POST", "/logs/filter", filters)]

    wait_until(lambda: any("Finished in state" in line for line in log_lines()), "the run's log")
    time.sleep(5)  # a traceback would be logged after the final state
    assert not any("Traceback" in line for line in log_lines())
    assert "Traceback" not in site.log("cpu").rpartition("finetune · dirty")[2]
    assert site.children(run) == []
    assert notifications(site)[-1]["event"] == "blocked"


def test_clones_of_failed_runs_stay_and_no_others(site):
    runs = [site.request("GET", f"/flow_runs/{folder.name}") for folder in (site.folder / "home/runs").iterdir()]
    assert {run["state"]["name"] for run in runs} == {"Failed"}, [run["name"] for run in runs]


def test_no_run_stays_active(site):
    site.assert_no_run_is_active()
