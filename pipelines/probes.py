"""Draft and check probes, the questions that models are judged by: ``python -m pipelines.probes suggest|check``.

``suggest [--count N] [--out FILE]`` writes a probe for each topic of the checked data, for a person to edit. ``check
[FILE]`` prints which expectations the reference answers themselves fail, which wordings are repeated, and which stand
in the training rows; its exit code is 1 if an evaluation would refuse the file.
"""

import argparse
import sys
from pathlib import Path

from formats import params_schema
from models.command_line import entry_point
from models.errors import UserError
from pipelines.processes import run_module
from pipelines.stage_paths import CHECKED, TOKENIZER, path_options

COUNT = 20


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Draft and check probes.")
    commands = parser.add_subparsers(dest="command", required=True)
    suggest = commands.add_parser("suggest", help="write probes from the checked data, to be edited")
    suggest.add_argument("--count", type=int, default=COUNT, metavar="N", help=f"number of probes ({COUNT})")
    suggest.add_argument("--out", type=Path, metavar="FILE", help=".jsonl file to write (default: print the probes)")
    check = commands.add_parser("check", help="print what to correct in a file of probes")
    check.add_argument("file", type=Path, nargs="?", metavar="FILE", help="file or folder (default: evaluate.probes)")
    arguments = parser.parse_args()
    if arguments.command == "suggest" and arguments.count < 1:
        parser.error(f"--count must be at least 1, not {arguments.count}")
    return arguments


def suggest_options(count: int, out: Path | None) -> list[str]:
    """Return the options of the program for suggestions.

    Raises:
        UserError: no data were checked.
    """
    if not CHECKED.is_dir():
        raise UserError(f"{CHECKED} does not exist; run `dvc repro validate` to check the data first.")
    return ["--count", str(count), *path_options({"checked": CHECKED} | ({"out": out} if out else {}))]


def check_options(file: Path | None) -> list[str]:
    """Return the options of the program for the check: without checked data or tokenizer, it checks the rest.

    Raises:
        UserError: there are no probes.
    """
    source = file or params_schema.load().probes
    if source is None:
        raise UserError("evaluate.probes names no probes for these data; pass the file to check.")
    present = {name: path for name, path in {"checked": CHECKED, "tokenizer": TOKENIZER}.items() if path.is_dir()}
    return path_options({"probes": source} | present)


@entry_point
def main() -> None:
    arguments = parse_arguments()
    if arguments.command == "suggest":
        options = suggest_options(arguments.count, arguments.out)
    else:
        options = check_options(arguments.file)
    sys.exit(run_module("stages.probe_drafts", arguments.command, *options))


if __name__ == "__main__":
    main()
