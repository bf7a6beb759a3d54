"""Adapters in forms that others read: a whole model with LoRA merged in, and the published P-Tuning checkpoint.

The published code saves a prefix as ``pytorch_model.bin`` with ``transformer.prefix_encoder.embedding.weight``, one row
a prefix token, in which key and value of every layer follow one another; or, with a projection, an embedding as wide
as the model and ``trans``, two layers with a tanh between them, which make such rows of it. ``config.json`` beside it
says ``pre_seq_len`` and ``prefix_projection``.
"""

import json
from pathlib import Path

import torch

from models import adapter_files, adapters, base_model, model_loading, tensor_files
from models.errors import UserError
from models.manifest import Manifest, parse_manifest
from models.prompt import PROMPT_VERSION
from models.schemas import parse_json, to_printable
from models.storage import atomic_write_folder, write_json

PREFIX = "transformer.prefix_encoder."
EMBEDDING, PROJECTION = "embedding.weight", ("trans.0.weight", "trans.0.bias", "trans.2.weight", "trans.2.bias")
MAX_PREFIX_TOKENS = 4096  # a projection makes 0.9 MB of each for ChatGLM-6B
MAX_BYTES = 2**34
WEIGHTS, CONFIG = "pytorch_model.bin", "config.json"
MERGED_RECORD = "merged.json"
SHARD = "2GB"
FIRST_BYTES = (b"PK", b"\x80\x02")  # of what torch.save writes, now and formerly
TOKENIZER_FILES = (base_model.TOKENIZER, base_model.TOKENIZER_CONFIG)


def export_merged_model(folder: Path, found: base_model.Base, out: Path, onto_16_bits: bool = False) -> None:
    """Write the base with an adapter in its weights, in the official file layout, in the adapter's type.

    ``merged.json`` beside the weights says which adapter it is, and in how many bits the base was at its training.

    Args:
        onto_16_bits: merge even an adapter that was trained beside a base in 4 or 8 bits.

    Raises:
        UserError: the adapter is a prefix, which no weights can hold, was trained beside a quantized base, or does not
            belong to the base; see also :func:`models.manifest.parse_manifest`.
    """
    manifest = parse_manifest(folder)
    if manifest.method == "ptuning_v2":
        raise UserError(f"{folder} is a prefix, which cannot be merged into weights; export it with --official.")
    if manifest.quantization is not None and not onto_16_bits:
        raise UserError(
            f"{folder} was trained and evaluated beside a base in {manifest.quantization} bits. The merged model holds "
            "the unrounded weights instead, so its answers differ, and the difference is not measured. Pass "
            "--onto-16-bits to merge it all the same, and evaluate the merged model before you use it."
        )
    model = adapter_files.load_merged(folder, found, manifest)
    with atomic_write_folder(out) as temporary:
        model.save_pretrained(temporary, max_shard_size=SHARD)
        for path in temporary.iterdir():
            path.chmod(0o644)  # safetensors keeps what it writes from other users
        for name in TOKENIZER_FILES:
            (temporary / name).write_bytes(found.read(name))
        write_json(temporary / MERGED_RECORD, _record_of(manifest))


def _record_of(manifest: Manifest) -> dict:
    kept = ("name", "method", "base", "base_identity", "dtype", "receipt_sha256", "weights_sha256", "config_sha256")
    record = {name: getattr(manifest, name) for name in kept}
    return record | {"base_bits_at_training": manifest.quantization, "merged_into": manifest.dtype}


