"""The manifest of an adapter: what the adapter is, what it belongs to, and the hashes of its other files.

An adapter folder holds peft's two files, weights and configuration, and ``manifest.json``. Manifests of format 1 have
no hash of the configuration. They are loaded if ``adapter_config.json`` says what the manifest's settings say and every
other feature of peft is off, which holds for each adapter that was trained or imported under format 1.
"""

import hashlib
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, create_model

from models import schemas
from models.base_model import Base
from models.errors import UserError
from models.prompt import PROMPT_VERSION
from models.schemas import LoraConfigFile, PrefixConfigFile, Sha256, Text
from models.storage import sha256_of

MANIFEST, CONFIG = "manifest.json", "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
METHODS = ("lora", "ptuning_v2", "full")
FORMAT = 2
CONFIG_SCHEMAS = {"lora": LoraConfigFile, "ptuning_v2": PrefixConfigFile}
Setting = bool | int | float | Text | list[Text] | None


@dataclass(frozen=True)
class Manifest:
    """What an adapter is and what it belongs to. The types are checked when a manifest is read, not in code.

    Attributes:
        name: its key under ``adapters:`` in params.yaml.
        method: ``lora``, ``ptuning_v2`` or ``full``, which is no adapter but all the weights.
        settings: the method's settings and the training's.
        base, base_identity: the base model's name and :attr:`models.base_model.Base.identity`.
        tokenizer_sha256: of the base's ``ice_text.model``.
        prompt_version: :data:`models.prompt.PROMPT_VERSION` at training time.
        quantization: bits of the base at training time, or None.
        dtype: the base's type at training time.
        receipt_sha256: of the receipt of the data trained on.
        code_commit: git commit of the code, with ``+`` if the tree was dirty, or None.
        training: summary of the run.
        weights_sha256: of the adapter's weights; filled in when saving.
        config_sha256: of ``adapter_config.json``; filled in when saving, empty for ``full`` and in format 1.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,200}$")]
    method: Literal["lora", "ptuning_v2", "full"]
    settings: Annotated[dict[Text, Setting], Field(max_length=200)]
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
    format: Literal[1, 2] = FORMAT


_FIELDS = {field.name: (field.type, ... if field.default is MISSING else field.default) for field in fields(Manifest)}
ManifestFile = create_model("ManifestFile", __base__=schemas.Schema, **_FIELDS)


def read_verified_manifest(folder: Path) -> Manifest:
    """Read an adapter's manifest and check the other files against it.

    Raises:
        UserError: there is no adapter, or its manifest, configuration or weights are damaged.
    """
    manifest = parse_manifest(folder)
    if manifest.method != "full":
        read_config(folder, manifest.method, manifest)
    if not (folder / WEIGHTS).is_file() or sha256_of(folder / WEIGHTS) != manifest.weights_sha256:
        raise UserError(hash_mismatch_message(folder / WEIGHTS))
    return manifest


def parse_manifest(folder: Path) -> Manifest:
    """Read an adapter's manifest for a caller that loads the other files, which then checks their hashes.

    Raises:
        UserError: there is no adapter, or its manifest is damaged or of another version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"There is no adapter in {folder}; run `dvc repro` to train it.")
    content = schemas.parse_json(schemas.read_small_file(path), path)
    if content.get("format") not in (1, FORMAT):
        raise UserError(
            f"{path} is not a manifest of this version: it has format {schemas.to_printable(content.get('format'))}, and "
            f"1 and {FORMAT} can be read; update Tuneline, or train the adapter again."
        )
    return Manifest(**schemas.validate_schema(ManifestFile, content, path).model_dump())


def check_base_matches(manifest: Manifest, base: Base, folder: Path) -> None:
    """Refuse an adapter that does not belong to this base.

    Raises:
        UserError: base, tokenizer or prompt differ from those of the training.
    """
    expected = {
        "base model": (manifest.base_identity, base.identity),
        "tokenizer": (manifest.tokenizer_sha256, base.tokenizer_sha256),
        "prompt version": (manifest.prompt_version, PROMPT_VERSION),
    }
    for what, (trained, given) in expected.items():
        if trained != given:
            length = None if what == "prompt version" else 12  # enough of a hash to tell two apart by eye
            raise UserError(
                f"The adapter in {folder} was trained on {manifest.base!r} with {what} {trained[:length]}, but the "
                f"{what} of {base.name!r} is {given[:length]}. Load it with the base it was trained on, or train it "
                "again."
            )


def read_config(folder: Path, method: str, manifest: Manifest | None) -> LoraConfigFile | PrefixConfigFile:
    """Read an adapter's configuration from the bytes that are hashed.

    Args:
        manifest: whose hash and settings must be those of the file; None for one that was written a moment ago.

    Raises:
        UserError: the file is missing, damaged, or not the one that the manifest describes.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(f"{path} is missing; train the adapter again.")
    content = schemas.read_small_file(path)
    if manifest and manifest.format > 1 and hashlib.sha256(content).hexdigest() != manifest.config_sha256:
        raise UserError(hash_mismatch_message(path))
    config = schemas.validate_schema(CONFIG_SCHEMAS[method], schemas.parse_json(content, path), path)
    if manifest:
        _refuse_other_settings(manifest, config, path)
    return config


def _refuse_other_settings(manifest: Manifest, config: LoraConfigFile | PrefixConfigFile, path: Path) -> None:
    """Raises UserError: the manifest's settings say something else than the configuration, or in format 1 nothing."""
    for key, value in {"method": manifest.method, **config.attachment()}.items():
        if key not in manifest.settings:
            if manifest.format == 1:
                raise UserError(
                    f"{path.with_name(MANIFEST)} has format 1 and no {key} under settings, so nothing vouches for "
                    f"{CONFIG}; train the adapter again."
                )
            continue
        setting = manifest.settings[key]
        if (sorted(setting) if isinstance(setting, list) else setting) != value:
            raise UserError(
                f"{path} has {key} {value}, but {MANIFEST} says {schemas.to_printable(setting)}; one of them was changed. "
                "Train the adapter again."
            )


def hash_mismatch_message(path: Path) -> str:
    """The sentence for a file with another hash than the manifest's."""
    return f"{path} is not the file that the manifest describes; train the adapter again."
