"""Fuzz tests of untrusted files: any mutation of bytes or values loads or raises a UserError of one line."""

import copy
import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shared_data import ADAPTER_SETTINGS, minimal_manifest, randomize_adapter

from models import (
    adapter_conversion,
    adapter_files,
    adapters,
    base_model,
    base_verification,
    model_loading,
    schemas,
    tensor_files,
)
from models.errors import UserError
from models.manifest import CONFIG, MANIFEST, WEIGHTS
from models.storage import sha256_of

EXAMPLES = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
DEEP = 200_000  # deeper than any parser's stack

# Replacements for a value of a JSON file.
odd_values = st.one_of(
    st.sampled_from([None, True, False, -1, 0, 10**9, 2**63, 10**400, math.nan, math.inf, -0.5, 1e308]),
    st.sampled_from(
        ["", "x" * 5000, "../../etc/passwd", "/dev/zero", "\ud800", "\0", [], {}, [[]], [None], ["a"] * 50]
    ),
    st.sampled_from(["nan", "inf", "lora", "float32", "kernels/attention", {"a": {"b": []}}, [10**9], {"": ""}]),
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), st.lists, max_leaves=5),
)


def value_paths(value: object, path: tuple = ()) -> list[tuple]:
    """Return the paths of all values in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(child_path for key, child in items for child_path in value_paths(child, (*path, key)))]


@st.composite
def mutated_values(draw, content: dict) -> bytes:
    """Replace, remove or add one to three values."""
    content = copy.deepcopy(content)
    odd = odd_values.map(copy.deepcopy)  # the next mutation may change it
    for _ in range(draw(st.integers(1, 3))):
        *parents, last = draw(st.sampled_from(value_paths(content)[1:] or [("new",)]))
        target = content
        for key in parents:
            target = target[key]
        mutation = draw(st.sampled_from(["replace", "remove", "add"]))
        if mutation == "remove" and last != "new":
            del target[last]
        elif mutation == "add" and isinstance(target, dict):
            key = draw(st.sampled_from(["new", "vocab_file", "quantization_config", "transformers_weights"]))
            target[key] = draw(odd)
        else:
            target[last] = draw(odd)
    return json.dumps(content).encode()


@st.composite
def mutated_bytes(draw, content: bytes) -> bytes:
    """Replace one to three spans of bytes, and sometimes truncate."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(content)))
        stop = min(len(content), start + draw(st.integers(0, 40)))
        filling = draw(st.sampled_from([b"", b"\0", b"\xff" * 8, b"[" * 50, b"}", b'"', b"9" * 30, b"-", b"{}"]))
        content = content[:start] + (filling or draw(st.binary(max_size=8))) + content[stop:]
    return content[: draw(st.integers(0, len(content)))] if draw(st.integers(0, 4)) == 0 else content


def assert_loads_or_user_error(read: Callable[[], object]) -> None:
    try:
        read()
    except UserError as error:
        assert str(error).encode("utf-8").count(b"\n") == 0  # one line, without lone surrogates
        assert len(str(error)) < 2000


@pytest.fixture
def verified(base_copy) -> base_model.Base:
    return base_verification.verify_base(base_copy, "tiny")


def rehashed(base: base_model.Base) -> base_model.Base:
    """Return the base model with the current hashes of its files."""
    return base_model.Base(base.name, base.folder, None, base_model.hash_files(base.folder, list(base.files)))


READERS = {
    base_model.RECORD: lambda base: base_model.read_record(base.folder),
    base_model.CONFIG: lambda base: model_loading.load_config(rehashed(base)),
    base_model.TOKENIZER_CONFIG: lambda base: model_loading.load_tokenizer(base.folder),
}


@pytest.mark.parametrize("name", READERS)
@EXAMPLES
@given(data=st.data())
def test_json_files_of_a_base_model(verified, name, data):
    path = verified.folder / name
    before = path.read_bytes()
    mutate = data.draw(st.sampled_from([mutated_bytes(before), mutated_values(json.loads(before))]))
    path.write_bytes(data.draw(mutate))
    try:
        assert_loads_or_user_error(lambda: READERS[name](verified))
    finally:
        path.write_bytes(before)


