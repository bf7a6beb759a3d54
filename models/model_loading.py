"""Load configuration, tokenizer and weights of a base model of any family.

Everything is parsed from the buffers whose SHA-256 is compared with the record, so a file that is replaced between
check and load is detected.
"""

import re
from pathlib import Path

from models import schemas, tensor_files
from models.base_model import CONFIG, Base, first_line, hash_mismatch_message
from models.base_verification import hash_tokenizer_files
from models.errors import UserError
from models.families import family_of, recognize_tokenizer
from models.families.family import Family


def load_config(base: Base):
    """Load the configuration of a base model, see :meth:`models.families.family.Family.load_config`."""
    return family_of(base).load_config(base)


def load_tokenizer(source: Base | Path):
    """Load the tokenizer of a base model.

    Args:
        source: a base model, or a folder that has no record yet.

    Raises:
        UserError: a file is missing or damaged, or has a key or value that is not allowed; for a :class:`Base`, also if
            a file changed.
    """
    base = source
    if not isinstance(source, Base):
        base = hash_tokenizer_files(source, str(source), recognize_tokenizer(source))
    return family_of(base).load_tokenizer(base)


# Weights -------------------------------------------------------------------------------------------


def load_model(base: Base, dtype: str, quantization: int | None = None):
    """Load a base model, frozen and in evaluation mode, onto the current GPU if there is one, else the CPU.

    The family converts published weights to those of its model class, see
    :meth:`models.families.family.Family.convert_weights`.

    Args:
        dtype: ``float32``, ``float16``, ``bfloat16``, or ``auto`` for the checkpoint's dtype.
        quantization: 4 (NF4) or 8 bits by bitsandbytes, or None.

    Returns:
        The model of the family, see :meth:`models.families.family.Family.create_model`.

    Raises:
        UserError: a weight is missing, unknown or has the wrong shape, or a file is damaged or changed.
    """
    import torch

    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    config = load_config(base)
    torch_dtype = config.dtype if dtype == "auto" else dtype
    if isinstance(torch_dtype, str):
        torch_dtype = getattr(torch, torch_dtype)  # None: every tensor keeps the dtype of its file
    model, quantizer = _create_on_meta(family_of(base), config, torch_dtype, quantization)
    try:
        _load_weights(model, base, device, torch_dtype, quantizer)
    except (OSError, RuntimeError) as error:  # disk failure, out of GPU memory
        raise UserError(f"The weights in {base.folder} cannot be loaded ({first_line(error)}).") from None
    if quantizer is not None:
        model.hf_quantizer = quantizer
        quantizer.postprocess_model(model)
    # transformers' Trainer saves use_cache=False in config.json; generation needs the KV cache.
    model.generation_config.use_cache = True
    return model.requires_grad_(False).eval()


def _create_on_meta(family: Family, config, dtype, quantization: int | None):
    """Return a model whose parameters are on the meta device, and transformers' quantizer or None."""
    import torch
    from transformers.quantizers import AutoHfQuantizer

    config.dtype = dtype
    with torch.device("meta"):
        model = family.create_model(config)
    if quantization is None:
        return model, None
    quantizer = AutoHfQuantizer.from_config(_quantization_config(quantization, dtype), pre_quantized=False)
    quantizer.validate_environment()
    with torch.device("meta"):
        quantizer.preprocess_model(model=model, dtype=dtype, device_map=None)
    return model, quantizer


def _quantization_config(bits: int, dtype):
    from transformers import BitsAndBytesConfig

    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def _load_weights(model, base: Base, device, dtype, quantizer) -> None:
    """Set every parameter of a model on the meta device, converted and quantized one tensor at a time.

    Raises:
        UserError: a weight is missing, unknown or has the wrong shape, or a file is damaged or changed.
    """
    _compute_buffers(model, device)
    tied = set(model.all_tied_weights_keys) if model.config.tie_word_embeddings else set()
    expected, loaded = set(model.state_dict()) - tied, set()
    paths = {base.folder / name: base.files[name]["sha256"] for name in base.weight_files}
    files = [(path, sha256, hash_mismatch_message(path)) for path, sha256 in paths.items()]
    family = family_of(base)
    tensors = tensor_files.read_weight_files(files, allow_codes=bool(family.published_bits(base)))
    tensors = family.convert_weights(base, tensors, model)
    for path, name, tensor in tensors:
        if not _is_ignored(model, name):
            _check_tensor(model, name, tensor, name in loaded, path)
            _set_weight(model, name, tensor.to(device, dtype), quantizer)
            loaded.add(name)
    if missing := sorted(expected - loaded):
        raise UserError(f"The weights in {base.folder} lack {len(missing)} tensors, the first is {missing[0]}.")
    if tied:
        model.tie_weights()


def _compute_buffers(model, device) -> None:
    """Compute the buffers, such as rotary frequencies, of a model on the meta device; its parameters stay there."""
    import torch

    for module in model.modules():
        if meta_buffers := [name for name, buffer in module.named_buffers(recurse=False) if buffer.is_meta]:
            for name in meta_buffers:
                module._buffers[name] = torch.empty_like(module._buffers[name], device=device)
            model._init_weights(module)


def _is_ignored(model, name: str) -> bool:
    """Whether published checkpoints hold this tensor although the model computes it."""
    return any(re.search(pattern, name) for pattern in model._keys_to_ignore_on_load_unexpected or ())


def _check_tensor(model, name: str, tensor, is_duplicate: bool, path: Path) -> None:
    """Check that the model has a parameter of this name and shape, and that it was not loaded before.

    Raises:
        UserError: the name is unknown or a duplicate, or the shape differs.
    """
    from models.published_quantization import SCALE_SUFFIX

    try:
        parameter = model.get_parameter(name)
    except AttributeError:
        if name.endswith(f".weight{SCALE_SUFFIX}"):
            raise UserError(
                f"{path} holds quantized weights, but {CONFIG} has no quantization_bit; use the {CONFIG} of that "
                "checkpoint."
            ) from None
        raise UserError(
            f"{path} holds {schemas.to_printable(name)}, which {type(model).__name__} does not have, so loading the "
            "other tensors would give another model than the one that was saved. Merge adapters first, and use the "
            "files of one checkpoint."
        ) from None
    if is_duplicate:
        raise UserError(f"{path} holds {name}, which another weight file holds too; use the files of one checkpoint.")
    if parameter.shape != tensor.shape:
        raise UserError(
            f"{path}: {name} has shape {list(tensor.shape)}, but by {CONFIG} it must be {list(parameter.shape)}; use "
            "the files of one checkpoint."
        )


def _set_weight(model, name: str, tensor, quantizer) -> None:
    from torch import nn

    if quantizer is not None and quantizer.param_needs_quantization(model, name):
        operation = quantizer.get_quantize_ops()
        parameter = operation.convert({name: [tensor]}, full_layer_name=name, model=model)[name]
    else:
        parameter = nn.Parameter(tensor, requires_grad=False)
    module, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(module), leaf, parameter)
