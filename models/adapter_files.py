"""Save adapters to folders and load them.

Files are parsed from the bytes whose SHA-256 the manifest holds (see :mod:`models.manifest`); peft never reads the
folder.
"""

import json
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from models import adapters, schemas
from models.adapters import PREFIX_NAME, get_base_model
from models.base_model import Base
from models.errors import UserError
from models.families import family_of, family_of_config
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

# Saving --------------------------------------------------------------------------------------------


def save_adapter(model, folder: Path, manifest: Manifest, check: Callable[[Path], None] | None = None) -> None:
    """Write an adapter's weights, configuration and manifest atomically.

    Args:
        model: as :func:`models.adapters.attach_adapter` returns it.
        manifest: without the hashes of weights and configuration, which are filled in here.
        check: called with the temporary folder before it is renamed; if it raises, nothing is saved.
    """
    with atomic_write_folder(folder) as temporary:
        if manifest.method == "full":
            _save_all_weights(model, temporary, manifest.dtype)
        else:
            _save_peft_adapter(model, temporary, manifest.base)
        for path in temporary.iterdir():
            path.chmod(0o644)  # safetensors creates files that only their owner can read
        if check is not None:
            check(temporary)
        config = sha256_of(temporary / CONFIG) if manifest.method != "full" else ""
        hashes = {"weights_sha256": sha256_of(temporary / WEIGHTS), "config_sha256": config}
        content = asdict(manifest) | hashes | {"format": FORMAT}
        if manifest.started_from is None:  # older versions of Tuneline do not know the key
            del content["started_from"]
        write_json(temporary / MANIFEST, content)


def _save_peft_adapter(model, folder: Path, base_name: str) -> None:
    for config in model.peft_config.values():
        config.base_model_name_or_path = base_name  # instead of a path on this machine
    was_training = model.training
    model.eval()  # peft computes the prefix, to which dropout must not apply
    # By default peft asks the hub whether the base's embeddings changed; adapters here never train embeddings.
    model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
    model.train(was_training)
    (folder / "README.md").unlink(missing_ok=True)  # peft's model card template, without content
    _sort_config(folder / CONFIG)


def _sort_config(path: Path) -> None:
    """Rewrite a configuration with sorted keys and lists: peft writes the set of target modules in random order."""
    content = json.loads(path.read_text(encoding="utf-8"))
    content = {key: sorted(value) if isinstance(value, list) else value for key, value in content.items()}
    write_text(path, json.dumps(content, ensure_ascii=False, indent=2, sort_keys=True) + "\n")


def _save_all_weights(model, folder: Path, dtype: str) -> None:
    import torch
    from safetensors.torch import save_file

    torch_dtype = getattr(torch, dtype)
    tensors = {name: tensor.to(torch_dtype).contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / WEIGHTS)


# Loading -------------------------------------------------------------------------------------------


def load_adapter(
    folder: Path,
    base: Base,
    quantization: int | str | None = AS_TRAINED,
    dtype: str | None = None,
    manifest: Manifest | None = None,
):
    """Load a saved adapter on its base model, in evaluation mode.

    The manifest is checked before the weights are read.

    Args:
        quantization: 4 or 8 bits for the base, None for no quantization; by default as in training.
        dtype: of the base; by default as in training.
        manifest: read earlier, whose hashes the files must have; by default the folder's manifest.

    Returns:
        A PeftModel, or for ``full`` the model itself.

    Raises:
        UserError: manifest, configuration or weights are damaged or changed, or belong to another base; see also
            :func:`models.manifest.check_base_matches` and :func:`models.model_loading.load_model`.
    """
    manifest = manifest or parse_manifest(folder)
    check_base_matches(manifest, base, folder)
    bits = manifest.quantization if quantization == AS_TRAINED else quantization
    if manifest.method == "full":
        if bits is not None:
            raise UserError(
                f"{folder} holds all weights of a model, which do not load in {bits} bits; load it without "
                "quantization."
            )
        model = load_model(base, dtype or manifest.dtype)
        _load_all_weights(model, folder, manifest.weights_sha256)
        return model
    adapted = _load_on_base(folder, manifest, lambda: load_model(base, dtype or manifest.dtype, bits))
    adapters.replace_lora_layers(adapted)
    if not getattr(adapted.peft_config["default"], "use_dora", False):
        _convert_lora_weights(adapted)
    return adapted


