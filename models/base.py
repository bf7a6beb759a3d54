"""Find, verify and load a base model.

A base is a folder in the official file layout. Its *record*, ``base.json``, says where the folder
is and what was in it; whoever loads the base later checks the record, so that an adapter never
meets another base than the one it was trained on.
"""

import json
import pickle
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

from models.errors import UserError
from models.storage import read_json, sha256_of, sha256_of_json, write_json

RECORD = "base.json"
CONFIG, TOKENIZER, TOKENIZER_CONFIG = "config.json", "ice_text.model", "tokenizer_config.json"
SINGLE_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
WEIGHT_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
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


# Verifying -----------------------------------------------------------------------------------------


def verify(folder: Path, name: str, revision: str | None = None) -> Base:
    """Check that a folder holds a whole ChatGLM checkpoint, and hash its files.

    Raises:
        UserError: files are missing or cut off, or the vocabulary does not fit the model.
    """
    if not folder.is_dir():
        raise UserError(f"base.model: the folder {folder} does not exist.")
    weights = _weight_files(folder)
    missing = [file for file in (CONFIG, TOKENIZER, TOKENIZER_CONFIG, *weights) if not (folder / file).is_file()]
    if missing:
        raise UserError(f"The base model in {folder} is incomplete; these files are missing: {', '.join(missing)}.")
    cut_off = [file for file in weights if not _is_whole(folder / file)]
    if cut_off:
        raise UserError(f"The base model in {folder} is half-downloaded; fetch these again: {', '.join(cut_off)}.")
    _verify_vocabulary(folder)
    indexes = [file for file in WEIGHT_INDEXES if (folder / file).is_file()]
    counted = sorted({CONFIG, TOKENIZER, TOKENIZER_CONFIG, *weights, *indexes})
    files = {file: {"size": (folder / file).stat().st_size, "sha256": sha256_of(folder / file)} for file in counted}
    return Base(name, folder, revision, files)


def _weight_files(folder: Path) -> list[str]:
    for index in WEIGHT_INDEXES:
        if (folder / index).is_file():
            weight_map = _json_of(folder / index).get("weight_map")
            named = weight_map.values() if isinstance(weight_map, dict) else ()
            shards = sorted({str(shard) for shard in named})
            if not shards or any(Path(shard).name != shard for shard in shards):
                raise UserError(f"{folder / index} names no weight files of its own folder; fetch it again.")
            return shards
    for single in SINGLE_WEIGHTS:
        if (folder / single).is_file():
            return [single]
    return [WEIGHT_INDEXES[-1]]


def _is_whole(path: Path) -> bool:
    """Whether a weight file ends where it should: a cut-off download lacks its end."""
    if path.suffix == ".bin":
        return zipfile.is_zipfile(path)  # torch.save writes a zip file, whose directory stands last
    size = path.stat().st_size
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        if not 0 < header_size <= size - 8:
            return False
        try:
            header = json.loads(file.read(header_size))
            ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
            return size == 8 + header_size + max(ends, default=0)
        except (ValueError, AttributeError, KeyError, TypeError, IndexError):
            return False  # no header of the safetensors format


def _verify_vocabulary(folder: Path) -> None:
    config, tokenizer = _config_of(folder), load_tokenizer(folder)
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


def _config_of(folder: Path):
    from huggingface_hub.errors import StrictDataclassError

    from models.chatglm import ChatGLMConfig

    content = _json_of(folder / CONFIG)
    if content.get("model_type") != ChatGLMConfig.model_type:
        raise UserError(f"{folder / CONFIG} has model_type {content.get('model_type')!r}; only 'chatglm' is supported.")
    try:
        return ChatGLMConfig(**content)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise UserError(f"{folder / CONFIG}: {' '.join(str(error).split())}") from None


def _json_of(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); fetch it again.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object; fetch it again.")
    return content


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
    if missing := [file for file in (TOKENIZER, TOKENIZER_CONFIG) if not (folder / file).is_file()]:
        raise UserError(f"The base model in {folder} is incomplete; these files are missing: {', '.join(missing)}.")
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

    Files up to 64 MiB are hashed again; of larger ones only the size is compared, because
    hashing 13 GB at every load would cost a minute.

    Raises:
        UserError: the record is missing, or a file changed since.
    """
    record = read_json(folder / RECORD)
    base = Base(record["name"], (folder / record["folder"]).resolve(), record["revision"], record["files"])
    for name, entry in base.files.items():
        path = base.folder / name
        if not path.is_file():
            raise UserError(f"The base model's file {path} is gone; run `dvc repro base`.")
        size = path.stat().st_size
        if size != entry["size"] or (size <= 2**26 and sha256_of(path) != entry["sha256"]):
            raise UserError(f"The base model's file {path} changed since stage base ran; run `dvc repro -f base`.")
    return base


def load_tokenizer(folder: Path):
    """The tokenizer of a checkpoint folder.

    Raises:
        UserError: its files cannot be read.
    """
    from models.chatglm import ChatGLMTokenizer

    try:
        return ChatGLMTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        files = f"{TOKENIZER} and {TOKENIZER_CONFIG}"
        raise UserError(f"The tokenizer in {folder} cannot be read ({_reason(error)}); fetch {files} again.") from None


def load_model(base: Base, dtype: str, quantization: int | None = None):
    """The model, frozen in evaluation mode, on the GPU if there is one.

    Args:
        dtype: ``float32``, ``float16``, ``bfloat16``, or ``auto`` for that of the checkpoint.
        quantization: 4 (NF4) or 8 bits by bitsandbytes, or None.

    Raises:
        UserError: weights are missing, have the wrong shape or cannot be read.
    """
    import torch

    from models.chatglm import ChatGLMForConditionalGeneration

    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else "cpu"
    kind = dtype if dtype == "auto" else getattr(torch, dtype)
    options = {"dtype": kind, "local_files_only": True, "output_loading_info": True}
    if device != "cpu" or quantization is not None:  # from the files straight to it, and the type changed there
        options["device_map"] = {"": device}
    if quantization is not None:
        options["quantization_config"] = _quantization(quantization, kind)
    try:
        model, report = ChatGLMForConditionalGeneration.from_pretrained(base.folder, **options)
    except pickle.UnpicklingError:
        raise UserError(
            f"The weights in {base.folder} hold more than tensors, which could run code; refused."
        ) from None
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise UserError(f"The weights in {base.folder} cannot be loaded ({_reason(error)}).") from None
    lacking = sorted(report["missing_keys"])
    if lacking:
        raise UserError(f"The weights in {base.folder} lack {len(lacking)} tensors, the first being {lacking[0]}.")
    return model.requires_grad_(False).eval()


def _reason(error: Exception) -> str:
    """The first line of an error's message, or its name."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _quantization(bits: int, dtype):
    from transformers import BitsAndBytesConfig

    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
