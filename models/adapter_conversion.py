"""Convert adapters: merge LoRA into a complete model, export and import prefixes in the published P-Tuning format.

The published code saves a prefix as ``pytorch_model.bin``. Without projection, its
``transformer.prefix_encoder.embedding.weight`` has one row per prefix token: key and value of the first layer, then of
the second, and so on. With projection, the embedding is hidden_size wide, and ``trans`` (linear, tanh, linear) maps it
to such rows. ``config.json`` next to it holds ``pre_seq_len`` and ``prefix_projection``.
"""

import json
from pathlib import Path

import torch

from models import adapter_files, adapters, base_model, model_loading, tensor_files
from models.errors import UserError
from models.families import family_of
from models.manifest import Manifest, parse_manifest
from models.schemas import parse_json, to_printable
from models.storage import atomic_write_folder, write_json

KEY_PREFIX = "transformer.prefix_encoder."
EMBEDDING, PROJECTION = "embedding.weight", ("trans.0.weight", "trans.0.bias", "trans.2.weight", "trans.2.bias")
MAX_PREFIX_TOKENS = 4096  # one token takes 0.9 MB for ChatGLM-6B
MAX_CHECKPOINT_BYTES = 2**34  # of a published prefix checkpoint
WEIGHTS, CONFIG = "pytorch_model.bin", "config.json"
MERGED_RECORD = "merged.json"
MAGIC_BYTES = (b"PK", b"\x80\x02")  # of torch.save: zip file, or pickle before PyTorch 1.6


def export_merged_model(folder: Path, base: base_model.Base, out: Path, onto_16_bits: bool = False) -> None:
    """Merge an adapter into its base and write the model in the official file layout, in the dtype of training.

    ``merged.json`` next to the weights names the adapter and the quantization of the base in training.

    Args:
        out: folder of the merged model.
        onto_16_bits: also merge an adapter that was trained on a base in 4 or 8 bits.

    Raises:
        UserError: the adapter is a prefix, which cannot be merged, was trained on a quantized base, or belongs to
            another base; see also :func:`models.manifest.parse_manifest`.
    """
    manifest = parse_manifest(folder)
    if manifest.method == "ptuning_v2":
        raise UserError(f"{folder} is a prefix, which cannot be merged into weights; export it with --official.")
    if manifest.quantization is not None and not onto_16_bits:
        raise UserError(
            f"{folder} was trained and evaluated on a base in {manifest.quantization} bits. The merged model has the "
            "base's original weights instead, so its answers differ by an amount that was not measured. Pass "
            "--onto-16-bits to merge it anyway, and evaluate the merged model before you use it."
        )
    model = adapter_files.load_merged(folder, base, manifest)
    with atomic_write_folder(out) as temporary:
        family_of(base).save_model(model, base, temporary)
        for path in temporary.iterdir():
            path.chmod(0o644)  # safetensors creates files that only their owner can read
        write_json(temporary / MERGED_RECORD, _merge_record(manifest))


def _merge_record(manifest: Manifest) -> dict:
    fields = ("name", "method", "base", "base_identity", "dtype", "receipt_sha256", "weights_sha256", "config_sha256")
    record = {name: getattr(manifest, name) for name in fields}
    return record | {"base_bits_at_training": manifest.quantization, "merged_into": manifest.dtype}


