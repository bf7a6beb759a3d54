import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from shared_data import ADAPTER_SETTINGS, minimal_manifest, randomize_adapter, short_row_logits

from models import adapter_files, adapters, base_model, model_loading
from models.errors import UserError
from models.manifest import CONFIG, MANIFEST, WEIGHTS, check_base_matches, read_verified_manifest
from models.storage import sha256_of


@pytest.fixture
def saved(base_folder, tmp_path):
    base = base_model.read_record(base_folder)
    model = adapters.attach_adapter(model_loading.load_model(base, "float32"), "lora", **ADAPTER_SETTINGS["lora"])
    adapter_files.save_adapter(model, tmp_path / "lora", minimal_manifest(base))
    return tmp_path / "lora"


@pytest.mark.parametrize("kind", ADAPTER_SETTINGS)
def test_a_saved_and_loaded_adapter_gives_the_same_logits(kind, base_folder, tmp_path):
    base = base_model.read_record(base_folder)
    method = kind.split()[0]
    model = model_loading.load_model(base, "float32")
    bare = short_row_logits(model, model.config)
    torch.manual_seed(1)
    adapted = adapters.attach_adapter(model, method, **ADAPTER_SETTINGS[kind])
    trainable = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert trainable
    if method != "full":
        assert all("lora_" in name or "prompt_encoder" in name for name in trainable)
        assert adapters.count_parameters(adapted)[0] < 0.2 * adapters.count_parameters(adapted)[1]
    randomize_adapter(adapted)
    expected = short_row_logits(adapted.eval(), model.config)
    assert (expected - bare).abs().max() > 0.01
    adapter_files.save_adapter(adapted, tmp_path / "a", minimal_manifest(base, method))
    with adapter_files.reloaded_adapter(adapted, tmp_path / "a") as from_disk:
        torch.testing.assert_close(short_row_logits(from_disk.eval(), model.config), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(short_row_logits(adapted.eval(), model.config), expected, atol=0, rtol=0)
    again = adapter_files.load_adapter(tmp_path / "a", base)
    torch.testing.assert_close(short_row_logits(again, model.config), expected, atol=1e-6, rtol=0)
    assert not again.training


def test_an_adapter_that_fails_its_check_is_not_saved(base_folder, tmp_path):
    base = base_model.read_record(base_folder)
    model = adapters.attach_adapter(model_loading.load_model(base, "float32"), "lora", **ADAPTER_SETTINGS["lora"])

    def fail(folder):
        assert (folder / WEIGHTS).is_file()
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        adapter_files.save_adapter(model, tmp_path / "lora", minimal_manifest(base), check=fail)
    assert not list(tmp_path.iterdir())


def test_saving_and_loading_use_no_network(base_folder, tmp_path, monkeypatch):
    import socket

    attempts = []  # counted, because peft ignores network errors

    def fail(*args, **kwargs):
        attempts.append(args)
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setattr(socket.socket, "connect", fail)
    base = base_model.read_record(base_folder)
    for method in ("lora", "ptuning_v2"):
        adapted = adapters.attach_adapter(model_loading.load_model(base, "float32"), method, **ADAPTER_SETTINGS[method])
        adapter_files.save_adapter(adapted, tmp_path / method, minimal_manifest(base, method))
        adapter_files.load_adapter(tmp_path / method, base)
    assert not attempts


def test_a_saved_adapter_names_its_base_without_local_paths(saved):
    assert json.loads((saved / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"
    assert str(saved.parent) not in (saved / MANIFEST).read_text()


@pytest.mark.parametrize(
    ("field", "noun"),
    [("base_identity", "base model"), ("tokenizer_sha256", "tokenizer"), ("prompt_version", "prompt version")],
)
def test_an_adapter_of_another_base_is_rejected(saved, base_folder, field, noun):
    base = base_model.read_record(base_folder)
    other = dataclasses.replace(read_verified_manifest(saved), **{field: "0" * 64})
    with pytest.raises(UserError, match=f"{noun} .*train it again"):
        check_base_matches(other, base, saved)


def test_changed_weights_are_rejected(saved):
    weights = saved / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + bytes([weights.read_bytes()[-1] ^ 1]))
    with pytest.raises(UserError, match="not the file that the manifest describes"):
        read_verified_manifest(saved)


@pytest.mark.parametrize("content", ["{", "{}", json.dumps({"format": 99})])
def test_a_damaged_manifest_is_rejected(saved, content):
    (saved / MANIFEST).write_text(content)
    with pytest.raises(UserError, match="manifest"):
        read_verified_manifest(saved)


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def update_hashes(folder: Path) -> None:
    """Update the hashes in the manifest after the files were changed, as an attacker would."""
    hashes = {"weights_sha256": sha256_of(folder / WEIGHTS)}
    if (folder / CONFIG).is_file():
        hashes["config_sha256"] = sha256_of(folder / CONFIG)
    edit(folder / MANIFEST, **hashes)


def assert_rejected(folder: Path, base: base_model.Base, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        adapter_files.load_adapter(folder, base)
    with pytest.raises(UserError, match=reason):
        adapter_files.load_merged(folder, base)


@pytest.fixture
def trained(base_folder, tmp_path) -> Path:
    """Folder of an adapter whose manifest has the settings that stage train writes."""
    base, settings = base_model.read_record(base_folder), ADAPTER_SETTINGS["lora everywhere"]
    model = adapters.attach_adapter(model_loading.load_model(base, "float32"), "lora", **settings)
    randomize_adapter(model)
    manifest_settings = {"method": "lora", "dropout": 0.0, "rslora": False, "dora": False, "epochs": 2.0, **settings}
    adapter_files.save_adapter(
        model, tmp_path / "trained", dataclasses.replace(minimal_manifest(base), settings=manifest_settings)
    )
    return tmp_path / "trained"


def test_equal_configurations_have_equal_bytes(base_folder, tmp_path):
    base = base_model.read_record(base_folder)
    modules = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
    for number, targets in enumerate((modules, modules[::-1])):
        model = adapters.attach_adapter(
            model_loading.load_model(base, "float32"), "lora", rank=2, alpha=4, target_modules=targets
        )
        adapter_files.save_adapter(model, tmp_path / str(number), minimal_manifest(base))
    first, second = ((tmp_path / name / CONFIG).read_bytes() for name in "01")
    assert first == second
    content = json.loads(first)
    assert content["target_modules"] == sorted(modules)
    assert list(content) == sorted(content)


@pytest.mark.parametrize("changes", [{"lora_alpha": 16}, {"use_rslora": True}, {"target_modules": ["dense"]}, {"r": 8}])
def test_a_changed_configuration_is_rejected(saved, base_folder, changes):
    edit(saved / CONFIG, **changes)
    with pytest.raises(UserError, match=r"adapter_config\.json is not the file that the manifest describes"):
        read_verified_manifest(saved)
    assert_rejected(saved, base_model.read_record(base_folder), "is not the file that the manifest describes")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"lora_alpha": 16}, "alpha 16"),
        ({"use_rslora": True}, "rslora True"),
        ({"use_dora": True}, "dora True"),
        ({"lora_dropout": 0.5}, "dropout 0.5"),
        ({"target_modules": ["dense"]}, r"target_modules \['dense'\]"),
        ({"layers_to_transform": [0]}, "layers_to_transform is not known"),
        ({"layers_pattern": "layers"}, "layers_pattern is not known"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"init_lora_weights": False}, "init_lora_weights"),
        ({"rank_pattern": {"dense": 1}}, "rank_pattern is not known"),
        ({"alpha_pattern": {"dense": 99}}, "alpha_pattern is not known"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is not known"),
        ({"target_parameters": ["weight"]}, "target_parameters is not known"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices is not known"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is not known"),
        ({"auto_mapping": {"parent_library": "os"}}, "auto_mapping is not known"),
        ({"megatron_config": {"a": 1}}, "megatron_config is not known"),
        ({"use_qalora": True}, "use_qalora is not known"),
        ({"bias": "all"}, "bias"),
        ({"target_modules": ".*"}, "target_modules"),
        ({"target_modules": ["lm_head"]}, "target_modules"),
        ({"target_modules": []}, "target_modules"),
        ({"peft_type": "IA3"}, "peft_type"),
        ({"peft_type": "PREFIX_TUNING"}, "peft_type"),
        ({"task_type": "SEQ_CLS"}, "task_type"),
        ({"r": 0}, "r: "),
        ({"r": 10**9}, "r: "),
        ({"r": 1000}, "rank 1000"),
        ({"lora_alpha": -4}, "lora_alpha"),
        ({"lora_alpha": "4"}, "lora_alpha"),
        ({"lora_dropout": 1.0}, "lora_dropout"),
        ({"use_rslora": 1}, "use_rslora"),
    ],
)
def test_a_changed_configuration_with_an_updated_hash_is_rejected(trained, base_folder, changes, reason):
    edit(trained / CONFIG, **changes)
    update_hashes(trained)
    assert_rejected(trained, base_model.read_record(base_folder), rf"adapter_config\.json.*{reason}")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"token_dim": 64}, "token_dim 64, but the base has 32"),
        ({"num_layers": 1}, "num_layers 1, but the base has 2"),
        ({"num_attention_heads": 4}, "num_attention_heads 4"),
        ({"encoder_hidden_size": 16}, "encoder_hidden_size 16"),
        ({"num_virtual_tokens": 6}, "num_virtual_tokens 6, but adapter_model.safetensors has 5"),
        ({"num_virtual_tokens": 10**9}, "num_virtual_tokens"),
        ({"num_transformer_submodules": 2}, "num_transformer_submodules"),
    ],
)
def test_a_prefix_of_other_dimensions_is_rejected(base_folder, tmp_path, changes, reason):
    base = base_model.read_record(base_folder)
    model = adapters.attach_adapter(model_loading.load_model(base, "float32"), "ptuning_v2", prefix_tokens=5)
    adapter_files.save_adapter(model, tmp_path / "a", minimal_manifest(base, "ptuning_v2"))
    edit(tmp_path / "a" / CONFIG, **changes)
    update_hashes(tmp_path / "a")
    with pytest.raises(UserError, match=reason):
        adapter_files.load_adapter(tmp_path / "a", base)


