import dataclasses
import subprocess

import pytest
import yaml
from safetensors.torch import load_file, save_file
from shared_data import ROOT, write_rows

from formats import params_schema, receipt
from models import adapter_files, base_model
from models.errors import DataBlocked, UserError
from models.manifest import WEIGHTS, read_verified_manifest
from models.prompt import IGNORED_LABEL, PROMPT_VERSION
from stages.train.__main__ import refuse_other_tokens
from stages.train.adapter_training import code_commit, make
from stages.train.train_job import TrainJob, check_memory, checkpoint_key, memory_spec, read_rows


@pytest.fixture
def encoded(base_folder, tmp_path):
    found = base_model.read_record(base_folder)
    for split in receipt.SPLITS:
        write_rows(tmp_path / f"{split}.jsonl", [{"id": "a", "prompt": [1, 2], "answer": [3]}])
    receipt.write(tmp_path, tokenizer_sha256=found.tokenizer_sha256, prompt_version=PROMPT_VERSION)
    return tmp_path


def test_rows_learn_the_answer_alone(encoded):
    labels = [IGNORED_LABEL, IGNORED_LABEL, 3]
    assert read_rows(receipt.read(encoded), "train") == [{"id": "a", "input_ids": [1, 2, 3], "labels": labels}]


def test_tokens_of_another_tokenizer_are_refused(encoded, base_folder):
    found = base_model.read_record(base_folder)
    refuse_other_tokens(receipt.read(encoded), found)
    files = found.files | {base_model.TOKENIZER: {"size": 1, "sha256": "0" * 64}}
    with pytest.raises(DataBlocked, match="another tokenizer"):
        refuse_other_tokens(receipt.read(encoded), dataclasses.replace(found, files=files))


def test_the_commit_of_the_code_and_whether_it_was_changed_since(tmp_path, monkeypatch):
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
    (tmp_path / "dvc.lock").write_text("what a retraining commits is no code")
    git("add", ".")
    git("commit", "-qm", "results")
    (tmp_path / "dvc.lock").write_text("nor is this a change of it")
    assert code_commit() == head
    (tmp_path / "models/a.py").write_text("2")
    assert code_commit() == f"{head}+"


# Making --------------------------------------------------------------------------------------------

FIT = {"learning_rate": 0.01, "epochs": 2, "batch_size": 4}
METHODS = {
    "lora": {"method": "lora", "rank": 2, "alpha": 4, "dora": True, **FIT},
    "ptuning_v2": {"method": "ptuning_v2", "prefix_tokens": 3, "projection": True, **FIT},
    "full": {"method": "full", **FIT | {"learning_rate": 1e-4}},
}


@pytest.fixture
def order(base_folder, tmp_path, request):
    """A training of the fixture's base by one of the methods."""
    content = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    content["adapters"] = {"one": METHODS[getattr(request, "param", "lora")]}
    content["evaluate"]["models"] = {"base": None, **content["adapters"]}
    rows = [
        {"id": f"row-{i}", "input_ids": [40 + i, 4, 5, 50 + i, 51] * 4, "labels": [*[-100] * 18, 50 + i, 51]}
        for i in range(10)
    ]
    found = base_model.read_record(base_folder)
    folders = (tmp_path / name for name in ("out", "log", "checkpoints"))
    return TrainJob("one", params_schema.Params.model_validate(content), found, rows[:8], rows[8:], "", 1.0, *folders)


@pytest.mark.parametrize("order", METHODS, indirect=True)
def test_every_method_is_made_from_its_entry_alone(order):
    order.checkpoints.mkdir()
    make(order)
    manifest = read_verified_manifest(order.out)
    assert manifest.method == order.adapter.method
    assert manifest.training["steps"] == 4
    assert manifest.training["kept_step"] <= 4
    assert manifest.training["device"].startswith("CPU")
    metrics = (order.log / "metrics.json").read_text()
    for name in ("learning_rate", "gradient_norm", "tokens_per_second", "padding", "memory_gib", "utilization"):
        assert name in metrics
    adapter_files.load_adapter(order.out, order.base)


def test_an_adapter_that_was_written_wrongly_is_not_kept(order, monkeypatch):
    usual = adapter_files._save_peft_adapter

    def spoil(model, folder, name):
        usual(model, folder, name)
        weights = load_file(folder / WEIGHTS)
        save_file({name: each + 0.5 for name, each in weights.items()}, folder / WEIGHTS)

    monkeypatch.setattr(adapter_files, "_save_peft_adapter", spoil)
    order.checkpoints.mkdir()
    with pytest.raises(UserError, match="does not answer as the one in memory: logits differ by"):
        make(order)
    assert not order.out.exists()


def test_a_training_that_changes_nothing_is_not_kept(order):
    still = order.adapter.model_copy(update={"learning_rate": 1e-30})
    knobs = order.knobs.model_copy(update={"adapters": {"one": still}})
    order.checkpoints.mkdir()
    with pytest.raises(UserError, match="changed nothing"):
        make(dataclasses.replace(order, knobs=knobs))
    assert not order.out.exists()


def test_what_does_not_fit_is_refused_before_anything_loads(order, monkeypatch, caplog):
    rows = (order.train_rows, [*order.eval_rows, {"input_ids": [1] * 31, "labels": [1] * 31}])
    wanted = memory_spec(order.adapter, order.knobs, order.base, *rows)
    assert (wanted.rows, wanted.length, wanted.labelled) == (4, 31, 4 * 31)
    huge = order.adapter.model_copy(update={"batch_size": 100_000})
    assert memory_spec(huge, order.knobs, order.base, *rows).rows == 11
    with caplog.at_level("INFO"):
        assert check_memory("one", wanted) > 0.6
    assert "planned memory on each device" in caplog.text
    monkeypatch.setattr("stages.train.train_job.free_memory", lambda: 1e6)
    with pytest.raises(UserError, match=r"adapters.one does not fit. It would take .* are free"):
        check_memory("one", wanted)


def test_the_key_of_checkpoints_changes_with_what_matters(order, encoded, monkeypatch):
    of_data = receipt.read(encoded)

    def key(batch_size: int = 4, **train) -> str:
        adapter = order.adapter.model_copy(update={"batch_size": batch_size})
        update = {"train": order.knobs.train.model_copy(update=train), "adapters": {"one": adapter}}
        return checkpoint_key("one", order.knobs.model_copy(update=update), order.base, of_data)

    alone = key()
    assert key(logs=3) == alone
    with monkeypatch.context() as patch:
        patch.setattr("models.provenance.code_sha256", lambda module: f"other code of {module}")
        assert key() != alone
    with monkeypatch.context() as patch:
        patch.setattr("models.provenance.library_versions", lambda: {"torch": "1.0"})
        assert key() != alone
    others = [{"seed": 7}, {"keep": "last"}, {"patience": 2}, {"precision": "fp8"}, {"strategy": "fsdp"}]
    assert len({alone, key(batch_size=8), *(key(**how) for how in others)}) == 7
    monkeypatch.setenv("WORLD_SIZE", "2")  # which takes twice the rows an update, unless it is told not to
    assert key(devices=2) == key(batch_size=4) != alone
    assert key(batch_size=2, devices=2) == alone
