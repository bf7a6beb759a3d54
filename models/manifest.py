"""The manifest of an adapter: its training settings, its base model, and the hashes of its other files.

An adapter folder holds the weights and the configuration as peft writes them, and ``manifest.json``. Manifests of
format 1 have no hash of the configuration. They load if ``adapter_config.json`` agrees with the manifest's settings and
every other feature of peft is off, which is true of all adapters that were trained or imported under format 1.
"""

import hashlib
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, create_model

from models import schemas
from models.base_model import Base
from models.errors import UserError
from models.families import family_of
from models.schemas import LoraConfigFile, PrefixConfigFile, Sha256, Text
from models.storage import sha256_of

MANIFEST, CONFIG = "manifest.json", "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
METHODS = ("lora", "ptuning_v2", "full")
FORMAT = 2
MAX_ANCESTORS = 1000  # of a chain of warm starts
CONFIG_SCHEMAS = {"lora": LoraConfigFile, "ptuning_v2": PrefixConfigFile}
SettingValue = bool | int | float | Text | list[Text] | None


class Ancestor(schemas.Schema):
    """An adapter that another one was started from."""

    source: Text
    weights_sha256: Sha256
    config_sha256: Sha256 | Literal[""]


@dataclass(frozen=True)
class Manifest:
    """Content of ``manifest.json``. Field types are validated when a file is read, not when code creates a manifest.

    Attributes:
        name: key of the adapter under ``adapters:`` in params.yaml.
        method: ``lora``, ``ptuning_v2``, or ``full`` for all weights of a fully trained model.
        settings: settings of method and training.
        base, base_identity: the base model's name and :attr:`models.base_model.Base.identity`.
        tokenizer_sha256: hash of the base's vocabulary file.
        prompt_version: of the family at training time, see
            :meth:`models.families.family.Family.prompt_version`.
        quantization: bits of the base at training time, or None.
        dtype: dtype of the base at training time.
        receipt_sha256: hash of the training data's receipt, or empty for an imported adapter.
        code_commit: git commit of the code, with ``+`` if the working tree was dirty, or None.
        training: summary of the training run.
        weights_sha256: hash of the weight file; filled in when the adapter is saved.
        config_sha256: hash of ``adapter_config.json``; filled in when the adapter is saved, empty for ``full`` and in
            format 1.
        started_from: the adapter whose weights the training started from and those that it started from itself, the
            nearest first: entries of :class:`Ancestor`. None for new weights.
        format: version of the manifest's own format.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,200}$")]
    method: Literal["lora", "ptuning_v2", "full"]
    settings: Annotated[dict[Text, SettingValue], Field(max_length=200)]
    base: Text
    base_identity: Sha256
    tokenizer_sha256: Sha256
    prompt_version: Text
    quantization: Literal[4, 8] | None
    dtype: schemas.DtypeName
    receipt_sha256: Sha256 | Literal[""]
    code_commit: Annotated[str, Field(pattern=r"^[0-9a-f]{40}([0-9a-f]{24})?\+?$")] | None
    training: dict[Text, Any]
    weights_sha256: Sha256 = ""
    config_sha256: Sha256 | Literal[""] = ""
    started_from: Annotated[list[Ancestor], Field(min_length=1, max_length=MAX_ANCESTORS)] | None = None
    format: Literal[1, 2] = FORMAT


_FIELDS = {field.name: (field.type, ... if field.default is MISSING else field.default) for field in fields(Manifest)}
ManifestFile = create_model("ManifestFile", __base__=schemas.Schema, **_FIELDS)


def read_verified_manifest(folder: Path) -> Manifest:
    """Read an adapter's manifest and check the hashes of the adapter's other files.

    Raises:
        UserError: there is no adapter, or manifest, configuration or weights are damaged or changed.
    """
    manifest = parse_manifest(folder)
    if manifest.method != "full":
        read_config(folder, manifest.method, manifest)
    if not (folder / WEIGHTS).is_file() or sha256_of(folder / WEIGHTS) != manifest.weights_sha256:
        raise UserError(hash_mismatch_message(folder / WEIGHTS))
    return manifest


def parse_manifest(folder: Path) -> Manifest:
    """Read an adapter's manifest only; functions that load the other files check their hashes.

    Raises:
        UserError: there is no adapter, or its manifest is damaged or of another format.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"There is no adapter in {folder}; run `dvc repro` to train it.")
    content = schemas.parse_json(schemas.read_small_file(path), path)
    if content.get("format") not in (1, FORMAT):
        raise UserError(
            f"{path} is a manifest of format {schemas.to_printable(content.get('format'))}, but only formats 1 and "
            f"{FORMAT} can be read; update Tuneline, or train the adapter again."
        )
    return Manifest(**schemas.validate_schema(ManifestFile, content, path).model_dump())


def check_base_matches(manifest: Manifest, base: Base, folder: Path) -> None:
    """Check that an adapter belongs to a base model.

    Raises:
        UserError: base model, tokenizer or prompt version differ from those of the training.
    """
    compared = {
        "base model": (manifest.base_identity, base.identity),
        "tokenizer": (manifest.tokenizer_sha256, base.tokenizer_sha256),
        "prompt version": (manifest.prompt_version, family_of(base).prompt_version(base)),
    }
    for noun, (trained, current) in compared.items():
        if trained != current:
            length = None if noun == "prompt version" else 12  # characters of a hash that are shown
            raise UserError(
                f"The adapter in {folder} was trained on {manifest.base!r} with {noun} {trained[:length]}, but the "
                f"{noun} of {base.name!r} is {current[:length]}. Load it with the base it was trained on, or train it "
                "again."
            )


def read_config(folder: Path, method: str, manifest: Manifest | None) -> LoraConfigFile | PrefixConfigFile:
    """Read ``adapter_config.json`` from the same bytes that are hashed.

    Args:
        manifest: the file must have its hash and settings; None for a file that this process has just written.

    Raises:
        UserError: the file is missing or damaged, or does not match the manifest.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(f"{path} is missing; train the adapter again.")
    content = schemas.read_small_file(path)
    if manifest and manifest.format > 1 and hashlib.sha256(content).hexdigest() != manifest.config_sha256:
        raise UserError(hash_mismatch_message(path))
    config = schemas.validate_schema(CONFIG_SCHEMAS[method], schemas.parse_json(content, path), path)
    if manifest:
        _check_settings(manifest, config, path)
    return config


def _check_settings(manifest: Manifest, config: LoraConfigFile | PrefixConfigFile, path: Path) -> None:
    """Check that the manifest's settings and the configuration agree.

    Raises:
        UserError: a setting differs, or, in format 1, is missing from the manifest.
    """
    for key, value in {"method": manifest.method, **config.attachment()}.items():
        if key in manifest.settings:
            setting = manifest.settings[key]
            if (sorted(setting) if isinstance(setting, list) else setting) != value:
                raise UserError(
                    f"{path} has {key} {value}, but {MANIFEST} has {schemas.to_printable(setting)}; one of them was "
                    "changed. Train the adapter again."
                )
        elif manifest.format == 1:
            raise UserError(
                f"{path.with_name(MANIFEST)} has format 1 and no {key} under settings, so {CONFIG} cannot be verified; "
                "train the adapter again."
            )


def hash_mismatch_message(path: Path) -> str:
    """Return the error message for a file whose hash differs from the manifest."""
    return f"{path} is not the file that the manifest describes; train the adapter again."
