"""A base model: a checkpoint folder in the official file layout, and its record ``base.json``.

The record holds the folder's path and the size and SHA-256 of each file. Configuration, tokenizer and weights are
parsed from the same buffers that are hashed (see :mod:`models.model_loading`); no other file of the folder is read.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from models import schemas
from models.errors import UserError
from models.storage import sha256_of, sha256_of_json, write_json

RECORD = "base.json"
LARGE_VOCABULARY = "tokenizer.json"
CONFIG, TOKENIZER_CONFIG = "config.json", "tokenizer_config.json"
SINGLE_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
WEIGHT_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WEIGHT_SUFFIXES = (".safetensors", ".bin")
MAX_REHASHED_BYTES = 2**26  # larger files (13 GB take 10 s) are hashed when they are loaded


@dataclass(frozen=True)
class Base:
    """A verified base model.

    Attributes:
        name: value of ``base.model`` in params.yaml: ``tiny``, a hub id or a folder.
        folder: folder of the checkpoint.
        revision: commit on the Hugging Face Hub, or None.
        files: size in bytes and SHA-256 of configuration, tokenizer, weights and weight index, by file name.
        family: name of the family, see :mod:`models.families`.
    """

    name: str
    folder: Path
    revision: str | None
    files: dict[str, dict]
    family: schemas.FamilyName = "chatglm-6b"

    @property
    def identity(self) -> str:
        """One SHA-256 over the hashes of all files."""
        return sha256_of_json({name: entry["sha256"] for name, entry in self.files.items()})

    @property
    def tokenizer_sha256(self) -> str:
        from models.families import family_of  # here, because families import this module

        return self.files[family_of(self).vocabulary_file]["sha256"]

    @property
    def weight_files(self) -> list[str]:
        return [name for name in self.files if Path(name).suffix in WEIGHT_SUFFIXES]

    def read(self, name: str, limit: int = schemas.MAX_BYTES) -> bytes:
        """Return the bytes of a small file, after a check of their hash.

        Args:
            limit: of the file's size in bytes.

        Raises:
            UserError: the file is missing, too large, or has another hash than the record.
        """
        content = schemas.read_small_file(self.folder / name, limit)
        if hashlib.sha256(content).hexdigest() != self.files[name]["sha256"]:
            raise UserError(hash_mismatch_message(self.folder / name))
        return content


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or the error's class name if it has no message."""
    return schemas.to_printable(next(iter(str(error).strip().splitlines()), type(error).__name__), 300)


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
        limit = schemas.MAX_VOCABULARY_BYTES if name == LARGE_VOCABULARY else schemas.MAX_BYTES
        if Path(name).suffix not in WEIGHT_SUFFIXES and path.stat().st_size > limit:
            raise UserError(f"{path} is larger than {limit} bytes, its limit; fetch it again.")
    return {name: {"size": path.stat().st_size, "sha256": sha256_of(path)} for name, path in paths.items()}


def check_foreign_files(folder: Path, names: Sequence[str]) -> None:
    """Check that a checkpoint folder has one set of weights, and no file that other libraries apply on top of them.

    Args:
        names: of such files; transformers, for example, loads an adapter_config.json without a message.

    Raises:
        UserError: there are several sets of weights, or one of these files.
    """
    if foreign_files := [name for name in names if (folder / name).exists()]:
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
    from models.families import family_of  # here, because families import this module

    path = folder / RECORD
    content = schemas.parse_json(schemas.read_small_file(path), path)
    record = schemas.validate_schema(schemas.BaseRecord, content, path)
    files = {name: entry.model_dump() for name, entry in record.files.items()}
    base = Base(record.name, (folder / record.folder).resolve(), record.revision, files, record.family)
    family = family_of(base)
    if {CONFIG, *family.tokenizer_files} - files.keys() or not base.weight_files:
        raise UserError(f"{path} does not name configuration, tokenizer and weights; run `dvc repro -f base`.")
    if base.identity != record.identity:
        raise UserError(f"{path} was changed: its identity does not match its file hashes; run `dvc repro -f base`.")
    for name, entry in files.items():
        _check_file(base.folder / name, entry)
    check_foreign_files(base.folder, family.foreign_files)
    return base


def _check_file(path: Path, entry: dict) -> None:
    if not path.is_file():
        raise UserError(f"The base model's file {path} is missing; run `dvc repro base`.")
    size = path.stat().st_size
    if size != entry["size"] or (size <= MAX_REHASHED_BYTES and sha256_of(path) != entry["sha256"]):
        raise UserError(hash_mismatch_message(path))
