import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from shared_data import ROOT, minimal_manifest, write_rows
from transformers import TrainerCallback

from formats import params_schema, receipt
from models import adapter_files, adapters, base_model
from models.errors import DataBlocked, UserError
from models.families.chatglm_6b import ChatGLM6BFamily
from models.manifest import WEIGHTS, read_verified_manifest
from models.prompt import IGNORED_LABEL, PROMPT_VERSION
from models.training.checkpointing import Stopped
from stages.evaluate.__main__ import training_summary
from stages.train import adapter_training, trackers
from stages.train.__main__ import check_tokenizer, check_trackers
from stages.train.adapter_training import code_commit, load_model, train_adapter
from stages.train.train_job import TrainJob, check_memory, checkpoint_key, memory_spec, read_rows
from stages.train.warm_start import StartFolders, WarmStart, find_warm_start


@pytest.fixture
def encoded(base_folder, tmp_path):
    base = base_model.read_record(base_folder)
    for split in receipt.ENCODED_SPLITS:
        write_rows(tmp_path / f"{split}.jsonl", [{"id": "a", "parts": [[1, 2], [3]]}])
    facts = {"tokenizer_sha256": base.tokenizer_sha256, "prompt_version": PROMPT_VERSION}
    receipt.write(tmp_path, receipt.ENCODED_SPLITS, **facts)
    return tmp_path


def test_prompts_have_no_labels(encoded):
    labels = [IGNORED_LABEL, IGNORED_LABEL, 3]
    assert read_rows(receipt.read(encoded), "train") == [{"id": "a", "input_ids": [1, 2, 3], "labels": labels}]


def test_tokens_of_another_tokenizer_block_the_training(encoded, base_folder):
    base = base_model.read_record(base_folder)
    check_tokenizer(receipt.read(encoded), base)
    files = base.files | {ChatGLM6BFamily.vocabulary_file: {"size": 1, "sha256": "0" * 64}}
    with pytest.raises(DataBlocked, match="another tokenizer"):
        check_tokenizer(receipt.read(encoded), dataclasses.replace(base, files=files))


def test_code_commit_ignores_other_files_and_marks_changed_code(tmp_path, monkeypatch):
    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    monkeypatch.chdir(tmp_path)
    assert code_commit() is None
    (tmp_path / "models").mkdir()
    (tmp_path / "models/a.py").write_text("1")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "code")
    head = git("rev-parse", "HEAD")
    (tmp_path / "dvc.lock").write_text("committed by a retraining")
    git("add", ".")
    git("commit", "-qm", "results")
    (tmp_path / "dvc.lock").write_text("changed since")
    assert code_commit() == head
    (tmp_path / "models/a.py").write_text("2")
    assert code_commit() == f"{head}+"


# Training an adapter -------------------------------------------------------------------------------

HYPERPARAMETERS = {"learning_rate": 0.01, "epochs": 2, "batch_size": 4}
ADAPTERS = {
    "lora": {"method": "lora", "rank": 2, "alpha": 4, "dora": True, **HYPERPARAMETERS},
    "ptuning_v2": {"method": "ptuning_v2", "prefix_tokens": 3, "projection": True, **HYPERPARAMETERS},
    "full": {"method": "full", **HYPERPARAMETERS | {"learning_rate": 1e-4}},
}


@pytest.fixture
def job(base_folder, tmp_path, request):
    """The training of an adapter named "demo", with the method of the fixture's parameter."""
    content = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    content["adapters"] = {"demo": ADAPTERS[getattr(request, "param", "lora")]}
    content["evaluate"]["models"] = {"base": None, **content["adapters"]}
    rows = [
        {
            "id": f"row-{number}",
            "input_ids": [40 + number, 4, 5, 50 + number, 51] * 4,
            "labels": [*[IGNORED_LABEL] * 18, 50 + number, 51],
        }
        for number in range(10)
    ]
    (tmp_path / "checkpoints").mkdir()
    return TrainJob(
        name="demo",
        params=params_schema.Params.model_validate(content),
        base=base_model.read_record(base_folder),
        train_rows=rows[:8],
        eval_rows=rows[8:],
        receipt_sha256="",
        planned_gib=1.0,
        out=tmp_path / "out",
        log=tmp_path / "log",
        checkpoints=tmp_path / "checkpoints",
    )


