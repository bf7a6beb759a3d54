"""Adapters in forms that others read: a whole model with LoRA merged in, and the published P-Tuning checkpoint.

The published code saves a prefix as ``pytorch_model.bin`` with ``transformer.prefix_encoder.embedding.weight``, one row
a prefix token, in which key and value of every layer follow one another; or, with a projection, an embedding as wide
as the model and ``trans``, two layers with a tanh between them, which make such rows of it. ``config.json`` beside it
says ``pre_seq_len`` and ``prefix_projection``.
"""

import json
import pickle
import shutil
from pathlib import Path

import torch
from safetensors import safe_open

from models import adapters, base
from models.errors import UserError
from models.prompt import PROMPT_VERSION
from models.storage import writing_folder

PREFIX = "transformer.prefix_encoder."
WEIGHTS, CONFIG = "pytorch_model.bin", "config.json"
SHARD = "2GB"
FIRST_BYTES = (b"PK", b"\x80\x02")  # of what torch.save writes, now and formerly
TOKENIZER_FILES = (base.TOKENIZER, base.TOKENIZER_CONFIG)


def save_merged(folder: Path, found: base.Base, out: Path) -> None:
    """Write the base with an adapter in its weights, in the official file layout, in the adapter's type.

    Raises:
        UserError: the adapter is a prefix, which no weights can hold, or does not belong to the base; see also
            :func:`models.adapters.read_manifest`.
    """
    manifest = adapters.read_manifest(folder)
    if manifest.method == "ptuning_v2":
        raise UserError(f"{folder} is a prefix, which cannot be merged into weights; export it with --official.")
    model = adapters.merged(folder, found)
    with writing_folder(out) as temporary:
        model.save_pretrained(temporary, max_shard_size=SHARD)
        for path in temporary.iterdir():
            path.chmod(0o644)  # safetensors keeps what it writes from other users
        for name in TOKENIZER_FILES:
            shutil.copyfile(found.folder / name, temporary / name)


def save_official_prefix(folder: Path, found: base.Base, out: Path) -> None:
    """Write a prefix as the published P-Tuning code saves it; a projection has become part of it.

    Raises:
        UserError: the adapter is no prefix, or does not belong to the base.
    """
    manifest = adapters.read_manifest(folder)
    if manifest.method != "ptuning_v2":
        raise UserError(f"{folder} is no prefix ({manifest.method}); export it with --merged.")
    adapters.check(manifest, found, folder)
    with safe_open(folder / adapters.WEIGHTS, "pt") as file:
        rows = file.get_tensor(adapters.PREFIX_ROWS)
    config = json.loads((found.folder / base.CONFIG).read_text(encoding="utf-8"))
    config |= {"pre_seq_len": len(rows), "prefix_projection": False}
    with writing_folder(out) as temporary:
        torch.save({f"{PREFIX}embedding.weight": rows}, temporary / WEIGHTS)
        (temporary / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8")


def load_official_prefix(file: Path, found: base.Base, name: str, dtype: str, out: Path) -> None:
    """Write the adapter folder of a published P-Tuning checkpoint.

    Args:
        file: its ``pytorch_model.bin``; nothing but tensors is read from it.
        name, dtype: for the manifest: what to call it, and the type of the base that it shall be loaded on.

    Raises:
        UserError: the file holds no prefix, more than tensors, or a prefix of another model.
    """
    rows = prefix_rows(_tensors(file))
    model = base.load_model(found, dtype)
    wanted = 2 * model.config.num_layers * model.config.hidden_size
    if rows.shape[1] != wanted:
        raise UserError(
            f"The prefix in {file} has {rows.shape[1]} numbers a token, but {found.name} takes {wanted}; "
            "it belongs to another base."
        )
    tuned = adapters.attach(model, "ptuning_v2", prefix_tokens=len(rows))
    adapters.put_prefix(tuned, rows)
    manifest = adapters.Manifest(
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
    adapters.save(tuned, out, manifest)


def prefix_rows(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """(prefix tokens, 2 · layers · hidden_size) in float32, computed where the checkpoint has a projection.

    Raises:
        UserError: there is no prefix among the tensors.
    """
    own = {name.removeprefix(PREFIX): value.float() for name, value in tensors.items() if name.startswith(PREFIX)}
    try:
        rows = own["embedding.weight"]
        if "trans.0.weight" in own:
            hidden = torch.tanh(torch.nn.functional.linear(rows, own["trans.0.weight"], own["trans.0.bias"]))
            rows = torch.nn.functional.linear(hidden, own["trans.2.weight"], own["trans.2.bias"])
    except KeyError as error:
        raise UserError(f"The checkpoint has no {PREFIX}{error.args[0]}; it is no P-Tuning checkpoint.") from None
    except RuntimeError as error:
        raise UserError(f"The layers of the checkpoint's prefix do not fit one another ({error}).") from None
    if rows.dim() != 2 or len(rows) == 0 or not rows.isfinite().all():
        raise UserError(f"The prefix of the checkpoint is damaged: {tuple(rows.shape)}, or numbers that are none.")
    return rows


def _tensors(file: Path) -> dict[str, torch.Tensor]:
    from transformers.modeling_utils import load_state_dict

    if not file.is_file():
        raise UserError(f"{file} is no file; name the pytorch_model.bin of a P-Tuning checkpoint.")
    with file.open("rb") as start:
        if start.read(2) not in FIRST_BYTES:
            raise UserError(f"{file} was not written by PyTorch: a pointer to it, or a page about it, perhaps.")
    try:
        found = load_state_dict(file)
    except pickle.UnpicklingError:
        raise UserError(f"{file} holds more than tensors, which could run code; refused.") from None
    except (OSError, RuntimeError, ValueError, EOFError) as error:
        raise UserError(f"{file} cannot be read ({str(error).splitlines()[0]}).") from None
    if not isinstance(found, dict) or not all(isinstance(each, torch.Tensor) for each in found.values()):
        raise UserError(f"{file} holds no tensors by name; it is no checkpoint.")
    return {str(name): tensor for name, tensor in found.items()}
