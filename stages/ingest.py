"""Stage ingest: copy the raw data byte for byte.

Reads the file or folder that ``ingest.source`` (or ``ingest.general``) names. Writes copies to ``data/raw`` (or
``data/general/raw``), so that DVC versions exactly the bytes that were trained on, and a record with the origin of
every file: its path, and the hub, data set and commit of a file that :mod:`pipelines.download` brought. Fails if the
source does not exist, holds no data file, or a file has no rows.
"""

import argparse
import logging
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm

from formats import params_schema
from formats.raw_rows import HUB_RECORD, UTF8, find_files, read_rows
from models.command_line import entry_point
from models.errors import UserError
from models.storage import atomic_write_folder, read_json, sha256_of, write_json

log = logging.getLogger("tuneline.ingest")
_HUB_ID = re.compile(r"(?:hf|modelscope):\S+")


def copy_raw_files(source: Path, raw: Path, section: str = "source", encoding: str = UTF8) -> list[dict]:
    """Copy the data files of a source into a folder, which is replaced.

    Args:
        source: a data file, or a folder of data files.
        raw: folder for the copies.
        section: key of the source in the params section ``ingest``, for error messages.
        encoding: of text files that are not UTF-8.

    Returns:
        A record for each file: file (name), source (path), bytes, rows, sha256; and for a file from a hub: hub, id,
        revision, commit, and whether its bytes are unchanged since the download.

    Raises:
        UserError: the source does not exist or holds no data file, or a file has no rows.
    """
    _refuse_hub_id(source, section)
    files, origins = find_files(source), read_hub_record(source)
    if empty := [name for name, path in files.items() if not any(True for _ in read_rows(path, name, encoding))]:
        raise UserError(f"ingest.{section}: no rows in {', '.join(empty)} of {source}; remove the file or add rows.")
    records = []
    with atomic_write_folder(raw) as temporary:
        for name, path in tqdm(files.items(), desc="ingest", unit=" files", delay=2):
            copy = temporary / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
            sha256 = sha256_of(copy)
            records.append(
                {
                    "file": name,
                    "source": str(path),
                    "bytes": copy.stat().st_size,
                    "rows": sum(1 for _ in read_rows(copy, name, encoding)),
                    "sha256": sha256,
                    **_describe_origin(origins.get(path.resolve()), sha256),
                }
            )
    return records


def _refuse_hub_id(source: Path, section: str) -> None:
    """Raise UserError for the id of a data set on a hub, which DVC cannot watch; the message has the command."""
    if _HUB_ID.fullmatch(str(source)) and not source.exists():
        name = re.split(r"[/@]", str(source).partition("/")[2])[0] or "NAME"
        raise UserError(
            f"ingest.{section} is the hub id {source}; download it first (`python -m pipelines.download {source} --out "
            f"data/hub/{name}`) and set ingest.{section} to data/hub/{name}."
        )


def read_hub_record(source: Path) -> dict[Path, dict]:
    """Return the origin of every file that :mod:`pipelines.download` brought, by path; empty without a record.

    Raises:
        UserError: the record is damaged.
    """
    folder = source if source.is_dir() else source.parent
    path = folder / HUB_RECORD
    if not path.is_file():
        return {}
    try:
        record = read_json(path)
        origin = {key: record[key] for key in ("hub", "id", "revision", "commit")}
        return {(folder / file["file"]).resolve(): origin | {"sha256": file["sha256"]} for file in record["files"]}
    except (UserError, KeyError, TypeError):
        raise UserError(f"{path} is damaged; delete it, or download the data set again.") from None


def _describe_origin(origin: Mapping | None, sha256: str) -> dict:
    if origin is None:
        return {}
    return {"hub": {**origin, "unchanged": origin["sha256"] == sha256}}


@entry_point
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--section", choices=("source", "general"), default="source", help="key of params section ingest to read"
    )
    parser.add_argument("--raw", type=Path, required=True, help="folder for the copies")
    parser.add_argument("--record", type=Path, required=True, help="JSON file with the origin of every file")
    parser.add_argument("--metrics", type=Path, required=True, help="JSON file with total files, rows and bytes")
    arguments = parser.parse_args()

    params = params_schema.load()
    params = params.for_general_data if arguments.section == "general" else params
    source = Path(getattr(params.ingest, arguments.section))
    records = copy_raw_files(source, arguments.raw, arguments.section, params.ingest.encoding)
    write_json(arguments.record, records)
    totals = {"files": len(records), **{key: sum(record[key] for record in records) for key in ("rows", "bytes")}}
    write_json(arguments.metrics, {"raw": totals})
    log.info("ingest: copied %d rows in %d files from %s", totals["rows"], totals["files"], source)


if __name__ == "__main__":
    main()