def _convert_lora_weights(adapted) -> None:
    """Convert LoRA's weights to the base's dtype once, instead of for every generated token."""
    dtype = get_base_model(adapted).dtype
    for name, parameter in adapted.named_parameters():
        if ".lora_A." in name or ".lora_B." in name:
            parameter.data = parameter.data.to(dtype)


def copy_adapter_weights(model, folder: Path, manifest: Manifest) -> None:
    """Copy the weights of a saved adapter into a model with a new adapter of the same method and shape.

    Args:
        model: as :func:`models.adapters.attach_adapter` returns it.
        manifest: of the saved adapter, whose hashes the files must have.

    Raises:
        UserError: a file is damaged or changed, or a weight has another shape.
    """
    if manifest.method == "full":
        _load_all_weights(model, folder, manifest.weights_sha256)
    else:
        _read_adapter(folder, manifest.method, manifest).copy_into(model)


def load_merged(folder: Path, base: Base, manifest: Manifest | None = None):
    """Load a base model with a saved adapter merged into its weights, in the dtype of training, not quantized.

    Args:
        manifest: see :func:`load_adapter`.

    Raises:
        UserError: see :func:`load_adapter`.
    """
    manifest = manifest or parse_manifest(folder)
    check_base_matches(manifest, base, folder)
    if manifest.method == "full":
        return load_adapter(folder, base, manifest=manifest)
    return _load_on_base(folder, manifest, lambda: load_model(base, manifest.dtype)).merge_and_unload()


def _load_on_base(folder: Path, manifest: Manifest, load_base: Callable):
    """Return the PeftModel of a saved adapter. The adapter is read and checked first, as the base takes longer."""
    saved = _read_adapter(folder, manifest.method, manifest)
    model = load_base()
    adapted = adapters.attach_config(model, saved.peft_config(model))
    saved.copy_into(adapted)
    return adapted.eval()


def _load_all_weights(model, folder: Path, sha256: str | None = None) -> None:
    """Copy the weights of a fully trained model into a model; if an error is raised, the model is unusable.

    Raises:
        UserError: the file has another hash, or a weight is missing, unknown or invalid.
    """
    import torch

    path, parameters, loaded = folder / WEIGHTS, model.state_dict(), set()
    for name, tensor in read_tensors(path, sha256, hash_mismatch_message(path)):
        if name not in parameters:
            _check_names(path, parameters, [*parameters, name])
        _check_tensor(path, name, tensor, parameters[name].shape)
        with torch.no_grad():
            parameters[name].copy_(tensor)
        loaded.add(name)
    _check_names(path, parameters, loaded)


def read_prefix(folder: Path, base: Base, manifest: Manifest):
    """Return the (prefix tokens, 2 · layers · heads · channels) rows of a saved prefix, as peft uses them.

    Raises:
        UserError: see :func:`load_adapter`.
    """
    check_base_matches(manifest, base, folder)
    saved, config = _read_adapter(folder, manifest.method, manifest), load_config(base)
    _check_names(saved.path, [PREFIX_NAME], saved.tensors)
    rows, width = saved.config.num_virtual_tokens, family_of(base).prefix_shape(config).width
    _check_tensor(saved.path, PREFIX_NAME, saved.tensors[PREFIX_NAME], (rows, width))
    return saved.tensors[PREFIX_NAME]


@contextmanager
def reloaded_adapter(model, folder: Path):
    """Yield the model with the adapter saved in ``folder`` in place of its own, which is restored afterwards.

    A fully trained model keeps the weights read from ``folder``, as GPU memory rarely holds two models.
    """
    if not hasattr(model, "get_base_model"):
        _load_all_weights(model, folder)
        yield model
        return
    own = model.active_adapter
    device = get_base_model(model).device
    method = "lora" if model.peft_config[own].peft_type == "LORA" else "ptuning_v2"
    saved = _read_adapter(folder, method)
    model.add_adapter("reloaded", saved.peft_config(model))
    saved.copy_into(model, "reloaded")
    for name, parameter in model.named_parameters():
        if ".reloaded." in name:
            parameter.data = parameter.data.to(device)  # for fp8 layers peft leaves it on the CPU
    model.set_adapter("reloaded")
    adapters.replace_lora_layers(model)
    try:
        yield model
    finally:
        model.set_adapter(own)
        model.delete_adapter("reloaded")