@pytest.mark.parametrize("job", ADAPTERS, indirect=True)
def test_every_method_is_trained_from_its_params(job):
    train_adapter(job)
    manifest = read_verified_manifest(job.out)
    assert manifest.method == job.adapter.method
    assert manifest.training["steps"] == 4
    assert manifest.training["kept_step"] <= 4
    assert manifest.training["device"].startswith("CPU")
    metrics = (job.log / "metrics.json").read_text()
    for name in ("learning_rate", "gradient_norm", "tokens_per_second", "padding", "memory_gib", "utilization"):
        assert name in metrics
    adapter_files.load_adapter(job.out, job.base)


def test_an_adapter_with_other_weights_on_disk_is_not_kept(job, monkeypatch):
    save_peft_adapter = adapter_files._save_peft_adapter

    def save_other_weights(model, folder, name):
        save_peft_adapter(model, folder, name)
        weights = load_file(folder / WEIGHTS)
        save_file({name: values + 0.5 for name, values in weights.items()}, folder / WEIGHTS)

    monkeypatch.setattr(adapter_files, "_save_peft_adapter", save_other_weights)
    with pytest.raises(UserError, match="reloaded adapter's logits differ from those in memory"):
        train_adapter(job)
    assert not job.out.exists()


def test_an_adapter_without_effect_is_not_kept(job):
    adapter = job.adapter.model_copy(update={"learning_rate": 1e-30})
    params = job.params.model_copy(update={"adapters": {"demo": adapter}})
    with pytest.raises(UserError, match="did not change the model's logits"):
        train_adapter(dataclasses.replace(job, params=params))
    assert not job.out.exists()


def test_a_training_that_does_not_fit_into_memory_is_refused(job, monkeypatch, caplog):
    rows = (job.train_rows, [*job.eval_rows, {"input_ids": [1] * 31, "labels": [1] * 31}])
    spec = memory_spec(job.adapter, job.params, job.base, *rows)
    assert (spec.rows, spec.length, spec.labelled) == (4, 31, 4 * 31)
    large_batch = job.adapter.model_copy(update={"batch_size": 100_000})
    assert memory_spec(large_batch, job.params, job.base, *rows).rows == 11
    with caplog.at_level("INFO"):
        assert check_memory("demo", spec) > 0.6
    assert "estimated memory of each device" in caplog.text
    monkeypatch.setattr("stages.train.train_job.free_memory", lambda: 1e6)
    with pytest.raises(UserError, match=r"adapters.demo does not fit into memory. It needs .* are free"):
        check_memory("demo", spec)


def test_checkpoint_key_changes_with_everything_that_affects_the_adapter(job, encoded, monkeypatch):
    def key(batch_size: int = 4, **train) -> str:
        adapter = job.adapter.model_copy(update={"batch_size": batch_size})
        changes = {"train": job.params.train.model_copy(update=train), "adapters": {"demo": adapter}}
        return checkpoint_key("demo", job.params.model_copy(update=changes), job.base, receipt.read(encoded))

    default = key()
    assert key(logs=3) == default
    with monkeypatch.context() as patch:
        patch.setattr("models.provenance.code_sha256", lambda module: f"other code of {module}")
        assert key() != default
    with monkeypatch.context() as patch:
        patch.setattr("models.provenance.library_versions", lambda: {"torch": "1.0"})
        assert key() != default
    changes = [{"seed": 7}, {"keep": "last"}, {"patience": 2}, {"precision": "fp8"}, {"strategy": "fsdp"}]
    assert len({default, key(batch_size=8), *(key(**change) for change in changes)}) == 7
    monkeypatch.setenv("WORLD_SIZE", "2")  # twice the rows per update, unless batch_size is halved
    assert key(devices=2) == key(batch_size=4) != default
    assert key(batch_size=2, devices=2) == default


# Trackers ------------------------------------------------------------------------------------------
# They are no part of requirements.lock. To run these tests, install them by `pip install --target FOLDER` and name the
# folder in TUNELINE_TEST_TRACKERS; it comes last in sys.path, so that its other packages shadow none.


@pytest.fixture
def tracked(job, monkeypatch, tmp_path, request):
    """A job with the tracker of the fixture's parameter, in an empty working directory."""
    if folder := os.environ.get("TUNELINE_TEST_TRACKERS"):
        monkeypatch.setattr(sys, "path", [*sys.path, folder])
    pytest.importorskip(request.param)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    checkpoints = tmp_path / "checkpoints/demo.0123456789abcdef"
    checkpoints.mkdir()
    train = job.params.train.model_copy(update={"report_to": (request.param,)})
    return dataclasses.replace(
        job, params=job.params.model_copy(update={"train": train}), checkpoints=checkpoints, out=tmp_path / "tracked"
    )


