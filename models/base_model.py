"""Find, verify and load a base model.

A base is a folder in the official file layout. Its *record*, ``base.json``, says where the folder
is and what was in it. What is loaded later are the bytes that the record's hashes stand for: configuration,
tokenizer and weights are parsed from the buffers that are hashed. No other file of the folder is read.
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
# Other programs would load these with the weights, so a folder that holds one is not what its weights say.
FOREIGN_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "added_tokens.json")
WEIGHT_SUFFIXES = (".safetensors", ".bin")
MAX_REHASHED_BYTES = 2**26  # bytes; hashing 13 GB takes ten seconds, which load_model spends anyway


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
        content = schemas.read_small_file(self.folder / name)
        if hashlib.sha256(content).hexdigest() != self.files[name]["sha256"]:
            raise UserError(hash_mismatch_message(self.folder / name))
        return content


def hash_mismatch_message(path: Path) -> str:
    return f"The base model's file {path} changed since stage base ran; run `dvc repro -f base`."


def hash_files(folder: Path, names: list[str]) -> dict[str, dict]:
    """Size in bytes and SHA-256 of files, by name in alphabetical order."""
    paths = {name: folder / name for name in sorted(set(names))}
    for name, path in paths.items():
        if Path(name).suffix not in WEIGHT_SUFFIXES and path.stat().st_size > schemas.MAX_BYTES:
            raise UserError(f"{path} is larger than {schemas.MAX_BYTES} bytes, which no file of its kind is.")
    return {name: {"size": path.stat().st_size, "sha256": sha256_of(path)} for name, path in paths.items()}


def check_foreign_files(folder: Path) -> None:
    """Raises UserError: weights stand twice, or the folder holds an adapter or tokens beside them."""
    if foreign := [name for name in FOREIGN_FILES if (folder / name).exists()]:
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
    record = schemas.validate_schema(schemas.BaseRecord, schemas.parse_json(schemas.read_small_file(path), path), path)
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
        if size != entry["size"] or (size <= MAX_REHASHED_BYTES and sha256_of(file) != entry["sha256"]):
            raise UserError(hash_mismatch_message(file))
    check_foreign_files(base.folder)
    return base
