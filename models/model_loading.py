"""Load configuration, tokenizer and weights of a base model from the bytes that are hashed."""

import re
from pathlib import Path

from models import schemas, tensor_files
from models.base_model import CONFIG, TOKENIZER, TOKENIZER_CONFIG, Base, hash_files, hash_mismatch_message
from models.errors import UserError


def load_config(base: Base):
    """The :class:`models.chatglm.ChatGLMConfig` of a base.

    Raises:
        UserError: it is that of another model, has a key or value that is not allowed, or changed since.
    """
    from huggingface_hub.errors import StrictDataclassError

    from models.chatglm import ChatGLMConfig
    from models.chatglm.configuration_chatglm import refuse_successor

    path = base.folder / CONFIG
    content = schemas.parse_json(base.read(CONFIG), path)
    if content.get("model_type") != ChatGLMConfig.model_type:
        kind = schemas.to_printable(repr(content.get("model_type")))
        raise UserError(f"{path} has model_type {kind}; only 'chatglm' is supported.")
    try:
        refuse_successor(content)
        known = schemas.validate_schema(schemas.ModelConfig, content, path)
        options = known.model_dump(exclude_unset=True, exclude=schemas.UNUSED_CONFIG_KEYS)
        return ChatGLMConfig(**options | {"dtype": known.dtype or known.torch_dtype})
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise UserError(f"{path}: {schemas.to_printable(error, 500)}") from None


def load_tokenizer(source: Base | Path):
    """The tokenizer of a base, or of a folder whose files nothing vouches for yet.

    Raises:
        UserError: its files cannot be read, or have a key or value that is not allowed; of a base, they changed since.
    """
    from models.chatglm import ChatGLMTokenizer
    from models.chatglm.configuration_chatglm import image_tokens_of

    base = source if isinstance(source, Base) else _unverified(source)
    path = base.folder / TOKENIZER_CONFIG
    config = schemas.validate_schema(schemas.TokenizerConfig, schemas.parse_json(base.read(TOKENIZER_CONFIG), path), path)
    image_tokens = config.num_image_tokens
    if image_tokens is None:
        image_tokens = image_tokens_of(load_config(base).vocab_size) if CONFIG in base.files else 0
    tokens = {name: _content(getattr(config, name)) for name in schemas.SPECIAL_TOKEN_KEYS}
    options = {name: getattr(config, name) for name in schemas.TOKENIZER_OPTIONS}
    try:
        tokenizer = ChatGLMTokenizer(base.folder / TOKENIZER, num_image_tokens=image_tokens, **options, **tokens)
    except (OSError, RuntimeError, ValueError, TypeError, IndexError) as error:
        files = f"{TOKENIZER} and {TOKENIZER_CONFIG}"
        raise UserError(
            f"The tokenizer in {base.folder} cannot be read ({_reason(error)}); fetch {files} again."
        ) from None
    if tokenizer.vocabulary.sha256 != base.tokenizer_sha256:
        raise UserError(hash_mismatch_message(base.folder / TOKENIZER))
    _refuse_added_tokens(config, tokens, tokenizer, path)
    return tokenizer


def _unverified(folder: Path) -> Base:
    """A folder's tokenizer, and its configuration where there is one, hashed as they are now."""
    if missing := [name for name in (TOKENIZER, TOKENIZER_CONFIG) if not (folder / name).is_file()]:
        raise UserError(f"The base model in {folder} is incomplete; these files are missing: {', '.join(missing)}.")
    names = [TOKENIZER, TOKENIZER_CONFIG, *([CONFIG] if (folder / CONFIG).is_file() else [])]
    return Base(str(folder), folder, None, hash_files(folder, names))


def _content(token: str | schemas.AddedToken) -> str:
    return token if isinstance(token, str) else token.content


def _refuse_added_tokens(config: schemas.TokenizerConfig, tokens: dict[str, str], tokenizer, path: Path) -> None:
    """Raises UserError: the configuration adds tokens, or has special ones elsewhere than the vocabulary."""
    for number, token in config.added_tokens_decoder.items():
        there = token.content in tokens.values()
        if not there or tokenizer.convert_tokens_to_ids(token.content) != int(number):
            raise UserError(
                f"{path} adds the token {schemas.to_printable(token.content)} as number {number}, which the vocabulary in "
                f"{TOKENIZER} does not have there; use the files of one checkpoint."
            )


