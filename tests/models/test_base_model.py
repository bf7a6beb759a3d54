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
from models.storage import sha256_of, sha256_of_json


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_whole_folder_is_verified_and_hashed(base_folder):
    found = base_verification.verify_base(base_folder, "tiny")
    assert set(found.files) == {"config.json", "ice_text.model", "tokenizer_config.json", "model.safetensors"}
    assert found.identity == base_verification.verify_base(base_folder, "other name").identity


def test_the_identity_changes_with_every_file(base_copy):
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
def test_a_half_downloaded_safetensors_file(base_copy, keep):
    content = (base_copy / "model.safetensors").read_bytes()
    (base_copy / "model.safetensors").write_bytes(content[:keep])
    with pytest.raises(UserError, match="half-downloaded"):
        base_verification.verify_base(base_copy, "tiny")


def test_a_half_downloaded_bin_file(base_copy):
    torch.save(load_file(base_copy / "model.safetensors"), base_copy / "pytorch_model.bin")
    (base_copy / "model.safetensors").unlink()
    assert "pytorch_model.bin" in base_verification.verify_base(base_copy, "tiny").files
    content = (base_copy / "pytorch_model.bin").read_bytes()
    (base_copy / "pytorch_model.bin").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="half-downloaded"):
        base_verification.verify_base(base_copy, "tiny")


@pytest.mark.parametrize("index", ['{"weight_map": ["a"]}', '{"weight_map": {}}', '{"weight_map": {"a": 1}}', "[]"])
def test_an_index_of_another_shape(base_copy, index):
    (base_copy / "pytorch_model.bin.index.json").write_text(index)
    (base_copy / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"index\.json|missing: 1"):
        base_verification.verify_base(base_copy, "tiny")


@pytest.mark.parametrize("header", [b"[]", b'{"a": {}}', b'{"a": "x"}', b"{"])
def test_a_safetensors_header_of_another_shape(base_copy, header):
    (base_copy / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(UserError, match="half-downloaded"):
        base_verification.verify_base(base_copy, "tiny")


def test_an_index_cannot_name_files_elsewhere(base_copy):
    (base_copy / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "../../secret.bin"}}')
    (base_copy / "model.safetensors").unlink()
    with pytest.raises(UserError, match="own folder"):
        base_verification.verify_base(base_copy, "tiny")


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
        base_verification.verify_base(base_copy, "tiny")


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "ice_text.model"])
def test_a_damaged_file_is_named(base_copy, file):
    (base_copy / file).write_bytes(b"{ not what it should be")
    with pytest.raises(UserError, match="base"):
        base_verification.verify_base(base_copy, "tiny")


# What is loaded -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", base_model.FOREIGN_FILES)
def test_what_other_programs_load_beside_the_weights_is_refused(base_copy, name):
    """transformers applies an adapter_config.json to the weights without a word."""
    (base_copy / name).write_text("{}")
    for read in (lambda: base_verification.verify_base(base_copy, "tiny"), lambda: base_model.read_record(base_copy)):
        with pytest.raises(UserError, match=rf"has {name} beside its weights"):
            read()


@pytest.mark.parametrize("other", ["pytorch_model.bin", "model.safetensors.index.json", "pytorch_model.bin.index.json"])
def test_weights_that_stand_twice_are_refused_by_both_names(base_copy, other):
    """As a conversion that was interrupted leaves them."""
    (base_copy / other).write_text("{}")
    for read in (lambda: base_verification.verify_base(base_copy, "tiny"), lambda: base_model.read_record(base_copy)):
        with pytest.raises(UserError, match=rf"more than once: model\.safetensors and {other}"):
            read()


def test_no_other_file_changes_what_is_loaded(base_copy):
    found = base_model.read_record(base_copy)
    before, text = model_loading.load_model(found, "float32"), "你好[MASK]我"
    ids = model_loading.load_tokenizer(found)(text).input_ids
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
def test_a_configuration_that_would_change_what_is_loaded_is_refused(base_copy, changes):
    edit(base_copy / "config.json", **changes)
    with pytest.raises(UserError, match=rf"config\.json: .*{next(iter(changes))}"):
        base_verification.verify_base(base_copy, "tiny")


def test_answers_are_generated_with_a_cache_whatever_the_configuration_says(base_copy):
    """Trainer writes use_cache false into the config.json of the tiny base."""
    edit(base_copy / "config.json", use_cache=False)
    (base_copy / "generation_config.json").unlink()
    model = model_loading.load_model(base_verification.verify_base(base_copy, "tiny"), "float32")
    assert model.generation_config.use_cache
    assert not model.config.use_cache


def test_keys_that_say_where_a_checkpoint_comes_from_change_nothing(base_copy):
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


