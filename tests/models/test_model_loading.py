import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from shared_data import developer_file

from models import base_model, base_verification, model_loading
from models.chatglm import ChatGLMForConditionalGeneration
from models.errors import UserError
from models.families.chatglm_6b import ChatGLM6BFamily


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_other_files_of_the_folder_have_no_effect(base_copy):
    base = base_model.read_record(base_copy)
    before, text = model_loading.load_model(base, "float32"), "你好[MASK]我"
    ids = model_loading.load_tokenizer(base)(text).input_ids
    others = {
        "generation_config.json": {"repetition_penalty": 3.0, "do_sample": True, "eos_token_id": 40},
        "special_tokens_map.json": {"bos_token": "你", "additional_special_tokens": ["我"]},
        "tokenizer.json": {"added_tokens": [{"id": 0, "content": "你"}]},
        "preprocessor_config.json": {},
    }
    for name, content in others.items():
        (base_copy / name).write_text(json.dumps(content))
    (base_copy / "chat_template.jinja").write_text("{{ 1 }}")
    (base_copy / "modeling_chatglm.py").write_text("raise SystemExit('code of a checkpoint was run')")
    after = model_loading.load_model(base_model.read_record(base_copy), "float32")
    assert after.generation_config.to_dict() == before.generation_config.to_dict()
    assert all(torch.equal(value, after.state_dict()[name]) for name, value in before.state_dict().items())
    assert model_loading.load_tokenizer(base_model.read_record(base_copy))(text).input_ids == ids


def test_generation_uses_the_kv_cache_even_if_the_configuration_disables_it(base_copy):
    """transformers' Trainer saves use_cache=False in the tiny base's config.json."""
    edit(base_copy / "config.json", use_cache=False)
    (base_copy / "generation_config.json").unlink()
    model = model_loading.load_model(base_verification.verify_base(base_copy, "tiny"), "float32")
    assert model.generation_config.use_cache
    assert not model.config.use_cache


def test_keys_about_the_origin_of_a_checkpoint_are_ignored(base_copy):
    before = model_loading.load_config(base_verification.verify_base(base_copy, "tiny")).to_dict()
    edit(
        base_copy / "config.json",
        _name_or_path="THUDM/chatglm-6b",
        auto_map={"AutoConfig": "evil.Config"},
        architectures=["ChatGLMModel"],
        transformers_version="4.23.1",
        quantization_embeddings=False,
    )
    assert model_loading.load_config(base_verification.verify_base(base_copy, "tiny")).to_dict() == before


def test_the_published_configuration_and_tokenizer_load(tmp_path):
    for name in (base_model.CONFIG, ChatGLM6BFamily.vocabulary_file, base_model.TOKENIZER_CONFIG):
        shutil.copyfile(developer_file(f"reference/chatglm-6b/{name}"), tmp_path / name)
    files = base_model.hash_files(tmp_path, [base_model.CONFIG, ChatGLM6BFamily.vocabulary_file])
    base = base_model.Base("chatglm-6b", tmp_path, None, files)
    assert model_loading.load_config(base).num_layers == 28
    assert model_loading.load_config(base).dtype == torch.float16
    recorded = json.loads(developer_file("reference/vectors/tokenizer.json").read_text(encoding="utf-8"))["texts"]
    tokenizer = model_loading.load_tokenizer(tmp_path)
    assert all(tokenizer(text["text"]).input_ids == text["ids_special"] for text in recorded)


def test_the_published_configuration_of_the_int4_release_loads(tmp_path):
    shutil.copyfile(developer_file("reference/chatglm-6b-int4/config.json"), tmp_path / base_model.CONFIG)
    base = base_model.Base("int4", tmp_path, None, base_model.hash_files(tmp_path, [base_model.CONFIG]))
    config = model_loading.load_config(base)
    assert (config.num_layers, config.quantization_bit, config.dtype) == (28, 0, torch.float16)


