import json

import pytest

from models import base_model, base_verification, model_loading
from models.errors import UserError
from models.families.chatglm_6b import ChatGLM6BFamily
from models.storage import sha256_of, sha256_of_json


@pytest.mark.parametrize("name", ChatGLM6BFamily.foreign_files)
def test_foreign_files_beside_the_weights_are_rejected(base_copy, name):
    """transformers applies an adapter_config.json to the weights without a message."""
    (base_copy / name).write_text("{}")
    for read in (lambda: base_verification.verify_base(base_copy, "tiny"), lambda: base_model.read_record(base_copy)):
        with pytest.raises(UserError, match=rf"has {name} next to its weights"):
            read()


@pytest.mark.parametrize("other", ["pytorch_model.bin", "model.safetensors.index.json", "pytorch_model.bin.index.json"])
def test_two_sets_of_weights_are_rejected_by_their_names(base_copy, other):
    """An interrupted conversion between the formats leaves both."""
    (base_copy / other).write_text("{}")
    for read in (lambda: base_verification.verify_base(base_copy, "tiny"), lambda: base_model.read_record(base_copy)):
        with pytest.raises(UserError, match=rf"more than once: model\.safetensors and {other}"):
            read()


def test_large_weights_are_hashed_when_loaded_and_not_before(base_copy, monkeypatch):
    """read_record compares only the size of large files; load_model detects a changed byte."""
    hashed = []
    monkeypatch.setattr(base_model, "sha256_of", lambda path: hashed.append(path.name) or sha256_of(path))
    record = json.loads((base_copy / base_model.RECORD).read_text())
    path = base_copy / "model.safetensors"
    monkeypatch.setattr(base_model, "MAX_REHASHED_BYTES", path.stat().st_size - 1)
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    assert record["files"]["model.safetensors"]["size"] == path.stat().st_size
    base = base_model.read_record(base_copy)
    assert "model.safetensors" not in hashed
    with pytest.raises(UserError, match=r"model\.safetensors changed since"):
        model_loading.load_model(base, "float32")
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(UserError, match=r"model\.safetensors changed since"):
        base_model.read_record(base_copy)


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.update(identity="0" * 64),
        lambda record: record.update(extra=1),
        lambda record: record.update(folder=""),
        lambda record: record["files"].update({"../config.json": record["files"]["config.json"]}),
        lambda record: record["files"].pop("ice_text.model"),
        lambda record: record["files"].pop("model.safetensors"),
        lambda record: record["files"]["config.json"].update(size=-1),
        lambda record: record["files"]["config.json"].update(sha256="0" * 12),
    ],
)
def test_a_damaged_record_is_rejected(base_copy, change):
    record = json.loads((base_copy / base_model.RECORD).read_text())
    before = record["identity"]
    change(record)
    if record["identity"] == before:  # update the identity, as an attacker would
        hashes = {name: entry["sha256"] for name, entry in record["files"].items()}
        record["identity"] = sha256_of_json(hashes)
    (base_copy / base_model.RECORD).write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"base\.json"):
        base_model.read_record(base_copy)


def test_a_record_in_the_checkpoint_folder_can_move_with_it(base_copy, tmp_path):
    moved = base_copy.rename(tmp_path / "moved")
    assert base_model.read_record(moved).folder == moved


def test_a_record_in_another_folder_points_to_the_checkpoint(base_copy, tmp_path):
    base_model.write_record(base_verification.verify_base(base_copy, "mine"), tmp_path / "record")
    assert [path.name for path in (tmp_path / "record").iterdir()] == ["base.json"]
    assert base_model.read_record(tmp_path / "record").folder == base_copy


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p.unlink(),
        lambda p: p.write_bytes(p.read_bytes() + b" "),
        lambda p: p.write_bytes(p.read_bytes().swapcase()),  # same size
    ],
)
def test_read_record_rejects_a_missing_or_changed_file(base_copy, change):
    change(base_copy / "config.json")
    with pytest.raises(UserError, match=r"config\.json"):
        base_model.read_record(base_copy)
