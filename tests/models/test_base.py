import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from models import base
from models.errors import UserError


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_whole_folder_is_verified_and_hashed(base_folder):
    found = base.verify(base_folder, "tiny")
    assert set(found.files) == {"config.json", "ice_text.model", "tokenizer_config.json", "model.safetensors"}
    assert found.identity == base.verify(base_folder, "other name").identity


def test_the_identity_changes_with_every_file(base_copy):
    identities = {base.verify(base_copy, "tiny").identity}
    weights = load_file(base_copy / "model.safetensors")
    weights["lm_head.weight"][0, 0] += 1
    save_file(weights, base_copy / "model.safetensors", metadata={"format": "pt"})
    identities.add(base.verify(base_copy, "tiny").identity)
    edit(base_copy / "config.json", layernorm_epsilon=1e-6)
    identities.add(base.verify(base_copy, "tiny").identity)
    assert len(identities) == 3


@pytest.mark.parametrize("file", ["config.json", "ice_text.model", "tokenizer_config.json"])
def test_a_missing_file_is_named(base_copy, file):
    (base_copy / file).unlink()
    with pytest.raises(UserError, match=file.replace(".", r"\.")):
        base.verify(base_copy, "tiny")


def test_missing_weights_are_named(base_copy):
    (base_copy / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"pytorch_model\.bin\.index\.json"):
        base.verify(base_copy, "tiny")


def test_missing_shards_are_named(base_copy):
    (base_copy / "model.safetensors").unlink()
    index = {"weight_map": {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}}
    (base_copy / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    torch.save({"a": torch.ones(1)}, base_copy / "pytorch_model-00001-of-00002.bin")
    with pytest.raises(UserError, match=r"missing: pytorch_model-00002-of-00002\.bin"):
        base.verify(base_copy, "tiny")


@pytest.mark.parametrize("keep", [0, 7, 4000, -1])
def test_a_half_downloaded_safetensors_file(base_copy, keep):
    content = (base_copy / "model.safetensors").read_bytes()
    (base_copy / "model.safetensors").write_bytes(content[:keep])
    with pytest.raises(UserError, match="half-downloaded"):
        base.verify(base_copy, "tiny")


def test_a_half_downloaded_bin_file(base_copy):
    torch.save(load_file(base_copy / "model.safetensors"), base_copy / "pytorch_model.bin")
    (base_copy / "model.safetensors").unlink()
    assert "pytorch_model.bin" in base.verify(base_copy, "tiny").files
    content = (base_copy / "pytorch_model.bin").read_bytes()
    (base_copy / "pytorch_model.bin").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="half-downloaded"):
        base.verify(base_copy, "tiny")


@pytest.mark.parametrize("index", ['{"weight_map": ["a"]}', '{"weight_map": {}}', '{"weight_map": {"a": 1}}', "[]"])
def test_an_index_of_another_shape(base_copy, index):
    (base_copy / "pytorch_model.bin.index.json").write_text(index)
    (base_copy / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"index\.json|missing: 1"):
        base.verify(base_copy, "tiny")


@pytest.mark.parametrize("header", [b"[]", b'{"a": {}}', b'{"a": "x"}', b"{"])
def test_a_safetensors_header_of_another_shape(base_copy, header):
    (base_copy / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(UserError, match="half-downloaded"):
        base.verify(base_copy, "tiny")


def test_an_index_cannot_name_files_elsewhere(base_copy):
    (base_copy / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "../../secret.bin"}}')
    (base_copy / "model.safetensors").unlink()
    with pytest.raises(UserError, match="own folder"):
        base.verify(base_copy, "tiny")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vocab_size": 64}, "vocab_size 64"),
        ({"gmask_token_id": 9}, "gmask_token_id 9"),
        ({"model_type": "llama"}, "'llama'"),
        ({"padded_vocab_size": 65024}, "successor"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"num_attention_heads": 0}, "attention heads"),
        ({"hidden_size": 34}, "attention heads"),
    ],
)
def test_files_that_do_not_belong_together(base_copy, changes, said):
    edit(base_copy / "config.json", **changes)
    with pytest.raises(UserError, match=said):
        base.verify(base_copy, "tiny")


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "ice_text.model"])
def test_a_damaged_file_is_named(base_copy, file):
    (base_copy / file).write_bytes(b"{ not what it should be")
    with pytest.raises(UserError, match="base"):
        base.verify(base_copy, "tiny")


def test_weights_that_lack_a_tensor(base_copy):
    weights = load_file(base_copy / "model.safetensors")
    del weights["transformer.final_layernorm.bias"]
    save_file(weights, base_copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lack 1 tensors.*final_layernorm\.bias"):
        base.load_model(base.verify(base_copy, "tiny"), "float32")


def test_a_pickle_that_runs_code_is_not_read(base_copy):
    class Trap:
        def __reduce__(self):
            return (exec, ("raise SystemExit('code in a checkpoint was run')",))

    torch.save({"lm_head.weight": Trap()}, base_copy / "pytorch_model.bin")
    (base_copy / "model.safetensors").unlink()
    with pytest.raises(UserError, match="could run code"):
        base.load_model(base.verify(base_copy, "tiny"), "float32")


def test_a_record_among_the_files_moves_with_them(base_copy, tmp_path):
    moved = base_copy.rename(tmp_path / "moved")
    assert base.read_record(moved).folder == moved


def test_a_record_elsewhere_refers_and_copies_nothing(base_copy, tmp_path):
    base.write_record(base.verify(base_copy, "mine"), tmp_path / "record")
    assert [path.name for path in (tmp_path / "record").iterdir()] == ["base.json"]
    assert base.read_record(tmp_path / "record").folder == base_copy


@pytest.mark.parametrize("spoil", [lambda p: p.unlink(), lambda p: p.write_bytes(p.read_bytes() + b" ")])
def test_a_base_that_changed_since_is_refused(base_copy, spoil):
    spoil(base_copy / "config.json")
    with pytest.raises(UserError, match=r"config\.json"):
        base.read_record(base_copy)


def test_neither_folder_nor_hub_id():
    with pytest.raises(UserError, match="neither"):
        base.find("./nowhere")


def test_no_network_is_one_sentence_with_the_missing_files(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"could not be fetched.*missing files: config\.json, ice_text\.model"):
        base.find("THUDM/chatglm-6b-not-in-any-cache")
