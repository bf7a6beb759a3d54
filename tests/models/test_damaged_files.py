"""Files of other people or of a failing disk, mutated by bytes and by values: only a sentence may come of it."""

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
DEEP = 200_000  # more than any parser's stack

# What a value of a JSON file becomes.
odd_values = st.one_of(
    st.sampled_from([None, True, False, -1, 0, 10**9, 2**63, 10**400, math.nan, math.inf, -0.5, 1e308]),
    st.sampled_from(
        ["", "x" * 5000, "../../etc/passwd", "/dev/zero", "\ud800", "\0", [], {}, [[]], [None], ["a"] * 50]
    ),
    st.sampled_from(["nan", "inf", "lora", "float32", "kernels/attention", {"a": {"b": []}}, [10**9], {"": ""}]),
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), st.lists, max_leaves=5),
)


def places(value: object, path: tuple = ()) -> list[tuple]:
    """The paths of all values in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, child in items for place in places(child, (*path, key)))]


@st.composite
def mutated_values(draw, content: dict) -> bytes:
    """The content with one to three values replaced, removed, or put under unknown keys."""
    content = copy.deepcopy(content)
    odd = odd_values.map(copy.deepcopy)  # the next round may mutate it
    for _ in range(draw(st.integers(1, 3))):
        *parents, last = draw(st.sampled_from(places(content)[1:] or [("new",)]))
        target = content
        for key in parents:
            target = target[key]
        how = draw(st.sampled_from(["replace", "remove", "add"]))
        if how == "remove" and last != "new":
            del target[last]
        elif how == "add" and isinstance(target, dict):
            key = draw(st.sampled_from(["new", "vocab_file", "quantization_config", "transformers_weights"]))
            target[key] = draw(odd)
        else:
            target[last] = draw(odd)
    return json.dumps(content).encode()


@st.composite
def mutated_bytes(draw, content: bytes) -> bytes:
    """The bytes with up to three spans replaced, or cut off."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(content)))
        stop = min(len(content), start + draw(st.integers(0, 40)))
        filling = draw(st.sampled_from([b"", b"\0", b"\xff" * 8, b"[" * 50, b"}", b'"', b"9" * 30, b"-", b"{}"]))
        content = content[:start] + (filling or draw(st.binary(max_size=8))) + content[stop:]
    return content[: draw(st.integers(0, len(content)))] if draw(st.integers(0, 4)) == 0 else content


def survives(read: Callable[[], object]) -> None:
    try:
        read()
    except UserError as error:
        assert str(error).encode("utf-8").count(b"\n") == 0  # it can be printed, on one line
        assert len(str(error)) < 2000


@pytest.fixture
def verified(base_copy) -> base_model.Base:
    return base_verification.verify_base(base_copy, "tiny")


def rehashed(found: base_model.Base) -> base_model.Base:
    """The base with the hashes that its files have now, as if they had always been so."""
    return base_model.Base(found.name, found.folder, None, base_model.hash_files(found.folder, list(found.files)))


READERS = {
    base_model.RECORD: lambda found: base_model.read_record(found.folder),
    base_model.CONFIG: lambda found: model_loading.load_config(rehashed(found)),
    base_model.TOKENIZER_CONFIG: lambda found: model_loading.load_tokenizer(found.folder),
}


@pytest.mark.parametrize("name", READERS)
@EXAMPLES
@given(data=st.data())
def test_a_json_file_of_a_base(verified, name, data):
    path = verified.folder / name
    before = path.read_bytes()
    mutate = data.draw(st.sampled_from([mutated_bytes(before), mutated_values(json.loads(before))]))
    path.write_bytes(data.draw(mutate))
    try:
        survives(lambda: READERS[name](verified))
    finally:
        path.write_bytes(before)