WEIGHT_CHANGES = [
    (lambda w: w[min(w)].fill_(torch.nan), "contains NaN or inf"),
    (lambda w: w[max(w)].view(-1)[-1:].fill_(torch.inf), "contains NaN or inf"),
    (lambda w: w.clear(), "lacks"),
    (lambda w: w.pop(max(w)), "lacks"),
    (lambda w: w.update(more=torch.ones(2)), "holds an unknown more"),
    (lambda w: w.update({max(w): torch.ones(5)}), "has shape"),
    (lambda w: w.update({max(w): w[max(w)].double()}), "has type torch.float64"),
    (lambda w: w.update({name: value.to(torch.int8) for name, value in w.items()}), "has type torch.int8"),
]


@pytest.mark.parametrize(("change", "reason"), WEIGHT_CHANGES)
@pytest.mark.parametrize("kind", ["lora", "ptuning_v2", "full"])
def test_missing_unknown_and_invalid_weights_are_rejected(base_folder, tmp_path, kind, change, reason):
    base = base_model.read_record(base_folder)
    model = adapters.attach_adapter(model_loading.load_model(base, "float32"), kind, **ADAPTER_SETTINGS[kind])
    randomize_adapter(model)
    adapter_files.save_adapter(model, tmp_path / "a", minimal_manifest(base, kind))
    weights = load_file(tmp_path / "a" / WEIGHTS)
    change(weights)
    save_file(weights, tmp_path / "a" / WEIGHTS)
    update_hashes(tmp_path / "a")
    with pytest.raises(UserError, match=reason):
        adapter_files.load_adapter(tmp_path / "a", base)


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 3},
        {"format": "2"},
        {"format": None},
        {"method": "qlora"},
        {"method": "ptuning_v2"},
        {"dtype": "int8"},
        {"quantization": 2},
        {"quantization": "4"},
        {"base_identity": "0" * 12},
        {"base_identity": "x" * 64},
        {"tokenizer_sha256": ""},
        {"receipt_sha256": "abc"},
        {"code_commit": "main"},
        {"name": "../lora"},
        {"name": ""},
        {"settings": {"rank": {"a": 1}}},
        {"settings": []},
        {"training": []},
        {"weights_sha256": ""},
        {"config_sha256": ""},
        {"surprise": 1},
        {"prompt_version": 1},
    ],
)
def test_a_manifest_with_an_invalid_value_is_rejected(saved, base_folder, changes):
    edit(saved / MANIFEST, **changes)
    with pytest.raises(UserError):
        read_verified_manifest(saved)
    assert_rejected(saved, base_model.read_record(base_folder), r"\.")


