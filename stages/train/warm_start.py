"""Warm start: training that begins with the weights of another adapter instead of new ones."""

from dataclasses import dataclass
from pathlib import Path

from formats import training_params
from models.base_model import Base
from models.errors import UserError
from models.manifest import MAX_ANCESTORS, Manifest, check_base_matches, read_config, read_verified_manifest
from stages.train.attachment import resolve_attachment

# What the weights depend on. An adapter with another dropout or another learning rate can continue them.
_SHAPES = {
    "lora": ("rank", "alpha", "target_modules", "rslora", "dora"),
    "ptuning_v2": ("prefix_tokens",),
    "full": (),
}


@dataclass(frozen=True)
class StartFolders:
    """Folders of adapters that ``start_from`` can name.

    Attributes:
        champion: of the champion.
        versions: with a folder for each earlier version of the champion that was fetched.
    """

    champion: Path
    versions: Path

    def locate(self, source: str) -> Path:
        """Return the folder of an adapter: of the champion, of a version, or the folder itself.

        Raises:
            UserError: it does not exist.
        """
        is_version = training_params.CHAMPION_VERSION.fullmatch(source)
        folder = self.versions / source if is_version else Path(source)
        folder = self.champion if source == training_params.CHAMPION else folder
        if folder.is_dir():
            return folder
        if is_version or source == training_params.CHAMPION:
            raise UserError(
                f"start_from is {source}, but {folder} does not exist; run `python -m pipelines.start_from` to fetch "
                "it, or set start_from to null."
            )
        raise UserError(f"start_from names the folder {source}, which does not exist; correct it in params.yaml.")


@dataclass(frozen=True)
class WarmStart:
    """A verified adapter whose weights a training run starts from.

    Attributes:
        source: value of ``start_from``.
    """

    source: str
    folder: Path
    manifest: Manifest

    @property
    def lineage(self) -> list[dict[str, str]]:
        """The adapter and those that it started from itself, the nearest first."""
        names = ("weights_sha256", "config_sha256")
        nearest = {"source": self.source, **{name: getattr(self.manifest, name) for name in names}}
        return [nearest, *(self.manifest.started_from or ())][:MAX_ANCESTORS]


def find_warm_start(name: str, adapter: training_params.Adapter, base: Base, folders: StartFolders) -> WarmStart | None:
    """Return the adapter that ``adapters.NAME.start_from`` names, with its hashes verified; None if it is null.

    Raises:
        UserError: the adapter does not exist or is damaged, or has another base, method or shape.
    """
    if adapter.start_from is None:
        return None
    folder = folders.locate(adapter.start_from)
    manifest = read_verified_manifest(folder)
    check_base_matches(manifest, base, folder)
    values = {"method": (manifest.method, adapter.method)}
    if manifest.method == adapter.method != "full":
        saved, wanted = read_config(folder, manifest.method, manifest).attachment(), resolve_attachment(adapter, base)
        values |= {key: (_ordered(saved[key]), _ordered(wanted[key])) for key in _SHAPES[adapter.method]}
    for key, (there, here) in values.items():
        if there != here:
            raise UserError(
                f"adapters.{name} starts from the adapter in {folder}, whose {key} is {there}, but has {key} {here}; "
                "give it the same, or set start_from to null."
            )
    return WarmStart(adapter.start_from, folder, manifest)


def _ordered(value: object) -> object:
    return sorted(value) if isinstance(value, list) else value
