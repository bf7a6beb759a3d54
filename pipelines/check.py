"""Run the data checks on files outside the pipeline: ``python -m pipelines.check FILE… [--out DIR]``.

Runs stage validate with the checks of params.yaml. Only DIR is written; without DIR, nothing. Exit code 0: the data
passes; 2: the data is blocked; 1: files or settings cannot be used.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from formats import params_schema
from models.command_line import entry_point
from models.errors import UserError
from pipelines.processes import run_module
from pipelines.stage_paths import path_options
from texts import translate

CORPUS, TEMPLATES, ACCEPTED = Path("data/demo/base/corpus.jsonl"), Path("reports/data_docs"), Path("data/accepted.json")
MARKER = ".tuneline-check"  # file in an output folder, which a later check may overwrite
OUTPUTS = {  # files and folders in the output folder, by option of stage validate
    "checked": "checked",
    "quarantine": "quarantine",
    "docs": "validation",
    "metrics": "data.json",
    "findings": "data_checks.json",
    "verdict": "verdict",
}


def check(files: list[Path], out: Path, *options: str) -> int:
    """Check files, write rows and reports to a folder, and return the exit code.

    Args:
        options: further options of stage validate.

    Raises:
        UserError: a file is missing, or the folder has files that no check wrote.
    """
    params_schema.load()  # reports a mistake in params.yaml before anything runs
    prepare_output_folder(files, out)
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer, accepted = Path(scratch, "tokenizer"), Path(scratch, "accepted.json")
        if code := run_module("stages.tokenizer", *path_options({"corpus": CORPUS, "out": tokenizer})):
            return code
        if ACCEPTED.is_file():
            shutil.copyfile(ACCEPTED, accepted)
        (out / MARKER).touch()
        # The lengths of accepted data are only comparable with data of the same source.
        section = "source" if belong_to_source(files) else "none"
        return run_gate(files, tokenizer, out, "--accepted", str(accepted), "--section", section, *options)


def run_gate(files: Sequence[Path], tokenizer: Path, out: Path, *options: str) -> int:
    """Run stage validate on files with all outputs in one folder, and return the exit code."""
    paths = {"tokenizer": tokenizer, "templates": TEMPLATES} | {option: out / name for option, name in OUTPUTS.items()}
    return run_module("stages.validate", "--raw", *map(str, files), *path_options(paths), *options)


def belong_to_source(files: Sequence[Path]) -> bool:
    """Return whether all files are, or are in, ``ingest.source`` of params.yaml."""
    source = Path(params_schema.load().ingest.source).resolve()
    return all(file.resolve().is_relative_to(source) for file in files)


def prepare_output_folder(files: list[Path], out: Path) -> None:
    """Make the output folder.

    Raises:
        UserError: it has files that no check wrote, or contains input files or is contained in an input folder.
    """
    for file in files:
        if not file.exists():
            raise UserError(f"{file} does not exist; pass a data file or a folder of data files.")
        source, target = file.resolve(), out.resolve()
        if source.is_relative_to(target) or target.is_relative_to(source):
            raise UserError(f"--out: {out} and {file} overlap; pass a folder apart from the data.")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out: {out} is not a folder; pass a new one.")
    if out.exists() and any(out.iterdir()) and not (out / MARKER).is_file():
        raise UserError(f"--out: {out} has other files, such as {min(out.iterdir()).name}; pass a new folder.")
    out.mkdir(parents=True, exist_ok=True)


@entry_point
def main() -> None:
    parser = argparse.ArgumentParser(description="Check data files without changing the workspace.")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="a data file, or a folder of them")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for checked rows, quarantine and reports")
    parser.add_argument(
        "--decisions", type=Path, metavar="FILE", help="apply these decisions of a review; default: none"
    )
    arguments = parser.parse_args()
    options = ["--decisions", str(arguments.decisions)] if arguments.decisions else []
    if arguments.out is not None:
        sys.exit(check(arguments.files, arguments.out, *options))
    with tempfile.TemporaryDirectory() as out:
        code = check(arguments.files, Path(out), "--temporary", *options)
    print(translate("Add --out DIR to keep quarantine and reports."), file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
