"""Fetch the adapters that trainings start from: ``python -m pipelines.start_from`` prepares what params.yaml names.

``adapters.NAME.start_from`` names the champion, which is checked out to ``models/champion``, or one of its versions,
which is fetched to ``models/start/VERSION``, from DVC's cache or remote. ``python -m pipelines.finetune``, retraining
and sweeps do this themselves; run it before ``dvc repro``.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path

from formats import params_schema, training_params
from models.command_line import entry_point
from models.errors import UserError
from models.storage import atomic_write_folder
from pipelines import dvc, registry
from texts import translate

VERSIONS = Path("models/start")  # stage train of dvc.yaml reads it


def fetch_starts(params: params_schema.Params, names: Iterable[str] | None = None) -> list[Path]:
    """Fetch the champion and the versions that adapters start from, and return their folders.

    Args:
        names: of the adapters to train; None for all. Names without an adapter are ignored.

    Raises:
        RemoteUnavailable: DVC's remote does not answer.
        UserError: there is no such version, or neither DVC's cache nor a remote has its files.
    """
    chosen = params.adapters if names is None else set(names) & params.adapters.keys()
    sources = {params.adapters[name].start_from for name in chosen}
    folders = []
    for source in sorted(filter(None, sources)):
        if source == training_params.CHAMPION:
            folders.append(fetch_live_champion())
        elif training_params.CHAMPION_VERSION.fullmatch(source):
            folders.append(fetch_version(source))
    return folders


def fetch_live_champion() -> Path:
    """Check out or pull the champion of this branch.

    Raises:
        UserError: there is none.
    """
    folder = registry.fetch_champion()
    if folder is None:
        raise UserError(
            "start_from is champion, but no adapter was promoted on this branch; run `python -m pipelines.promotion`, "
            "or set start_from to null."
        )
    return folder


def fetch_version(version: str) -> Path:
    """Fetch a version of the champion; a version that was fetched before is kept, since versions do not change.

    Raises:
        UserError: there is no such version, or neither DVC's cache nor a remote has its files.
    """
    folder = VERSIONS / version
    if folder.is_dir():
        return folder
    known = registry.versions()
    if version not in known:
        raise UserError(
            f"start_from is {version}, but the champion has {', '.join(known) or 'no versions'}; correct params.yaml, "
            "or `git fetch --tags`."
        )
    with atomic_write_folder(folder) as temporary:
        shutil.rmtree(temporary)  # `dvc get` creates it
        dvc.capture("get", ".", str(registry.FOLDER), "--rev", known[version], "--out", str(temporary))
    return folder


@entry_point
def main() -> None:
    folders = fetch_starts(params_schema.load())
    print("\n".join(map(str, folders)) if folders else translate("No adapter starts from a champion."))


if __name__ == "__main__":
    main()
