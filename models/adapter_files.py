"""Save and load adapters."""

import json
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from models import schemas
from models.adapters import PREFIX_ROWS, _compute_in_the_type_of_the_base, get_base_model, lora_config, prefix_config
from models.base_model import Base
from models.errors import UserError
from models.manifest import (
    CONFIG,
    FORMAT,
    MANIFEST,
    WEIGHTS,
    Manifest,
    check_base_matches,
    hash_mismatch_message,
    parse_manifest,
    read_config,
)
from models.model_loading import load_config, load_model
from models.schemas import LoraConfigFile, PrefixConfigFile
from models.storage import atomic_write_folder, sha256_of, write_json, write_text
from models.tensor_files import load_tensors, read_tensors

AS_TRAINED = "as trained"


def save_adapter(model, folder: Path, manifest: Manifest, check: Callable[[Path], None] | None = None) -> None:
    """Write the adapter's weights, configuration and manifest; the folder is whole or absent.

    Args:
        check: called with the folder under its temporary name; if it raises, nothing is left.
    """
    with atomic_write_folder(folder) as temporary:
        if manifest.method == "full":
            _save_all_weights(model, temporary, manifest.dtype)
        else:
            _save_peft_adapter(model, temporary, manifest.base)
        for path in temporary.iterdir():
            path.chmod(0o644)  # safetensors keeps what it writes from other users
        if check is not None:
            check(temporary)
        config = sha256_of(temporary / CONFIG) if manifest.method != "full" else ""
        hashes = {"weights_sha256": sha256_of(temporary / WEIGHTS), "config_sha256": config}
        write_json(temporary / MANIFEST, asdict(manifest) | hashes | {"format": FORMAT})


def _save_peft_adapter(model, folder: Path, base_name: str) -> None:
    for config in model.peft_config.values():
        config.base_model_name_or_path = base_name  # not this machine's path to it
    # No adapter here trains embeddings; left to itself, peft would ask the hub whether the base's changed.
    model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty model card; the manifest says more
    _sort_config(folder / CONFIG)


def _sort_config(path: Path) -> None:
    """Give the same configuration the same bytes: peft writes the set of target modules in an order of its own."""
    content = json.loads(path.read_text(encoding="utf-8"))
    content = {key: sorted(value) if isinstance(value, list) else value for key, value in content.items()}
    write_text(path, json.dumps(content, ensure_ascii=False, indent=2, sort_keys=True) + "\n")


def _save_all_weights(model, folder: Path, dtype: str) -> None:
    import torch
    from safetensors.torch import save_file

    kind = getattr(torch, dtype)
    save_file({name: each.to(kind).contiguous() for name, each in model.state_dict().items()}, folder / WEIGHTS)


@contextmanager
def reloaded_adapter(model, folder: Path):
    """The model with the adapter that lies in ``folder`` in place of its own.

    Where all weights are trained the model keeps those from the disk, as memory for two is rarely there.
    """
    if not hasattr(model, "get_base_model"):
        _load_all_weights(model, folder)
        yield model
        return
    own = model.active_adapter
    device = get_base_model(model).device
    method = "lora" if model.peft_config[own].peft_type == "LORA" else "ptuning_v2"
    saved = _read_saved(folder, method)
    model.add_adapter("reloaded", saved.peft_config(model))
    saved.fill(model, "reloaded")
    for name, parameter in model.named_parameters():
        if ".reloaded." in name:
            parameter.data = parameter.data.to(device)  # peft leaves it where it was beside layers in fp8
    model.set_adapter("reloaded")
    _compute_in_the_type_of_the_base(model)
    try:
        yield model
    finally:
        model.set_adapter(own)
        model.delete_adapter("reloaded")


@dataclass(frozen=True)
class _Saved:
    """What was read of an adapter folder: the configuration and the tensors, both from the bytes that were hashed."""

    config: LoraConfigFile | PrefixConfigFile
    tensors: dict
    path: Path

    def peft_config(self, model):
        """peft's configuration, made from the fields that are known and nothing else of the file."""
        if isinstance(self.config, LoraConfigFile):
            config = lora_config(**self.config.attachment())
        else:
            self._refuse_other_model(model)
            config = prefix_config(model, *self.config.attachment().values())
        config.inference_mode = True
        return config

    def _refuse_other_model(self, model) -> None:
        config = get_base_model(model).config
        wanted = {
            "token_dim": config.hidden_size,
            "encoder_hidden_size": config.hidden_size,
            "num_layers": config.num_layers,
            "num_attention_heads": config.num_attention_heads,
        }
        for key, value in wanted.items():
            if getattr(self.config, key) != value:
                raise UserError(
                    f"{self.path.with_name(CONFIG)} has {key} {getattr(self.config, key)}, but the base has {value}; "
                    "the adapter belongs to another base. Train it again."
                )

    def fill(self, tuned, adapter: str = "default") -> None:
        """Put the tensors into an adapter.

        Raises:
            UserError: one is missing, left over, or has another shape.
        """
        from peft import get_peft_model_state_dict, set_peft_model_state_dict

        wanted = get_peft_model_state_dict(tuned, adapter_name=adapter, save_embedding_layers=False)
        _refuse_other_names(self.path, wanted, self.tensors)
        for name, tensor in self.tensors.items():
            _refuse_misfit(self.path, name, tensor, wanted[name])
        set_peft_model_state_dict(tuned, self.tensors, adapter_name=adapter)


def _refuse_other_names(path: Path, wanted: Iterable[str], names: Iterable[str]) -> None:
    for what, odd in (("lacks", set(wanted) - set(names)), ("holds an unknown", set(names) - set(wanted))):
        if odd:
            first = schemas.to_printable(min(odd), 200)
            raise UserError(f"{path} {what} {first}, {len(odd)} in all; it is damaged. Train the adapter again.")


