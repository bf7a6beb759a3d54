"""Find the base model that params.yaml names, in a folder or on the Hugging Face Hub, and verify its files."""

from pathlib import Path

from models import schemas, tensor_files
from models.base_model import CONFIG, SINGLE_WEIGHTS, WEIGHT_INDEXES, Base, check_foreign_files, hash_files
from models.errors import UserError
from models.families import FAMILIES, family_of, recognize_family
from models.families.family import Family

# No *.py: the code in a checkpoint's repository is never downloaded.
CHECKPOINT_PATTERNS = ("*.json", "*.jinja", "*.model", "*.safetensors", "pytorch_model*.bin")
_TOKENIZER_FILES = {name for family in FAMILIES.values() for name in (*family.tokenizer_files, *family.optional_files)}
TOKENIZER_PATTERNS = (CONFIG, *sorted(_TOKENIZER_FILES))


def find_base(model: str, revision: str | None = None, family: str = "auto") -> Base:
    """Find and verify a base model; download it if ``model`` is a hub id.

    Args:
        model: an existing folder, or a hub id such as ``THUDM/chatglm-6b``.
        revision: commit, branch or tag on the hub.
        family: name of the family, or ``auto``.

    Raises:
        UserError: ``model`` is neither, the download fails, or :func:`verify_base` rejects the files.
    """
    if _is_folder(model):
        return verify_base(Path(model).expanduser().resolve(), name=model, family=family)
    snapshot = Path(_download(model, revision, CHECKPOINT_PATTERNS))
    return verify_base(snapshot, name=model, revision=snapshot.name, family=family)


def find_tokenizer(model: str, revision: str | None = None, family: str = "auto") -> Base:
    """Return the tokenizer of a base model, with its files hashed; for a hub id, download the tokenizer's files only.

    Args:
        model, revision, family: as for :func:`find_base`.

    Raises:
        UserError: the base model is not found, or its tokenizer is missing or damaged.
    """
    if _is_folder(model):
        folder = Path(model).expanduser().resolve()
    else:
        folder = Path(_download(model, revision, TOKENIZER_PATTERNS))
    tokenizer = hash_tokenizer_files(folder, model, recognize_family(folder, family))
    family_of(tokenizer).load_tokenizer(tokenizer)
    return tokenizer


def hash_tokenizer_files(folder: Path, name: str, family: Family) -> Base:
    """Return a :class:`Base` with the tokenizer's files, and the configuration if there is one, as they are now.

    Raises:
        UserError: a file of the tokenizer is missing.
    """
    if missing := [file for file in family.tokenizer_files if not (folder / file).is_file()]:
        raise UserError(f"The base model in {folder} is incomplete; these files are missing: {', '.join(missing)}.")
    present = [file for file in (CONFIG, *family.optional_files) if (folder / file).is_file()]
    return Base(name, folder, None, hash_files(folder, [*family.tokenizer_files, *present]), family.name)


def _is_folder(model: str) -> bool:
    if Path(model).expanduser().is_dir():
        return True
    if model.endswith(".gguf"):
        raise UserError(
            f"base.model: {model!r} is a GGUF file. Convert it with `python -m pipelines.convert_gguf {model} --out "
            "FOLDER`, and set base.model to that folder."
        )
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise UserError(f"base.model: {model!r} is neither 'tiny', nor a folder that exists, nor a hub id.")
    return False


def _download(hub_id: str, revision: str | None, patterns: tuple[str, ...]) -> str:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return snapshot_download(hub_id, revision=revision, allow_patterns=list(patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        vocabularies = " or ".join(dict.fromkeys(family.vocabulary_file for family in FAMILIES.values()))
        raise UserError(
            f"base.model: {hub_id!r} is not in the local cache and could not be fetched ({type(error).__name__}); "
            f"missing files: {CONFIG}, {vocabularies}, {WEIGHT_INDEXES[-1]} and the weights it lists. Check the "
            "network and the name, or set base.model to a folder with the checkpoint."
        ) from None


def verify_base(folder: Path, name: str, revision: str | None = None, family: str = "auto") -> Base:
    """Check that a folder holds a complete checkpoint, and hash its files.

    Args:
        name, revision: for the result, see :class:`models.base_model.Base`.
        family: name of the family, or ``auto``.

    Raises:
        UserError: files are missing, truncated or damaged, there are several sets of weights, other libraries would
            load more than the weights, or the vocabulary does not match the model.
    """
    if not folder.is_dir():
        raise UserError(f"base.model: the folder {folder} does not exist.")
    recognized = recognize_family(folder, family)
    check_foreign_files(folder, recognized.foreign_files)
    index, weights = _find_weights(folder)
    required = (CONFIG, *recognized.tokenizer_files, *weights)
    missing = [file for file in required if not (folder / file).is_file()]
    if missing:
        raise UserError(f"The base model in {folder} is incomplete; these files are missing: {', '.join(missing)}.")
    truncated = [file for file in weights if not tensor_files.is_complete(folder / file)]
    if truncated:
        raise UserError(
            f"The base model in {folder} is incompletely downloaded; fetch these files again: {', '.join(truncated)}."
        )
    optional = [file for file in recognized.optional_files if (folder / file).is_file()]
    small_files = [CONFIG, *recognized.tokenizer_files, *optional]
    recognized.check_files(Base(name, folder, revision, hash_files(folder, small_files), recognized.name))
    return Base(name, folder, revision, hash_files(folder, [*small_files, *weights, *index]), recognized.name)


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