def export_official_prefix(folder: Path, base: base_model.Base, out: Path) -> None:
    """Write a prefix as the published P-Tuning code saves it, with its projection already applied.

    Raises:
        UserError: the adapter is not a prefix, or belongs to another base.
    """
    manifest = parse_manifest(folder)
    if manifest.method != "ptuning_v2":
        raise UserError(f"{folder} is not a prefix (method {manifest.method}); export it with --merged.")
    rows = adapter_files.read_prefix(folder, base, manifest)
    rows = family_of(base).export_prefix(rows, model_loading.load_config(base))
    config = parse_json(base.read(base_model.CONFIG), base.folder / base_model.CONFIG)
    config |= {"pre_seq_len": len(rows), "prefix_projection": False}
    with atomic_write_folder(out) as temporary:
        torch.save({f"{KEY_PREFIX}{EMBEDDING}": rows}, temporary / WEIGHTS)
        (temporary / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8")


def import_official_prefix(file: Path, base: base_model.Base, name: str, dtype: str, out: Path) -> None:
    """Convert a published P-Tuning checkpoint to an adapter folder.

    Args:
        file: ``pytorch_model.bin`` of the checkpoint; only tensors are unpickled.
        name: of the adapter, for its manifest.
        dtype: of the base when the adapter is loaded, for the manifest.
        out: adapter folder to write.

    Raises:
        UserError: the file holds no prefix, objects other than tensors, or a prefix of another model.
    """
    rows = compute_prefix(_load_checkpoint(file))
    model = model_loading.load_model(base, dtype)
    family = family_of(base)
    width = family.prefix_shape(model.config).width
    if rows.shape[1] != width:
        raise UserError(
            f"The prefix in {file} has {rows.shape[1]} values per token, but {base.name} needs {width}; "
            "it belongs to another base."
        )
    adapted = adapters.attach_adapter(model, "ptuning_v2", prefix_tokens=len(rows))
    adapters.set_prefix(adapted, family.import_prefix(rows, model.config))
    manifest = Manifest(
        name=name,
        method="ptuning_v2",
        settings={"method": "ptuning_v2", "prefix_tokens": len(rows), "projection": False},
        base=base.name,
        base_identity=base.identity,
        tokenizer_sha256=base.tokenizer_sha256,
        prompt_version=family.prompt_version(base),
        quantization=None,
        dtype=dtype,
        receipt_sha256="",  # its training data are unknown
        code_commit=None,
        training={"imported_from": file.name},
    )
    adapter_files.save_adapter(adapted, out, manifest)


def compute_prefix(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the prefix of a published checkpoint, after its projection if it has one.

    Args:
        tensors: of the checkpoint, by name.

    Returns:
        (prefix tokens, 2 · layers · hidden_size) in float32.

    Raises:
        UserError: there is no prefix among the tensors, their shapes do not match, or a value is NaN or infinite.
    """
    prefix_tensors = {
        name.removeprefix(KEY_PREFIX): tensor for name, tensor in tensors.items() if name.startswith(KEY_PREFIX)
    }
    expected = {EMBEDDING, *(PROJECTION if any(name in prefix_tensors for name in PROJECTION) else ())}
    if EMBEDDING not in prefix_tensors:
        raise UserError(f"The checkpoint has no {KEY_PREFIX}{EMBEDDING}; it is not a P-Tuning checkpoint.")
    if missing := sorted(expected - prefix_tensors.keys()):
        raise UserError(f"The prefix projection is incomplete: {missing[0]} is missing.")
    if unknown := sorted(prefix_tensors.keys() - expected):
        raise UserError(f"The checkpoint has {KEY_PREFIX}{to_printable(unknown[0])}, which no P-Tuning checkpoint has.")
    _check_shapes({name: list(tensor.shape) for name, tensor in prefix_tensors.items()})
    rows = prefix_tensors[EMBEDDING].float()
    if len(expected) > 1:
        first, first_bias, second, second_bias = (prefix_tensors[name].float() for name in PROJECTION)
        hidden = torch.tanh(torch.nn.functional.linear(rows, first, first_bias))
        rows = torch.nn.functional.linear(hidden, second, second_bias)
    if not rows.isfinite().all():
        raise UserError("The prefix of the checkpoint is damaged: it contains NaN or inf.")
    return rows


def _check_shapes(shapes: dict[str, list[int]]) -> None:
    """Check that the embedding is a matrix of 1 to ``MAX_PREFIX_TOKENS`` rows, and that the projection fits it.

    Raises:
        UserError: the embedding has another shape, or the shapes of the projection's layers do not match.
    """
    embedding = shapes[EMBEDDING]
    if len(embedding) != 2 or 0 in embedding or embedding[0] > MAX_PREFIX_TOKENS:
        raise UserError(
            f"{KEY_PREFIX}{EMBEDDING} has shape {embedding}; expected a matrix of 1 to {MAX_PREFIX_TOKENS} rows."
        )
    if len(shapes) > 1:
        first, first_bias, second, second_bias = (shapes[name] for name in PROJECTION)
        are_matrices = len(first) == len(second) == 2 and 0 not in (*first, *second)
        first_layer_fits = first == [*first_bias, embedding[1]]
        second_layer_fits = second[1:] == first_bias and second[:1] == second_bias
        if not (are_matrices and first_layer_fits and second_layer_fits):
            listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
            raise UserError(f"The shapes of the prefix projection's layers do not match: {listed}.")


def _load_checkpoint(file: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a file that torch.save wrote.

    Raises:
        UserError: the file is missing, too large, damaged, or holds objects other than tensors.
    """
    if not file.is_file():
        raise UserError(f"{file} is not a file; pass the pytorch_model.bin of a P-Tuning checkpoint.")
    with file.open("rb") as start:
        if start.read(2) not in MAGIC_BYTES:
            raise UserError(
                f"{file} was not written by PyTorch. It may be a Git LFS pointer or an HTML page; fetch it again."
            )
    if file.stat().st_size > MAX_CHECKPOINT_BYTES:
        raise UserError(f"{file} is larger than {MAX_CHECKPOINT_BYTES} bytes, the limit for a prefix checkpoint.")
    return tensor_files.load_pickled(file)
