"""``python -m stages.probe_drafts``: see the package's docstring."""

import argparse
import json
import logging
import sys
from functools import partial
from pathlib import Path

from formats import receipt
from models.command_line import entry_point
from models.errors import UserError
from models.sample import Sample
from models.storage import write_jsonl
from stages.probe_drafts.probe_review import review_probes
from stages.probe_drafts.suggestions import suggest_probes
from texts import translate

log = logging.getLogger("tuneline.probes")
_TRAIN = "train"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Suggest probes, or check a file of them.")
    commands = parser.add_subparsers(dest="command", required=True)
    suggest = commands.add_parser("suggest", help="write probes to edit")
    suggest.add_argument("--checked", type=Path, required=True, help="folder of the checked rows")
    suggest.add_argument("--count", type=int, required=True, help="number of probes")
    suggest.add_argument("--out", type=Path, help="file to write (default: standard output)")
    check = commands.add_parser("check", help="print what to correct")
    check.add_argument("--checked", type=Path, help="folder of the checked rows")
    check.add_argument("--tokenizer", type=Path, help="folder of the base's tokenizer")
    check.add_argument("--probes", type=Path, required=True, help="file or folder of probes")
    return parser.parse_args()


def read_samples(checked: Path) -> tuple[list[Sample], list[Sample]]:
    """Return the samples for training, and all others, of the checked rows.

    Raises:
        DataBlocked: the rows do not match the receipt.
    """
    folder = receipt.read(checked)
    parts = {split: [Sample.from_json(row) for row in folder.rows(split)] for split in receipt.SPLITS}
    training = parts.pop(_TRAIN)
    return training, [sample for samples in parts.values() for sample in samples]


def suggest(checked: Path, count: int, out: Path | None) -> None:
    """Write suggested probes to a new file, or print them.

    Raises:
        UserError: the file exists.
    """
    if out is not None and out.exists():
        raise UserError(f"--out: {out} exists already; remove it or name another file.")
    training, held_out = read_samples(checked)
    rows = suggest_probes(held_out, training, count)
    if out is None:
        sys.stdout.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        return
    write_jsonl(out, rows)
    log.info(
        translate(
            "{count} probes in {file}. Edit questions and expectations, run `python -m pipelines.probes check {file}`, "
            "and set evaluate.probes to the file.",
            count=len(rows),
            file=out,
        )
    )


def check(probes: Path, checked: Path | None, tokenizer: Path | None) -> bool:
    """Print the remarks on a probe file, and return whether an evaluation can use it."""
    training = read_samples(checked)[0] if checked else []
    readable, remarks = review_probes(probes, training, tokenizer and load_roundtrip(tokenizer))
    for remark in remarks:
        print(f"{'✗' if remark.is_error else '!'} {remark.location}: {remark.text}")
    names = len({probe.id for probe in readable})
    print(
        translate(
            "{probes} probes, {wordings} wordings, {remarks} remarks",
            probes=names,
            wordings=len(readable),
            remarks=len(remarks),
        )
    )
    return bool(readable) and not any(remark.is_error for remark in remarks)


def load_roundtrip(folder: Path):
    """Return a function that encodes and decodes a text by the tokenizer in a folder."""
    from models.generation import roundtrip_text
    from models.model_loading import load_tokenizer

    return partial(roundtrip_text, load_tokenizer(folder))


@entry_point
def main() -> None:
    arguments = parse_arguments()
    if arguments.command == "suggest":
        suggest(arguments.checked, arguments.count, arguments.out)
    elif not check(arguments.probes, arguments.checked, arguments.tokenizer):
        sys.exit(1)


if __name__ == "__main__":
    main()
