"""Stage ingest: collect the raw data byte for byte.

Reads the file or folder that ``ingest.source`` names and writes copies to ``data/raw``, so that
DVC versions exactly what was trained on, with a record of where each came from. Fails if the
source is missing, holds no data file, or a file is empty.
"""

import argparse
import json
import logging
import shutil
from pathlib import Path

from models.errors import UserError, program
from models.storage import sha256_of, write_json, writing_folder
from stages import params

DATA_SUFFIXES = (".jsonl", ".json")
log = logging.getLogger("tuneline.ingest")


def find_files(source: Path) -> dict[str, Path]:
    """Data files by the name they get in ``data/raw``: their path below the source folder.

    Raises:
        UserError: there is none, one is empty, or a link leads out of the folder.
    """
    if source.is_file():
        found = {source.name: source}
    elif source.is_dir():
        paths = sorted(path for path in source.rglob("*") if not path.is_dir() or path.is_symlink())
        data = [path for path in paths if path.is_file() and path.suffix.lower() in DATA_SUFFIXES]
        found = {str(path.relative_to(source)): path for path in data}
        if left_out := [str(path.relative_to(source)) for path in paths if path not in data]:
            log.warning("ingest: left out, being no .jsonl or .json file: %s", ", ".join(left_out))
    else:
        raise UserError(f"ingest.source: {source} does not exist; set it to a data file or a folder of them.")
    if not found:
        raise UserError(f"ingest.source: {source} holds no {' or '.join(DATA_SUFFIXES)} file.")
    for path in found.values():
        if source.is_dir() and not path.resolve().is_relative_to(source.resolve()):
            raise UserError(f"ingest.source: {path} is a link that leads out of {source}; copy the file instead.")
        if not str(path).isprintable():
            raise UserError(f"ingest.source: the name of {str(path)!r} is not plain UTF-8 text; rename the file.")
        if not path.read_bytes().removeprefix(b"\xef\xbb\xbf").strip():
            raise UserError(f"ingest.source: {path} is empty; remove it or fill it.")
    return found


def count_rows(path: Path) -> int:
    """Rows of a JSON array, else lines that are not blank."""
    content = path.read_bytes()
    if path.suffix.lower() == ".json":
        try:
            value = json.loads(content)
        except (ValueError, RecursionError):
            value = None  # validate says what is wrong with it, row by row
        if isinstance(value, list):
            return len(value)
    return sum(1 for line in content.splitlines() if line.strip())


def collect(source: Path, raw: Path) -> list[dict]:
    """Copy the data files and give a record of each: name, source, bytes, rows, sha256."""
    records = []
    files = find_files(source)
    with writing_folder(raw) as temporary:
        for name, path in files.items():
            copy = temporary / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
            records.append(
                {
                    "file": name,
                    "source": str(path),
                    "bytes": copy.stat().st_size,
                    "rows": count_rows(copy),
                    "sha256": sha256_of(copy),
                }
            )
    return records


@program
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--raw", type=Path, required=True)
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--metrics", type=Path, required=True)
    arguments = parser.parse_args()

    records = collect(Path(params.load().ingest.source), arguments.raw)
    write_json(arguments.record, records)
    totals = {"files": len(records), **{key: sum(record[key] for record in records) for key in ("rows", "bytes")}}
    write_json(arguments.metrics, {"raw": totals})
    log.info("ingest: %d rows in %d files", totals["rows"], totals["files"])


if __name__ == "__main__":
    main()
