"""The whole pipeline in a copy of the project, with a small base model."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from project import PATH, create_project
from shared_data import developer_file

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project after its first `dvc repro`."""
    project = create_project(tmp_path_factory.mktemp("clone") / "tuneline")
    code, ran, output = project.repro()
    assert code == 0, output
    assert ran >= {"ingest", "validate", "base", "encode", "train@lora", "train@ptuning_v2", "compare"}
    project.commit("first run")
    return project


def test_second_repro_runs_no_stage(project):
    code, ran, output = project.repro()
    assert (code, ran) == (0, set())
    assert "up to date" in output


def test_repro_leaves_the_git_status_clean(project):
    assert project.run("git", "status", "--porcelain").stdout == ""


def test_row_counts_add_up(project):
    counts = json.loads((project.folder / "reports/data_checks.json").read_text())["books"]
    sources = json.loads((project.folder / "data/sources.json").read_text())
    quarantine = (project.folder / "data/quarantine").glob("*.jsonl")
    quarantined = sum(len(file.read_text().splitlines()) for file in quarantine)
    assert counts["rows_in"] == sum(source["rows"] for source in sources)
    assert counts["quarantined"] == quarantined >= 30
    assert counts["train"] >= 250


def test_reports_plots_and_metrics_load_nothing_from_the_network(project):
    reports = ("comparison.html", "comparison.md", "comparison.zh.md", "summary.txt", "summary.zh.txt")
    for name in (*reports, "validation/index.html"):
        assert (project.folder / "reports" / name).stat().st_size > 1000
    metrics = json.loads(project.run("dvc", "metrics", "show", "--json").stdout)[""]["data"]
    assert metrics["reports/metrics/lora.json"]["data"]["loss"] > 0
    assert project.run("dvc", "plots", "show").returncode == 0
    page = (project.folder / "dvc_plots/index.html").read_text(encoding="utf-8")
    assert "ptuning_v2" in page
    assert "<script src" not in page
    shutil.rmtree(project.folder / "dvc_plots")


def test_chat_reads_questions_from_a_pipe(project):
    done = project.run(sys.executable, "-m", "chat", "--adapter", "lora", typed="1\n你是谁？\nstop\n")
    assert done.returncode == 0, done.stderr
    assert "<|Human|>: 你是谁？" in done.stdout
    assert "<|ChatGLM-6B|>: " in done.stdout
    assert "tokens/s" in done.stdout
    assert done.stdout.endswith("Goodbye!\n")


