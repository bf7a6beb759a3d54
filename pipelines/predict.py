"""Answer a file of questions: ``python -m pipelines.predict FILE --out FILE [--adapter NAME|base|champion]``.

FILE has rows in any layout of the raw data, with or without answers, or is a .txt file with a question per line. The
output has a row per question in the same order, as .jsonl or .csv. The same command resumes an interrupted run.
"""

import argparse
import sys
from pathlib import Path

from formats import params_schema
from models.command_line import entry_point, parse_positive_int
from models.errors import UserError
from pipelines import export, registry
from pipelines.processes import run_module
from pipelines.stage_paths import WEIGHTS, path_options

BASE, CHAMPION = "base", "champion"


def find_adapter(name: str | None) -> Path | None:
    """Return the folder of an adapter; None for the base model.

    Args:
        name: ``base``, ``champion``, an adapter's key in params.yaml, or the name of an imported one; None for the
            champion, or the base model if there is none.

    Raises:
        UserError: there is no such adapter.
    """
    if name == BASE:
        return None
    if name in (None, CHAMPION):
        champion = registry.fetch_champion()
        if champion is None and name == CHAMPION:
            raise UserError("There is no champion yet; promote an adapter, or pass --adapter with its name.")
        return champion
    trained, imported = params_schema.load().adapters, export.IMPORTED / name
    if name in trained or imported.is_dir():
        return imported if imported.is_dir() else export.adapter_folder(name)
    others = sorted(path.name for path in export.IMPORTED.glob("*") if path.is_dir())
    raise UserError(f"There is no adapter {name!r}; there are {', '.join((BASE, CHAMPION, *trained, *others))}.")


def parse_seed(text: str) -> int:
    if not 0 <= (number := int(text)) < 2**32:
        raise argparse.ArgumentTypeError(f"must be from 0 to {2**32 - 1}, not {number}")
    return number


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Answer a file of questions with the base model or an adapter.")
    parser.add_argument("questions", type=Path, metavar="FILE", help="data file, folder of them, or .txt file")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help=".jsonl or .csv file to write")
    parser.add_argument("--adapter", metavar="NAME", help="adapter, champion or base (default: champion, else base)")
    parser.add_argument("--bits", type=int, choices=(16, 8, 4), help="quantization of the base (default: as trained)")
    parser.add_argument(
        "--max-new-tokens", type=parse_positive_int, default=256, help="maximum length of an answer (256)"
    )
    parser.add_argument(
        "--batch-size", type=parse_positive_int, default=16, help="questions that are answered together (16)"
    )
    parser.add_argument("--sample", type=parse_seed, metavar="SEED", help="sample answers instead of greedy decoding")
    return parser.parse_args()


@entry_point
def main() -> None:
    arguments = parse_arguments()
    if not (WEIGHTS / BASE).is_dir():
        raise UserError(f"There is no base model in {WEIGHTS / BASE}; run `dvc repro base`.")
    adapter = find_adapter(arguments.adapter)
    paths = {"questions": arguments.questions, "out": arguments.out, "base": WEIGHTS / BASE}
    options = path_options(paths | ({"adapter": adapter} if adapter else {}))
    for name in ("bits", "max_new_tokens", "batch_size", "sample"):
        if (value := getattr(arguments, name)) is not None:
            options += [f"--{name.replace('_', '-')}", str(value)]
    sys.exit(run_module("stages.predict", *options))


if __name__ == "__main__":
    main()
