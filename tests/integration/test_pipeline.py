"""The real pipeline, end to end, in a clone of its own with a base that is trained for seconds."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from project import PATH, Project
from shared_data import developer_file

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    made = Project(tmp_path_factory.mktemp("clone") / "tuneline")
    code, ran, text = made.repro()
    assert code == 0, text
    assert ran >= {"ingest", "validate", "base", "encode", "train@lora", "train@ptuning_v2", "compare"}
    made.commit("first run")
    return made


def test_a_second_run_does_nothing(project):
    code, ran, text = project.repro()
    assert (code, ran) == (0, set())
    assert "up to date" in text


def test_the_clone_stays_clean(project):
    assert project.run("git", "status", "--porcelain").stdout == ""


def test_the_books_close_and_nothing_is_lost(project):
    books = project.metrics("data")["data"]
    sources = json.loads((project.folder / "data/sources.json").read_text())
    quarantined = sum(len(p.read_text().splitlines()) for p in (project.folder / "data/quarantine").glob("*.jsonl"))
    assert books["rows_in"] == sum(source["rows"] for source in sources)
    assert books["quarantined"] == quarantined >= 30
    assert books["train"] >= 250


def test_reports_plots_and_metrics_need_no_network(project):
    for name in ("comparison.html", "comparison.md", "summary.txt", "validation/index.html"):
        assert (project.folder / "reports" / name).stat().st_size > 1000
    shown = json.loads(project.run("dvc", "metrics", "show", "--json").stdout)[""]["data"]
    assert shown["reports/metrics/lora.json"]["data"]["loss"] > 0
    assert project.run("dvc", "plots", "show").returncode == 0
    page = (project.folder / "dvc_plots/index.html").read_text(encoding="utf-8")
    assert "ptuning_v2" in page
    assert "<script src" not in page
    shutil.rmtree(project.folder / "dvc_plots")


def test_chat_is_scriptable(project):
    done = project.run(sys.executable, "-m", "chat", "--adapter", "lora", typed="1\n你是谁？\nstop\n")
    assert done.returncode == 0, done.stderr
    assert "<|Human|>: 你是谁？" in done.stdout
    assert "<|ChatGLM-6B|>: " in done.stdout
    assert "词元/秒" in done.stdout
    assert done.stdout.endswith("再见！\n")


def test_chat_survives_odd_input(project):
    command = [sys.executable, "-m", "chat", "--adapter", "lora"]
    typed = b"1\n\xff\xfe\x80\n" + "长".encode() * 5000 + b"\n[MASK] <sop>\nstop\n"
    done = subprocess.run(command, cwd=project.folder, capture_output=True, input=typed, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert "问题太长" in done.stdout.decode()
    for arguments in (["--max-new-tokens", "0"], ["--max-new-tokens", "99999"], ["--adapter", "../weights/lora"]):
        done = project.run(*command, *arguments, typed="1\nstop\n")
        assert done.returncode != 0
        assert "Traceback" not in done.stderr


def test_what_is_better_becomes_the_champion_and_answers(project):
    project.run("git", "config", "user.name", "test")
    project.run("git", "config", "user.email", "test@localhost")
    done = project.run(sys.executable, "-m", "pipelines.promotion", "lora")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "champion v1.0.0" in done.stdout
    # The champion is asked again today; a prefix of one epoch is no better than it, by these guards or the gain.
    done = project.run(sys.executable, "-m", "pipelines.promotion", "ptuning_v2")
    assert done.returncode in (0, 3), done.stderr
    decision = json.loads((project.folder / "reports/promotion.json").read_text())
    assert decision["champion"] == "champion v1.0.0"
    assert decision["promote"] == (done.returncode == 0)
    if done.returncode == 3:  # decided twice on the same evidence
        again = project.run(sys.executable, "-m", "pipelines.promotion", "ptuning_v2")
        assert again.returncode == 3, again.stderr
        assert json.loads((project.folder / "reports/promotion.json").read_text()) == decision
    talk = project.run(sys.executable, "-m", "chat", typed="1\n你好\n/adapter base\n你好\nstop\n")
    assert "tiny + champion" in talk.stdout
    assert talk.returncode == 0, talk.stderr
    project.commit("decided")


def test_two_revisions_stand_side_by_side(project):
    page = project.folder / "revisions.html"
    done = project.run(sys.executable, "-m", "pipelines.comparison", "HEAD~1", "HEAD", "--out", str(page))
    assert done.returncode == 0, done.stderr
    assert "lora@" in page.read_text(encoding="utf-8")
    page.unlink()
    page.with_suffix(".md").unlink()
    for wrong, said in (("nowhere", "knows no revision"), ("HEAD", "the same commit")):
        done = project.run(sys.executable, "-m", "pipelines.comparison", wrong, "HEAD")
        assert done.returncode == 1
        assert said in done.stderr


def test_what_quantization_costs(project):
    page = project.folder / "quantization.html"
    done = project.run(sys.executable, "-m", "pipelines.quantization", "lora", "--out", str(page), "--bits", "16", "4")
    assert done.returncode == 0, done.stderr
    assert "lora float32" in done.stdout
    assert "lora 4 bit" in page.read_text(encoding="utf-8")
    page.unlink()
    page.with_suffix(".md").unlink()


def test_what_is_exported_is_a_base_of_its_own(project, tmp_path):
    done = project.run(sys.executable, "-m", "pipelines.export", "lora", "--merged", str(tmp_path / "merged"))
    assert done.returncode == 0, done.stderr
    project.edit_params(lambda params: params["base"].update(model=str(tmp_path / "merged")))
    assert project.run("dvc", "repro", "--single-item", "base").returncode == 0
    project.run("git", "checkout", "params.yaml", "dvc.lock")
    assert project.run("dvc", "checkout").returncode == 0
    official = project.run(sys.executable, "-m", "pipelines.export", "ptuning_v2", "--official", str(tmp_path / "p"))
    assert official.returncode == 0, official.stderr
    back = ["pipelines.export", "back", "--from", str(tmp_path / "p/pytorch_model.bin")]
    assert project.run(sys.executable, "-m", *back).returncode == 0
    talk = project.run(sys.executable, "-m", "chat", "--adapter", "back", typed="1\n你好\nstop\n")
    assert "tiny + back" in talk.stdout


def test_the_main_job_ends_with_the_comparison(project):
    done = project.run(sys.executable, "-m", "pipelines.finetune")
    text = done.stdout + done.stderr
    assert done.returncode == 0, text
    assert "up to date" in text
    assert "What they answer" in text


def test_one_changed_byte_stops_train_before_a_model_loads(project):
    path = project.folder / "data/checked/train.jsonl"
    before = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(before.replace("你".encode(), "我".encode(), 1))
    command = (sys.executable, "-X", "importtime", "-m", "stages.train", "--adapter", "lora")
    folders = ("--checked", "data/checked", "--encoded", "data/encoded", "--base", "models/weights/base")
    made = ("--out", "models/weights/none", "--dvclive", "reports/training/none", "--checkpoints", "models/checkpoints")
    done = project.run(*command, *folders, *made)
    path.write_bytes(before)
    assert done.returncode == 2
    assert "train.jsonl is not the file that was checked" in done.stderr
    assert not any(line.split("|")[-1].strip() == "torch" for line in done.stderr.splitlines())
    assert not (project.folder / "models/weights/none").exists()


def test_an_adapter_of_another_base_is_refused(project):
    manifest = project.folder / "models/weights/lora/manifest.json"
    before = manifest.read_text()
    manifest.chmod(0o644)
    manifest.write_text(before.replace(json.loads(before)["base_identity"], "0" * 64))
    done = project.run(sys.executable, "-m", "chat", "--adapter", "lora", typed="1\nstop\n")
    manifest.write_text(before)
    assert done.returncode == 1
    assert done.stderr.startswith("error: The adapter in")
    assert "Traceback" not in done.stderr


def test_a_changed_rank_runs_what_it_touches_and_shows_in_the_diff(project):
    project.edit_params(lambda params: params["adapters"]["lora"].update(rank=4))
    code, ran, text = project.repro()
    assert code == 0, text
    assert ran == {"params", "train@lora", "evaluate@lora", "compare"}
    project.commit("rank 4")
    diff = json.loads(project.run("dvc", "metrics", "diff", "--json", "HEAD~1", "HEAD").stdout)
    changed = diff["reports/metrics/lora.json"]
    assert changed["trainable_parameters"]["diff"] < 0
    assert "reports/metrics/ptuning_v2.json" not in diff


def test_killed_altogether_in_training_the_next_repro_goes_on(project):
    """SIGKILL to dvc and all that it started, as when the power fails."""
    project.edit_params(lambda params: params["adapters"]["lora"].update(epochs=3))
    process = subprocess.Popen(
        ["dvc", "repro", "train@lora"], cwd=project.folder, env={**os.environ, "PATH": PATH}, start_new_session=True
    )
    deadline = time.monotonic() + 600
    while not list(project.folder.glob("models/checkpoints/lora.*/checkpoint-*/progress.json")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    code, ran, text = project.repro()
    assert code == 0, text
    assert ran == {"train@lora", "evaluate@lora", "compare"}
    assert "going on from checkpoint of step" in text
    assert not list(project.folder.glob("models/checkpoints/lora.*"))


def test_dirty_data_stop_before_base_and_train(project):
    source = project.folder / "data/demo/raw/more.jsonl"
    source.write_text('{"context": "坏", "target": ""}\n' * 200, encoding="utf-8")
    project.edit_params(lambda params: params["base"]["tiny"].update(steps=61))
    code, ran, text = project.repro()
    source.unlink()
    project.edit_params(lambda params: params["base"]["tiny"].update(steps=60))
    assert code != 0
    assert ran == {"params", "ingest", "tokenizer", "validate"}  # the last two before any training
    assert "The data are blocked" in text
    assert "Traceback" not in text


def test_one_clear_sentence_for_a_missing_source_and_a_typo(project):
    for change, said in [
        (lambda params: params["ingest"].update(source="data/demo/nowhere.jsonl"), "nowhere.jsonl"),
        (lambda params: params["adapters"]["lora"].update(rnak=8), "rnak is not a known key"),
    ]:
        before = (project.folder / "params.yaml").read_text(encoding="utf-8")
        project.edit_params(change)
        done = project.run(sys.executable, "-m", "pipelines.finetune")
        (project.folder / "params.yaml").write_text(before, encoding="utf-8")
        assert done.returncode == 1
        assert said in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("file", "lines"), [("self_cognition.json", None), ("adgen_dev.jsonl", 250)])
def test_real_data_as_a_users_own(project, file, lines):
    """A user's file from elsewhere on the disk, the placeholders filled, through the whole pipeline with LoRA alone."""
    text = "".join(developer_file(f"datasets/{file}").read_text(encoding="utf-8").splitlines(keepends=True)[:lines])
    mine = project.folder.parent / file
    mine.write_text(text.replace("<NAME>", "小智").replace("<AUTHOR>", "wgs"), encoding="utf-8")
    project.edit_params(lambda params: params["ingest"].update(source=str(mine)))
    project.edit_params(lambda params: params["evaluate"].update(max_new_tokens=16, samples=0))
    project.edit_params(lambda params: params["adapters"].pop("ptuning_v2", None))
    code, ran, text = project.repro()
    assert code == 0, text
    assert "train@lora" in ran
    assert project.metrics("data")["data"]["train"] >= 60
