"""Attach, save and load adapters; the only place that knows peft.

What is loaded are the bytes that the manifest hashes (see :mod:`models.manifest`): peft never reads the folder itself.
"""

import json
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from models import schemas
from models.base_model import Base, load_config, load_model
from models.errors import UserError
from models.manifest import (
    CONFIG,
    FORMAT,
    MANIFEST,
    METHODS,
    WEIGHTS,
    Manifest,
    changed,
    parse_manifest,
    read_config,
    refuse_other_base,
)
from models.schemas import LoraFile, PrefixFile
from models.storage import sha256_of, write_json, write_text, writing_folder
from models.tensor_files import load_tensors, read_tensors

PREFIX_ROWS = "prompt_embeddings"  # what peft calls a prefix in its file


def attach(
    model,
    method: str,
    *,
    rank: int | None = None,
    alpha: float | None = None,
    dropout: float = 0.0,
    target_modules: list[str] | None = None,
    rslora: bool = False,
    dora: bool = False,
    prefix_tokens: int | None = None,
    projection: bool = False,
):
    """Wrap a frozen ChatGLM in a fresh adapter, whose weights alone require gradients.

    Args:
        method: ``lora``, ``ptuning_v2``, or ``full`` for the model itself, with gradients for all its weights.
        rank, alpha, dropout, target_modules: LoRA's (Hu et al., arXiv:2106.09685).
        rslora, dora: LoRA scaled by the square root of its rank (Kalajdzievski, arXiv:2312.03732), and with
            magnitude and direction apart (Liu et al., arXiv:2402.09353).
        prefix_tokens, projection: of P-Tuning v2 (Liu et al., arXiv:2110.07602), which peft calls
            prefix tuning; ``projection`` puts a two-layer MLP before the prefix. Unlike the
            published code, peft has no dropout on the prefix.

    Returns:
        A PeftModel, or the model, in training mode.

    Raises:
        UserError: a target module does not exist.
    """
    from peft import get_peft_model

    if method == "full":
        return model.requires_grad_(True).train()
    if method == "lora":
        config = _lora_config(rank, alpha, dropout, target_modules, rslora, dora)
    elif method == "ptuning_v2":
        config = _prefix_config(model, prefix_tokens, projection)
    else:
        raise UserError(f"Unknown adapter method {method!r}; choose one of {', '.join(METHODS)}.")
    try:
        tuned = get_peft_model(model, config).train()
    except ValueError as error:
        raise UserError(f"The adapter cannot be attached: {str(error).splitlines()[0]}") from None
    _compute_in_the_type_of_the_base(tuned)
    return tuned


def _lora_config(rank, alpha, dropout, target_modules, rslora, dora):
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=target_modules,
        use_rslora=rslora,
        use_dora=dora,
    )


def _prefix_config(model, prefix_tokens: int, projection: bool):
    from peft import PrefixTuningConfig

    return PrefixTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=prefix_tokens,
        prefix_projection=projection,
        encoder_hidden_size=model.config.hidden_size,
    )


def _compute_in_the_type_of_the_base(tuned) -> None:
    """Keep LoRA's own weights in float32, but not the products with them: see :class:`Float32Weight`."""
    from peft.tuners.lora import Linear, LoraLayer
    from torch import nn

    from models.precision import Float32Weight

    for layer in tuned.modules():
        if isinstance(layer, LoraLayer):
            layer.cast_input_dtype_enabled = False
            for part in (*layer.lora_A.values(), *layer.lora_B.values()):
                if type(part) is nn.Linear:
                    part.__class__ = Float32Weight
            if type(layer) is Linear:
                layer.__class__ = _scaled_early()


@cache
def _scaled_early():
    """peft's plain LoRA layer, multiplying by its scaling where its input has been narrowed to the rank.

    peft multiplies the output, as wide as the base's, and in the backward pass the gradient of that. The product
    is added to a plain base layer's in place, see :mod:`models.low_rank`.
    """
    from peft.tuners.lora.layer import Linear

    from models import low_rank

    class ScaledEarly(Linear):
        def forward(self, x, *args, **kwargs):
            plain = [name for name in self.active_adapters if name in self.lora_A and name not in self.lora_variant]
            if self.merged or self.disable_adapters or args or kwargs or plain != list(self.active_adapters):
                return super().forward(x, *args, **kwargs)
            layer = self.base_layer
            if len(plain) == 1 and low_rank.is_supported(layer, x):
                narrow = self._narrow(plain[0], x)
                wide = self.lora_B[plain[0]].padded_weight(narrow)
                return low_rank.linear_plus_product(x, layer.weight, layer.bias, narrow, wide)
            result = layer(x)
            for name in plain:
                result = result + self.lora_B[name](self._narrow(name, x))
            return result

        def _narrow(self, name, x):
            return self.lora_A[name](self.lora_dropout[name](x)) * self.scaling[name]

    return ScaledEarly


def parameters(model) -> tuple[int, int]:
    """How many parameters are trained, and how many there are; quantized ones count as what they stand for."""
    if hasattr(model, "get_base_model"):
        return model.get_nb_trainable_parameters()
    return model.num_parameters(only_trainable=True), model.num_parameters()