def _refuse_misfit(path: Path, name: str, tensor, wanted) -> None:
    import torch

    if tensor.shape != wanted.shape:
        reason = f"has shape {list(tensor.shape)} instead of {list(wanted.shape)}"
    elif tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        reason = f"has type {tensor.dtype}, which no adapter is saved in"
    elif not tensor.isfinite().all():
        reason = "contains NaN or inf"
    else:
        return
    raise UserError(f"{path}: {schemas.to_printable(name, 200)} {reason}; it is damaged. Train the adapter again.")


def _load_all_weights(model, folder: Path, sha256: str | None = None) -> None:
    """Put a fully trained model's weights into the base. Use the model only if nothing is raised.

    Raises:
        UserError: the file has another hash, or a weight is missing, left over, or unfit.
    """
    import torch

    path, wanted, filled = folder / WEIGHTS, model.state_dict(), set()
    for name, tensor in read_tensors(path, sha256, hash_mismatch_message(path)):
        if name not in wanted:
            _refuse_other_names(path, wanted, [*wanted, name])
        _refuse_misfit(path, name, tensor, wanted[name])
        with torch.no_grad():
            wanted[name].copy_(tensor)
        filled.add(name)
    _refuse_other_names(path, wanted, filled)


def _read_saved(folder: Path, method: str, manifest: Manifest | None = None) -> _Saved:
    """Read an adapter's configuration and tensors.

    Args:
        manifest: whose hashes must be theirs; None for an adapter that was written a moment ago.

    Raises:
        UserError: a file is missing, damaged, or has another hash.
    """
    config = read_config(folder, method, manifest)
    path = folder / WEIGHTS
    tensors = load_tensors(path, manifest and manifest.weights_sha256, hash_mismatch_message(path))
    key, rank = ("r", ".lora_A.") if method == "lora" else ("num_virtual_tokens", PREFIX_ROWS)
    rows = {tensor.shape[0] for name, tensor in tensors.items() if rank in name and tensor.dim()}
    if rows - {getattr(config, key)}:  # before layers of that rank take memory
        raise UserError(
            f"{folder / CONFIG} has {key} {getattr(config, key)}, but {WEIGHTS} has {min(rows)}; the files do not "
            "belong together. Train the adapter again."
        )
    return _Saved(config, tensors, path)


def load_merged(folder: Path, base: Base, manifest: Manifest | None = None):
    """The base with a saved adapter in its weights, in the type that it was trained beside and without quantization.

    Args:
        manifest: see :func:`load`.

    Raises:
        UserError: see :func:`load`.
    """
    manifest = manifest or parse_manifest(folder)
    check_base_matches(manifest, base, folder)
    if manifest.method == "full":
        return load_adapter(folder, base, manifest=manifest)
    return _on_base(folder, manifest, lambda: load_model(base, manifest.dtype)).merge_and_unload()


def _on_base(folder: Path, manifest: Manifest, load_base: Callable):
    """peft's model of a saved adapter. Its files are read before the base, which may have many gigabytes."""
    from peft import get_peft_model

    saved = _read_saved(folder, manifest.method, manifest)
    model = load_base()
    tuned = get_peft_model(model, saved.peft_config(model))
    saved.fill(tuned)
    return tuned.eval()


def read_prefix(folder: Path, base: Base, manifest: Manifest):
    """The (prefix tokens, 2 · layers · hidden_size) rows of a saved prefix.

    Raises:
        UserError: see :func:`load`.
    """
    import torch

    check_base_matches(manifest, base, folder)
    saved, config = _read_saved(folder, manifest.method, manifest), load_config(base)
    _refuse_other_names(saved.path, [PREFIX_ROWS], saved.tensors)
    width = 2 * config.num_layers * config.hidden_size
    wanted = torch.empty(saved.config.num_virtual_tokens, width, device="meta")
    _refuse_misfit(saved.path, PREFIX_ROWS, saved.tensors[PREFIX_ROWS], wanted)
    return saved.tensors[PREFIX_ROWS]


def load_adapter(
    folder: Path,
    base: Base,
    quantization: int | str | None = AS_TRAINED,
    dtype: str | None = None,
    manifest: Manifest | None = None,
):
    """A saved adapter on its base, in evaluation mode.

    The manifest is checked first: a mismatch is told before gigabytes are read.

    Args:
        quantization: 4 or 8 bits for the base, None for none; by default those of the training.
        dtype: of the base; by default that of the training.
        manifest: that was read before, whose hashes the files must have; by default the one in the folder.

    Raises:
        UserError: the manifest, configuration or weights are damaged or do not fit the base; see also
            :func:`models.manifest.check_base_matches` and :func:`models.model_loading.load_model`.
    """
    manifest = manifest or parse_manifest(folder)
    check_base_matches(manifest, base, folder)
    bits = manifest.quantization if quantization == AS_TRAINED else quantization
    if manifest.method == "full":
        if bits is not None:
            raise UserError(f"{folder} holds all weights of a model, which do not load in {bits} bits; leave that out.")
        model = load_model(base, dtype or manifest.dtype)
        _load_all_weights(model, folder, manifest.weights_sha256)
        return model
    tuned = _on_base(folder, manifest, lambda: load_model(base, dtype or manifest.dtype, bits))
    _compute_in_the_type_of_the_base(tuned)
    if not getattr(tuned.peft_config["default"], "use_dora", False):
        for name, parameter in tuned.named_parameters():
            if ".lora_A." in name or ".lora_B." in name:  # products take them so; turned once, not for every token
                parameter.data = parameter.data.to(get_base_model(tuned).dtype)
    return tuned