# Files of a peft adapter ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _SavedAdapter:
    """Configuration and tensors of an adapter folder.

    Attributes:
        path: of the weight file, for error messages.
    """

    config: LoraConfigFile | PrefixConfigFile
    tensors: dict
    path: Path

    def peft_config(self, model):
        """Return a peft configuration with the validated fields only.

        Raises:
            UserError: a prefix was trained for a model of other dimensions.
        """
        if isinstance(self.config, LoraConfigFile):
            config = adapters.lora_config(**self.config.attachment())
        else:
            self._check_dimensions(get_base_model(model).config)
            config = adapters.prefix_config(model, *self.config.attachment().values())
        config.inference_mode = True
        return config

    def _check_dimensions(self, model_config) -> None:
        shape = family_of_config(model_config).prefix_shape(model_config)
        expected = {
            "token_dim": shape.heads * shape.channels,
            "encoder_hidden_size": model_config.hidden_size,
            "num_layers": shape.layers,
            "num_attention_heads": shape.heads,
        }
        for key, value in expected.items():
            if getattr(self.config, key) != value:
                raise UserError(
                    f"{self.path.with_name(CONFIG)} has {key} {getattr(self.config, key)}, but the base has {value}; "
                    "the adapter belongs to another base. Train it again."
                )

    def copy_into(self, adapted, adapter: str = "default") -> None:
        """Copy the tensors into an adapter of a PeftModel.

        Raises:
            UserError: a tensor is missing, unknown or invalid.
        """
        expected = adapters.adapter_state_dict(adapted, adapter)
        _check_names(self.path, expected, self.tensors)
        for name, tensor in self.tensors.items():
            _check_tensor(self.path, name, tensor, expected[name].shape)
        adapters.load_adapter_state_dict(adapted, self.tensors, adapter)


def _read_adapter(folder: Path, method: str, manifest: Manifest | None = None) -> _SavedAdapter:
    """Read an adapter's configuration and tensors.

    Args:
        manifest: the files must have its hashes; None for an adapter that this process has just written.

    Raises:
        UserError: a file is missing, damaged, or has another hash.
    """
    config = read_config(folder, method, manifest)
    path = folder / WEIGHTS
    tensors = load_tensors(path, manifest and manifest.weights_sha256, hash_mismatch_message(path))
    key, tensor_name = ("r", ".lora_A.") if method == "lora" else ("num_virtual_tokens", PREFIX_NAME)
    rows = {tensor.shape[0] for name, tensor in tensors.items() if tensor_name in name and tensor.dim()}
    if rows - {getattr(config, key)}:  # checked before layers of the configured size are allocated
        raise UserError(
            f"{folder / CONFIG} has {key} {getattr(config, key)}, but {WEIGHTS} has {min(rows)}; the files do not "
            "belong together. Train the adapter again."
        )
    return _SavedAdapter(config, tensors, path)


def _check_names(path: Path, expected: Iterable[str], names: Iterable[str]) -> None:
    """Check that a weight file holds the expected tensors and no other.

    Raises:
        UserError: a tensor is missing or unknown.
    """
    expected, names = set(expected), set(names)
    for problem, unexpected in (("lacks", expected - names), ("holds an unknown", names - expected)):
        if unexpected:
            first = schemas.to_printable(min(unexpected), 200)
            raise UserError(
                f"{path} {problem} {first}, {len(unexpected)} in all; it is damaged. Train the adapter again."
            )


def _check_tensor(path: Path, name: str, tensor, shape: tuple[int, ...]) -> None:
    """Check shape, dtype and values of a tensor.

    Raises:
        UserError: the shape or dtype is wrong, or a value is NaN or infinite.
    """
    import torch

    if tuple(tensor.shape) != tuple(shape):
        problem = f"has shape {list(tensor.shape)} instead of {list(shape)}"
    elif tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        problem = f"has type {tensor.dtype}; adapters are saved as float32, float16 or bfloat16"
    elif not tensor.isfinite().all():
        problem = "contains NaN or inf"
    else:
        return
    raise UserError(f"{path}: {schemas.to_printable(name, 200)} {problem}; it is damaged. Train the adapter again.")
