"""Checkpoints that the authors of ChatGLM-6B quantized: parity with recorded results, and whole folders."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from shared_data import developer_file

from models import base_model, model_loading
from models.base_model import CONFIG, Base, hash_files
from models.base_verification import verify_base
from models.errors import UserError
from models.published_quantization import dequantize, unpack_codes
from models.tensor_files import load_tensors

MODELS = ["int4_model", "int8_model", "int4_model_qe"]
LINEAR = ("query_key_value.weight", "dense.weight", "dense_h_to_4h.weight", "dense_4h_to_h.weight")


def vectors(name: str) -> Path:
    return developer_file(f"reference/vectors/quantized/{name}")


def select(tensors: dict, prefix: str) -> dict:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def save_weights(tensors: dict, folder: Path, file_type: str) -> str:
    if file_type == "bin":
        torch.save(tensors, folder / "pytorch_model.bin")
        return "pytorch_model.bin"
    save_file(tensors, folder / "model.safetensors")
    return "model.safetensors"


@pytest.fixture
def matrices() -> dict:
    return load_file(vectors("matrices.safetensors"))


@pytest.mark.parametrize("matrix", ["small", "wide", "tall", "ties"])
@pytest.mark.parametrize("bits", [4, 8])
def test_weights_equal_those_of_the_published_kernels(matrices, matrix, bits):
    recorded = select(matrices, f"{matrix}.int{bits}.")
    assert torch.equal(unpack_codes(recorded["weight"], bits), recorded["codes"])
    for dtype in ("float32", "float16"):
        weight = dequantize(recorded["weight"], recorded["weight_scale"], bits, getattr(torch, dtype))
        assert torch.equal(weight, recorded[f"dequantized_{dtype}"])
    output = matrices[f"{matrix}.input"] @ recorded["dequantized_float32"].T
    torch.testing.assert_close(output, recorded["output_float32"])


def test_every_byte_is_unpacked_as_by_the_published_kernels(matrices):
    recorded = select(matrices, "every_byte.")
    for bits in (4, 8):
        assert torch.equal(unpack_codes(recorded["weight"], bits).float(), recorded[f"int{bits}_decoded"])


@pytest.mark.parametrize("file_type", ["bin", "safetensors"])
@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_those_of_the_published_code(tmp_path, name, file_type):
    tensors = load_file(vectors(f"{name}.safetensors"))
    config = json.loads(vectors(f"{name}.json").read_text())
    config.pop("seed")
    (tmp_path / CONFIG).write_text(json.dumps({"model_type": "chatglm", **config}))
    weights = save_weights(select(tensors, "weights."), tmp_path, file_type)
    base = Base(name, tmp_path, None, hash_files(tmp_path, [CONFIG, weights]))
    model = model_loading.load_model(base, "float32")
    assert model.config.quantization_bit == 0
    torch.testing.assert_close(model(tensors["input_ids"]).logits, tensors["logits_float32"], atol=1e-5, rtol=1e-4)


# Whole folders -------------------------------------------------------------------------------------


def quantize(weight: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return codes and scale as the published code computes them."""
    scale = (weight.abs().max(dim=1).values / (2 ** (bits - 1) - 1)).half()
    codes = (weight / scale.float()[:, None]).round().to(torch.int8)
    return (codes if bits == 8 else (codes[:, ::2] << 4) | (codes[:, 1::2] & 15)), scale


@pytest.fixture
def quantized_folder(base_copy):
    """Return a function that quantizes the weights of a complete checkpoint in the published layout."""

    def make(bits: int, file_type: str = "bin") -> Path:
        tensors = load_file(base_copy / "model.safetensors")
        (base_copy / "model.safetensors").unlink()
        for name in [name for name in tensors if name.endswith(LINEAR)]:
            tensors[name], tensors[f"{name}_scale"] = quantize(tensors[name], bits)
        save_weights(tensors, base_copy, file_type)
        config = json.loads((base_copy / CONFIG).read_text()) | {
            "quantization_bit": bits,
            "quantization_embeddings": False,
        }
        (base_copy / CONFIG).write_text(json.dumps(config))
        return base_copy

    return make


@pytest.mark.parametrize(("bits", "tolerance"), [(8, 0.02), (4, 0.3)])
def test_quantized_checkpoint_is_a_base_and_can_be_saved_unquantized(
    quantized_folder, model, tmp_path, bits, tolerance
):
    base = verify_base(quantized_folder(bits), "quantized")
    loaded = model_loading.load_model(base, "float32")
    ids = torch.arange(20).clamp(min=6)[None]
    expected, logits = model(ids).logits, loaded(ids).logits
    assert 0 < (logits - expected).norm() / expected.norm() < tolerance
    loaded.save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / CONFIG).read_text()).get("quantization_bit", 0) == 0


def test_codes_need_a_configuration_that_names_their_bits(quantized_folder):
    folder = quantized_folder(8, "safetensors")
    config = json.loads((folder / CONFIG).read_text()) | {"quantization_bit": 0}
    (folder / CONFIG).write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"holds quantized weights, but config\.json has no quantization_bit"):
        model_loading.load_model(verify_base(folder, "quantized"), "float32")


@pytest.mark.parametrize("bits", [2, 16, "4"])
def test_other_numbers_of_bits_are_refused(base_copy, bits):
    config = json.loads((base_copy / CONFIG).read_text()) | {"quantization_bit": bits}
    (base_copy / CONFIG).write_text(json.dumps(config))
    with pytest.raises(UserError, match="quantization_bit"):
        verify_base(base_copy, "quantized")


@pytest.mark.parametrize("file_type", ["bin", "safetensors"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, name: tensors.pop(f"{name}_scale"), "without .*_scale; fetch"),
        (lambda tensors, name: tensors.pop(name), r"holds .*_scale without .*weight; fetch"),
        (
            lambda tensors, name: tensors.update({f"{name}_scale": tensors[f"{name}_scale"][:-1]}),
            "do not belong together",
        ),
        (lambda tensors, name: tensors.update({name: tensors[name].float()}), "has shape"),
        (lambda tensors, name: tensors.update({name: tensors[name][:, :-1].contiguous()}), "has shape"),
        (lambda tensors, name: tensors.update({f"{name}_scale": tensors[name][:, 0].contiguous()}), "do not belong"),
    ],
)
def test_damaged_checkpoints_end_in_one_sentence(quantized_folder, change, message, file_type):
    folder = quantized_folder(4, file_type)
    weights = folder / ("pytorch_model.bin" if file_type == "bin" else "model.safetensors")
    tensors = torch.load(weights) if file_type == "bin" else load_file(weights)
    change(tensors, "transformer.layers.0.attention.dense.weight")
    save_weights(tensors, folder, file_type)
    with pytest.raises(UserError, match=message):
        model_loading.load_model(verify_base(folder, "quantized"), "float32")


@pytest.mark.parametrize("file_type", ["bin", "safetensors"])
def test_an_adapter_has_no_codes(tmp_path, file_type):
    name = save_weights({"a": torch.ones(2, dtype=torch.int8)}, tmp_path, file_type)
    with pytest.raises(UserError, match=r"has type torch\.int8"):
        load_tensors(tmp_path / name, None, "changed")


def test_record_of_a_quantized_checkpoint_can_be_read_again(quantized_folder, tmp_path):
    base = verify_base(quantized_folder(4), "quantized")
    base_model.write_record(base, base.folder)
    assert base_model.read_record(base.folder).identity == base.identity