@EXAMPLES
@given(data=st.data())
def test_weight_indexes(verified, data):
    content = {"metadata": {"total_size": 1}, "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    mutate = st.sampled_from([mutated_bytes(json.dumps(content).encode()), mutated_values(content)])
    path = verified.folder / base_model.WEIGHT_INDEXES[0]
    path.write_bytes(data.draw(data.draw(mutate)))
    (verified.folder / "model.safetensors").unlink(missing_ok=True)
    assert_loads_or_user_error(lambda: base_verification.verify_base(verified.folder, "tiny"))


@EXAMPLES
@given(data=st.data())
def test_weight_files(verified, data):
    path = verified.folder / "model.safetensors"
    before = path.read_bytes()
    length = 8 + int.from_bytes(before[:8], "little")
    header = before[8:length]
    if data.draw(st.booleans()):
        header = data.draw(mutated_bytes(header))
        path.write_bytes(len(header).to_bytes(8, "little") + header + before[length:])
    else:
        path.write_bytes(data.draw(mutated_bytes(before[:length])) + before[length:])
    try:
        assert_loads_or_user_error(lambda: model_loading.load_model(rehashed(verified), "float32"))
    finally:
        path.write_bytes(before)


@pytest.fixture(scope="module", params=["lora", "ptuning_v2"])
def adapter(request, base_folder, tmp_path_factory):
    """A saved adapter and its base."""
    base = base_model.read_record(base_folder)
    adapted = adapters.attach_adapter(
        model_loading.load_model(base, "float32"), request.param, **ADAPTER_SETTINGS[request.param]
    )
    randomize_adapter(adapted)
    folder = tmp_path_factory.mktemp("adapters") / request.param
    adapter_files.save_adapter(adapted, folder, minimal_manifest(base, request.param))
    return folder, base


@pytest.mark.parametrize("name", [MANIFEST, CONFIG, WEIGHTS])
@EXAMPLES
@given(data=st.data())
def test_adapters_with_updated_hashes(adapter, name, data):
    folder, base = adapter
    before = {path: path.read_bytes() for path in folder.iterdir()}
    path = folder / name
    mutations = [mutated_bytes(before[path])]
    if path.suffix == ".json":
        mutations.append(mutated_values(json.loads(before[path])))
    path.write_bytes(data.draw(data.draw(st.sampled_from(mutations))))
    if name != MANIFEST:
        update_hashes(folder)
    try:
        assert_loads_or_user_error(lambda: adapter_files.load_adapter(folder, base))
    finally:
        for file, content in before.items():
            file.write_bytes(content)


def update_hashes(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest |= {"weights_sha256": sha256_of(folder / WEIGHTS)}
    manifest |= {"config_sha256": sha256_of(folder / CONFIG)}
    (folder / MANIFEST).write_text(json.dumps(manifest))


@EXAMPLES
@given(data=st.data())
def test_published_prefixes(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "fuzzed.bin"
    torch.save({f"{adapter_conversion.KEY_PREFIX}embedding.weight": torch.ones(2, 8)}, path)
    content = path.read_bytes()
    path.write_bytes(content[:2] + data.draw(mutated_bytes(content[2:])))
    assert_loads_or_user_error(lambda: adapter_conversion.compute_prefix(adapter_conversion._load_checkpoint(path)))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[" * DEEP, "nests deeper"),
        (b'{"a":' * DEEP, "nests deeper"),
        (b'{"a":' * 40 + b"1" + b"}" * 40, "nests deeper"),
        (b'{"a": 1, "a": 2}', "repeats a key"),
        (b'{"a": "\xff"}', "not valid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b"[]", "JSON object"),
        (b"", "not valid JSON"),
        (json.dumps({str(number): 1 for number in range(2000)}).encode(), "2000 keys"),
    ],
)
def test_json_beyond_the_limits_is_rejected(content, reason):
    with pytest.raises(UserError, match=reason):
        schemas.parse_json(content, Path("a.json"))


def test_json_within_the_limits_is_parsed():
    nested = {"a": 1}
    for _ in range(schemas.MAX_DEPTH - 1):
        nested = {"a": nested}
    assert schemas.parse_json(json.dumps(nested).encode(), Path("a.json")) == nested
    with pytest.raises(UserError, match="nests deeper"):
        schemas.parse_json(json.dumps({"a": nested}).encode(), Path("a.json"))


def test_a_file_that_is_missing_or_too_large_is_rejected(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    assert schemas.read_small_file(tmp_path / "a", limit=5) == b"12345"
    with pytest.raises(UserError, match="larger than 4 bytes"):
        schemas.read_small_file(tmp_path / "a", limit=4)
    for name in (".", "b"):
        with pytest.raises(UserError, match="does not exist"):
            schemas.read_small_file(tmp_path / name)


# Weight files ----------------------------------------------------------------------------------


def header_of(entries: dict, data: bytes = b"") -> bytes:
    header = json.dumps(entries).encode()
    return len(header).to_bytes(8, "little") + header + data


FOUR = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (header_of({"a": FOUR}, b"12345"), "5 bytes|header says"),
        (header_of({"a": FOUR}, b"123"), "header says"),
        (header_of({"a": FOUR | {"data_offsets": [4, 8]}}, b"12345678"), "gap or an overlap"),
        (header_of({"a": FOUR, "b": FOUR}, b"1234"), "gap or an overlap"),
        (header_of({"a": FOUR | {"shape": [2]}}, b"1234"), "4 bytes for shape"),
        (header_of({"a": FOUR | {"shape": [2**40, 2**40]}}, b"1234"), "for shape"),
        (header_of({"a": FOUR | {"shape": [-1]}}, b"1234"), "impossible sizes"),
        (header_of({"a": FOUR | {"shape": [True]}}, b"1234"), "impossible sizes"),
        (header_of({"a": FOUR | {"shape": [1] * 9}}, b"1234"), "impossible sizes"),
        (header_of({"a": FOUR | {"dtype": "I64"}}, b"1234"), "type I64"),
        (header_of({"a": FOUR | {"dtype": []}}, b"1234"), "damaged header"),
        (b"\xff" * 20, "not a safetensors file"),
        (b"1234", "not a safetensors file"),
        ((2 * DEEP).to_bytes(8, "little") + b"[" * 2 * DEEP, "damaged header"),
    ],
)
def test_malformed_safetensors_files_are_rejected(tmp_path, content, reason):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=reason):
        tensor_files.load_tensors(path, None, "changed")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_tensors_equal_those_that_safetensors_wrote(tmp_path, dtype):
    from safetensors.torch import save_file

    tensors = {"b": torch.randn(3, 5).to(dtype), "a": torch.randn(7).to(dtype), "c": torch.zeros(0, 4, dtype=dtype)}
    path = tmp_path / "a.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    loaded = tensor_files.load_tensors(path, sha256_of(path), "changed")
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == dtype
        assert torch.equal(loaded[name], tensor)
    with pytest.raises(UserError, match="changed"):
        tensor_files.load_tensors(path, "0" * 64, "changed")


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_a_file_that_changes_while_it_is_read_is_rejected(tmp_path, suffix):
    from safetensors.torch import save_file

    path = tmp_path / f"a{suffix}"
    tensors = {name: torch.ones(10_000) for name in "abc"}
    (save_file if suffix == ".safetensors" else torch.save)(tensors, path)
    sha256 = sha256_of(path)
    reader = tensor_files.read_tensors(path, sha256, "changed")
    assert torch.equal(next(reader)[1], tensors["a"])
    with path.open("r+b") as file:  # in place, not by rename
        file.seek(-40_000, 2)
        file.write(b"\x01" * 30_000)
    if suffix == ".bin":  # copied and hashed before the first tensor
        assert all(torch.equal(tensor, torch.ones(10_000)) for _, tensor in reader)
    else:
        with pytest.raises(UserError, match="changed"):
            list(reader)
    with pytest.raises(UserError, match="changed"):
        tensor_files.load_tensors(path, sha256, "changed")


def test_a_file_that_is_truncated_while_it_is_read_is_rejected(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(10_000), "b": torch.ones(1_000_000)}, path)
    reader = tensor_files.read_tensors(path, sha256_of(path), "changed")
    next(reader)
    os.truncate(path, 200_000)
    with pytest.raises(UserError, match="ended while it was read"):
        next(reader)
