"""Load configuration, tokenizer and weights of a base model.

Everything is parsed from the buffers whose SHA-256 is compared with the record, so a file that is replaced between
check and load is detected.
"""

import re
from pathlib import Path

from models import schemas, tensor_files
from models.base_model import CONFIG, TOKENIZER, TOKENIZER_CONFIG, Base, hash_files, hash_mismatch_message
from models.errors import UserError

# Configuration -------------------------------------------------------------------------------------


def load_config(base: Base):
    """Load the configuration of a base model.

    Returns:
        A :class:`models.chatglm.ChatGLMConfig`; for ChatGLM2-6B and ChatGLM3-6B transformers' GlmConfig.

    Raises:
        UserError: the model is of another type, a key or value is not allowed, or the file changed.
    """
    from huggingface_hub.errors import StrictDataclassError

    from models.chatglm import ChatGLMConfig
    from models.chatglm.successors import build_config

    config, path = _read_config(base), base.folder / CONFIG
    if isinstance(config, schemas.SuccessorConfig):
        return build_config(config, path)
    options = config.model_dump(exclude_unset=True, exclude=schemas.UNUSED_CONFIG_KEYS)
    try:
        return ChatGLMConfig(**options | {"dtype": config.dtype or config.torch_dtype})
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise UserError(f"{path}: {schemas.to_printable(error, 500)}") from None


def _read_config(base: Base) -> schemas.ModelConfig | schemas.SuccessorConfig:
    from models.chatglm.configuration_chatglm import SUCCESSOR_KEYS, ChatGLMConfig

    path = base.folder / CONFIG
    content = schemas.parse_json(base.read(CONFIG), path)
    if content.get("model_type") != ChatGLMConfig.model_type:
        model_type = schemas.to_printable(repr(content.get("model_type")))
        raise UserError(f"{path} has model_type {model_type}; only 'chatglm' is supported.")
    is_successor = any(key in content for key in SUCCESSOR_KEYS)
    return schemas.validate_schema(schemas.SuccessorConfig if is_successor else schemas.ModelConfig, content, path)


# Tokenizer -----------------------------------------------------------------------------------------


def load_tokenizer(source: Base | Path):
    """Load the :class:`models.chatglm.ChatGLMTokenizer` of a base model.

    Args:
        source: a base model, or a folder that has no record yet.

    Raises:
        UserError: a file is missing or damaged, or has a key or value that is not allowed; for a :class:`Base`, also if
            a file changed.
    """
    from models.chatglm import ChatGLMTokenizer

    base = source if isinstance(source, Base) else _hash_tokenizer_files(source)
    path = base.folder / TOKENIZER_CONFIG
    content = schemas.parse_json(base.read(TOKENIZER_CONFIG), path)
    config = schemas.validate_schema(schemas.TokenizerConfig, content, path)
    special_tokens = {key: _token_text(getattr(config, key)) for key in schemas.SPECIAL_TOKEN_KEYS}
    options = {key: getattr(config, key) for key in schemas.TOKENIZER_OPTIONS}
    options["num_image_tokens"] = _num_image_tokens(base, config)
    try:
        tokenizer = ChatGLMTokenizer(base.folder / TOKENIZER, **options, **special_tokens)
    except (OSError, RuntimeError, ValueError, TypeError, IndexError) as error:
        raise UserError(
            f"The tokenizer in {base.folder} cannot be read ({_first_line(error)}); fetch {TOKENIZER} and "
            f"{TOKENIZER_CONFIG} again."
        ) from None
    if tokenizer.vocabulary.sha256 != base.tokenizer_sha256:
        raise UserError(hash_mismatch_message(base.folder / TOKENIZER))
    _check_added_tokens(config, special_tokens, tokenizer, path)
    return tokenizer


def _hash_tokenizer_files(folder: Path) -> Base:
    """Return a :class:`Base` with the tokenizer's files, and the configuration if there is one, as they are now."""
    if missing := [name for name in (TOKENIZER, TOKENIZER_CONFIG) if not (folder / name).is_file()]:
        raise UserError(f"The base model in {folder} is incomplete; these files are missing: {', '.join(missing)}.")
    names = [TOKENIZER, TOKENIZER_CONFIG, *([CONFIG] if (folder / CONFIG).is_file() else [])]
    return Base(str(folder), folder, None, hash_files(folder, names))


def _num_image_tokens(base: Base, config: schemas.TokenizerConfig) -> int:
    """Return the tokenizer's own number of image tokens, or else the one that the vocabulary size implies."""
    from models.chatglm.configuration_chatglm import image_tokens_of

    if config.num_image_tokens is not None:
        return config.num_image_tokens
    return image_tokens_of(load_config(base).vocab_size) if CONFIG in base.files else 0


