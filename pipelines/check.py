"""The data checks on any files, before they are committed: ``python -m pipelines.check FILE… [--out DIR]``.

The same gate as stage validate, with the checks of params.yaml. It writes to DIR alone, or nowhere,
and leaves the workspace as it is. Exit code 0: nothing blocks these data; 2: something does; 1: the files
or settings cannot be used.
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

CORPUS, TEMPLATES, ACCEPTED = "data/demo/base/corpus.jsonl", "reports/data_docs", Path("data/accepted.json")
MARK = ".tuneline-check"  # in a folder that may be written over, because a check made it
WRITTEN = ("checked", "quarantine", "validation", "data.json", "data_checks.json", "verdict")


def check(files: list[Path], out: Path, *options: str) -> int:
    """Check files and write what came of it to a folder; gives the exit code.

    Raises:
        UserError: a file is missing, or the folder holds something else, such as one of the files.
    """
    params_schema.load()  # a slip of the pen is told before anything runs
    refuse_to_overwrite(files, out)
    with tempfile.TemporaryDirectory() as made:
        tokenizer, accepted = Path(made, "tokenizer"), Path(made, "accepted.json")
        if code := run_module("stages.tokenizer", "--corpus", CORPUS, "--out", str(tokenizer)):
            return code
        if ACCEPTED.is_file():
            shutil.copyfile(ACCEPTED, accepted)
        (out / MARK).touch()
        # Lengths of other data than those of ingest.source are compared with none that were accepted before.
        knob = "source" if are_of_the_source(files) else "none"
        return run_gate(files, tokenizer, out, "--accepted", str(accepted), "--section", knob, *options)


def run_gate(files: Sequence[Path], tokenizer: Path, out: Path, *options: str) -> int:
    """Run stage validate on files, all that it writes going to a folder; gives the exit code."""
    read = ("--raw", *map(str, files), "--tokenizer", str(tokenizer), "--templates", TEMPLATES)
    names = ("checked", "quarantine", "docs", "metrics", "findings", "verdict")
    places = (part for name, file in zip(names, WRITTEN, strict=True) for part in (f"--{name}", str(out / file)))
    return run_module("stages.validate", *read, *places, *options)


def are_of_the_source(files: Sequence[Path]) -> bool:
    """Whether all files are, or lie in, what ``ingest.source`` names."""
    source = Path(params_schema.load().ingest.source).resolve()
    return all(file.resolve().is_relative_to(source) for file in files)


def refuse_to_overwrite(files: list[Path], out: Path) -> None:
    """Make the folder, unless it holds what an earlier check did not write, or is mixed up with the files."""
    for file in files:
        if not file.exists():
            raise UserError(f"{file} does not exist; name a data file or a folder of them.")
        one, other = file.resolve(), out.resolve()
        if one == other or one.is_relative_to(other) or other.is_relative_to(one):
            raise UserError(f"--out: {out} and {file} lie in one another; name a folder apart from the data.")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out: {out} is no folder; name a new one.")
    if out.exists() and any(out.iterdir()) and not (out / MARK).is_file():
        raise UserError(f"--out: {out} holds other things, such as {min(out.iterdir()).name}; name a new folder.")
    out.mkdir(parents=True, exist_ok=True)


@entry_point
def main() -> None:
    parser = argparse.ArgumentParser(description="Check data files without touching the workspace.")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="a .jsonl or .json file, or a folder")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the checked rows, quarantine and reports go")
    arguments = parser.parse_args()
    if arguments.out is not None:
        sys.exit(check(arguments.files, arguments.out))
    with tempfile.TemporaryDirectory() as out:
        code = check(arguments.files, Path(out), "--temporary")
    print("Add --out DIR to keep quarantine and reports · 加上 --out DIR 以保留隔离的行和报告", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
