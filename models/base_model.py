"""Find, verify and load a base model.

A base is a folder in the official file layout. Its *record*, ``base.json``, says where the folder
is and what was in it. What is loaded later are the bytes that the record's hashes stand for: configuration,
tokenizer and weights are parsed from the buffers that are hashed. No other file of the folder is read.
"""

import hashlib
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from models import schemas, tensor_files
from models.errors import UserError
from models.storage import sha256_of, sha256_of_json, write_json

RECORD = "base.json"
CONFIG, TOKENIZER, TOKENIZER_CONFIG = "config.json", "ice_text.model", "tokenizer_config.json"
SINGLE_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
WEIGHT_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
# Other programs would load these with the weights, so a folder that holds one is not what its weights say.
FOREIGN = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "added_tokens.json")
WEIGHT_SUFFIXES = (".safetensors", ".bin")
HASHED_AT_ONCE = 2**26  # bytes; hashing 13 GB takes ten seconds, which load_model spends anyway
QUANTIZATIONS = (None, 4, 8)


@dataclass(frozen=True)
class Base:
    """A verified base model.

    Attributes:
        name: as params.yaml names it: ``tiny``, a hub id or a folder.
        folder: where its files are.
        revision: the hub's commit, or None.
        files: size in bytes and SHA-256 of every file that counts, by name.
    """

    name: str
    folder: Path
    revision: str | None
    files: dict[str, dict]

    @property
    def identity(self) -> str:
        """One hash for configuration, tokenizer and weights."""
        return sha256_of_json({name: entry["sha256"] for name, entry in self.files.items()})

    @property
    def tokenizer_sha256(self) -> str:
        return self.files[TOKENIZER]["sha256"]

    @property
    def weight_files(self) -> list[str]:
        return [name for name in self.files if Path(name).suffix in WEIGHT_SUFFIXES]

    def read(self, name: str) -> bytes:
        """The bytes of a small file.

        Raises:
            UserError: they are not those of the record.
        """
        content = schemas.read_limited(self.folder / name)
        if hashlib.sha256(content).hexdigest() != self.files[name]["sha256"]:
            raise UserError(_changed(self.folder / name))
        return content


def _changed(path: Path) -> str:
    return f"The base model's file {path} changed since stage base ran; run `dvc repro -f base`."


# Verifying -----------------------------------------------------------------------------------------


def verify(folder: Path, name: str, revision: str | None = None) -> Base:
    """Check that a folder holds a whole ChatGLM checkpoint, and hash its files.

    Raises:
        UserError: files are missing or cut off, weights stand twice, another program would load more than them, or
            the vocabulary does not fit the model.
    """
    if not folder.is_dir():
        raise UserError(f"base.model: the folder {folder} does not exist.")
    _refuse_foreign(folder)
    index, weights = _weight_files(folder)
    missing = [file for file in (CONFIG, TOKENIZER, TOKENIZER_CONFIG, *weights) if not (folder / file).is_file()]
    if missing:
        raise UserError(f"The base model in {folder} is incomplete; these files are missing: {', '.join(missing)}.")
    cut_off = [file for file in weights if not tensor_files.is_whole(folder / file)]
    if cut_off:
        raise UserError(f"The base model in {folder} is half-downloaded; fetch these again: {', '.join(cut_off)}.")
    _verify_vocabulary(Base(name, folder, revision, hashes_of(folder, [CONFIG, TOKENIZER, TOKENIZER_CONFIG])))
    return Base(name, folder, revision, hashes_of(folder, [CONFIG, TOKENIZER, TOKENIZER_CONFIG, *weights, *index]))


def hashes_of(folder: Path, names: list[str]) -> dict[str, dict]:
    """Size in bytes and SHA-256 of files, by name in alphabetical order."""
    paths = {name: folder / name for name in sorted(set(names))}
    for name, path in paths.items():
        if Path(name).suffix not in WEIGHT_SUFFIXES and path.stat().st_size > schemas.MAX_BYTES:
            raise UserError(f"{path} is larger than {schemas.MAX_BYTES} bytes, which no file of its kind is.")
    return {name: {"size": path.stat().st_size, "sha256": sha256_of(path)} for name, path in paths.items()}


def _refuse_foreign(folder: Path) -> None:
    """Raises UserError: weights stand twice, or the folder holds an adapter or tokens beside them."""
    if foreign := [name for name in FOREIGN if (folder / name).exists()]:
        raise UserError(
            f"The base model in {folder} has {' and '.join(foreign)} beside its weights, which other programs load "
            "with them. Tuneline loads the weights alone: merge it into them, or move it out of the folder."
        )
    named = [name for name in (*SINGLE_WEIGHTS, *WEIGHT_INDEXES) if (folder / name).exists()]
    if len(named) > 1:
        raise UserError(
            f"The base model in {folder} has its weights more than once: {' and '.join(named)}. Move those that "
            "are not meant out of the folder; of a hub id, download the others alone and give base.model their folder."
        )