def _token_text(token: str | schemas.AddedToken) -> str:
    return token if isinstance(token, str) else token.content


def _check_added_tokens(config: schemas.TokenizerConfig, special_tokens: dict[str, str], tokenizer, path: Path) -> None:
    """Check that every added token is a special token, at the id that the vocabulary has for it.

    Raises:
        UserError: another token is added, or a special token has another id.
    """
    for token_id, token in config.added_tokens_decoder.items():
        is_known = token.content in special_tokens.values()
        if not is_known or tokenizer.convert_tokens_to_ids(token.content) != int(token_id):
            raise UserError(
                f"{path} adds the token {schemas.to_printable(token.content)} as number {token_id}, which is not in "
                f"the vocabulary of {TOKENIZER}; use the files of one checkpoint."
            )


# Weights -------------------------------------------------------------------------------------------


def load_model(base: Base, dtype: str, quantization: int | None = None):
    """Load a base model, frozen and in evaluation mode, onto the current GPU if there is one, else the CPU.

    Weights that the checkpoint holds quantized (:mod:`models.published_quantization`) are dequantized. Those of
    ChatGLM2-6B and ChatGLM3-6B are renamed and split (:mod:`models.chatglm.successors`).

    Args:
        dtype: ``float32``, ``float16``, ``bfloat16``, or ``auto`` for the checkpoint's dtype.
        quantization: 4 (NF4) or 8 bits by bitsandbytes, or None.

    Returns:
        A :class:`models.chatglm.ChatGLMForConditionalGeneration`, or transformers' GlmForCausalLM.

    Raises:
        UserError: a weight is missing, unknown or has the wrong shape, or a file is damaged or changed.
    """
    import torch

    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    config = load_config(base)
    torch_dtype = config.dtype if dtype == "auto" else dtype
    if isinstance(torch_dtype, str):
        torch_dtype = getattr(torch, torch_dtype)  # None: every tensor keeps the dtype of its file
    model, quantizer = _create_on_meta(config, torch_dtype, quantization)
    try:
        _load_weights(model, base, device, torch_dtype, quantizer)
    except (OSError, RuntimeError) as error:  # disk failure, out of GPU memory
        raise UserError(f"The weights in {base.folder} cannot be loaded ({_first_line(error)}).") from None
    if quantizer is not None:
        model.hf_quantizer = quantizer
        quantizer.postprocess_model(model)
    # transformers' Trainer saves use_cache=False in config.json; generation needs the KV cache.
    model.generation_config.use_cache = True
    return model.requires_grad_(False).eval()


def _create_on_meta(config, dtype, quantization: int | None):
    """Return a model whose parameters are on the meta device, and transformers' quantizer or None."""
    import torch
    from transformers import GlmForCausalLM
    from transformers.quantizers import AutoHfQuantizer

    from models.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration

    config.dtype = dtype
    with torch.device("meta"):
        is_chatglm = isinstance(config, ChatGLMConfig)
        model = ChatGLMForConditionalGeneration(config) if is_chatglm else GlmForCausalLM(config)
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
    import torch

    from models.chatglm.successors import convert_weights
    from models.published_quantization import dequantize_weights

    expected, loaded = set(model.state_dict()), set()
    paths = {base.folder / name: base.files[name]["sha256"] for name in base.weight_files}
    files = [(path, sha256, hash_mismatch_message(path)) for path, sha256 in paths.items()]
    published = _read_config(base)
    bits = published.quantization_bit
    tensors = tensor_files.read_weight_files(files, allow_codes=bool(bits))
    if bits:
        tensors = dequantize_weights(tensors, bits, dtype or torch.float16)
    if isinstance(published, schemas.SuccessorConfig):
        tensors = convert_weights(tensors, model.config)
    for path, name, tensor in tensors:
        if not _is_ignored(model, name):
            _check_tensor(model, name, tensor, name in loaded, path)
            _set_weight(model, name, tensor.to(device, dtype), quantizer)
            loaded.add(name)
    if missing := sorted(expected - loaded):
        raise UserError(f"The weights in {base.folder} lack {len(missing)} tensors, the first is {missing[0]}.")
    if isinstance(published, schemas.SuccessorConfig):
        model.model.rotary_emb = type(model.model.rotary_emb)(model.config).to(device)  # was on the meta device


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


def _first_line(error: Exception) -> str:
    """Return the first line of an error's message, or the error's class name if it has no message."""
    return schemas.to_printable(next(iter(str(error).strip().splitlines()), type(error).__name__), 300)