@EXAMPLES
@given(data=st.data())
def test_an_index(verified, data):
    content = {"metadata": {"total_size": 1}, "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    mutate = st.sampled_from([mutated_bytes(json.dumps(content).encode()), mutated_values(content)])
    path = verified.folder / base_model.WEIGHT_INDEXES[0]
    path.write_bytes(data.draw(data.draw(mutate)))
    (verified.folder / "model.safetensors").unlink(missing_ok=True)
    survives(lambda: base_verification.verify_base(verified.folder, "tiny"))


@EXAMPLES
@given(data=st.data())
def test_weights(verified, data):
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
        survives(lambda: model_loading.load_model(rehashed(verified), "float32"))
    finally:
        path.write_bytes(before)


@pytest.fixture(scope="module", params=["lora", "ptuning_v2"])
def adapter(request, base_folder, tmp_path_factory):
    """A saved adapter and its base."""
    found = base_model.read_record(base_folder)
    tuned = adapters.attach_adapter(model_loading.load_model(found, "float32"), request.param, **ADAPTER_SETTINGS[request.param])
    randomize_adapter(tuned)
    folder = tmp_path_factory.mktemp("adapters") / request.param
    adapter_files.save_adapter(tuned, folder, minimal_manifest(found, request.param))
    return folder, found


@pytest.mark.parametrize("name", [MANIFEST, CONFIG, WEIGHTS])
@EXAMPLES
@given(data=st.data())
def test_an_adapter_whose_hashes_fit(adapter, name, data):
    folder, found = adapter
    before = {path: path.read_bytes() for path in folder.iterdir()}
    path = folder / name
    mutations = [mutated_bytes(before[path])]
    if path.suffix == ".json":
        mutations.append(mutated_values(json.loads(before[path])))
    path.write_bytes(data.draw(data.draw(st.sampled_from(mutations))))
    if name != MANIFEST:
        fit_hashes(folder)
    try:
        survives(lambda: adapter_files.load_adapter(folder, found))
    finally:
        for file, content in before.items():
            file.write_bytes(content)


def fit_hashes(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest |= {"weights_sha256": sha256_of(folder / WEIGHTS)}
    manifest |= {"config_sha256": sha256_of(folder / CONFIG)}
    (folder / MANIFEST).write_text(json.dumps(manifest))


@EXAMPLES
@given(data=st.data())
def test_a_published_prefix(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "fuzzed.bin"
    torch.save({f"{adapter_conversion.PREFIX}embedding.weight": torch.ones(2, 8)}, path)
    content = path.read_bytes()
    path.write_bytes(content[:2] + data.draw(mutated_bytes(content[2:])))
    survives(lambda: adapter_conversion.compute_prefix(adapter_conversion._load_checkpoint(path)))


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
def test_json_beyond_its_limits(content, reason):
    with pytest.raises(UserError, match=reason):
        schemas.parse_json(content, Path("a.json"))


def test_json_within_its_limits():
    nested = {"a": 1}
    for _ in range(schemas.MAX_DEPTH - 1):
        nested = {"a": nested}
    assert schemas.parse_json(json.dumps(nested).encode(), Path("a.json")) == nested
    with pytest.raises(UserError, match="nests deeper"):
        schemas.parse_json(json.dumps({"a": nested}).encode(), Path("a.json"))


def test_a_file_that_is_too_large_or_none(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    assert schemas.read_small_file(tmp_path / "a", limit=5) == b"12345"
    with pytest.raises(UserError, match="larger than 4 bytes"):
        schemas.read_small_file(tmp_path / "a", limit=4)
    for name in (".", "b"):
        with pytest.raises(UserError, match="does not exist"):
            schemas.read_small_file(tmp_path / name)


# Files of tensors ----------------------------------------------------------------------------------


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
        (header_of({"a": FOUR | {"dtype": "I8"}}, b"1234"), "type I8"),
        (header_of({"a": FOUR | {"dtype": []}}, b"1234"), "damaged header"),
        (b"\xff" * 20, "no safetensors file"),
        (b"1234", "no safetensors file"),
        ((2 * DEEP).to_bytes(8, "little") + b"[" * 2 * DEEP, "damaged header"),
    ],
)
def test_a_safetensors_file_that_is_none(tmp_path, content, reason):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=reason):
        tensor_files.load_tensors(path, None, "changed")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_tensors_are_those_that_the_library_wrote(tmp_path, dtype):
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
def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, suffix):
    from safetensors.torch import save_file

    path = tmp_path / f"a{suffix}"
    tensors = {name: torch.ones(10_000) for name in "abc"}
    (save_file if suffix == ".safetensors" else torch.save)(tensors, path)
    sha256 = sha256_of(path)
    reader = tensor_files.read_tensors(path, sha256, "changed")
    assert torch.equal(next(reader)[1], tensors["a"])
    with path.open("r+b") as file:  # in place: the name still stands for the same file
        file.seek(-40_000, 2)
        file.write(b"\x01" * 30_000)
    if suffix == ".bin":  # was copied and hashed before the first tensor
        assert all(torch.equal(tensor, torch.ones(10_000)) for _, tensor in reader)
    else:
        with pytest.raises(UserError, match="changed"):
            list(reader)
    with pytest.raises(UserError, match="changed"):
        tensor_files.load_tensors(path, sha256, "changed")


def test_a_file_that_is_cut_off_while_it_is_read_is_refused(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(10_000), "b": torch.ones(1_000_000)}, path)
    reader = tensor_files.read_tensors(path, sha256_of(path), "changed")
    next(reader)
    os.truncate(path, 200_000)
    with pytest.raises(UserError, match="ended while it was read"):
        next(reader)
