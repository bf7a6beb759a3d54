"""Find and verify the base model that params.yaml names."""

from pathlib import Path

from models import schemas, tensor_files
from models.base_model import (
    CONFIG,
    SINGLE_WEIGHTS,
    TOKENIZER,
    TOKENIZER_CONFIG,
    WEIGHT_INDEXES,
    Base,
    check_foreign_files,
    hash_files,
)
from models.errors import UserError
from models.model_loading import load_config, load_tokenizer


def verify_base(folder: Path, name: str, revision: str | None = None) -> Base:
    """Check that a folder holds a whole ChatGLM checkpoint, and hash its files.

    Raises:
        UserError: files are missing or cut off, weights stand twice, another program would load more than them, or
            the vocabulary does not fit the model.
    """
    if not folder.is_dir():
        raise UserError(f"base.model: the folder {folder} does not exist.")
    check_foreign_files(folder)
    index, weights = _weight_files(folder)
    missing = [file for file in (CONFIG, TOKENIZER, TOKENIZER_CONFIG, *weights) if not (folder / file).is_file()]
    if missing:
        raise UserError(f"The base model in {folder} is incomplete; these files are missing: {', '.join(missing)}.")
    cut_off = [file for file in weights if not tensor_files.is_complete(folder / file)]
    if cut_off:
        raise UserError(f"The base model in {folder} is half-downloaded; fetch these again: {', '.join(cut_off)}.")
    _verify_vocabulary(Base(name, folder, revision, hash_files(folder, [CONFIG, TOKENIZER, TOKENIZER_CONFIG])))
    return Base(name, folder, revision, hash_files(folder, [CONFIG, TOKENIZER, TOKENIZER_CONFIG, *weights, *index]))


def _weight_files(folder: Path) -> tuple[list[str], list[str]]:
    """The index, if there is one, and the weight files: the one rule for what is verified and what is loaded."""
    for index in WEIGHT_INDEXES:
        if (folder / index).is_file():
            content = schemas.parse_json(schemas.read_small_file(folder / index), folder / index)
            shards = sorted(set(schemas.validate_schema(schemas.WeightIndex, content, folder / index).weight_map.values()))
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


def find_base(model: str, revision: str | None = None) -> Base:
    """The base that params.yaml names: a local folder if there is one of that name, else a hub id.

    Raises:
        UserError: it is neither, the hub cannot be reached, or :func:`verify` refuses it.
    """
    if _is_folder(model):
        return verify_base(Path(model).expanduser().resolve(), name=model)
    # No *.py: code that came with a checkpoint is not even fetched.
    snapshot = Path(_download(model, revision, ["*.json", "*.model", "*.safetensors", "pytorch_model*.bin"]))
    return verify_base(snapshot, name=model, revision=snapshot.name)


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
