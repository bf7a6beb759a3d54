"""Stage ingest: collect the raw data byte for byte.

Reads the file or folder that ``ingest.source`` names, or ``ingest.general``, and writes copies to ``data/raw``
or ``data/general/raw``, so that DVC versions exactly what was trained on, with a record of where each came
from. Fails if the source is missing, holds no data file, or a file is empty.
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
from models.storage import sha256_of, write_json, writing_folder

log = logging.getLogger("tuneline.ingest")


def collect(source: Path, raw: Path, knob: str = "source") -> list[dict]:
    """Copy the data files and give a record of each: name, source, bytes, rows, sha256.

    Args:
        knob: of the params' section ingest, which named the source.
    """
    records = []
    files = find_files(source)
    if empty := [name for name, path in files.items() if not any(True for _ in read_rows(path, name))]:
        raise UserError(f"ingest.{knob}: {', '.join(empty)} in {source} has no rows; remove or fill it.")
    with writing_folder(raw) as temporary:
        for name, path in tqdm(files.items(), desc="ingest · 收集", unit=" files", delay=2):
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
    parser.add_argument("--knob", choices=("source", "general"), default="source", help="which of ingest's to read")
    parser.add_argument("--raw", type=Path, required=True)
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--metrics", type=Path, required=True)
    arguments = parser.parse_args()

    source = Path(getattr(params_schema.load().ingest, arguments.knob))
    records = collect(source, arguments.raw, arguments.knob)
    write_json(arguments.record, records)
    totals = {"files": len(records), **{key: sum(record[key] for record in records) for key in ("rows", "bytes")}}
    write_json(arguments.metrics, {"raw": totals})
    log.info("ingest: %d rows in %d files of %s", totals["rows"], totals["files"], source)


if __name__ == "__main__":
    main()