def load_model(base: Base, dtype: str, quantization: int | None = None):
    """The model, frozen in evaluation mode, on the GPU if there is one.

    Every weight is built from bytes that are hashed, and the hashes are those of ``base.files``.

    Args:
        dtype: ``float32``, ``float16``, ``bfloat16``, or ``auto`` for that of the checkpoint.
        quantization: 4 (NF4) or 8 bits by bitsandbytes, or None.

    Raises:
        UserError: weights are missing, left over, have the wrong shape, cannot be read, or changed since.
    """
    import torch

    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    config = load_config(base)
    kind = config.dtype if dtype == "auto" else dtype
    kind = getattr(torch, kind) if isinstance(kind, str) else kind  # None: every tensor stays as it is stored
    model, quantizer = _without_weights(config, kind, quantization)
    try:
        _fill(model, base, device, kind, quantizer)
    except (OSError, RuntimeError) as error:  # a disk that fails, a GPU without memory
        raise UserError(f"The weights in {base.folder} cannot be loaded ({_reason(error)}).") from None
    if quantizer is not None:
        model.hf_quantizer = quantizer
        quantizer.postprocess_model(model)
    # Trainer leaves use_cache false in the config.json of what it trained; answers are generated with a KV cache.
    model.generation_config.use_cache = True
    return model.requires_grad_(False).eval()


def _fill(model, base: Base, device, dtype, quantizer) -> None:
    """Give every parameter its weight, converted and quantized one tensor at a time.

    Raises:
        UserError: a weight is missing, left over or of another shape, or a file changed since.
    """
    wanted, filled = set(model.state_dict()), set()
    files = [(path := base.folder / name, base.files[name]["sha256"], hash_mismatch_message(path)) for name in base.weight_files]
    for path, name, tensor in tensor_files.read_weight_files(files):
        if not _is_ignored(model, name):
            _refuse_misfit(model, name, tensor, name in filled, path)
            _set_weight(model, name, tensor.to(device, dtype), quantizer)
            filled.add(name)
    if lacking := sorted(wanted - filled):
        raise UserError(f"The weights in {base.folder} lack {len(lacking)} tensors, the first being {lacking[0]}.")


def _without_weights(config, dtype, quantization: int | None):
    """The model with parameters that have shapes and no data, and transformers' quantizer or None."""
    import torch
    from transformers.quantizers import AutoHfQuantizer

    from models.chatglm import ChatGLMForConditionalGeneration

    config.dtype = dtype
    with torch.device("meta"):
        model = ChatGLMForConditionalGeneration(config)
    if quantization is None:
        return model, None
    quantizer = AutoHfQuantizer.from_config(_quantization_config(quantization, dtype), pre_quantized=False)
    quantizer.validate_environment()
    with torch.device("meta"):
        quantizer.preprocess_model(model=model, dtype=dtype, device_map=None)
    return model, quantizer


def _is_ignored(model, name: str) -> bool:
    """Whether a checkpoint may hold this tensor although the model has no use for it."""
    return any(re.search(pattern, name) for pattern in model._keys_to_ignore_on_load_unexpected)


def _refuse_misfit(model, name: str, tensor, is_repeated: bool, path: Path) -> None:
    """Raises UserError: the model has no such weight, has another shape there, or got it from another file."""
    try:
        parameter = model.get_parameter(name)
    except AttributeError:
        raise UserError(
            f"{path} holds {schemas.to_printable(name)}, which ChatGLM-6B does not have; loaded without it, the model "
            "would not be the one that was saved. Merge adapters first, and use the files of one checkpoint."
        ) from None
    if is_repeated:
        raise UserError(f"{path} holds {name}, which another weight file holds too; use the files of one checkpoint.")
    if parameter.shape != tensor.shape:
        raise UserError(
            f"{path}: {name} has shape {list(tensor.shape)}, but {CONFIG} makes it {list(parameter.shape)}; use the "
            "files of one checkpoint."
        )


def _set_weight(model, name: str, value, quantizer) -> None:
    from torch import nn

    if quantizer is not None and quantizer.param_needs_quantization(model, name):
        operation = quantizer.get_quantize_ops()
        parameter = operation.convert({name: [value]}, full_layer_name=name, model=model)[name]
    else:
        parameter = nn.Parameter(value, requires_grad=False)
    module, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(module), leaf, parameter)


def _reason(error: Exception) -> str:
    """The first line of an error's message, or its name."""
    return schemas.to_printable(next(iter(str(error).strip().splitlines()), type(error).__name__), 300)


def _quantization_config(bits: int, dtype):
    from transformers import BitsAndBytesConfig

    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