def test_the_published_files_are_accepted(tmp_path):
    for name in (base_model.CONFIG, base_model.TOKENIZER, base_model.TOKENIZER_CONFIG):
        shutil.copyfile(developer_file(f"reference/chatglm-6b/{name}"), tmp_path / name)
    found = base_model.Base(
        "chatglm-6b", tmp_path, None, base_model.hash_files(tmp_path, [base_model.CONFIG, base_model.TOKENIZER])
    )
    assert model_loading.load_config(found).num_layers == 28
    assert model_loading.load_config(found).dtype == torch.float16
    recorded = json.loads(developer_file("reference/vectors/tokenizer.json").read_text(encoding="utf-8"))["texts"]
    tokenizer = model_loading.load_tokenizer(tmp_path)
    assert all(tokenizer(text["text"]).input_ids == text["ids_special"] for text in recorded)


def test_the_published_quantized_checkpoint_is_refused(tmp_path):
    shutil.copyfile(developer_file("reference/chatglm-6b-int4/config.json"), tmp_path / base_model.CONFIG)
    with pytest.raises(UserError, match="quantized to 4 bits"):
        model_loading.load_config(
            base_model.Base("int4", tmp_path, None, base_model.hash_files(tmp_path, [base_model.CONFIG]))
        )


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
def test_a_tokenizer_that_would_be_another_one_is_refused(base_copy, changes, reason):
    edit(base_copy / "tokenizer_config.json", **changes)
    with pytest.raises(UserError, match=rf"tokenizer_config\.json.*{reason}"):
        model_loading.load_tokenizer(base_copy)


def test_tokens_with_flags_are_taken_by_their_text(base_copy):
    before = model_loading.load_tokenizer(base_copy)
    edit(base_copy / "tokenizer_config.json", pad_token={"__type": "AddedToken", "content": "<pad>", "lstrip": True})
    after = model_loading.load_tokenizer(base_copy)
    assert after.pad_token_id == before.pad_token_id
    assert after("你好 <pad> 我").input_ids == before("你好 <pad> 我").input_ids


LOADERS = {
    base_model.CONFIG: model_loading.load_config,
    base_model.TOKENIZER_CONFIG: model_loading.load_tokenizer,
    base_model.TOKENIZER: model_loading.load_tokenizer,
    "model.safetensors": lambda found: model_loading.load_model(found, "float32"),
}


@pytest.mark.parametrize("name", LOADERS)
def test_a_file_that_is_swapped_after_the_check_is_refused(base_copy, name):
    """What is parsed is what was hashed, whatever its size and times say."""
    found, path = base_model.read_record(base_copy), base_copy / name
    before, content = path.stat(), path.read_bytes()
    changed = content.replace(b"false", b"true ", 1).replace(b"nmt_nfkc", b"nmt_nfkd", 1)
    changed = changed if changed != content else content[:-1] + bytes([content[-1] ^ 1])
    path.write_bytes(changed)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    with pytest.raises(UserError, match=rf"{name} changed since stage base ran"):
        LOADERS[name](found)


def test_large_weights_are_not_read_twice_to_be_vouched_for(base_copy, monkeypatch):
    """read_record compares the size of large files alone; load_model still notices another byte."""
    hashed = []
    monkeypatch.setattr(base_model, "sha256_of", lambda path: hashed.append(path.name) or sha256_of(path))
    record = json.loads((base_copy / base_model.RECORD).read_text())
    path = base_copy / "model.safetensors"
    monkeypatch.setattr(base_model, "MAX_REHASHED_BYTES", path.stat().st_size - 1)
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    assert record["files"]["model.safetensors"]["size"] == path.stat().st_size
    found = base_model.read_record(base_copy)
    assert "model.safetensors" not in hashed
    with pytest.raises(UserError, match=r"model\.safetensors changed since"):
        model_loading.load_model(found, "float32")
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(UserError, match=r"model\.safetensors changed since"):
        base_model.read_record(base_copy)


def test_a_file_renamed_into_place_while_the_weights_load_is_not_read(base_copy, monkeypatch):
    found = base_model.read_record(base_copy)
    expected = model_loading.load_model(found, "float32").state_dict()
    usual, path = model_loading._set_weight, base_copy / "model.safetensors"

    def swap_and_set(*arguments):
        (base_copy / "other").write_bytes(b"\0" * path.stat().st_size)
        (base_copy / "other").replace(path)
        usual(*arguments)

    monkeypatch.setattr(model_loading, "_set_weight", swap_and_set)
    loaded = model_loading.load_model(found, "float32").state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in expected.items())


@pytest.mark.parametrize("bits", [None, 4, 8])
def test_the_model_is_the_one_that_transformers_loads(base_folder, bits):
    found, options = base_model.read_record(base_folder), {"dtype": torch.bfloat16}
    if bits is not None:
        options |= {"quantization_config": model_loading._quantization_config(bits, torch.bfloat16), "device_map": {"": "cpu"}}
    expected = ChatGLMForConditionalGeneration.from_pretrained(base_folder, **options)
    loaded = model_loading.load_model(found, "bfloat16", bits)
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
        ({"dtype": None}, torch.float32),  # that of the tensors
    ],
)
def test_the_type_of_the_checkpoint(base_copy, kept, expected):
    edit(base_copy / "config.json", **kept)
    found = base_verification.verify_base(base_copy, "tiny")
    assert model_loading.load_model(found, "auto").dtype == expected
    assert model_loading.load_model(found, "float32").dtype == torch.float32