def read_runs(folder) -> list[dict[str, list[int]]]:
    """Return the steps of the losses of each run that a tracker has recorded below a folder."""
    if (folder / "store").is_dir():
        import mlflow

        client = mlflow.MlflowClient((folder / "store").as_uri())
        runs = client.search_runs([client.get_experiment_by_name("tuneline").experiment_id])
        histories = {run.info.run_id: client.get_metric_history for run in runs}
        return [
            {name: sorted({metric.step for metric in read(run, name)}) for name in ("loss", "eval_loss")}
            for run, read in histories.items()
        ]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    runs = []
    for run in (folder / "reports/tensorboard").iterdir():
        events = EventAccumulator(str(run)).Reload()
        tags = {"loss": "train/loss", "eval_loss": "eval/loss"}
        runs.append({name: sorted({event.step for event in events.Scalars(tag)}) for name, tag in tags.items()})
    return runs


@pytest.mark.parametrize("tracked", ["tensorboard", "mlflow"], indirect=True)
def test_a_tracker_gets_one_run_across_a_restart_and_changes_no_weight(job, tracked, monkeypatch, tmp_path):
    train_adapter(job)
    recorded = adapter_training.log_record

    def stop_at_step_2(live, record):
        recorded(live, record)
        if record["step"] == 2 and record["split"] == "train":
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(adapter_training, "log_record", stop_at_step_2)
        with pytest.raises(Stopped):
            train_adapter(tracked)
    train_adapter(tracked)
    (run,) = read_runs(tmp_path)
    assert run["loss"] == [1, 2, 3, 4]
    assert run["eval_loss"][-1] == 4
    assert (tracked.out / WEIGHTS).read_bytes() == (job.out / WEIGHTS).read_bytes()
    assert "TENSORBOARD_LOGGING_DIR" not in os.environ


