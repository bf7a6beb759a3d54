"""Are new rows still like those that the champion learnt from? ``python -m pipelines.drift_monitor [FILE…]``.

Without files, the raw data of params.yaml are looked at. New rows go through the data checks first, as those that the
champion learnt from did; the share that fails them is a feature of its own. Without a champion, the checked data of
this workspace stand for what it would have learnt from. Exit code 0: steady, or too few rows to tell; 4: drift.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from formats import params_schema
from models.command_line import entry_point
from models.errors import UserError
from models.storage import read_json
from pipelines import dvc, registry
from pipelines.check import run_gate
from pipelines.processes import ProgramFailed, run_module
from pipelines.stage_paths import CHECKED

PAGE, FIGURES = Path("reports/drift.html"), Path("reports/drift.json")
TOKENIZER = Path("models/weights/tokenizer")
DRIFTED = 4


def monitor(files: Sequence[Path] = ()) -> dict:
    """Compare; gives what stage drift found.

    Raises:
        UserError: there is nothing to compare with, or a file cannot be read.
    """
    knobs = params_schema.load()
    PAGE.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        reference = learnt_from(Path(scratch))
        passed = pass_gate(files or (Path(knobs.ingest.source),), Path(scratch))
        paths = {"tokenizer": TOKENIZER, "page": PAGE, "figures": FIGURES}
        paths |= {"reference": reference / "train.jsonl", "reference-facts": reference / "receipt.json"}
        paths |= {"current-facts": passed / "facts.json"}
        options = [part for option, path in paths.items() for part in (f"--{option}", str(path))]
        current = (str(passed / f"{split}.jsonl") for split in ("train", "eval"))
        if run_module("stages.drift", *options, "--current", *current) != 0:
            raise UserError("Drift could not be looked for; the lines above say why.")
    return read_json(FIGURES)


def pass_gate(files: Sequence[Path], scratch: Path) -> Path:
    """Check new rows as stage validate does; gives the folder of those that passed, whatever blocks them as a whole.

    Raises:
        UserError: a file cannot be read, or there is no tokenizer to count with.
    """
    if not TOKENIZER.is_dir():
        raise UserError(f"There is no tokenizer in {TOKENIZER}; run `dvc repro tokenizer`.")
    passed = scratch / "passed"
    options = ("--accepted", str(scratch / "accepted.json"), "--section", "none", "--passed", str(passed), "--temporary")
    run_gate(files, TOKENIZER, scratch / "gate", *options)
    if not passed.is_dir():
        raise UserError("The new rows could not be checked; the lines above say why.")
    return passed


def learnt_from(scratch: Path) -> Path:
    """The checked data that the live version was trained on, fetched from its commit; else those of this workspace.

    Raises:
        UserError: neither is there.
    """
    if version := registry.live():
        out = scratch / "checked"
        try:
            dvc.ask("get", ".", str(CHECKED), "--rev", registry.versions()[version], "--out", str(out))
            return out
        except ProgramFailed as error:
            raise UserError(
                f"The data of champion {version} are neither in DVC's cache nor remote ({error})."
            ) from None
    if not (CHECKED / "train.jsonl").is_file():
        raise UserError(f"There is no champion and nothing in {CHECKED} to compare with; run `dvc repro validate`.")
    return CHECKED


@entry_point
def main() -> None:
    parser = argparse.ArgumentParser(description="Compare new rows with those that the champion learnt from.")
    parser.add_argument("files", type=Path, nargs="*", metavar="FILE", help="raw files or folders of them")
    found = monitor(parser.parse_args().files)
    print(f"{found['verdict']}: {', '.join(found['drifted']) or '–'}")
    if PAGE.is_file():
        print(PAGE)
    if found["verdict"] == "drift":
        sys.exit(DRIFTED)


if __name__ == "__main__":
    main()
