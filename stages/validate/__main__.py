"""``python -m stages.validate``: see the package's docstring."""

import argparse
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from formats import params_schema, receipt
from formats.raw_rows import find_files
from models.base_model import TOKENIZER
from models.command_line import entry_point
from models.errors import DataBlocked, UserError
from models.storage import atomic_write_folder, scratch_folder, sha256_of, sha256_of_json, write_json, write_text
from stages.validate import check_report, length_drift
from stages.validate.checks import Check, checks_of
from stages.validate.data_docs import data_docs
from stages.validate.dataset_checks import Outcome, judge_whole
from stages.validate.row_decisions import decide
from stages.validate.row_table import GateConfig, RowTable
from stages.validate.rows import put, read
from stages.validate.worker_pool import WorkerPool


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Check the raw data and split what passes.")
    parser.add_argument("--raw", type=Path, nargs="+", required=True, help="data files, or folders of them")
    parser.add_argument("--tokenizer", type=Path, required=True, help="what stage tokenizer found or made")
    parser.add_argument("--accepted", type=Path, required=True, help="record of the data that were accepted last")
    parser.add_argument(
        "--section",
        choices=("source", "general", "none"),
        default="source",
        help="which of ingest's the data come from; by it the record of lengths is kept",
    )
    parser.add_argument("--templates", type=Path, required=True, help="folder with what the Data Docs look like")
    for name in ("checked", "quarantine", "docs", "metrics", "findings", "verdict"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--passed", type=Path, help="folder for the rows that passed, also if the data are blocked")
    parser.add_argument("--temporary", action="store_true", help="nobody will see what is written: do not point to it")
    return parser.parse_args()


def origin_of(knob: str, settings: params_schema.Params, tokenizer_sha256: str) -> str | None:
    """What lengths are comparable with: those of the same source, counted by the same tokenizer; None of no source."""
    return None if knob == "none" else f"{getattr(settings.ingest, knob)} · tokenizer {tokenizer_sha256[:16]}"


def find_data(sources: Sequence[Path]) -> dict[str, Path]:
    """Data files by name; a file goes by its whole path where another one has its name, and counts once."""
    named = {path.absolute(): name for source in sources for name, path in find_files(source).items()}
    often = Counter(named.values())
    return {str(path) if often[name] > 1 else name: path for path, name in named.items()}


def hashes_of(files: Mapping[str, Path]) -> dict[str, str]:
    return {name: sha256_of(path) for name, path in tqdm(files.items(), desc="hash · 校验", unit=" files", delay=2)}


def close_books(books: dict, written: Mapping[str, int]) -> None:
    """Assert that what was written is what the books say, and that no row is missing."""
    expected = {"train": books["train"], "eval": books["eval"], "quarantine": books["quarantined"]}
    if written != expected or sum(written.values()) != books["rows_in"]:
        raise RuntimeError(f"the books do not close: {books}, but {written} were written")


def put_away(sorted_rows: Path, outcome: Outcome, arguments: argparse.Namespace, facts: dict) -> None:
    """Move the rows to their folders; those that passed only if nothing blocks them, with a receipt."""
    with atomic_write_folder(arguments.quarantine) as folder:
        shutil.move(sorted_rows / "quarantine.jsonl", folder / "rows.jsonl")
    if not outcome.reasons:
        with atomic_write_folder(arguments.checked) as folder:
            for split in receipt.SPLITS:
                shutil.move(sorted_rows / f"{split}.jsonl", folder / f"{split}.jsonl")
            receipt.write(folder, **facts)


def keep_passed(sorted_rows: Path, out: Path, facts: dict) -> None:
    """Copy the rows that passed, whatever blocks the data: to be looked at, not trained on, so without a receipt."""
    with atomic_write_folder(out) as folder:
        for split in receipt.SPLITS:
            shutil.copyfile(sorted_rows / f"{split}.jsonl", folder / f"{split}.jsonl")
        write_json(folder / "facts.json", facts)


def write_reports(outcome: Outcome, checks: Sequence[Check], examined: RowTable, arguments: argparse.Namespace) -> None:
    write_json(arguments.metrics, {"data": outcome.books})
    verdict = {"verdict": "blocked" if outcome.reasons else "passed", "reasons": outcome.reasons}
    hits = {"books": outcome.books, "notes": outcome.notes, "rows": outcome.rows, "data": outcome.data}
    write_json(arguments.findings, {**verdict, **hits})
    with atomic_write_folder(arguments.docs) as folder:
        write_text(folder / "index.html", data_docs(checks, outcome, examined.place, arguments.templates))
    check_report.print_table(outcome.rows, outcome.data, outcome.books, outcome.notes)


@entry_point
def main() -> None:
    arguments = read_arguments()
    settings = params_schema.load()
    checks = checks_of(settings)
    files = find_data(arguments.raw)
    # What an earlier run let through must not stand beside a verdict on other data.
    shutil.rmtree(arguments.checked, ignore_errors=True)
    arguments.verdict.unlink(missing_ok=True)
    hashes = hashes_of(files)
    tokenizer_sha256 = sha256_of(arguments.tokenizer / TOKENIZER)
    origin = origin_of(arguments.section, settings, tokenizer_sha256)
    former = origin and length_drift.last_accepted(arguments.accepted, sha256_of_json(hashes), origin)
    # Beside what is written, because the system's folder for temporary files may lie in memory.
    with WorkerPool() as crew, scratch_folder(arguments.quarantine.with_name("examined")) as kept:
        examined = read(GateConfig(settings, arguments.tokenizer, kept), files, crew)
        if hashes_of(files) != hashes:
            raise UserError("The data changed while they were read; run it again when nobody writes to them.")
        decision = decide(examined, checks, settings.validate_, crew)
        outcome = judge_whole(examined, decision, checks, former)
        written = put(examined, decision, checks, kept)
        close_books(outcome.books, written)
        suite = [vars(check) for check in checks]
        applied = {"checks": suite, "sha256": sha256_of_json(suite)}
        facts = {"tokenizer_sha256": tokenizer_sha256, "suite": applied}
        if arguments.passed:
            keep_passed(kept, arguments.passed, {**facts, "books": outcome.books})
        put_away(kept, outcome, arguments, {"read": hashes, **facts, "books": outcome.books})
    write_reports(outcome, checks, examined, arguments)
    if outcome.reasons:
        where = "" if arguments.temporary else f" Look into {arguments.quarantine} and {arguments.docs}/index.html."
        raise DataBlocked(f"The data are blocked: {'; '.join(outcome.reasons)}.{where}")
    if origin:
        length_drift.accept(arguments.accepted, sha256_of_json(hashes), outcome.lengths, origin)
    write_text(arguments.verdict, "passed\n")


if __name__ == "__main__":
    main()