def test_chat_survives_malformed_input_and_arguments(project):
    command = [sys.executable, "-m", "chat", "--adapter", "lora"]
    typed = b"1\n\xff\xfe\x80\n" + "长".encode() * 5000 + b"\n[MASK] <sop>\nstop\n"
    chinese = {**os.environ, "TUNELINE_LANG": "zh"}
    done = subprocess.run(command, cwd=project.folder, env=chinese, capture_output=True, input=typed, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert "问题太长" in done.stdout.decode()
    for arguments in (["--max-new-tokens", "0"], ["--max-new-tokens", "99999"], ["--adapter", "../weights/lora"]):
        done = project.run(*command, *arguments, typed="1\nstop\n")
        assert done.returncode != 0
        assert "Traceback" not in done.stderr


def test_better_adapter_becomes_champion_and_a_worse_one_does_not(project):
    project.run("git", "config", "user.name", "test")
    project.run("git", "config", "user.email", "test@localhost")
    done = project.run(sys.executable, "-m", "pipelines.promotion", "lora")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "champion v1.0.0" in done.stdout
    # A gain of the champion's whole loss is impossible. The second decision uses the cached measurements.
    project.edit_params(lambda params: params["promote"].update(margin=1.0))
    assert project.repro("params")[0] == 0
    decisions = []
    for _ in range(2):
        done = project.run(sys.executable, "-m", "pipelines.promotion", "ptuning_v2")
        assert done.returncode == 3, done.stdout + done.stderr
        decisions.append(json.loads((project.folder / "reports/promotion.json").read_text()))
    assert decisions[0] == decisions[1]
    assert decisions[0]["champion"] == "champion v1.0.0"
    assert not decisions[0]["promote"]
    done = project.run(sys.executable, "-m", "chat", typed="1\n你好\n/adapter base\n你好\nstop\n")
    assert "tiny + champion" in done.stdout
    assert done.returncode == 0, done.stderr
    project.commit("decided")


def test_comparison_of_two_revisions(project):
    page = project.folder / "revisions.html"
    done = project.run(sys.executable, "-m", "pipelines.comparison", "HEAD~1", "HEAD", "--out", str(page))
    assert done.returncode == 0, done.stderr
    assert "lora@" in page.read_text(encoding="utf-8")
    for report in project.folder.glob("revisions.*"):
        report.unlink()
    for revision, message in (("nowhere", "There is no revision"), ("HEAD", "the same commit")):
        done = project.run(sys.executable, "-m", "pipelines.comparison", revision, "HEAD")
        assert done.returncode == 1
        assert message in done.stderr


def test_quantization_report(project):
    page = project.folder / "quantization.html"
    done = project.run(sys.executable, "-m", "pipelines.quantization", "lora", "--out", str(page), "--bits", "16", "4")
    assert done.returncode == 0, done.stderr
    assert "lora float32" in done.stdout
    assert "lora 4 bit" in page.read_text(encoding="utf-8")
    for report in project.folder.glob("quantization.*"):
        report.unlink()


def test_exported_models_can_be_loaded_again(project, tmp_path):
    done = project.run(sys.executable, "-m", "pipelines.export", "lora", "--merged", str(tmp_path / "merged"))
    assert done.returncode == 0, done.stderr
    project.edit_params(lambda params: params["base"].update(model=str(tmp_path / "merged")))
    assert project.run("dvc", "repro", "--single-item", "base").returncode == 0
    project.run("git", "checkout", "params.yaml", "dvc.lock")
    assert project.run("dvc", "checkout").returncode == 0
    done = project.run(sys.executable, "-m", "pipelines.export", "ptuning_v2", "--official", str(tmp_path / "p"))
    assert done.returncode == 0, done.stderr
    imported = ["pipelines.export", "imported", "--from", str(tmp_path / "p/pytorch_model.bin")]
    assert project.run(sys.executable, "-m", *imported).returncode == 0
    done = project.run(sys.executable, "-m", "chat", "--adapter", "imported", typed="1\n你好\nstop\n")
    assert "tiny + imported" in done.stdout


def test_finetune_prints_the_comparison(project):
    done = project.run(sys.executable, "-m", "pipelines.finetune")
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert "up to date" in output
    assert "Answers to the probes" in output


def test_train_rejects_changed_data_before_it_imports_torch(project):
    path = project.folder / "data/checked/train.jsonl"
    before = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(before.replace("你".encode(), "我".encode(), 1))
    command = (sys.executable, "-X", "importtime", "-m", "stages.train", "--adapter", "lora")
    folders = ("--checked", "data/checked", "--encoded", "data/encoded", "--base", "models/weights/base")
    starts = ("--champion", "models/champion", "--versions", "models/start")
    outputs = (
        "--out",
        "models/weights/none",
        "--dvclive",
        "reports/training/none",
        "--checkpoints",
        "models/checkpoints",
    )
    done = project.run(*command, *folders, *starts, *outputs)
    path.write_bytes(before)
    assert done.returncode == 2
    assert "train.jsonl changed after it was checked" in done.stderr
    assert not any(line.split("|")[-1].strip() == "torch" for line in done.stderr.splitlines())
    assert not (project.folder / "models/weights/none").exists()


def test_chat_rejects_an_adapter_of_another_base(project):
    manifest = project.folder / "models/weights/lora/manifest.json"
    before = manifest.read_text()
    manifest.chmod(0o644)
    manifest.write_text(before.replace(json.loads(before)["base_identity"], "0" * 64))
    done = project.run(sys.executable, "-m", "chat", "--adapter", "lora", typed="1\nstop\n")
    manifest.write_text(before)
    assert done.returncode == 1
    assert done.stderr.startswith("error: The adapter in")
    assert "Traceback" not in done.stderr


def test_changed_rank_runs_only_dependent_stages(project):
    project.edit_params(lambda params: params["adapters"]["lora"].update(rank=4))
    code, ran, output = project.repro()
    assert code == 0, output
    assert ran == {"params", "train@lora", "evaluate@lora", "compare"}
    project.commit("rank 4")
    diff = json.loads(project.run("dvc", "metrics", "diff", "--json", "HEAD~1", "HEAD").stdout)
    changed = diff["reports/metrics/lora.json"]
    assert changed["loss"]["diff"] != 0
    assert "reports/metrics/ptuning_v2.json" not in diff


def test_repro_resumes_a_killed_training(project):
    """SIGKILL ends dvc and all its children, as in a power failure."""
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
    code, ran, output = project.repro()
    assert code == 0, output
    assert ran == {"train@lora", "evaluate@lora", "compare"}
    assert "resuming from checkpoint of step" in output
    assert not list(project.folder.glob("models/checkpoints/lora.*"))


def test_blocked_data_stop_before_base_and_train(project):
    source = project.folder / "data/demo/raw/more.jsonl"
    source.write_text('{"context": "坏", "target": ""}\n' * 200, encoding="utf-8")
    project.edit_params(lambda params: params["base"]["tiny"].update(steps=61))
    code, ran, output = project.repro()
    source.unlink()
    project.edit_params(lambda params: params["base"]["tiny"].update(steps=60))
    assert code != 0
    assert ran == {"params", "ingest", "tokenizer", "validate"}  # neither base nor train
    assert "The data are blocked" in output
    assert "Traceback" not in output


def test_missing_source_and_typo_give_one_sentence(project):
    for change, message in [
        (lambda params: params["ingest"].update(source="data/demo/nowhere.jsonl"), "nowhere.jsonl"),
        (lambda params: params["adapters"]["lora"].update(rnak=8), "rnak is not a known key"),
    ]:
        before = (project.folder / "params.yaml").read_text(encoding="utf-8")
        project.edit_params(change)
        done = project.run(sys.executable, "-m", "pipelines.finetune")
        (project.folder / "params.yaml").write_text(before, encoding="utf-8")
        assert done.returncode == 1
        assert message in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


def test_real_data_from_another_folder(project):
    """Run the pipeline with LoRA only on a folder outside the project: JSON with placeholders filled, and JSONL."""
    source = project.folder.parent / "own"
    source.mkdir()
    for file, lines in (("self_cognition.json", None), ("adgen_dev.jsonl", 120)):
        text = "".join(developer_file(f"datasets/{file}").read_text(encoding="utf-8").splitlines(keepends=True)[:lines])
        (source / file).write_text(text.replace("<NAME>", "小智").replace("<AUTHOR>", "wgs"), encoding="utf-8")
    project.edit_params(lambda params: params["ingest"].update(source=str(source)))
    project.edit_params(lambda params: params["evaluate"].update(max_new_tokens=16, samples=0))
    project.edit_params(lambda params: params["adapters"].pop("ptuning_v2", None))
    code, ran, output = project.repro()
    assert code == 0, output
    assert "train@lora" in ran
    assert project.metrics("data")["train"] >= 130