def _weight_files(folder: Path) -> tuple[list[str], list[str]]:
    """The index, if there is one, and the weight files: the one rule for what is verified and what is loaded."""
    for index in WEIGHT_INDEXES:
        if (folder / index).is_file():
            content = schemas.parse_json(schemas.read_limited(folder / index), folder / index)
            shards = sorted(set(schemas.parse(schemas.WeightIndex, content, folder / index).weight_map.values()))
            suffix = Path(index.removesuffix(".index.json")).suffix
            if any(Path(shard).name != shard or Path(shard).suffix != suffix for shard in shards):
                raise UserError(f"{folder / index} names no {suffix} files of its own folder; fetch it again.")
            return [index], shards
    for single in SINGLE_WEIGHTS:
        if (folder / single).is_file():
            return [], [single]
    return [], [WEIGHT_INDEXES[-1]]


def _verify_vocabulary(base: Base) -> None:
    config, tokenizer, folder = load_config(base), load_tokenizer(base), base.folder
    if len(tokenizer) > config.vocab_size:
        raise UserError(
            f"The vocabulary in {folder} does not match the model: {TOKENIZER} has {len(tokenizer)} entries, "
            f"but {CONFIG} says vocab_size {config.vocab_size}. Use the files of one checkpoint."
        )
    named = {
        "bos_token_id": tokenizer.sop_token_id,
        "eos_token_id": tokenizer.eop_token_id,
        "gmask_token_id": tokenizer.gmask_token_id,
        "mask_token_id": tokenizer.mask_token_id,
    }
    for key, token_id in named.items():
        if getattr(config, key) != token_id:
            raise UserError(
                f"The vocabulary in {folder} does not match the model: {CONFIG} says {key} "
                f"{getattr(config, key)}, but {TOKENIZER} has it at {token_id}. Use the files of one checkpoint."
            )


# Finding ---------------------------------------------------------------------------------------------


def find(model: str, revision: str | None = None) -> Base:
    """The base that params.yaml names: a local folder if there is one of that name, else a hub id.

    Raises:
        UserError: it is neither, the hub cannot be reached, or :func:`verify` refuses it.
    """
    if _is_folder(model):
        return verify(Path(model).expanduser().resolve(), name=model)
    # No *.py: code that came with a checkpoint is not even fetched.
    snapshot = Path(_download(model, revision, ["*.json", "*.model", "*.safetensors", "pytorch_model*.bin"]))
    return verify(snapshot, name=model, revision=snapshot.name)


def find_tokenizer(model: str, revision: str | None = None) -> Path:
    """The folder with the tokenizer of the base that params.yaml names; of a hub id, nothing else is fetched.

    Raises:
        UserError: the base is not found, or its tokenizer's files are missing or cannot be read.
    """
    if _is_folder(model):
        folder = Path(model).expanduser().resolve()
    else:
        folder = Path(_download(model, revision, [CONFIG, TOKENIZER, TOKENIZER_CONFIG]))
    load_tokenizer(folder)
    return folder


def _is_folder(model: str) -> bool:
    if Path(model).expanduser().is_dir():
        return True
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise UserError(f"base.model: {model!r} is neither 'tiny', nor a folder that exists, nor a hub id.")
    return False


def _download(hub_id: str, revision: str | None, patterns: list[str]) -> str:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return snapshot_download(hub_id, revision=revision, allow_patterns=patterns)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        wanted = ", ".join((CONFIG, TOKENIZER, TOKENIZER_CONFIG, *WEIGHT_INDEXES[1:]))
        raise UserError(
            f"base.model: {hub_id!r} is not in the local cache and could not be fetched ({type(error).__name__}); "
            f"missing files: {wanted} and the weights it lists. Check the network and the name, "
            "or set base.model to a folder with the checkpoint."
        ) from None


# Record and loading ------------------------------------------------------------------------------------


def write_record(base: Base, folder: Path) -> None:
    """Write ``base.json``; its location is ``.`` where the record lies among the files."""
    inside = base.folder.resolve() == folder.resolve()
    record = {**asdict(base), "folder": "." if inside else str(base.folder), "identity": base.identity}
    write_json(folder / RECORD, record)


