"""What each flow does, on a whole site: a Prefect server, its keeper, agents."""

import json
import random
import time
from datetime import datetime

import pytest
import yaml
from shared_data import write_rows
from sites import LONG, TRAINING, Site, until

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    (folder / "chats").mkdir()
    made = Site(folder, TUNELINE_CHATS=str(folder / "chats"), TUNELINE_COMMAND=f"tee -a {folder / 'told'}")
    with made.open():
        yield made


def told(site) -> list[dict]:
    """What the command of the user's own was told, the events in their order."""
    text, found = (site.folder / "told").read_text(encoding="utf-8"), []
    while text:
        event, end = json.JSONDecoder().raw_decode(text)
        found.append(event)
        text = text[end:].lstrip()
    return found


def test_of_two_retrainings_at_once_one_ends_as_a_commit_and_a_champion_and_the_other_has_nothing_to_do(site):
    before = site.git("status", "--porcelain")
    runs = {cause: site.run("finetune-adapters", cause=cause) for cause in ("one", "other")}
    assert [site.ended(run) for run in runs.values()] == ["Completed", "Completed"]
    ((cause, run),) = ((cause, run) for cause, run in runs.items() if site.children(run))
    names = sorted(child["name"] for child in site.children(run))
    assert [name.split(" · ")[0] for name in names] == ["evaluate base", "finetune lora", "measure champion"]
    assert names[1].endswith("rank 16")
    log = site.git("log", "--format=%s", "tuneline/retrained").splitlines()
    assert [line for line in log if line.startswith("Retrain")] == [f"Retrain: {cause}"]
    assert log[0].startswith("Promote lora")
    assert "lora: loss" in site.git("log", f"--grep=Retrain: {cause}", "--format=%b", "tuneline/retrained")
    assert "champion@v1.0.0" in site.git("tag")
    assert site.git("status", "--porcelain") == before  # nobody worked in the user's workspace
    assert site.git("for-each-ref", "refs/tuneline") == ""
    assert not any((site.folder / "home/runs").iterdir())
    assert {"data-checks", "comparison", "promotion", "training-lora", "loss-lora"} <= site.artifacts()
    (event,) = told(site)
    assert (event["event"], event["version"], event["cause"]) == ("promoted", "v1.0.0", cause)


def test_where_nothing_changed_it_ends_at_once(site):
    """Within 15 s on a machine of its own; beside other tests it may take longer."""
    started = time.monotonic()
    run = site.run("retrain")
    until(lambda: site.state(run) == "Completed", "the retraining to find nothing", LONG)
    assert time.monotonic() - started < 60
    assert site.children(run) == []


def test_a_sweep_tries_every_set_on_the_agent_and_retrains_with_the_best(site):
    """One set diverges, and is left out. The orchestrator is killed meanwhile, and finds what was tried in between."""
    site.set_epochs(2)
    run = site.run("sweep", adapter="lora", sets=[{"learning_rate": 1e6}, {"rank": 4}, {"rank": 8}])
    until(lambda: site.processes(TRAINING), "the first set to be tried", LONG)
    for process in site.processes("-m"):
        if process.environ().get("PREFECT__FLOW_RUN_ID") == run:
            process.kill()
    assert site.ended(run) == "Completed"
    diverged = [each for each in site.children(run) if "learning_rate" in each["name"]]
    assert all("Training diverged" in each["state"]["message"] for each in diverged)
    tries = sorted(
        (child for child in site.children(run) if child["name"].startswith("try lora-rank")),
        key=lambda child: child["start_time"],
    )
    assert {child["name"] for child in tries} == {"try lora-rank-4", "try lora-rank-8"}
    between = datetime.fromisoformat(tries[1]["start_time"]) - datetime.fromisoformat(tries[0]["end_time"])
    assert between.total_seconds() < 60  # the agent is kept busy: 10 s on a machine of its own
    message = site.git("log", "--format=%B", "--grep=the best of 3", "tuneline/retrained")
    assert "sweep: lora-rank-" in message
    settings = yaml.safe_load(site.git("show", "tuneline/retrained:params.yaml"))["adapters"]["lora"]
    assert f"lora-rank-{settings['rank']}," in message
    assert "sweep" in site.artifacts()
    # What was decided stands on the branch, be it for or against.
    last = site.git("log", "-1", "--format=%B", "tuneline/retrained")
    assert last.startswith(("Promote lora", "Keep the champion: lora not promoted"))