def test_a_wrong_rank_is_rejected_before_layers_are_allocated(saved, base_folder, monkeypatch):
    edit(saved / CONFIG, r=60_000)
    update_hashes(saved)  # the manifest has no settings to compare with
    monkeypatch.setattr(adapter_files, "load_model", lambda *_: pytest.fail("the base was loaded"))
    assert_rejected(saved, base_model.read_record(base_folder), "r 60000, but adapter_model.safetensors has 4")


def test_a_manifest_without_a_field_is_rejected(saved):
    content = json.loads((saved / MANIFEST).read_text())
    for key in content:
        (saved / MANIFEST).write_text(json.dumps({name: content[name] for name in content if name != key}))
        with pytest.raises(UserError, match="manifest"):
            read_verified_manifest(saved)


def as_format_1(folder: Path, **changes) -> None:
    """Convert a manifest to format 1, which has no hash of the configuration."""
    content = json.loads((folder / MANIFEST).read_text()) | {"format": 1} | changes
    del content["config_sha256"]
    (folder / MANIFEST).write_text(json.dumps(content))


def test_a_manifest_of_format_1_loads_if_its_settings_match_the_configuration(trained, base_folder):
    base = base_model.read_record(base_folder)
    before = adapter_files.load_adapter(trained, base)
    as_format_1(trained)
    edit(trained / CONFIG, target_modules=["dense_h_to_4h", "dense", "dense_4h_to_h"])  # order differs
    after = adapter_files.load_adapter(trained, base)
    assert torch.equal(short_row_logits(after, after.config), short_row_logits(before, before.config))
    assert read_verified_manifest(trained).config_sha256 == ""
    edit(trained / CONFIG, lora_alpha=8)
    assert_rejected(trained, base, "alpha 8.*but manifest.json has 4")


