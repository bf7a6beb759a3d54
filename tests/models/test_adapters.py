import dataclasses
import json

import pytest
import torch
from given import SETTINGS, logits, manifest_of, shake

from models import adapters, base
from models.errors import UserError


@pytest.fixture
def saved(base_folder, tmp_path):
    found = base.read_record(base_folder)
    model = adapters.attach(base.load_model(found, "float32"), "lora", **SETTINGS["lora"])
    adapters.save(model, tmp_path / "lora", manifest_of(found))
    return tmp_path / "lora"


@pytest.mark.parametrize("kind", SETTINGS)
def test_saved_and_loaded_it_gives_the_same_logits(kind, base_folder, tmp_path):
    found = base.read_record(base_folder)
    method = kind.split()[0]
    model = base.load_model(found, "float32")
    bare = logits(model, model.config)
    torch.manual_seed(1)
    tuned = adapters.attach(model, method, **SETTINGS[kind])
    trainable = [name for name, parameter in tuned.named_parameters() if parameter.requires_grad]
    assert trainable
    if method != "full":
        assert all("lora_" in name or "prompt_encoder" in name for name in trainable)
        assert adapters.parameters(tuned)[0] < 0.2 * adapters.parameters(tuned)[1]
    shake(tuned)
    expected = logits(tuned.eval(), model.config)
    assert (expected - bare).abs().max() > 0.01
    adapters.save(tuned, tmp_path / "a", manifest_of(found, method))
    with adapters.reloaded(tuned, tmp_path / "a") as from_disk:
        torch.testing.assert_close(logits(from_disk.eval(), model.config), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(logits(tuned.eval(), model.config), expected, atol=0, rtol=0)
    again = adapters.load(tmp_path / "a", found)
    torch.testing.assert_close(logits(again, model.config), expected, atol=1e-6, rtol=0)
    assert not again.training


def test_scaling_early_is_what_peft_computes(base_folder):
    """Forward and backward, against peft's own layer."""
    from peft.tuners.lora.layer import Linear

    tuned = adapters.attach(base.load_model(base.read_record(base_folder), "float32"), "lora", **SETTINGS["lora"])
    torch.manual_seed(1)
    shake(tuned)
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
    found = base.read_record(base_folder)
    model = adapters.attach(base.load_model(found, "float32"), "lora", **SETTINGS["lora"])

    def refuse(folder):
        assert (folder / adapters.WEIGHTS).is_file()
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        adapters.save(model, tmp_path / "lora", manifest_of(found), check=refuse)
    assert not list(tmp_path.iterdir())


def test_saving_and_loading_ask_no_network(base_folder, tmp_path, monkeypatch):
    import socket

    asked = []  # peft passes over a refusal in silence, so count the attempts

    def refuse(*args, **kwargs):
        asked.append(args)
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    found = base.read_record(base_folder)
    for method in ("lora", "ptuning_v2"):
        tuned = adapters.attach(base.load_model(found, "float32"), method, **SETTINGS[method])
        adapters.save(tuned, tmp_path / method, manifest_of(found, method))
        adapters.load(tmp_path / method, found)
    assert not asked


def test_an_adapter_names_its_base_and_no_path_of_this_machine(saved):
    assert json.loads((saved / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"
    assert str(saved.parent) not in (saved / adapters.MANIFEST).read_text()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("method", ["lora", "ptuning_v2"])
def test_on_a_quantized_base_it_trains(bits, method, base_folder):
    found = base.read_record(base_folder)
    model = base.load_model(found, "float32", quantization=bits)
    tuned = adapters.attach(model, method, **SETTINGS[method])
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
    found = base.read_record(base_folder)
    other = dataclasses.replace(adapters.read_manifest(saved), **{field: "0" * 64})
    with pytest.raises(UserError, match=f"{said} .*train it again"):
        adapters.check(other, found, saved)


def test_changed_weights_are_refused(saved):
    weights = saved / adapters.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + bytes([weights.read_bytes()[-1] ^ 1]))
    with pytest.raises(UserError, match="not the file that the manifest describes"):
        adapters.read_manifest(saved)


@pytest.mark.parametrize("content", ["{", "{}", json.dumps({"format": 99})])
def test_a_damaged_manifest_is_one_sentence(saved, content):
    (saved / adapters.MANIFEST).write_text(content)
    with pytest.raises(UserError, match="manifest"):
        adapters.read_manifest(saved)


def test_no_adapter_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="no adapter"):
        adapters.read_manifest(tmp_path)


def test_a_target_that_does_not_exist(base_folder):
    model = base.load_model(base.read_record(base_folder), "float32")
    with pytest.raises(UserError, match="cannot be attached"):
        adapters.attach(model, "lora", rank=2, alpha=2, target_modules=["q_proj"])


def test_an_interrupted_save_leaves_the_old_adapter(saved, base_folder, monkeypatch):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    found = base.read_record(base_folder)
    tuned = adapters.attach(base.load_model(found, "float32"), "lora", **SETTINGS["lora"])
    monkeypatch.setattr(adapters, "write_json", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        adapters.save(tuned, saved, manifest_of(found))
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]