@pytest.mark.parametrize("tracked", ["mlflow"], indirect=True)
def test_a_tracker_without_server_is_refused_at_the_start(tracked, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nosuch://user:hunter2secret@host")
    with pytest.raises(UserError, match=r"train.report_to: mlflow cannot start") as refused:
        train_adapter(tracked)
    assert "hunter2secret" not in str(refused.value)


class FailingTracker(TrainerCallback):
    def on_log(self, args, state, control, **kwargs):
        raise ConnectionError("the server has gone")


def test_a_tracker_that_fails_later_does_not_end_the_training(job, monkeypatch, caplog):
    monkeypatch.setattr(trackers, "_create_callback", lambda name: FailingTracker())
    train = job.params.train.model_copy(update={"report_to": ("wandb",)})
    with caplog.at_level("WARNING"):
        train_adapter(dataclasses.replace(job, params=job.params.model_copy(update={"train": train})))
    assert caplog.text.count("wandb failed and is switched off (the server has gone)") == 1
    assert read_verified_manifest(job.out).training["steps"] == 4


def test_a_missing_tracker_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install swanlab"):
        check_trackers(["swanlab"])
    check_trackers([])


def test_trackers_change_neither_adapter_nor_checkpoint_key(job, encoded):
    receipt_of_rows = receipt.read(encoded)
    reporting = job.params.train.model_copy(update={"report_to": ("tensorboard",)})
    params = job.params.model_copy(update={"train": reporting})
    keys = [checkpoint_key("demo", entry, job.base, receipt_of_rows) for entry in (job.params, params)]
    assert keys[0] == keys[1]


# Warm start ----------------------------------------------------------------------------------------

SHAPES = {
    "lora": {"method": "lora", "rank": 2, "alpha": 4, **HYPERPARAMETERS},
    "ptuning_v2": {"method": "ptuning_v2", "prefix_tokens": 3, **HYPERPARAMETERS},
    "full": {"method": "full", **HYPERPARAMETERS | {"learning_rate": 1e-4}},
}


def with_adapter(job: TrainJob, settings: dict, folder: Path) -> TrainJob:
    """Return the job with other settings of its adapter, outputs in a folder, and the warm start that they name."""
    content = job.params.model_dump(mode="json", by_alias=True)
    content["adapters"] = {"demo": settings}
    content["evaluate"]["models"] = {"base": None, "demo": settings}
    params = params_schema.Params.model_validate(content)
    start = find_warm_start("demo", params.adapters["demo"], job.base, StartFolders(folder / "none", folder / "none"))
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    paths = {name: folder / name for name in ("out", "log", "checkpoints")}
    return dataclasses.replace(job, params=params, start=start, **paths)


@pytest.mark.parametrize("method", SHAPES)
def test_training_starts_from_the_weights_of_another_adapter(job, tmp_path, method):
    first = with_adapter(job, SHAPES[method], tmp_path / "first")
    train_adapter(first)
    second = with_adapter(job, SHAPES[method] | {"start_from": str(first.out)}, tmp_path / "second")
    assert_close_to_saved(load_model(second), first.out)
    train_adapter(second)
    third = with_adapter(job, SHAPES[method] | {"start_from": str(second.out)}, tmp_path / "third")
    train_adapter(third)
    manifests = [read_verified_manifest(run.out) for run in (first, second, third)]
    assert manifests[0].started_from is None
    ancestors = [
        {"source": str(run.out), "weights_sha256": manifest.weights_sha256, "config_sha256": manifest.config_sha256}
        for run, manifest in zip((first, second), manifests, strict=False)
    ]
    assert manifests[1].started_from == ancestors[:1]
    assert manifests[2].started_from == ancestors[::-1]
    summary = training_summary(manifests[2])["started_from"]
    assert summary == " ← ".join(f"{entry['source']} ({entry['weights_sha256'][:8]})" for entry in ancestors[::-1])


def assert_close_to_saved(model, folder: Path) -> None:
    tensors = model.state_dict() if not hasattr(model, "peft_config") else adapters.adapter_state_dict(model)
    saved = load_file(folder / WEIGHTS)
    assert saved.keys() == tensors.keys()
    for name, values in saved.items():
        assert torch.equal(tensors[name].float(), values.float()), name


@pytest.mark.parametrize("method", SHAPES)
def test_resumed_warm_start_has_the_bytes_of_an_uninterrupted_one(job, tmp_path, monkeypatch, method):
    first = with_adapter(job, SHAPES[method], tmp_path / "first")
    train_adapter(first)
    settings = SHAPES[method] | {"start_from": str(first.out)}
    whole, broken = (with_adapter(job, settings, tmp_path / name) for name in ("whole", "broken"))
    train_adapter(whole)

    def fail_at_step_3(live, record):
        if record["step"] == 3:
            raise RuntimeError("killed")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr("stages.train.adapter_training.log_record", fail_at_step_3)
        train_adapter(broken)
    assert list(broken.checkpoints.glob("checkpoint-*/progress.json"))
    train_adapter(broken)
    assert (broken.out / WEIGHTS).read_bytes() == (whole.out / WEIGHTS).read_bytes()


def test_checkpoints_of_another_start_are_not_resumed(job, encoded, tmp_path):
    keys = {checkpoint_key("demo", job.params, job.base, receipt.read(encoded))}
    for number in range(2):
        manifest = dataclasses.replace(minimal_manifest(job.base), weights_sha256=str(number) * 64)
        start = WarmStart("champion", tmp_path, manifest)
        keys.add(checkpoint_key("demo", job.params, job.base, receipt.read(encoded), start))
    assert len(keys) == 3


OTHER_SHAPES = {
    "rank": (SHAPES["lora"] | {"rank": 4}, "whose rank is 2, but has rank 4"),
    "target_modules": (
        SHAPES["lora"] | {"target_modules": ["dense"]},
        r"whose target_modules is \['query_key_value'\], but has target_modules \['dense'\]",
    ),
    "method": (SHAPES["ptuning_v2"], "whose method is lora, but has method ptuning_v2"),
}


@pytest.mark.parametrize(("settings", "message"), OTHER_SHAPES.values(), ids=OTHER_SHAPES)
def test_start_from_an_adapter_of_another_shape_is_refused(job, tmp_path, settings, message):
    first = with_adapter(job, SHAPES["lora"], tmp_path / "first")
    train_adapter(first)
    with pytest.raises(UserError, match=message):
        with_adapter(job, settings | {"start_from": str(first.out)}, tmp_path / "second")
    dropout = SHAPES["lora"] | {"dropout": 0.5, "start_from": str(first.out)}
    assert with_adapter(job, dropout, tmp_path / "second").start is not None
    (first.out / WEIGHTS).write_bytes(b"damaged")
    with pytest.raises(UserError, match="is not the file that the manifest describes"):
        with_adapter(job, dropout, tmp_path / "second")


def test_missing_start_is_explained(job, tmp_path):
    for source, message in (
        ("champion", "run `python -m pipelines.start_from`"),
        ("v3.0.0", "run `python -m pipelines.start_from`"),
        ("models/nowhere", "names the folder models/nowhere, which does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            with_adapter(job, SHAPES["lora"] | {"start_from": source}, tmp_path / "second")
    with pytest.raises(ValueError, match="start_from and projection exclude each other"):
        with_adapter(job, ADAPTERS["ptuning_v2"] | {"start_from": "champion"}, tmp_path / "second")