@pytest.mark.parametrize("shards", [False, True])
def test_weights_in_the_published_form(base_copy, shards):
    weights = load_file(base_copy / "model.safetensors")
    (base_copy / "model.safetensors").unlink()
    weights["transformer.layers.0.attention.rotary_emb.inv_freq"] = torch.ones(4)  # published, and computed here
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
        (lambda w: w.update({"base_model.lora_A.weight": torch.ones(2)}), "lora_A.weight, which ChatGLM-6B does not"),
        (lambda w: w.update({"lm_head.bias": torch.ones(2)}), "lm_head.bias, which"),
        (lambda w: w.update({"lm_head.weight": torch.ones(2, 3)}), r"has shape \[2, 3\], but"),
        (lambda w: w.update({"lm_head.weight": torch.ones(4224, 32, dtype=torch.int8)}), "has type"),
        (lambda w: w.update({"lm_head": torch.ones(2)}), "lm_head, which"),
        (lambda w: w.update({"": torch.ones(2)}), "which ChatGLM-6B does not"),
    ],
)
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_weights_that_are_not_the_models_own(base_copy, change, reason, file):
    weights = load_file(base_copy / "model.safetensors")
    change(weights)
    (base_copy / "model.safetensors").unlink()
    (save_file if file.endswith("safetensors") else torch.save)(weights, base_copy / file)
    with pytest.raises(UserError, match=reason):
        model_loading.load_model(base_verification.verify_base(base_copy, "tiny"), "float32")


def test_a_tensor_in_two_files(base_copy):
    weights = load_file(base_copy / "model.safetensors")
    (base_copy / "model.safetensors").unlink()
    save_file(weights, base_copy / "model-1.safetensors")
    save_file({"lm_head.weight": weights["lm_head.weight"]}, base_copy / "model-2.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (base_copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="another weight file holds too"):
        model_loading.load_model(base_verification.verify_base(base_copy, "tiny"), "float32")


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
def test_a_record_that_is_damaged(base_copy, change):
    record = json.loads((base_copy / base_model.RECORD).read_text())
    before = record["identity"]
    change(record)
    if record["identity"] == before:  # as somebody would make it fit who edits the files
        hashes = {name: entry["sha256"] for name, entry in record["files"].items()}
        record["identity"] = sha256_of_json(hashes)
    (base_copy / base_model.RECORD).write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"base\.json"):
        base_model.read_record(base_copy)


def test_weights_that_lack_a_tensor(base_copy):
    weights = load_file(base_copy / "model.safetensors")
    del weights["transformer.final_layernorm.bias"]
    save_file(weights, base_copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lack 1 tensors.*final_layernorm\.bias"):
        model_loading.load_model(base_verification.verify_base(base_copy, "tiny"), "float32")


def test_a_pickle_that_runs_code_is_not_read(base_copy):
    class Trap:
        def __reduce__(self):
            return (exec, ("raise SystemExit('code in a checkpoint was run')",))

    torch.save({"lm_head.weight": Trap()}, base_copy / "pytorch_model.bin")
    (base_copy / "model.safetensors").unlink()
    with pytest.raises(UserError, match="could run code"):
        model_loading.load_model(base_verification.verify_base(base_copy, "tiny"), "float32")


def test_a_record_among_the_files_moves_with_them(base_copy, tmp_path):
    moved = base_copy.rename(tmp_path / "moved")
    assert base_model.read_record(moved).folder == moved


def test_a_record_elsewhere_refers_and_copies_nothing(base_copy, tmp_path):
    base_model.write_record(base_verification.verify_base(base_copy, "mine"), tmp_path / "record")
    assert [path.name for path in (tmp_path / "record").iterdir()] == ["base.json"]
    assert base_model.read_record(tmp_path / "record").folder == base_copy


@pytest.mark.parametrize(
    "spoil",
    [
        lambda p: p.unlink(),
        lambda p: p.write_bytes(p.read_bytes() + b" "),
        lambda p: p.write_bytes(p.read_bytes().swapcase()),  # of the same size
    ],
)
def test_a_base_that_changed_since_is_refused(base_copy, spoil):
    spoil(base_copy / "config.json")
    with pytest.raises(UserError, match=r"config\.json"):
        base_model.read_record(base_copy)


def test_neither_folder_nor_hub_id():
    with pytest.raises(UserError, match="neither"):
        base_verification.find_base("./nowhere")


def test_no_network_is_one_sentence_with_the_missing_files(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"could not be fetched.*missing files: config\.json, ice_text\.model"):
        base_verification.find_base("THUDM/chatglm-6b-not-in-any-cache")
