"""Merged models and exported prefixes give the same logits as the adapter; damaged checkpoints are rejected."""

import dataclasses
import io
import json
import pickle
import tarfile
import zipfile

import pytest
import torch
from shared_data import ADAPTER_SETTINGS, minimal_manifest, randomize_adapter, short_row_logits

from models import adapter_conversion, adapter_files, adapters, base_model, base_verification, model_loading
from models.chatglm import ChatGLMConfig
from models.errors import UserError
from models.manifest import read_verified_manifest


def save_random_adapter(kind: str, base_folder, folder) -> torch.Tensor:
    """Save an adapter with random weights; return its logits."""
    base = base_model.read_record(base_folder)
    method = kind.split()[0]
    torch.manual_seed(0)
    adapted = adapters.attach_adapter(model_loading.load_model(base, "float32"), method, **ADAPTER_SETTINGS[kind])
    randomize_adapter(adapted)
    adapter_files.save_adapter(adapted, folder, minimal_manifest(base, method))
    return short_row_logits(adapted.eval(), adapters.get_base_model(adapted).config)


@pytest.mark.parametrize("kind", [kind for kind in ADAPTER_SETTINGS if "ptuning" not in kind])
def test_a_merged_model_has_the_logits_of_the_adapter(kind, base_folder, tmp_path):
    expected = save_random_adapter(kind, base_folder, tmp_path / "adapter")
    adapter_conversion.export_merged_model(
        tmp_path / "adapter", base_model.read_record(base_folder), tmp_path / "merged"
    )
    again = base_verification.verify_base(tmp_path / "merged", "merged")
    model = model_loading.load_model(again, "float32")
    torch.testing.assert_close(short_row_logits(model, model.config), expected, rtol=1e-4, atol=1e-3)
    assert (
        model_loading.load_tokenizer(again.folder)("你好").input_ids
        == model_loading.load_tokenizer(base_folder)("你好").input_ids
    )


@pytest.mark.parametrize("kind", ["ptuning_v2", "ptuning_v2 projected"])
def test_an_exported_and_imported_prefix_gives_the_same_logits(kind, base_folder, tmp_path):
    base = base_model.read_record(base_folder)
    expected = save_random_adapter(kind, base_folder, tmp_path / "adapter")
    adapter_conversion.export_official_prefix(tmp_path / "adapter", base, tmp_path / "official")
    config = json.loads((tmp_path / "official/config.json").read_text())
    assert (config["pre_seq_len"], config["prefix_projection"]) == (5, False)
    file = tmp_path / "official/pytorch_model.bin"
    assert list(adapter_conversion._load_checkpoint(file)) == ["transformer.prefix_encoder.embedding.weight"]
    adapter_conversion.import_official_prefix(file, base, "back", "float32", tmp_path / "back")
    model = adapter_files.load_adapter(tmp_path / "back", base)
    torch.testing.assert_close(short_row_logits(model, model.config), expected, rtol=1e-5, atol=1e-5)


def test_the_layout_of_prefix_rows_is_the_published_one(base_folder):
    """The published get_prompt: view (tokens, 2 · layers, heads, dim), permute, split into pairs."""
    adapted = adapters.attach_adapter(
        model_loading.load_model(base_model.read_record(base_folder), "float32"), "ptuning_v2", prefix_tokens=3
    )
    config: ChatGLMConfig = adapted.config
    heads, layers = config.num_attention_heads, config.num_layers
    rows = torch.randn(3, 2 * layers * config.hidden_size)
    adapters.set_prefix(adapted, rows)
    published = rows.view(1, 3, 2 * layers, heads, -1).permute(2, 1, 0, 3, 4).split(2)
    cache = adapted.get_prompt(1)
    for layer, (key, value) in enumerate(published):
        torch.testing.assert_close(cache.layers[layer].keys, key.permute(1, 2, 0, 3))
        torch.testing.assert_close(cache.layers[layer].values, value.permute(1, 2, 0, 3))


def test_a_published_projection_is_applied():
    torch.manual_seed(0)
    embedding, (first, second) = torch.nn.Embedding(4, 8), (torch.nn.Linear(8, 8), torch.nn.Linear(8, 32))
    layers = torch.nn.ModuleDict({"embedding": embedding, "trans": torch.nn.Sequential(first, torch.nn.Tanh(), second)})
    tensors = {adapter_conversion.KEY_PREFIX + name: value.half() for name, value in layers.state_dict().items()}
    expected = layers["trans"](embedding.weight)
    torch.testing.assert_close(adapter_conversion.compute_prefix(tensors), expected, rtol=1e-2, atol=1e-3)