ADDED = {"content": "<unk>", "lstrip": False, "normalized": False, "rstrip": False, "special": True}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"vocab_file": "/etc/passwd"}, "vocab_file is not known"),
        ({"sp_model_kwargs": {}}, "sp_model_kwargs is not known"),
        ({"padding_side": "right"}, "padding_side"),
        ({"added_tokens_decoder": {"4100": ADDED | {"content": "新词"}}}, "adds the token 新词"),
        ({"added_tokens_decoder": {"1": ADDED}}, "adds the token <unk> as number 1"),
        ({"additional_special_tokens": ["新词"]}, "additional_special_tokens"),
        ({"extra_special_tokens": {"a": "新词"}}, "extra_special_tokens"),
        ({"tokenizer_file": "tokenizer.json"}, "tokenizer_file"),
        ({"num_image_tokens": 10**12}, "num_image_tokens"),
        ({"bos_token": 4}, "bos_token"),
        ({"do_lower_case": "no"}, "do_lower_case"),
        ({"model_max_length": float("inf")}, "model_max_length"),
    ],
)
def test_unsupported_keys_and_values_of_the_tokenizer_are_rejected(base_copy, changes, reason):
    edit(base_copy / "tokenizer_config.json", **changes)
    with pytest.raises(UserError, match=rf"tokenizer_config\.json.*{reason}"):
        model_loading.load_tokenizer(base_copy)


def test_flags_of_special_tokens_are_ignored(base_copy):
    before = model_loading.load_tokenizer(base_copy)
    edit(base_copy / "tokenizer_config.json", pad_token={"__type": "AddedToken", "content": "<pad>", "lstrip": True})
    after = model_loading.load_tokenizer(base_copy)
    assert after.pad_token_id == before.pad_token_id
    assert after("你好 <pad> 我").input_ids == before("你好 <pad> 我").input_ids


LOADERS = {
    base_model.CONFIG: model_loading.load_config,
    base_model.TOKENIZER_CONFIG: model_loading.load_tokenizer,
    ChatGLM6BFamily.vocabulary_file: model_loading.load_tokenizer,
    "model.safetensors": lambda base: model_loading.load_model(base, "float32"),
}


@pytest.mark.parametrize("name", LOADERS)
def test_a_file_replaced_after_read_record_is_rejected(base_copy, name):
    """Size and modification time are unchanged; the hash of the parsed bytes differs."""
    base, path = base_model.read_record(base_copy), base_copy / name
    before, content = path.stat(), path.read_bytes()
    changed = content.replace(b"false", b"true ", 1).replace(b"nmt_nfkc", b"nmt_nfkd", 1)
    changed = changed if changed != content else content[:-1] + bytes([content[-1] ^ 1])
    path.write_bytes(changed)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    with pytest.raises(UserError, match=rf"{name} changed since stage base ran"):
        LOADERS[name](base)


def test_a_weight_file_replaced_while_it_is_read_has_no_effect(base_copy, monkeypatch):
    base = base_model.read_record(base_copy)
    expected = model_loading.load_model(base, "float32").state_dict()
    original, path = model_loading._set_weight, base_copy / "model.safetensors"

    def replace_file_and_set(*arguments):
        (base_copy / "other").write_bytes(b"\0" * path.stat().st_size)
        (base_copy / "other").replace(path)
        original(*arguments)

    monkeypatch.setattr(model_loading, "_set_weight", replace_file_and_set)
    loaded = model_loading.load_model(base, "float32").state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in expected.items())


@pytest.mark.parametrize("bits", [None, 4, 8])
def test_the_loaded_model_equals_that_of_from_pretrained(base_folder, bits):
    base, options = base_model.read_record(base_folder), {"dtype": torch.bfloat16}
    if bits is not None:
        options |= {
            "quantization_config": model_loading._quantization_config(bits, torch.bfloat16),
            "device_map": {"": "cpu"},
        }
    expected = ChatGLMForConditionalGeneration.from_pretrained(base_folder, **options)
    loaded = model_loading.load_model(base, "bfloat16", bits)
    assert loaded.state_dict().keys() == expected.state_dict().keys()
    for name, value in expected.state_dict().items():
        other = loaded.state_dict()[name]
        assert torch.equal(other, value) if isinstance(value, torch.Tensor) else other == value, name
    kinds = {name: type(parameter) for name, parameter in expected.named_parameters()}
    assert {name: type(parameter) for name, parameter in loaded.named_parameters()} == kinds
    for name in ("is_quantized", "quantization_method", "is_loaded_in_4bit", "is_loaded_in_8bit", "training"):
        assert getattr(loaded, name, None) == getattr(expected, name, None)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        ({"dtype": "float16"}, torch.float16),
        ({"dtype": None, "torch_dtype": "bfloat16"}, torch.bfloat16),  # the key of published checkpoints
        ({"dtype": None}, torch.float32),  # dtype of the tensors
    ],
)
def test_dtype_auto_is_that_of_the_checkpoint(base_copy, kept, expected):
    edit(base_copy / "config.json", **kept)
    base = base_verification.verify_base(base_copy, "tiny")
    assert model_loading.load_model(base, "auto").dtype == expected
    assert model_loading.load_model(base, "float32").dtype == torch.float32


