"""Find the base model that params.yaml names, in a folder or on the Hugging Face Hub, and verify its files."""

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
from models.chatglm.configuration_chatglm import refuse_successor
from models.errors import UserError
from models.model_loading import load_config, load_tokenizer

# No *.py: the code in a checkpoint's repository is never downloaded.
CHECKPOINT_PATTERNS = ("*.json", "*.model", "*.safetensors", "pytorch_model*.bin")


def find_base(model: str, revision: str | None = None) -> Base:
    """Find and verify a base model; download it if ``model`` is a hub id.

    Args:
        model: an existing folder, or a hub id such as ``THUDM/chatglm-6b``.
        revision: commit, branch or tag on the hub.

    Raises:
        UserError: ``model`` is neither, the download fails, or :func:`verify_base` rejects the files.
    """
    if _is_folder(model):
        return verify_base(Path(model).expanduser().resolve(), name=model)
    snapshot = Path(_download(model, revision, CHECKPOINT_PATTERNS))
    return verify_base(snapshot, name=model, revision=snapshot.name)


def find_tokenizer(model: str, revision: str | None = None) -> Path:
    """Return the folder with a base model's tokenizer; for a hub id, download the tokenizer's files only.

    Args:
        model, revision: as for :func:`find_base`.

    Raises:
        UserError: the base model is not found, or its tokenizer is missing or damaged.
    """
    if _is_folder(model):
        folder = Path(model).expanduser().resolve()
    else:
        folder = Path(_download(model, revision, (CONFIG, TOKENIZER, TOKENIZER_CONFIG)))
    load_tokenizer(folder)
    return folder


def _is_folder(model: str) -> bool:
    if Path(model).expanduser().is_dir():
        return True
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise UserError(f"base.model: {model!r} is neither 'tiny', nor a folder that exists, nor a hub id.")
    return False


def _download(hub_id: str, revision: str | None, patterns: tuple[str, ...]) -> str:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return snapshot_download(hub_id, revision=revision, allow_patterns=list(patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        missing = ", ".join((CONFIG, TOKENIZER, TOKENIZER_CONFIG, *WEIGHT_INDEXES[1:]))
        raise UserError(
            f"base.model: {hub_id!r} is not in the local cache and could not be fetched ({type(error).__name__}); "
            f"missing files: {missing} and the weights it lists. Check the network and the name, "
            "or set base.model to a folder with the checkpoint."
        ) from None


def verify_base(folder: Path, name: str, revision: str | None = None) -> Base:
    """Check that a folder holds a complete ChatGLM checkpoint, and hash its files.

    Args:
        name, revision: for the result, see :class:`models.base_model.Base`.

    Raises:
        UserError: files are missing, truncated or damaged, there are several sets of weights, other libraries would
            load more than the weights, or the vocabulary does not match the model.
    """
    if not folder.is_dir():
        raise UserError(f"base.model: the folder {folder} does not exist.")
    check_foreign_files(folder)
    _refuse_successor(folder)
    index, weights = _find_weights(folder)
    missing = [file for file in (CONFIG, TOKENIZER, TOKENIZER_CONFIG, *weights) if not (folder / file).is_file()]
    if missing:
        raise UserError(f"The base model in {folder} is incomplete; these files are missing: {', '.join(missing)}.")
    truncated = [file for file in weights if not tensor_files.is_complete(folder / file)]
    if truncated:
        raise UserError(
            f"The base model in {folder} is incompletely downloaded; fetch these files again: {', '.join(truncated)}."
        )
    small_files = [CONFIG, TOKENIZER, TOKENIZER_CONFIG]
    _check_vocabulary(Base(name, folder, revision, hash_files(folder, small_files)))
    return Base(name, folder, revision, hash_files(folder, [*small_files, *weights, *index]))


def _refuse_successor(folder: Path) -> None:
    """Check that a folder does not hold ChatGLM2-6B or ChatGLM3-6B, whose tokenizer no stage can use yet.

    Raises:
        UserError: config.json has their keys.
    """
    path = folder / CONFIG
    if not path.is_file():
        return
    content = schemas.parse_json(schemas.read_small_file(path), path)
    try:
        refuse_successor(content)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def _find_weights(folder: Path) -> tuple[list[str], list[str]]:
    """Return the name of the weight index, if there is one, and the names of the weight files.

    Raises:
        UserError: the index is damaged, or names files of another folder or type.
    """
    for index in WEIGHT_INDEXES:
        if (folder / index).is_file():
            return [index], _read_weight_index(folder / index)
    for single in SINGLE_WEIGHTS:
        if (folder / single).is_file():
            return [], [single]
    return [], [WEIGHT_INDEXES[-1]]


def _read_weight_index(path: Path) -> list[str]:
    content = schemas.parse_json(schemas.read_small_file(path), path)
    shards = sorted(set(schemas.validate_schema(schemas.WeightIndex, content, path).weight_map.values()))
    suffix = Path(path.name.removesuffix(".index.json")).suffix
    if any(Path(shard).name != shard or Path(shard).suffix != suffix for shard in shards):
        raise UserError(f"{path} must name {suffix} files of its own folder only; fetch it again.")
    return shards


def _check_vocabulary(base: Base) -> None:
    """Check that vocabulary size and special token ids of config.json match the tokenizer.

    Raises:
        UserError: they differ.
    """
    config, tokenizer, folder = load_config(base), load_tokenizer(base), base.folder
    if len(tokenizer) > config.vocab_size:
        raise UserError(
            f"The vocabulary in {folder} does not match the model: {TOKENIZER} has {len(tokenizer)} entries, "
            f"but {CONFIG} has vocab_size {config.vocab_size}. Use the files of one checkpoint."
        )
    token_ids = {
        "bos_token_id": tokenizer.sop_token_id,
        "eos_token_id": tokenizer.eop_token_id,
        "gmask_token_id": tokenizer.gmask_token_id,
        "mask_token_id": tokenizer.mask_token_id,
    }
    for key, token_id in token_ids.items():
        if getattr(config, key) != token_id:
            raise UserError(
                f"The vocabulary in {folder} does not match the model: {CONFIG} has {key} "
                f"{getattr(config, key)}, but in {TOKENIZER} it is {token_id}. Use the files of one checkpoint."
            )
