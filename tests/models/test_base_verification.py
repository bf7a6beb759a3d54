import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from models import base_verification
from models.errors import UserError


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_complete_folder_is_verified_and_hashed(base_folder):
    base = base_verification.verify_base(base_folder, "tiny")
    assert set(base.files) == {"config.json", "ice_text.model", "tokenizer_config.json", "model.safetensors"}
    assert base.identity == base_verification.verify_base(base_folder, "other name").identity


def test_the_identity_depends_on_weights_and_configuration(base_copy):
    identities = {base_verification.verify_base(base_copy, "tiny").identity}
    weights = load_file(base_copy / "model.safetensors")
    weights["lm_head.weight"][0, 0] += 1
    save_file(weights, base_copy / "model.safetensors", metadata={"format": "pt"})
    identities.add(base_verification.verify_base(base_copy, "tiny").identity)
    edit(base_copy / "config.json", layernorm_epsilon=1e-6)
    identities.add(base_verification.verify_base(base_copy, "tiny").identity)
    assert len(identities) == 3


@pytest.mark.parametrize("file", ["config.json", "ice_text.model", "tokenizer_config.json"])
def test_a_missing_file_is_named(base_copy, file):
    (base_copy / file).unlink()
    with pytest.raises(UserError, match=file.replace(".", r"\.")):
        base_verification.verify_base(base_copy, "tiny")


def test_missing_weights_are_named(base_copy):
    (base_copy / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"pytorch_model\.bin\.index\.json"):
        base_verification.verify_base(base_copy, "tiny")


def test_missing_shards_are_named(base_copy):
    (base_copy / "model.safetensors").unlink()
    index = {"weight_map": {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}}
    (base_copy / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    torch.save({"a": torch.ones(1)}, base_copy / "pytorch_model-00001-of-00002.bin")
    with pytest.raises(UserError, match=r"missing: pytorch_model-00002-of-00002\.bin"):
        base_verification.verify_base(base_copy, "tiny")


@pytest.mark.parametrize("keep", [0, 7, 4000, -1])
def test_a_truncated_safetensors_file_is_rejected(base_copy, keep):
    content = (base_copy / "model.safetensors").read_bytes()
    (base_copy / "model.safetensors").write_bytes(content[:keep])
    with pytest.raises(UserError, match="incompletely downloaded"):
        base_verification.verify_base(base_copy, "tiny")


def test_a_truncated_bin_file_is_rejected(base_copy):
    torch.save(load_file(base_copy / "model.safetensors"), base_copy / "pytorch_model.bin")
    (base_copy / "model.safetensors").unlink()
    assert "pytorch_model.bin" in base_verification.verify_base(base_copy, "tiny").files
    content = (base_copy / "pytorch_model.bin").read_bytes()
    (base_copy / "pytorch_model.bin").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="incompletely downloaded"):
        base_verification.verify_base(base_copy, "tiny")


@pytest.mark.parametrize("index", ['{"weight_map": ["a"]}', '{"weight_map": {}}', '{"weight_map": {"a": 1}}', "[]"])
def test_a_malformed_weight_index_is_rejected(base_copy, index):
    (base_copy / "pytorch_model.bin.index.json").write_text(index)
    (base_copy / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"index\.json|missing: 1"):
        base_verification.verify_base(base_copy, "tiny")


@pytest.mark.parametrize("header", [b"[]", b'{"a": {}}', b'{"a": "x"}', b"{"])
def test_a_malformed_safetensors_header_is_rejected(base_copy, header):
    (base_copy / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(UserError, match="incompletely downloaded"):
        base_verification.verify_base(base_copy, "tiny")


def test_a_weight_index_with_files_of_another_folder_is_rejected(base_copy):
    (base_copy / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "../../secret.bin"}}')
    (base_copy / "model.safetensors").unlink()
    with pytest.raises(UserError, match="own folder"):
        base_verification.verify_base(base_copy, "tiny")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 64}, "vocab_size 64"),
        ({"gmask_token_id": 9}, "gmask_token_id 9"),
        ({"model_type": "llama"}, r"missing: tokenizer\.json"),
        ({"padded_vocab_size": 65024}, "ChatGLM2-6B or of ChatGLM3-6B"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"hidden_size": 34}, "num_attention_heads"),
    ],
)
def test_a_configuration_that_does_not_match_is_rejected(base_copy, changes, message):
    edit(base_copy / "config.json", **changes)
    with pytest.raises(UserError, match=message):
        base_verification.verify_base(base_copy, "tiny")


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "ice_text.model"])
def test_a_damaged_file_is_named(base_copy, file):
    (base_copy / file).write_bytes(b"{ not what it should be")
    with pytest.raises(UserError, match="base"):
        base_verification.verify_base(base_copy, "tiny")


@pytest.mark.parametrize(
    "changes",
    [
        {"transformers_weights": "other.safetensors"},
        {"attn_implementation": "somebody/kernels"},
        {"_attn_implementation": "somebody/kernels"},
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
        {"repetition_penalty": 2.0},
        {"rope_scaling": {"type": "linear"}},
        {"tie_word_embeddings": True},
        {"num_layers": 10**9},
        {"num_layers": 0},
        {"num_layers": 2.0},
        {"vocab_size": 2**31},
        {"max_sequence_length": -1},
        {"inner_hidden_size": 2**40},
        {"layernorm_epsilon": float("nan")},
        {"initializer_range": -1.0},
        {"eos_token_id": [9, 9]},
        {"dtype": "int8"},
        {"use_cache": "yes"},
    ],
)
def test_unsupported_keys_and_values_in_the_configuration_are_rejected(base_copy, changes):
    edit(base_copy / "config.json", **changes)
    with pytest.raises(UserError, match=rf"config\.json: .*{next(iter(changes))}"):
        base_verification.verify_base(base_copy, "tiny")


def test_a_name_that_is_neither_folder_nor_hub_id_is_rejected():
    with pytest.raises(UserError, match="neither"):
        base_verification.find_base("./nowhere")


def test_a_failed_download_names_the_missing_files(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"could not be fetched.*missing files: config\.json, ice_text\.model"):
        base_verification.find_base("THUDM/chatglm-6b-not-in-any-cache")