def advertisement(draw: random.Random) -> dict:
    """A row of another kind than the demo's: attributes of clothes, and a long text that praises them."""
    kind, stuff, style = map(draw.choice, ("裙衫裤衣鞋", "麻棉绒纱丝", "雅洁潮萌酷"))
    praise = "".join(draw.sample(["版型显瘦，", "穿着舒适，", "面料透气，", "细节精致，", "百搭时尚，"], 4))
    answer = f"这款{stuff}{kind}{praise}尽显{style}的气质，" * 3
    return {"context": f"类型#{kind}*材质#{stuff}*风格#{style}", "target": answer}


def test_drift_starts_one_retraining_a_day_and_says_why(site):
    drifts = {"flow_runs": {"name": {"like_": "finetune · drift"}}}
    assert site.ended(site.run("monitor-drift")) == "Completed"  # and nobody has chatted yet
    assert site.ask("POST", "/flow_runs/filter", drifts) == []
    draw = random.Random(0)
    write_rows(site.folder / "chats/logged.jsonl", [advertisement(draw) for _ in range(200)])
    for _ in range(2):
        assert site.ended(site.run("monitor-drift")) == "Completed"
    (started,) = site.ask("POST", "/flow_runs/filter", drifts)
    assert "Answer, characters · 回答字数" in started["parameters"]["cause"]
    assert site.ended(started["id"]) == "Completed"
    assert [event["event"] for event in told(site)].count("drift") == 1
    assert "drift" in site.artifacts()
    assert len(list((site.folder / "home/reports").glob("drift-*.html"))) == 3
    (site.folder / "chats/logged.jsonl").unlink()


def test_data_that_are_blocked_fail_with_their_reasons_and_cost_no_training(site):
    limit = lambda share: lambda params: params["validate"]["checks"]["few_quarantined"].update(limit=share)  # noqa: E731
    site.project.edit_params(limit(0.01))
    site.project.commit("strict")
    run = site.run("finetune-adapters", cause="dirty")
    assert site.ended(run) == "Failed"
    assert site.ask("GET", f"/flow_runs/{run}")["state"]["message"].startswith("The data checks stopped it")
    log = {"logs": {"flow_run_id": {"any_": [run]}}, "limit": 200}
    told_by = lambda: [line["message"] for line in site.ask("POST", "/logs/filter", log)]  # noqa: E731
    until(lambda: any("Finished in state" in line for line in told_by()), "its log")
    time.sleep(5)  # what an exception would leave comes behind it
    assert not any("Traceback" in line for line in told_by())
    assert "Traceback" not in (site.folder / "cpu.log").read_text().rpartition("finetune · dirty")[2]
    assert site.children(run) == []
    assert told(site)[-1]["event"] == "blocked"
    site.project.edit_params(limit(0.2))
    site.project.commit("lenient again")


def test_clones_of_what_failed_stay_to_be_tried_again_and_no_others(site):
    left = [site.ask("GET", f"/flow_runs/{folder.name}") for folder in (site.folder / "home/runs").iterdir()]
    assert {run["state"]["name"] for run in left} == {"Failed"}, [run["name"] for run in left]


def test_no_run_is_left_running(site):
    states = {run["state"]["type"] for run in site.ask("POST", "/flow_runs/filter", {})}
    assert states <= {"COMPLETED", "FAILED", "CANCELLED", "SCHEDULED"}
