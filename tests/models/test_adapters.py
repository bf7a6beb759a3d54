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
    found = base_model.read_record(base_folder)
    model = adapters.attach_adapter(model_loading.load_model(found, "float32"), "lora", **ADAPTER_SETTINGS["lora"])
    adapter_files.save_adapter(model, tmp_path / "lora", minimal_manifest(found))
    return tmp_path / "lora"


@pytest.mark.parametrize("kind", ADAPTER_SETTINGS)
def test_saved_and_loaded_it_gives_the_same_logits(kind, base_folder, tmp_path):
    found = base_model.read_record(base_folder)
    method = kind.split()[0]
    model = model_loading.load_model(found, "float32")
    bare = short_row_logits(model, model.config)
    torch.manual_seed(1)
    tuned = adapters.attach_adapter(model, method, **ADAPTER_SETTINGS[kind])
    trainable = [name for name, parameter in tuned.named_parameters() if parameter.requires_grad]
    assert trainable
    if method != "full":
        assert all("lora_" in name or "prompt_encoder" in name for name in trainable)
        assert adapters.count_parameters(tuned)[0] < 0.2 * adapters.count_parameters(tuned)[1]
    randomize_adapter(tuned)
    expected = short_row_logits(tuned.eval(), model.config)
    assert (expected - bare).abs().max() > 0.01
    adapter_files.save_adapter(tuned, tmp_path / "a", minimal_manifest(found, method))
    with adapter_files.reloaded_adapter(tuned, tmp_path / "a") as from_disk:
        torch.testing.assert_close(short_row_logits(from_disk.eval(), model.config), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(short_row_logits(tuned.eval(), model.config), expected, atol=0, rtol=0)
    again = adapter_files.load_adapter(tmp_path / "a", found)
    torch.testing.assert_close(short_row_logits(again, model.config), expected, atol=1e-6, rtol=0)
    assert not again.training


def test_scaling_early_is_what_peft_computes(base_folder):
    """Forward and backward, against peft's own layer."""
    from peft.tuners.lora.layer import Linear

    tuned = adapters.attach_adapter(
        model_loading.load_model(base_model.read_record(base_folder), "float32"), "lora", **ADAPTER_SETTINGS["lora"]
    )
    torch.manual_seed(1)
    randomize_adapter(tuned)
    layer = tuned.base_model.model.transformer.layers[0].attention.query_key_value
    states = torch.randn(3, 7, 32, requires_grad=True)
    weights = [states, layer.lora_A["default"].weight, layer.lora_B["default"].weight]
    results = []
    for kind in (type(layer), Linear):
        layer.__class__ = kind
        result = layer(states)
        results.append((result, *torch.autograd.grad(result.square().sum(), weights)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_what_fails_its_check_is_not_kept(base_folder, tmp_path):
    found = base_model.read_record(base_folder)
    model = adapters.attach_adapter(model_loading.load_model(found, "float32"), "lora", **ADAPTER_SETTINGS["lora"])

    def refuse(folder):
        assert (folder / WEIGHTS).is_file()
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        adapter_files.save_adapter(model, tmp_path / "lora", minimal_manifest(found), check=refuse)
    assert not list(tmp_path.iterdir())


def test_saving_and_loading_ask_no_network(base_folder, tmp_path, monkeypatch):
    import socket

    asked = []  # peft passes over a refusal in silence, so count the attempts

    def refuse(*args, **kwargs):
        asked.append(args)
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    found = base_model.read_record(base_folder)
    for method in ("lora", "ptuning_v2"):
        tuned = adapters.attach_adapter(model_loading.load_model(found, "float32"), method, **ADAPTER_SETTINGS[method])
        adapter_files.save_adapter(tuned, tmp_path / method, minimal_manifest(found, method))
        adapter_files.load_adapter(tmp_path / method, found)
    assert not asked


def test_an_adapter_names_its_base_and_no_path_of_this_machine(saved):
    assert json.loads((saved / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"
    assert str(saved.parent) not in (saved / MANIFEST).read_text()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("method", ["lora", "ptuning_v2"])
def test_on_a_quantized_base_it_trains(bits, method, base_folder):
    found = base_model.read_record(base_folder)
    model = model_loading.load_model(found, "float32", quantization=bits)
    tuned = adapters.attach_adapter(model, method, **ADAPTER_SETTINGS[method])
    ids = torch.tensor([[40, 41, model.config.gmask_token_id, model.config.bos_token_id, 50, 51]])
    labels = torch.where(torch.arange(6) > 3, ids, -100)
    optimizer = torch.optim.Adam([p for p in tuned.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = tuned(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize(
    ("field", "said"),
    [("base_identity", "base model"), ("tokenizer_sha256", "tokenizer"), ("prompt_version", "prompt version")],
)
def test_an_adapter_of_another_base_is_refused(saved, base_folder, field, said):
    found = base_model.read_record(base_folder)
    other = dataclasses.replace(read_verified_manifest(saved), **{field: "0" * 64})
    with pytest.raises(UserError, match=f"{said} .*train it again"):
        check_base_matches(other, found, saved)


def test_changed_weights_are_refused(saved):
    weights = saved / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + bytes([weights.read_bytes()[-1] ^ 1]))
    with pytest.raises(UserError, match="not the file that the manifest describes"):
        read_verified_manifest(saved)


@pytest.mark.parametrize("content", ["{", "{}", json.dumps({"format": 99})])
def test_a_damaged_manifest_is_one_sentence(saved, content):
    (saved / MANIFEST).write_text(content)
    with pytest.raises(UserError, match="manifest"):
        read_verified_manifest(saved)


# What the manifest vouches for ----------------------------------------------------------------------


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def fit_hashes(folder: Path) -> None:
    """Give the manifest the hashes of the files as they are now, as somebody would who edits an adapter."""
    hashes = {"weights_sha256": sha256_of(folder / WEIGHTS)}
    if (folder / CONFIG).is_file():
        hashes["config_sha256"] = sha256_of(folder / CONFIG)
    edit(folder / MANIFEST, **hashes)


def refuses(folder: Path, found: base_model.Base, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        adapter_files.load_adapter(folder, found)
    with pytest.raises(UserError, match=reason):
        adapter_files.load_merged(folder, found)


@pytest.fixture
def trained(base_folder, tmp_path) -> Path:
    """An adapter with the settings that stage train writes into its manifest."""
    found, settings = base_model.read_record(base_folder), ADAPTER_SETTINGS["lora everywhere"]
    model = adapters.attach_adapter(model_loading.load_model(found, "float32"), "lora", **settings)
    randomize_adapter(model)
    written = {"method": "lora", "dropout": 0.0, "rslora": False, "dora": False, "epochs": 2.0, **settings}
    adapter_files.save_adapter(model, tmp_path / "trained", dataclasses.replace(minimal_manifest(found), settings=written))
    return tmp_path / "trained"


def test_the_same_configuration_has_the_same_bytes(base_folder, tmp_path):
    found = base_model.read_record(base_folder)
    modules = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
    for number, targets in enumerate((modules, modules[::-1])):
        model = adapters.attach_adapter(
            model_loading.load_model(found, "float32"), "lora", rank=2, alpha=4, target_modules=targets
        )
        adapter_files.save_adapter(model, tmp_path / str(number), minimal_manifest(found))
    first, second = ((tmp_path / name / CONFIG).read_bytes() for name in "01")
    assert first == second
    content = json.loads(first)
    assert content["target_modules"] == sorted(modules)
    assert list(content) == sorted(content)


@pytest.mark.parametrize("changes", [{"lora_alpha": 16}, {"use_rslora": True}, {"target_modules": ["dense"]}, {"r": 8}])
def test_a_changed_configuration_is_refused(saved, base_folder, changes):
    edit(saved / CONFIG, **changes)
    with pytest.raises(UserError, match=r"adapter_config\.json is not the file that the manifest describes"):
        read_verified_manifest(saved)
    refuses(saved, base_model.read_record(base_folder), "is not the file that the manifest describes")


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
def test_a_changed_configuration_with_a_fitting_hash_is_refused(trained, base_folder, changes, reason):
    edit(trained / CONFIG, **changes)
    fit_hashes(trained)
    refuses(trained, base_model.read_record(base_folder), rf"adapter_config\.json.*{reason}")


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
def test_a_prefix_of_another_shape_is_refused(base_folder, tmp_path, changes, reason):
    found = base_model.read_record(base_folder)
    model = adapters.attach_adapter(model_loading.load_model(found, "float32"), "ptuning_v2", prefix_tokens=5)
    adapter_files.save_adapter(model, tmp_path / "a", minimal_manifest(found, "ptuning_v2"))
    edit(tmp_path / "a" / CONFIG, **changes)
    fit_hashes(tmp_path / "a")
    with pytest.raises(UserError, match=reason):
        adapter_files.load_adapter(tmp_path / "a", found)


WEIGHT_CHANGES = [
    (lambda w: w[min(w)].fill_(torch.nan), "contains NaN or inf"),
    (lambda w: w[max(w)].view(-1)[-1:].fill_(torch.inf), "contains NaN or inf"),
    (lambda w: w.clear(), "lacks"),
    (lambda w: w.pop(max(w)), "lacks"),
    (lambda w: w.update(more=torch.ones(2)), "holds an unknown more"),
    (lambda w: w.update({max(w): torch.ones(5)}), "has shape"),
    (lambda w: w.update({max(w): w[max(w)].double()}), "has type torch.float64"),
    (lambda w: w.update({name: value.to(torch.int8) for name, value in w.items()}), "has type I8"),
]


@pytest.mark.parametrize(("change", "reason"), WEIGHT_CHANGES)
@pytest.mark.parametrize("kind", ["lora", "ptuning_v2", "full"])
def test_weights_that_would_load_as_something_else_are_refused(base_folder, tmp_path, kind, change, reason):
    found = base_model.read_record(base_folder)
    model = adapters.attach_adapter(model_loading.load_model(found, "float32"), kind, **ADAPTER_SETTINGS[kind])
    randomize_adapter(model)
    adapter_files.save_adapter(model, tmp_path / "a", minimal_manifest(found, kind))
    weights = load_file(tmp_path / "a" / WEIGHTS)
    change(weights)
    save_file(weights, tmp_path / "a" / WEIGHTS)
    fit_hashes(tmp_path / "a")
    with pytest.raises(UserError, match=reason):
        adapter_files.load_adapter(tmp_path / "a", found)


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
def test_a_manifest_with_an_unknown_value_is_refused(saved, base_folder, changes):
    edit(saved / MANIFEST, **changes)
    with pytest.raises(UserError):
        read_verified_manifest(saved)
    refuses(saved, base_model.read_record(base_folder), r"\.")


def test_a_rank_that_the_weights_do_not_have_is_refused_before_it_takes_memory(saved, base_folder, monkeypatch):
    edit(saved / CONFIG, r=60_000)
    fit_hashes(saved)  # and no settings to compare with
    monkeypatch.setattr(adapter_files, "load_model", lambda *_: pytest.fail("the base was loaded"))
    refuses(saved, base_model.read_record(base_folder), "r 60000, but adapter_model.safetensors has 4")


def test_a_manifest_without_a_field_is_refused(saved):
    content = json.loads((saved / MANIFEST).read_text())
    for key in content:
        (saved / MANIFEST).write_text(json.dumps({name: content[name] for name in content if name != key}))
        with pytest.raises(UserError, match="manifest"):
            read_verified_manifest(saved)


def as_format_1(folder: Path, **changes) -> None:
    """Make the manifest one of those that were written before the configuration was hashed."""
    content = json.loads((folder / MANIFEST).read_text()) | {"format": 1} | changes
    del content["config_sha256"]
    (folder / MANIFEST).write_text(json.dumps(content))


def test_a_manifest_of_format_1_loads_if_its_settings_say_what_the_configuration_says(trained, base_folder):
    found = base_model.read_record(base_folder)
    before = adapter_files.load_adapter(trained, found)
    as_format_1(trained)
    edit(trained / CONFIG, target_modules=["dense_h_to_4h", "dense", "dense_4h_to_h"])  # in another order
    after = adapter_files.load_adapter(trained, found)
    assert torch.equal(short_row_logits(after, after.config), short_row_logits(before, before.config))
    assert read_verified_manifest(trained).config_sha256 == ""
    edit(trained / CONFIG, lora_alpha=8)
    refuses(trained, found, "alpha 8.*but manifest.json says 4")


def test_a_manifest_of_format_1_that_says_nothing_of_the_configuration_is_refused(saved, base_folder):
    as_format_1(saved)
    refuses(
        saved, base_model.read_record(base_folder), "format 1 and no method under settings.*train the adapter again"
    )


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
@pytest.mark.parametrize("kind", ["lora", "ptuning_v2", "full"])
def test_a_file_that_is_swapped_between_check_and_load_is_refused(base_folder, tmp_path, monkeypatch, kind, name):
    found, folder = base_model.read_record(base_folder), tmp_path / "a"
    model = adapters.attach_adapter(model_loading.load_model(found, "float32"), kind, **ADAPTER_SETTINGS[kind])
    adapter_files.save_adapter(model, folder, minimal_manifest(found, kind))
    if not (folder / name).is_file():
        return
    usual = check_base_matches

    def check_and_swap(*arguments):
        usual(*arguments)
        content = (folder / name).read_bytes()
        flipped = content[:-1] + bytes([content[-1] ^ 1])
        (folder / "other").write_bytes(content.replace(b"true", b"null") if name == CONFIG else flipped)
        (folder / "other").replace(folder / name)

    read_verified_manifest(folder)
    monkeypatch.setattr(adapter_files, "check_base_matches", check_and_swap)
    with pytest.raises(UserError, match="is not the file that the manifest describes"):
        adapter_files.load_adapter(folder, found)


@pytest.mark.parametrize("load", [adapter_files.load_adapter, adapter_files.load_merged])
def test_an_adapter_swapped_with_its_manifest_is_not_the_one_that_was_read(base_folder, tmp_path, load):
    """Figures name the hashes of the manifest that was read first."""
    found = base_model.read_record(base_folder)
    for _ in range(2):
        model = adapters.attach_adapter(model_loading.load_model(found, "float32"), "lora", **ADAPTER_SETTINGS["lora"])
        randomize_adapter(model)
        manifest = read_verified_manifest(tmp_path / "a") if (tmp_path / "a").exists() else None
        adapter_files.save_adapter(model, tmp_path / "a", minimal_manifest(found))
    with pytest.raises(UserError, match="is not the file that the manifest describes"):
        load(tmp_path / "a", found, manifest=manifest)
    load(tmp_path / "a", found)


def test_all_weights_are_not_loaded_in_few_bits(base_folder, tmp_path):
    found = base_model.read_record(base_folder)
    model = adapters.attach_adapter(model_loading.load_model(found, "float32"), "full")
    adapter_files.save_adapter(model, tmp_path / "a", minimal_manifest(found, "full"))
    with pytest.raises(UserError, match="do not load in 8 bits"):
        adapter_files.load_adapter(tmp_path / "a", found, quantization=8)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_base_is_loaded_in_the_type_asked_for(base_folder, tmp_path, kind):
    found = base_model.read_record(base_folder)
    model = adapters.attach_adapter(model_loading.load_model(found, "float32"), kind, **ADAPTER_SETTINGS[kind])
    adapter_files.save_adapter(model, tmp_path / "a", minimal_manifest(found, kind))
    for asked, dtype in ((None, torch.float32), ("bfloat16", torch.bfloat16)):
        loaded = adapters.get_base_model(adapter_files.load_adapter(tmp_path / "a", found, dtype=asked))
        assert loaded.get_parameter("lm_head.weight").dtype == dtype


def test_identities_are_compared_to_their_last_character(saved, base_folder):
    found = base_model.read_record(base_folder)
    similar = found.identity[:-1] + ("0" if found.identity[-1] != "0" else "1")
    edit(saved / MANIFEST, base_identity=similar)
    refuses(saved, found, "with base model")


def test_no_adapter_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="no adapter"):
        read_verified_manifest(tmp_path)


def test_a_target_that_does_not_exist(base_folder):
    model = model_loading.load_model(base_model.read_record(base_folder), "float32")
    with pytest.raises(UserError, match="cannot be attached"):
        adapters.attach_adapter(model, "lora", rank=2, alpha=2, target_modules=["q_proj"])


def test_an_interrupted_save_leaves_the_old_adapter(saved, base_folder, monkeypatch):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    found = base_model.read_record(base_folder)
    tuned = adapters.attach_adapter(model_loading.load_model(found, "float32"), "lora", **ADAPTER_SETTINGS["lora"])
    monkeypatch.setattr(adapter_files, "write_json", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        adapter_files.save_adapter(tuned, saved, minimal_manifest(found))
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]