def read_record(folder: Path) -> Base:
    """Read ``base.json`` and check that the files it names are still those.

    Files up to 64 MiB are hashed again; of larger ones the size is compared here, and the hash where they are
    loaded, see :func:`load_model`.

    Raises:
        UserError: the record is missing or damaged, or a file changed since.
    """
    path = folder / RECORD
    record = schemas.parse(schemas.BaseRecord, schemas.parse_json(schemas.read_limited(path), path), path)
    files = {name: entry.model_dump() for name, entry in record.files.items()}
    base = Base(record.name, (folder / record.folder).resolve(), record.revision, files)
    if {CONFIG, TOKENIZER, TOKENIZER_CONFIG} - files.keys() or not base.weight_files:
        raise UserError(f"{path} does not name configuration, tokenizer and weights; run `dvc repro -f base`.")
    if base.identity != record.identity:
        raise UserError(f"{path} was changed: its identity is not that of its files; run `dvc repro -f base`.")
    for name, entry in files.items():
        file = base.folder / name
        if not file.is_file():
            raise UserError(f"The base model's file {file} is gone; run `dvc repro base`.")
        size = file.stat().st_size
        if size != entry["size"] or (size <= HASHED_AT_ONCE and sha256_of(file) != entry["sha256"]):
            raise UserError(_changed(file))
    _refuse_foreign(base.folder)
    return base


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
        kind = schemas.printable(repr(content.get("model_type")))
        raise UserError(f"{path} has model_type {kind}; only 'chatglm' is supported.")
    try:
        refuse_successor(content)
        known = schemas.parse(schemas.ModelConfig, content, path)
        options = known.model_dump(exclude_unset=True, exclude=schemas.NOT_USED)
        return ChatGLMConfig(**options | {"dtype": known.dtype or known.torch_dtype})
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise UserError(f"{path}: {schemas.printable(error, 500)}") from None


def load_tokenizer(source: Base | Path):
    """The tokenizer of a base, or of a folder whose files nothing vouches for yet.

    Raises:
        UserError: its files cannot be read, or have a key or value that is not allowed; of a base, they changed since.
    """
    from models.chatglm import ChatGLMTokenizer
    from models.chatglm.configuration_chatglm import image_tokens_of

    base = source if isinstance(source, Base) else _unverified(source)
    path = base.folder / TOKENIZER_CONFIG
    config = schemas.parse(schemas.TokenizerConfig, schemas.parse_json(base.read(TOKENIZER_CONFIG), path), path)
    image_tokens = config.num_image_tokens
    if image_tokens is None:
        image_tokens = image_tokens_of(load_config(base).vocab_size) if CONFIG in base.files else 0
    tokens = {name: _content(getattr(config, name)) for name in schemas.TOKENS}
    options = {name: getattr(config, name) for name in schemas.TOKENIZER_OPTIONS}
    try:
        tokenizer = ChatGLMTokenizer(base.folder / TOKENIZER, num_image_tokens=image_tokens, **options, **tokens)
    except (OSError, RuntimeError, ValueError, TypeError, IndexError) as error:
        files = f"{TOKENIZER} and {TOKENIZER_CONFIG}"
        raise UserError(
            f"The tokenizer in {base.folder} cannot be read ({_reason(error)}); fetch {files} again."
        ) from None
    if tokenizer.vocabulary.sha256 != base.tokenizer_sha256:
        raise UserError(_changed(base.folder / TOKENIZER))
    _refuse_added_tokens(config, tokens, tokenizer, path)
    return tokenizer


def _unverified(folder: Path) -> Base:
    """A folder's tokenizer, and its configuration where there is one, hashed as they are now."""
    if missing := [name for name in (TOKENIZER, TOKENIZER_CONFIG) if not (folder / name).is_file()]:
        raise UserError(f"The base model in {folder} is incomplete; these files are missing: {', '.join(missing)}.")
    names = [TOKENIZER, TOKENIZER_CONFIG, *([CONFIG] if (folder / CONFIG).is_file() else [])]
    return Base(str(folder), folder, None, hashes_of(folder, names))


def _content(token: str | schemas.Token) -> str:
    return token if isinstance(token, str) else token.content


def _refuse_added_tokens(config: schemas.TokenizerConfig, tokens: dict[str, str], tokenizer, path: Path) -> None:
    """Raises UserError: the configuration adds tokens, or has special ones elsewhere than the vocabulary."""
    for number, token in config.added_tokens_decoder.items():
        there = token.content in tokens.values()
        if not there or tokenizer.convert_tokens_to_ids(token.content) != int(number):
            raise UserError(
                f"{path} adds the token {schemas.printable(token.content)} as number {number}, which the vocabulary in "
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
    files = [(path := base.folder / name, base.files[name]["sha256"], _changed(path)) for name in base.weight_files]
    for path, name, tensor in tensor_files.read_files(files):
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
    quantizer = AutoHfQuantizer.from_config(_quantization(quantization, dtype), pre_quantized=False)
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
            f"{path} holds {schemas.printable(name)}, which ChatGLM-6B does not have; loaded without it, the model "
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
    return schemas.printable(next(iter(str(error).strip().splitlines()), type(error).__name__), 300)


def _quantization(bits: int, dtype):
    from transformers import BitsAndBytesConfig

    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