def test_a_manifest_of_format_1_without_settings_is_rejected(saved, base_folder):
    as_format_1(saved)
    assert_rejected(
        saved, base_model.read_record(base_folder), "format 1 and no method under settings.*train the adapter again"
    )


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
@pytest.mark.parametrize("kind", ["lora", "ptuning_v2", "full"])
def test_a_file_replaced_between_check_and_load_is_rejected(base_folder, tmp_path, monkeypatch, kind, name):
    base, folder = base_model.read_record(base_folder), tmp_path / "a"
    model = adapters.attach_adapter(model_loading.load_model(base, "float32"), kind, **ADAPTER_SETTINGS[kind])
    adapter_files.save_adapter(model, folder, minimal_manifest(base, kind))
    if not (folder / name).is_file():
        return
    original = check_base_matches

    def check_and_replace(*arguments):
        original(*arguments)
        content = (folder / name).read_bytes()
        flipped = content[:-1] + bytes([content[-1] ^ 1])
        (folder / "other").write_bytes(content.replace(b"true", b"null") if name == CONFIG else flipped)
        (folder / "other").replace(folder / name)

    read_verified_manifest(folder)
    monkeypatch.setattr(adapter_files, "check_base_matches", check_and_replace)
    with pytest.raises(UserError, match="is not the file that the manifest describes"):
        adapter_files.load_adapter(folder, base)


@pytest.mark.parametrize("load", [adapter_files.load_adapter, adapter_files.load_merged])
def test_an_adapter_replaced_with_its_manifest_is_rejected(base_folder, tmp_path, load):
    """Evaluation results hold the hashes of the manifest that was read first."""
    base = base_model.read_record(base_folder)
    for _ in range(2):
        model = adapters.attach_adapter(model_loading.load_model(base, "float32"), "lora", **ADAPTER_SETTINGS["lora"])
        randomize_adapter(model)
        manifest = read_verified_manifest(tmp_path / "a") if (tmp_path / "a").exists() else None
        adapter_files.save_adapter(model, tmp_path / "a", minimal_manifest(base))
    with pytest.raises(UserError, match="is not the file that the manifest describes"):
        load(tmp_path / "a", base, manifest=manifest)
    load(tmp_path / "a", base)


def test_a_fully_trained_model_does_not_load_quantized(base_folder, tmp_path):
    base = base_model.read_record(base_folder)
    model = adapters.attach_adapter(model_loading.load_model(base, "float32"), "full")
    adapter_files.save_adapter(model, tmp_path / "a", minimal_manifest(base, "full"))
    with pytest.raises(UserError, match="do not load in 8 bits"):
        adapter_files.load_adapter(tmp_path / "a", base, quantization=8)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_dtype_overrides_that_of_the_training(base_folder, tmp_path, kind):
    base = base_model.read_record(base_folder)
    model = adapters.attach_adapter(model_loading.load_model(base, "float32"), kind, **ADAPTER_SETTINGS[kind])
    adapter_files.save_adapter(model, tmp_path / "a", minimal_manifest(base, kind))
    for override, dtype in ((None, torch.float32), ("bfloat16", torch.bfloat16)):
        loaded = adapters.get_base_model(adapter_files.load_adapter(tmp_path / "a", base, dtype=override))
        assert loaded.get_parameter("lm_head.weight").dtype == dtype


def test_identities_are_compared_in_full_length(saved, base_folder):
    base = base_model.read_record(base_folder)
    similar = base.identity[:-1] + ("0" if base.identity[-1] != "0" else "1")
    edit(saved / MANIFEST, base_identity=similar)
    assert_rejected(saved, base, "with base model")


def test_a_folder_without_adapter_is_rejected(tmp_path):
    with pytest.raises(UserError, match="no adapter"):
        read_verified_manifest(tmp_path)


def test_a_failed_save_keeps_the_old_adapter(saved, base_folder, monkeypatch):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    base = base_model.read_record(base_folder)
    adapted = adapters.attach_adapter(model_loading.load_model(base, "float32"), "lora", **ADAPTER_SETTINGS["lora"])
    monkeypatch.setattr(adapter_files, "write_json", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        adapter_files.save_adapter(adapted, saved, minimal_manifest(base))
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]