def base_of(model):
    """The ChatGLM below an adapter."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def without_adapter(model):
    """A context in which an adapted model answers as its base; None for a model without an adapter."""
    return model.disable_adapter() if hasattr(model, "get_base_model") else None


def save(model, folder: Path, manifest: Manifest, check: Callable[[Path], None] | None = None) -> None:
    """Write the adapter's weights, configuration and manifest; the folder is whole or absent.

    Args:
        check: called with the folder under its temporary name; if it raises, nothing is left.
    """
    with writing_folder(folder) as temporary:
        if manifest.method == "full":
            _save_all_weights(model, temporary, manifest.dtype)
        else:
            _save_adapter(model, temporary, manifest.base)
        for path in temporary.iterdir():
            path.chmod(0o644)  # safetensors keeps what it writes from other users
        if check is not None:
            check(temporary)
        config = sha256_of(temporary / CONFIG) if manifest.method != "full" else ""
        hashes = {"weights_sha256": sha256_of(temporary / WEIGHTS), "config_sha256": config}
        write_json(temporary / MANIFEST, asdict(manifest) | hashes | {"format": FORMAT})


def _save_adapter(model, folder: Path, base_name: str) -> None:
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
def reloaded(model, folder: Path):
    """The model with the adapter that lies in ``folder`` in place of its own.

    Where all weights are trained the model keeps those from the disk, as memory for two is rarely there.
    """
    if not hasattr(model, "get_base_model"):
        _load_all_weights(model, folder)
        yield model
        return
    own = model.active_adapter
    device = base_of(model).device
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


# Reading -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Saved:
    """What was read of an adapter folder: the configuration and the tensors, both from the bytes that were hashed."""

    config: LoraFile | PrefixFile
    tensors: dict
    path: Path

    def peft_config(self, model):
        """peft's configuration, made from the fields that are known and nothing else of the file."""
        if isinstance(self.config, LoraFile):
            config = _lora_config(**self.config.attachment())
        else:
            self._refuse_other_model(model)
            config = _prefix_config(model, *self.config.attachment().values())
        config.inference_mode = True
        return config

    def _refuse_other_model(self, model) -> None:
        config = base_of(model).config
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
            first = schemas.printable(min(odd), 200)
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
    raise UserError(f"{path}: {schemas.printable(name, 200)} {reason}; it is damaged. Train the adapter again.")


def _load_all_weights(model, folder: Path, sha256: str | None = None) -> None:
    """Put a fully trained model's weights into the base. Use the model only if nothing is raised.

    Raises:
        UserError: the file has another hash, or a weight is missing, left over, or unfit.
    """
    import torch

    path, wanted, filled = folder / WEIGHTS, model.state_dict(), set()
    for name, tensor in read_tensors(path, sha256, changed(path)):
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
    tensors = load_tensors(path, manifest and manifest.weights_sha256, changed(path))
    key, rank = ("r", ".lora_A.") if method == "lora" else ("num_virtual_tokens", PREFIX_ROWS)
    rows = {tensor.shape[0] for name, tensor in tensors.items() if rank in name and tensor.dim()}
    if rows - {getattr(config, key)}:  # before layers of that rank take memory
        raise UserError(
            f"{folder / CONFIG} has {key} {getattr(config, key)}, but {WEIGHTS} has {min(rows)}; the files do not "
            "belong together. Train the adapter again."
        )
    return _Saved(config, tensors, path)


def merged(folder: Path, base: Base, manifest: Manifest | None = None):
    """The base with a saved adapter in its weights, in the type that it was trained beside and without quantization.

    Args:
        manifest: see :func:`load`.

    Raises:
        UserError: see :func:`load`.
    """
    manifest = manifest or parse_manifest(folder)
    refuse_other_base(manifest, base, folder)
    if manifest.method == "full":
        return load(folder, base, manifest=manifest)
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

    refuse_other_base(manifest, base, folder)
    saved, config = _read_saved(folder, manifest.method, manifest), load_config(base)
    _refuse_other_names(saved.path, [PREFIX_ROWS], saved.tensors)
    width = 2 * config.num_layers * config.hidden_size
    wanted = torch.empty(saved.config.num_virtual_tokens, width, device="meta")
    _refuse_misfit(saved.path, PREFIX_ROWS, saved.tensors[PREFIX_ROWS], wanted)
    return saved.tensors[PREFIX_ROWS]


def put_prefix(tuned, rows) -> None:
    """Make (prefix tokens, 2 · layers · hidden_size) rows the prefix of a model with one."""
    import torch

    with torch.no_grad():
        tuned.prompt_encoder[tuned.active_adapter].embedding.weight.copy_(rows)


AS_TRAINED = "as trained"


def load(
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
            :func:`models.manifest.refuse_other_base` and :func:`models.base_model.load_model`.
    """
    manifest = manifest or parse_manifest(folder)
    refuse_other_base(manifest, base, folder)
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
                parameter.data = parameter.data.to(base_of(tuned).dtype)
    return tuned
