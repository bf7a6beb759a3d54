"""Stage ingest: copy the raw data byte for byte.

Reads the file or folder that ``ingest.source`` (or ``ingest.general``) names. Writes copies to ``data/raw`` (or
``data/general/raw``), so that DVC versions exactly the bytes that were trained on, and a record with the origin of
every file. Fails if the source does not exist, holds no data file, or a file has no rows.
"""

import argparse
import logging
import shutil
from pathlib import Path

from tqdm import tqdm

from formats import params_schema
from formats.raw_rows import find_files, read_rows
from models.command_line import entry_point
from models.errors import UserError
from models.storage import atomic_write_folder, sha256_of, write_json

log = logging.getLogger("tuneline.ingest")


def copy_raw_files(source: Path, raw: Path, section: str = "source") -> list[dict]:
    """Copy the data files of a source into a folder, which is replaced.

    Args:
        source: a data file, or a folder of data files.
        raw: folder for the copies.
        section: key of the source in the params section ``ingest``, for error messages.

    Returns:
        A record for each file: file (name), source (path), bytes, rows, sha256.

    Raises:
        UserError: the source does not exist or holds no data file, or a file has no rows.
    """
    files = find_files(source)
    if empty := [name for name, path in files.items() if not any(True for _ in read_rows(path, name))]:
        raise UserError(f"ingest.{section}: no rows in {', '.join(empty)} of {source}; remove the file or add rows.")
    records = []
    with atomic_write_folder(raw) as temporary:
        for name, path in tqdm(files.items(), desc="ingest", unit=" files", delay=2):
            copy = temporary / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
            records.append(
                {
                    "file": name,
                    "source": str(path),
                    "bytes": copy.stat().st_size,
                    "rows": sum(1 for _ in read_rows(copy, name)),
                    "sha256": sha256_of(copy),
                }
            )
    return records


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

    source = Path(getattr(params_schema.load().ingest, arguments.section))
    records = copy_raw_files(source, arguments.raw, arguments.section)
    write_json(arguments.record, records)
    totals = {"files": len(records), **{key: sum(record[key] for record in records) for key in ("rows", "bytes")}}
    write_json(arguments.metrics, {"raw": totals})
    log.info("ingest: copied %d rows in %d files from %s", totals["rows"], totals["files"], source)


if __name__ == "__main__":
    main()
