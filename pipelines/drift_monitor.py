"""Detect drift of new rows from the champion's training data: ``python -m pipelines.drift_monitor [FILE…]``.

Without files, the raw data of params.yaml are the new rows. New rows pass the data checks first, as the champion's
training data did; the share of rows that fail them is one of the features. Without a champion, the checked data of the
workspace is the reference. Exit code 0: no drift, or too few rows to detect it; 4: drift.
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
from pipelines.stage_paths import CHECKED, TOKENIZER, path_options
from texts import terminal_language, translatable, translate

PAGE, REPORT = Path("reports/drift.html"), Path("reports/drift.json")
DRIFT = 4
VERDICTS = {
    "drift": translatable("Drift: {features}."),
    "steady": translatable("No drift."),
    "unknown": translatable("Too few new rows to detect drift."),
}


def detect_drift(files: Sequence[Path] = ()) -> dict:
    """Compare new rows with the reference, and return the report of stage drift.

    Args:
        files: raw data files, or folders of them; by default ``ingest.source`` of params.yaml.

    Raises:
        UserError: there is no reference, or a file cannot be read.
    """
    params = params_schema.load()
    PAGE.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        reference = fetch_reference(Path(scratch))
        passed = check_rows(files or (Path(params.ingest.source),), Path(scratch))
        paths = {"tokenizer": TOKENIZER, "page": PAGE, "figures": REPORT}
        paths |= {"reference": reference / "train.jsonl", "reference-facts": reference / "receipt.json"}
        paths |= {"current-facts": passed / "facts.json"}
        current = (str(passed / f"{split}.jsonl") for split in ("train", "eval", "test"))
        if run_module("stages.drift", *path_options(paths), "--current", *current) != 0:
            raise UserError("Drift could not be computed; the reason is in the output above.")
    return read_json(REPORT)


def check_rows(files: Sequence[Path], scratch: Path) -> Path:
    """Run the data checks on new rows; return the folder of the rows that pass, even if the data is blocked.

    Raises:
        UserError: a file cannot be read, or there is no tokenizer.
    """
    if not TOKENIZER.is_dir():
        raise UserError(f"There is no tokenizer in {TOKENIZER}; run `dvc repro tokenizer`.")
    passed = scratch / "passed"
    paths = path_options({"accepted": scratch / "accepted.json", "passed": passed})
    run_gate(files, TOKENIZER, scratch / "gate", *paths, "--section", "none", "--temporary")
    if not passed.is_dir():
        raise UserError("The new rows could not be checked; the reason is in the output above.")
    return passed


def fetch_reference(scratch: Path) -> Path:
    """Fetch the checked data that the live champion was trained on; without a champion, return the workspace's.

    Raises:
        UserError: there is no such data.
    """
    if version := registry.live_version():
        out = scratch / "checked"
        try:
            dvc.capture("get", ".", str(CHECKED), "--rev", registry.versions()[version], "--out", str(out))
            return out
        except ProgramFailed as error:
            raise UserError(
                f"The training data of champion {version} is neither in DVC's cache nor in a remote ({error})."
            ) from None
    if not (CHECKED / "train.jsonl").is_file():
        raise UserError(f"There is no champion, and no checked data in {CHECKED}; run `dvc repro validate`.")
    return CHECKED


def describe_verdict(report: dict, language: str | None = None) -> str:
    """Return the verdict as a sentence in a language, with the features that drifted; None for the terminal's."""
    language = language or terminal_language()
    labels = [feature["label"][language] for feature in report["columns"] if feature["drifted"]]
    return translate(VERDICTS[report["verdict"]], language, features=", ".join(labels))


@entry_point
def main() -> None:
    parser = argparse.ArgumentParser(description="Compare new rows with the champion's training data.")
    parser.add_argument("files", type=Path, nargs="*", metavar="FILE", help="raw data files, or folders of them")
    report = detect_drift(parser.parse_args().files)
    print(describe_verdict(report))
    if PAGE.is_file():
        print(PAGE)
    if report["verdict"] == "drift":
        sys.exit(DRIFT)


if __name__ == "__main__":
    main()