def test_invalid_exports_and_imports_are_rejected(base_folder, tmp_path):
    base = base_model.read_record(base_folder)
    save_random_adapter("lora", base_folder, tmp_path / "lora")
    save_random_adapter("ptuning_v2", base_folder, tmp_path / "prefix")
    with pytest.raises(UserError, match="export it with --merged"):
        adapter_conversion.export_official_prefix(tmp_path / "lora", base, tmp_path / "out")
    with pytest.raises(UserError, match="export it with --official"):
        adapter_conversion.export_merged_model(tmp_path / "prefix", base, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    files = {
        "none.bin": ({"lm_head.weight": torch.zeros(2)}, "not a P-Tuning checkpoint"),
        "other.bin": (
            {adapter_conversion.KEY_PREFIX + "embedding.weight": torch.zeros(2, 6)},
            "belongs to another base",
        ),
        "code.bin": ({"x": UserError("code")}, "more than tensors"),
        "list.bin": ([1, 2], "no tensors by name"),
        "flat.bin": ({adapter_conversion.KEY_PREFIX + "embedding.weight": torch.zeros(6)}, "has shape"),
        "empty.bin": ({adapter_conversion.KEY_PREFIX + "embedding.weight": torch.zeros(0, 6)}, "has shape"),
        "nan.bin": ({adapter_conversion.KEY_PREFIX + "embedding.weight": torch.full((2, 6), torch.nan)}, "is damaged"),
        "shapes.bin": (
            {
                adapter_conversion.KEY_PREFIX + "embedding.weight": torch.zeros(2, 6),
                adapter_conversion.KEY_PREFIX + "trans.0.weight": torch.zeros(5, 5),
                adapter_conversion.KEY_PREFIX + "trans.0.bias": torch.zeros(5),
            },
            "projection is incomplete",
        ),
    }
    for name, (content, message) in files.items():
        torch.save(content, tmp_path / name)
        with pytest.raises(UserError, match=message):
            adapter_conversion.import_official_prefix(tmp_path / name, base, "x", "float32", tmp_path / "out")
    (tmp_path / "pointer.bin").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(UserError, match="not written by PyTorch"):
        adapter_conversion.import_official_prefix(tmp_path / "pointer.bin", base, "x", "float32", tmp_path / "out")
    (tmp_path / "cut.bin").write_bytes((tmp_path / "none.bin").read_bytes()[:40])
    for name in ("cut.bin", "missing.bin"):
        with pytest.raises(UserError):
            adapter_conversion.import_official_prefix(tmp_path / name, base, "x", "float32", tmp_path / "out")


# Adapters of a quantized base -----------------------------------------------------------------------


def test_an_adapter_of_a_quantized_base_is_merged_only_with_the_option(base_folder, tmp_path):
    base = base_model.read_record(base_folder)
    adapted = adapters.attach_adapter(model_loading.load_model(base, "float32"), "lora", **ADAPTER_SETTINGS["lora"])
    randomize_adapter(adapted)
    adapter_files.save_adapter(adapted, tmp_path / "a", dataclasses.replace(minimal_manifest(base), quantization=4))
    with pytest.raises(UserError, match=r"on a base in 4 bits.*--onto-16-bits"):
        adapter_conversion.export_merged_model(tmp_path / "a", base, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    adapter_conversion.export_merged_model(tmp_path / "a", base, tmp_path / "merged", onto_16_bits=True)
    record = json.loads((tmp_path / "merged/merged.json").read_text())
    manifest = read_verified_manifest(tmp_path / "a")
    assert (record["base_bits_at_training"], record["merged_into"]) == (4, "float32")
    assert (record["weights_sha256"], record["base_identity"]) == (manifest.weights_sha256, base.identity)
    base_verification.verify_base(tmp_path / "merged", "merged")


def test_a_merged_model_has_a_record_of_its_adapter(base_folder, tmp_path):
    save_random_adapter("lora", base_folder, tmp_path / "adapter")
    adapter_conversion.export_merged_model(
        tmp_path / "adapter", base_model.read_record(base_folder), tmp_path / "merged"
    )
    record = json.loads((tmp_path / "merged/merged.json").read_text())
    assert record["base_bits_at_training"] is None
    assert record["name"] == "lora"


# Files without a prefix ---------------------------------------------------------------------------

ROWS = f"{adapter_conversion.KEY_PREFIX}embedding.weight"
LAYERS = {
    "embedding.weight": torch.ones(4, 8),
    "trans.0.weight": torch.ones(6, 8),
    "trans.0.bias": torch.ones(6),
    "trans.2.weight": torch.ones(32, 6),
    "trans.2.bias": torch.ones(32),
}


def layers(**changes) -> dict:
    """Return a published projection with some tensors replaced, or removed by None; underscores stand for dots."""
    changed = LAYERS | {name.replace("_", "."): value for name, value in changes.items()}
    return {adapter_conversion.KEY_PREFIX + name: value for name, value in changed.items() if value is not None}


def nested(depth: int) -> dict:
    value = {}
    for _ in range(depth):
        value = {"a": value}
    return value


def cyclic() -> dict:
    value = {"a": torch.ones(1)}
    value["b"] = value
    return value


STORED = {
    "a cyclic dict": (cyclic(), "no tensors by name"),
    "a nested dict": ({"state_dict": {ROWS: torch.ones(2, 8)}}, "no tensors by name"),
    "many levels": (nested(300), "no tensors by name"),
    "nothing": ({}, "no tensors by name"),
    "None": (None, "no tensors by name"),
    "a number": ({ROWS: 1}, "no tensors by name"),
    "a tensor alone": (torch.ones(2, 8), "no tensors by name"),
    "numbers for names": ({1: torch.ones(2, 8)}, "no tensors by name"),
    "a long name": ({"x" * 10_000: torch.ones(2)}, "no tensors by name"),
    "int8": ({ROWS: torch.ones(2, 8, dtype=torch.int8)}, "has type torch.int8"),
    "bool": ({ROWS: torch.ones(2, 8, dtype=torch.bool)}, "has type torch.bool"),
    "complex": ({ROWS: torch.ones(2, 8, dtype=torch.complex64)}, "has type torch.complex64"),
    "float8": ({ROWS: torch.ones(2, 8).to(torch.float8_e4m3fn)}, "has type torch.float8"),
    "sparse": ({ROWS: torch.eye(8).to_sparse()}, "not a plain matrix"),
    "no data": ({ROWS: torch.ones(2, 8, device="meta")}, "not a plain matrix"),
    "more than the file holds": ({ROWS: torch.ones(1).expand(2**20, 2**20)}, "more than the file holds"),
    "a scalar": ({ROWS: torch.tensor(1.0)}, "expected a matrix"),
    "three dimensions": ({ROWS: torch.ones(2, 2, 2)}, "expected a matrix"),
    "no numbers": ({ROWS: torch.ones(2, 0)}, "expected a matrix"),
    "too many tokens": ({ROWS: torch.ones(adapter_conversion.MAX_PREFIX_TOKENS + 1, 1)}, "expected a matrix"),
    "infinity": ({ROWS: torch.full((2, 8), torch.inf)}, "NaN or inf"),
    "infinity in float32": ({ROWS: torch.full((2, 8), 1e300, dtype=torch.float64)}, "NaN or inf"),
    "one layer of two": (layers(trans_2_weight=None, trans_2_bias=None), "trans.2.bias is missing"),
    "no first layer": (layers(trans_0_weight=None), "trans.0.weight is missing"),
    "no embedding": (layers(embedding_weight=None), "not a P-Tuning checkpoint"),
    "another layer": (layers(trans_4_weight=torch.ones(2)), "trans.4.weight, which no"),
    "a bias that would be spread": (layers(trans_0_bias=torch.ones(1)), "do not match"),
    "another bias": (layers(trans_2_bias=torch.ones(31)), "do not match"),
    "another width": (layers(trans_0_weight=torch.ones(6, 9)), "do not match"),
    "a flat layer": (layers(trans_2_weight=torch.ones(32)), "do not match"),
    "another width behind": (layers(trans_2_weight=torch.ones(32, 5)), "do not match"),
    "empty layers": (
        layers(trans_0_weight=torch.ones(0, 8), trans_0_bias=torch.ones(0), trans_2_weight=torch.ones(32, 0)),
        "do not match",
    ),
}


@pytest.mark.parametrize("kind", STORED)
def test_a_file_without_a_valid_prefix_is_rejected(tmp_path, kind):
    content, reason = STORED[kind]
    torch.save(content, tmp_path / "a.bin")
    with pytest.raises(UserError, match=reason):
        adapter_conversion.compute_prefix(adapter_conversion._load_checkpoint(tmp_path / "a.bin"))


def test_a_projection_with_matching_shapes_is_accepted(tmp_path):
    torch.save(layers(), tmp_path / "a.bin")
    assert adapter_conversion.compute_prefix(adapter_conversion._load_checkpoint(tmp_path / "a.bin")).shape == (4, 32)


def zipped(name: str, content: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr(name, content)
    return file.getvalue()


def overlapping() -> bytes:
    """Return a zip whose entry declares more bytes than the file has, like a zip bomb of overlapping entries."""
    content = bytearray(zipped("archive/data.pkl", b"0"))
    directory = content.index(b"PK\x01\x02")
    content[directory + 20 : directory + 28] = 2 * (2**30).to_bytes(4, "little")
    return bytes(content)


def tarred() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    return file.getvalue()


class Evil:
    def __reduce__(self):
        return (print, ("code of a checkpoint was run",))


RAW = {
    "an empty file": (b"", "not written by PyTorch"),
    "a tar": (tarred(), "not written by PyTorch"),
    "a page": (b"<!DOCTYPE html>", "not written by PyTorch"),
    "the first bytes of a zip": (b"PK", "is truncated"),
    "another zip": (zipped("readme.txt", b"hello"), "cannot be read"),
    "an empty zip": (b"PK\x05\x06" + b"\0" * 18, "cannot be read|damaged directory"),
    "a zip with a pickle": (zipped("archive/data.pkl", pickle.dumps({"a": 1})), "cannot be read"),
    "a compressed zip": (zipped("archive/data.pkl", b"\0" * 10**6, zipfile.ZIP_DEFLATED), "is compressed"),
    "a small compressed zip": (zipped("archive/data.pkl", b"0", zipfile.ZIP_DEFLATED), "is compressed"),
    "overlapping entries": (overlapping(), "is compressed"),
    "a pickle": (pickle.dumps({"a": [1]}, protocol=2), "cannot be read|more than tensors"),
    "a pickle with code": (pickle.dumps(Evil(), protocol=2), "more than tensors|cannot be read"),
    "the first bytes of a pickle": (b"\x80\x02", "cannot be read"),
    "a pickle without end": (b"\x80\x02" + b"(" * 20_000, "cannot be read|more than tensors"),
    "lists without end": (b"\x80\x02" + b"]" * 20_000 + b"a" * 20_000 + b".", "cannot be read|more than tensors"),
}


@pytest.mark.parametrize("kind", RAW)
def test_files_that_torch_did_not_write_are_rejected(tmp_path, capsys, kind):
    content, reason = RAW[kind]
    (tmp_path / "a.bin").write_bytes(content)
    with pytest.raises(UserError, match=reason):
        adapter_conversion._load_checkpoint(tmp_path / "a.bin")
    assert "code" not in capsys.readouterr().out


@pytest.mark.parametrize("keep", [3, 30, 0.5, 0.9, -1])
@pytest.mark.parametrize("new_format", [True, False])
def test_a_truncated_file_is_rejected(tmp_path, keep, new_format):
    torch.save({ROWS: torch.ones(20, 80)}, tmp_path / "a.bin", _use_new_zipfile_serialization=new_format)
    content = (tmp_path / "a.bin").read_bytes()
    (tmp_path / "a.bin").write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(UserError, match=r"cannot be read|more than tensors|is truncated"):
        adapter_conversion._load_checkpoint(tmp_path / "a.bin")


def test_the_format_before_pytorch_1_6_is_read(tmp_path):
    torch.save({ROWS: torch.ones(2, 8)}, tmp_path / "a.bin", _use_new_zipfile_serialization=False)
    assert torch.equal(
        adapter_conversion.compute_prefix(adapter_conversion._load_checkpoint(tmp_path / "a.bin")), torch.ones(2, 8)
    )