def export_official_prefix(folder: Path, found: base_model.Base, out: Path) -> None:
    """Write a prefix as the published P-Tuning code saves it; a projection has become part of it.

    Raises:
        UserError: the adapter is no prefix, or does not belong to the base.
    """
    manifest = parse_manifest(folder)
    if manifest.method != "ptuning_v2":
        raise UserError(f"{folder} is no prefix ({manifest.method}); export it with --merged.")
    rows = adapter_files.read_prefix(folder, found, manifest)
    config = parse_json(found.read(base_model.CONFIG), found.folder / base_model.CONFIG)
    config |= {"pre_seq_len": len(rows), "prefix_projection": False}
    with atomic_write_folder(out) as temporary:
        torch.save({f"{PREFIX}embedding.weight": rows}, temporary / WEIGHTS)
        (temporary / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8")


def import_official_prefix(file: Path, found: base_model.Base, name: str, dtype: str, out: Path) -> None:
    """Write the adapter folder of a published P-Tuning checkpoint.

    Args:
        file: its ``pytorch_model.bin``; nothing but tensors is read from it.
        name, dtype: for the manifest: what to call it, and the type of the base that it shall be loaded on.

    Raises:
        UserError: the file holds no prefix, more than tensors, or a prefix of another model.
    """
    rows = compute_prefix(_load_checkpoint(file))
    model = model_loading.load_model(found, dtype)
    wanted = 2 * model.config.num_layers * model.config.hidden_size
    if rows.shape[1] != wanted:
        raise UserError(
            f"The prefix in {file} has {rows.shape[1]} numbers a token, but {found.name} takes {wanted}; "
            "it belongs to another base."
        )
    tuned = adapters.attach_adapter(model, "ptuning_v2", prefix_tokens=len(rows))
    adapters.set_prefix(tuned, rows)
    manifest = Manifest(
        name=name,
        method="ptuning_v2",
        settings={"method": "ptuning_v2", "prefix_tokens": len(rows), "projection": False},
        base=found.name,
        base_identity=found.identity,
        tokenizer_sha256=found.tokenizer_sha256,
        prompt_version=PROMPT_VERSION,
        quantization=None,
        dtype=dtype,
        receipt_sha256="",  # of what it was trained on nothing is known here
        code_commit=None,
        training={"imported_from": file.name},
    )
    adapter_files.save_adapter(tuned, out, manifest)


def compute_prefix(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """(prefix tokens, 2 · layers · hidden_size) in float32, computed where the checkpoint has a projection.

    Raises:
        UserError: there is no prefix among the tensors, or its layers do not fit one another.
    """
    own = {name.removeprefix(PREFIX): value for name, value in tensors.items() if name.startswith(PREFIX)}
    wanted = {EMBEDDING, *(PROJECTION if any(name in own for name in PROJECTION) else ())}
    if EMBEDDING not in own:
        raise UserError(f"The checkpoint has no {PREFIX}{EMBEDDING}; it is no P-Tuning checkpoint.")
    if missing := sorted(wanted - own.keys()):
        raise UserError(f"The layers of the checkpoint's prefix do not fit one another: {missing[0]} is missing.")
    if unknown := sorted(own.keys() - wanted):
        raise UserError(f"The checkpoint has {PREFIX}{to_printable(unknown[0])}, which no P-Tuning checkpoint has.")
    _refuse_other_shapes({name: list(value.shape) for name, value in own.items()})
    rows = own[EMBEDDING].float()
    if len(wanted) > 1:
        first, first_bias, second, second_bias = (own[name].float() for name in PROJECTION)
        hidden = torch.tanh(torch.nn.functional.linear(rows, first, first_bias))
        rows = torch.nn.functional.linear(hidden, second, second_bias)
    if not rows.isfinite().all():
        raise UserError("The prefix of the checkpoint is damaged: it contains NaN or inf.")
    return rows


def _refuse_other_shapes(shapes: dict[str, list[int]]) -> None:
    """Raises UserError: the embedding is no matrix of some rows, or the layers behind it do not fit one another."""
    rows = shapes[EMBEDDING]
    if len(rows) != 2 or 0 in rows or rows[0] > MAX_PREFIX_TOKENS:
        raise UserError(
            f"The prefix of the checkpoint is damaged: it has shape {rows}, not up to {MAX_PREFIX_TOKENS} tokens with "
            "some numbers each."
        )
    if len(shapes) > 1:
        first, first_bias, second, second_bias = (shapes[name] for name in PROJECTION)
        matrices = len(first) == len(second) == 2 and 0 not in (*first, *second)
        if not matrices or [first, second[1:]] != [[*first_bias, rows[1]], first_bias] or second_bias != second[:1]:
            shown = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
            raise UserError(f"The layers of the checkpoint's prefix do not fit one another: {shown}.")


def _load_checkpoint(file: Path) -> dict[str, torch.Tensor]:
    if not file.is_file():
        raise UserError(f"{file} is no file; name the pytorch_model.bin of a P-Tuning checkpoint.")
    with file.open("rb") as start:
        if start.read(2) not in FIRST_BYTES:
            raise UserError(f"{file} was not written by PyTorch: a pointer to it, or a page about it, perhaps.")
    if file.stat().st_size > MAX_BYTES:
        raise UserError(f"{file} is larger than {MAX_BYTES} bytes, which no prefix is.")
    return tensor_files.load_pickled(file)
