"""A base model: a checkpoint folder in the official file layout, and its record ``base.json``.

The record holds the folder's path and the size and SHA-256 of each file. Configuration, tokenizer and weights are
parsed from the same buffers that are hashed (see :mod:`models.model_loading`); no other file of the folder is read.
"""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path

from models import schemas
from models.errors import UserError
from models.storage import sha256_of, sha256_of_json, write_json

RECORD = "base.json"
CONFIG, TOKENIZER, TOKENIZER_CONFIG = "config.json", "ice_text.model", "tokenizer_config.json"
SINGLE_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
WEIGHT_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WEIGHT_SUFFIXES = (".safetensors", ".bin")
# Other libraries apply these files on top of the weights, e.g. transformers an adapter_config.json without a message.
FOREIGN_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "added_tokens.json")
MAX_REHASHED_BYTES = 2**26  # larger files (13 GB take 10 s) are hashed when they are loaded


@dataclass(frozen=True)
class Base:
    """A verified base model.

    Attributes:
        name: value of ``base.model`` in params.yaml: ``tiny``, a hub id or a folder.
        folder: folder of the checkpoint.
        revision: commit on the Hugging Face Hub, or None.
        files: size in bytes and SHA-256 of configuration, tokenizer, weights and weight index, by file name.
    """

    name: str
    folder: Path
    revision: str | None
    files: dict[str, dict]

    @property
    def identity(self) -> str:
        """One SHA-256 over the hashes of all files."""
        return sha256_of_json({name: entry["sha256"] for name, entry in self.files.items()})

    @property
    def tokenizer_sha256(self) -> str:
        return self.files[TOKENIZER]["sha256"]

    @property
    def weight_files(self) -> list[str]:
        return [name for name in self.files if Path(name).suffix in WEIGHT_SUFFIXES]

    def read(self, name: str) -> bytes:
        """Return the bytes of a small file, after a check of their hash.

        Raises:
            UserError: the file is missing, too large, or has another hash than the record.
        """
        content = schemas.read_small_file(self.folder / name)
        if hashlib.sha256(content).hexdigest() != self.files[name]["sha256"]:
            raise UserError(hash_mismatch_message(self.folder / name))
        return content


def hash_mismatch_message(path: Path) -> str:
    """Return the error message for a file whose hash differs from the record."""
    return f"The base model's file {path} changed since stage base ran; run `dvc repro -f base`."


def hash_files(folder: Path, names: list[str]) -> dict[str, dict]:
    """Return size in bytes and SHA-256 of files, by name in alphabetical order.

    Raises:
        UserError: a file other than the weights exceeds :data:`models.schemas.MAX_BYTES`.
    """
    paths = {name: folder / name for name in sorted(set(names))}
    for name, path in paths.items():
        if Path(name).suffix not in WEIGHT_SUFFIXES and path.stat().st_size > schemas.MAX_BYTES:
            raise UserError(f"{path} is larger than {schemas.MAX_BYTES} bytes, its limit; fetch it again.")
    return {name: {"size": path.stat().st_size, "sha256": sha256_of(path)} for name, path in paths.items()}


def check_foreign_files(folder: Path) -> None:
    """Check that a checkpoint folder has one set of weights, and no adapter or added tokens.

    Raises:
        UserError: there are several sets of weights, or a file of :data:`FOREIGN_FILES`.
    """
    if foreign_files := [name for name in FOREIGN_FILES if (folder / name).exists()]:
        raise UserError(
            f"The base model in {folder} has {' and '.join(foreign_files)} next to its weights. Other libraries load "
            "that too, Tuneline loads the weights only: merge it into the weights, or move it out of the folder."
        )
    weight_sets = [name for name in (*SINGLE_WEIGHTS, *WEIGHT_INDEXES) if (folder / name).exists()]
    if len(weight_sets) > 1:
        raise UserError(
            f"The base model in {folder} has its weights more than once: {' and '.join(weight_sets)}. Keep one set and "
            "move the other files out of the folder. For a hub id, download one set only and set base.model to its "
            "folder."
        )


def write_record(base: Base, folder: Path) -> None:
    """Write ``base.json`` into a folder. The path in it is ``.`` if that is the checkpoint's own folder."""
    inside = base.folder.resolve() == folder.resolve()
    record = {**asdict(base), "folder": "." if inside else str(base.folder), "identity": base.identity}
    write_json(folder / RECORD, record)


def read_record(folder: Path) -> Base:
    """Read ``base.json`` and check that the files have not changed.

    Files up to ``MAX_REHASHED_BYTES`` are hashed. Of larger files only the size is compared here, because
    :func:`models.model_loading.load_model` hashes the weights while it loads them.

    Raises:
        UserError: the record is missing or damaged, or a file is missing or changed.
    """
    path = folder / RECORD
    content = schemas.parse_json(schemas.read_small_file(path), path)
    record = schemas.validate_schema(schemas.BaseRecord, content, path)
    files = {name: entry.model_dump() for name, entry in record.files.items()}
    base = Base(record.name, (folder / record.folder).resolve(), record.revision, files)
    if {CONFIG, TOKENIZER, TOKENIZER_CONFIG} - files.keys() or not base.weight_files:
        raise UserError(f"{path} does not name configuration, tokenizer and weights; run `dvc repro -f base`.")
    if base.identity != record.identity:
        raise UserError(f"{path} was changed: its identity does not match its file hashes; run `dvc repro -f base`.")
    for name, entry in files.items():
        _check_file(base.folder / name, entry)
    check_foreign_files(base.folder)
    return base


def _check_file(path: Path, entry: dict) -> None:
    if not path.is_file():
        raise UserError(f"The base model's file {path} is missing; run `dvc repro base`.")
    size = path.stat().st_size
    if size != entry["size"] or (size <= MAX_REHASHED_BYTES and sha256_of(path) != entry["sha256"]):
        raise UserError(hash_mismatch_message(path))