@pytest.mark.parametrize("shards", [False, True])
def test_pickled_weights_load_with_and_without_index(base_copy, shards):
    weights = load_file(base_copy / "model.safetensors")
    (base_copy / "model.safetensors").unlink()
    weights["transformer.layers.0.attention.rotary_emb.inv_freq"] = torch.ones(
        4
    )  # in published checkpoints; computed by this model
    files = {"pytorch_model.bin": weights}
    if shards:
        names = sorted(weights)
        parts = {"pytorch_model-1.bin": names[::2], "pytorch_model-2.bin": names[1::2]}
        index = {"metadata": {}, "weight_map": {name: file for file, part in parts.items() for name in part}}
        (base_copy / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        files = {file: {name: weights[name] for name in part} for file, part in parts.items()}
    for file, content in files.items():
        torch.save(content, base_copy / file)
    loaded = model_loading.load_model(base_verification.verify_base(base_copy, "tiny"), "float32").state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in loaded.items())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda w: w.update({"base_model.lora_A.weight": torch.ones(2)}),
            "lora_A.weight, which ChatGLMFor",
        ),
        (lambda w: w.update({"lm_head.bias": torch.ones(2)}), "lm_head.bias, which"),
        (lambda w: w.update({"lm_head.weight": torch.ones(2, 3)}), r"has shape \[2, 3\], but"),
        (lambda w: w.update({"lm_head.weight": torch.ones(4224, 32, dtype=torch.int8)}), "has type"),
        (lambda w: w.update({"lm_head": torch.ones(2)}), "lm_head, which"),
        (lambda w: w.update({"": torch.ones(2)}), "which ChatGLMFor"),
    ],
)
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_unknown_or_misshapen_weights_are_rejected(base_copy, change, reason, file):
    weights = load_file(base_copy / "model.safetensors")
    change(weights)
    (base_copy / "model.safetensors").unlink()
    (save_file if file.endswith("safetensors") else torch.save)(weights, base_copy / file)
    with pytest.raises(UserError, match=reason):
        model_loading.load_model(base_verification.verify_base(base_copy, "tiny"), "float32")


def test_a_tensor_in_two_files_is_rejected(base_copy):
    weights = load_file(base_copy / "model.safetensors")
    (base_copy / "model.safetensors").unlink()
    save_file(weights, base_copy / "model-1.safetensors")
    save_file({"lm_head.weight": weights["lm_head.weight"]}, base_copy / "model-2.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (base_copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="another weight file holds too"):
        model_loading.load_model(base_verification.verify_base(base_copy, "tiny"), "float32")


def test_a_missing_tensor_is_named(base_copy):
    weights = load_file(base_copy / "model.safetensors")
    del weights["transformer.final_layernorm.bias"]
    save_file(weights, base_copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lack 1 tensors.*final_layernorm\.bias"):
        model_loading.load_model(base_verification.verify_base(base_copy, "tiny"), "float32")


def test_code_in_a_pickle_is_not_run(base_copy):
    class Trap:
        def __reduce__(self):
            return (exec, ("raise SystemExit('code in a checkpoint was run')",))

    torch.save({"lm_head.weight": Trap()}, base_copy / "pytorch_model.bin")
    (base_copy / "model.safetensors").unlink()
    with pytest.raises(UserError, match="could run code"):
        model_loading.load_model(base_verification.verify_base(base_copy, "tiny"), "float32")
