"""``python -m stages.validate``: see the docstring of the package."""

import argparse
import logging
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from formats import params_schema, receipt
from formats.probe_file import Probe, read_probes
from formats.raw_rows import find_files
from formats.review_decisions import read_decisions
from models.command_line import entry_point
from models.errors import DataBlocked, UserError
from models.families import recognize_tokenizer
from models.storage import (
    atomic_write,
    atomic_write_folder,
    scratch_folder,
    sha256_of,
    sha256_of_json,
    write_json,
    write_text,
)
from stages.validate import length_drift
from stages.validate.check_report import print_report
from stages.validate.checks import Check, build_checks
from stages.validate.data_docs import render_data_docs
from stages.validate.dataset_checks import Outcome, check_dataset
from stages.validate.probe_contamination import find_seen_probes
from stages.validate.row_decisions import Decision, decide_rows
from stages.validate.row_table import GateConfig, RowTable
from stages.validate.rows import build_row_table, warned_lines, write_rows
from stages.validate.worker_pool import WorkerPool

log = logging.getLogger("tuneline.validate")


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Check the raw data, quarantine bad rows and split good ones.")
    parser.add_argument("--raw", type=Path, nargs="+", required=True, help="data files, or folders of them")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of the tokenizer that counts tokens")
    parser.add_argument("--accepted", type=Path, required=True, help="record of the lengths of accepted data")
    parser.add_argument(
        "--section",
        choices=("source", "general", "none"),
        default="source",
        help="key of params section ingest that names the source; lengths are compared with data of the same source",
    )
    parser.add_argument("--templates", type=Path, required=True, help="folder with the template of the Data Docs")
    parser.add_argument("--checked", type=Path, required=True, help="folder for the splits with the receipt")
    parser.add_argument("--quarantine", type=Path, required=True, help="folder for the quarantined rows")
    parser.add_argument("--docs", type=Path, required=True, help="folder for the Data Docs")
    parser.add_argument("--metrics", type=Path, required=True, help="JSON file for the row counts")
    parser.add_argument("--findings", type=Path, required=True, help="JSON file for the findings of all checks")
    parser.add_argument("--verdict", type=Path, required=True, help="file that exists if the data passed")
    parser.add_argument(
        "--decisions", type=Path, help="decisions of a review to apply, see formats/review_decisions.py"
    )
    parser.add_argument("--warned", type=Path, help="JSON Lines file for the accepted rows that checks warn of")
    parser.add_argument("--passed", type=Path, help="folder for the accepted rows; the data then never block")
    parser.add_argument("--temporary", action="store_true", help="the outputs are temporary: messages do not name them")
    return parser.parse_args()


def find_data_files(sources: Sequence[Path]) -> dict[str, Path]:
    """Return the data files of all sources by name; files of the same name are named by their whole path."""
    names = {path.absolute(): name for source in sources for name, path in find_files(source).items()}
    counts = Counter(names.values())
    return {str(path) if counts[name] > 1 else name: path for path, name in names.items()}


def hash_files(files: Mapping[str, Path]) -> dict[str, str]:
    """Return the SHA-256 of every file, by name."""
    return {name: sha256_of(path) for name, path in tqdm(files.items(), desc="hash", unit=" files", delay=2)}


def hash_vocabulary(tokenizer: Path) -> str:
    """Return the hash that identifies the tokenizer in a folder."""
    return sha256_of(tokenizer / recognize_tokenizer(tokenizer).vocabulary_file)


def origin_of(section: str, params: params_schema.Params, tokenizer_sha256: str) -> str | None:
    """Return the key of the record of lengths: source and tokenizer; None for data of no source."""
    return None if section == "none" else f"{getattr(params.ingest, section)} · tokenizer {tokenizer_sha256[:16]}"


def probes_of_section(section: str, params: params_schema.Params) -> list[Probe]:
    """Return the probes that must not occur in the training rows: none for general conversations and other data.

    Raises:
        UserError: a probe is invalid.
    """
    return read_probes(params.probes) if section == "source" and params.probes else []


def verify_row_counts(row_counts: dict, written: Mapping[str, int]) -> None:
    """Raise RuntimeError unless as many rows were written as counted, and as many as were read."""
    counted = {split: row_counts[split] for split in receipt.SPLITS} | {"quarantine": row_counts["quarantined"]}
    if written != counted or sum(written.values()) != row_counts["rows_in"]:
        raise RuntimeError(f"Row counts do not add up: counted {row_counts}, written {written}.")


def publish_rows(spool: Path, outcome: Outcome, arguments: argparse.Namespace, facts: dict) -> None:
    """Move the rows to their folders; the accepted ones, with a receipt, only if the data are not blocked.

    Args:
        spool: folder of the written rows.
        facts: entries of the receipt.
    """
    with atomic_write_folder(arguments.quarantine) as folder:
        shutil.move(spool / "quarantine.jsonl", folder / "rows.jsonl")
    if not outcome.block_reasons:
        with atomic_write_folder(arguments.checked) as folder:
            for split in receipt.SPLITS:
                shutil.move(spool / f"{split}.jsonl", folder / f"{split}.jsonl")
            receipt.write(folder, **facts)


def copy_accepted_rows(spool: Path, out: Path, facts: dict) -> None:
    """Copy the accepted rows even of blocked data; without a receipt, so that no stage can train on them."""
    with atomic_write_folder(out) as folder:
        for split in receipt.SPLITS:
            shutil.copyfile(spool / f"{split}.jsonl", folder / f"{split}.jsonl")
        write_json(folder / "facts.json", facts)


def write_reports(outcome: Outcome, checks: Sequence[Check], table: RowTable, arguments: argparse.Namespace) -> None:
    """Write metrics, findings and Data Docs, and print the report."""
    # Short names: `dvc metrics show` makes one column of each, beside those of the models.
    write_json(arguments.metrics, {"train": outcome.row_counts["train"], "bad": outcome.row_counts["quarantined"]})
    findings = {
        "verdict": "blocked" if outcome.block_reasons else "passed",
        "reasons": outcome.block_reasons,
        "books": outcome.row_counts,
        "notes": outcome.notices,
        "rows": outcome.row_findings,
        "data": outcome.data_findings,
    }
    write_json(arguments.findings, findings)
    with atomic_write_folder(arguments.docs) as folder:
        write_text(folder / "index.html", render_data_docs(checks, outcome, table, arguments.templates))
    print_report(outcome.row_findings, outcome.data_findings, outcome.row_counts, outcome.notices)


def write_warned_rows(out: Path, table: RowTable, decision: Decision, checks: Sequence[Check]) -> None:
    """Write the accepted rows that checks warn of."""
    with atomic_write(out) as path, path.open("wb") as file:
        file.writelines(warned_lines(table, decision, checks))
        if not file.tell():
            file.write(b"\n")  # DVC warns of an empty file


def run_gate(
    config: GateConfig,
    files: Mapping[str, Path],
    hashes: Mapping[str, str],
    probes: Sequence[Probe],
    previous_lengths: list[int] | None,
    pool: WorkerPool,
) -> tuple[RowTable, Decision, Outcome]:
    """Check the rows of all files one by one, compare and split them, and check the dataset.

    Args:
        files: paths by name.
        hashes: SHA-256 by name, from before the files were read.
        probes: probes that must not occur in the training rows.
        previous_lengths: length histogram of the data that were accepted before, if any.

    Raises:
        UserError: a file cannot be read, or changed while it was read.
    """
    table = build_row_table(config, files, pool)
    if hash_files(files) != hashes:
        raise UserError("The data changed while they were read; run it again when no program writes to them.")
    checks = config.checks
    decision = decide_rows(table, checks, config.params.validate_, pool, config.decisions)
    seen_probes = find_seen_probes(table, decision, probes, pool)
    return table, decision, check_dataset(table, decision, checks, previous_lengths, seen_probes)


@entry_point
def main() -> None:
    arguments = read_arguments()
    params = params_schema.load()
    params = params.for_general_data if arguments.section == "general" else params
    checks = build_checks(params)
    probes = probes_of_section(arguments.section, params)
    decisions = read_decisions(arguments.decisions) if arguments.decisions else {}
    files = find_data_files(arguments.raw)
    # Outputs of an earlier run must not stand beside the verdict on other data.
    shutil.rmtree(arguments.checked, ignore_errors=True)
    arguments.verdict.unlink(missing_ok=True)
    hashes = hash_files(files)
    data_sha256, tokenizer_sha256 = sha256_of_json(hashes), hash_vocabulary(arguments.tokenizer)
    origin = origin_of(arguments.section, params, tokenizer_sha256)
    previous_lengths = None
    if origin:
        previous_lengths = length_drift.read_last_accepted(arguments.accepted, data_sha256, origin)
    # The spool is beside the outputs, because the temporary folder of the system may be in memory.
    with WorkerPool() as pool, scratch_folder(arguments.quarantine.with_name("examined")) as spool:
        config = GateConfig(params, arguments.tokenizer, spool, decisions)
        table, decision, outcome = run_gate(config, files, hashes, probes, previous_lengths, pool)
        verify_row_counts(outcome.row_counts, write_rows(table, decision, checks, spool))
        suite = [check.to_receipt() for check in checks]
        facts = {
            "tokenizer_sha256": tokenizer_sha256,
            "suite": {"checks": suite, "sha256": sha256_of_json(suite)},
            "books": outcome.row_counts,
        }
        if arguments.passed:
            copy_accepted_rows(spool, arguments.passed, facts)
        if decisions:
            facts["decisions_sha256"] = sha256_of(arguments.decisions)
        publish_rows(spool, outcome, arguments, {"read": hashes, **facts})
        if arguments.warned:
            write_warned_rows(arguments.warned, table, decision, checks)
    write_reports(outcome, checks, table, arguments)
    if outcome.block_reasons and arguments.passed:
        log.info("validate: these rows would block a training: %s", "; ".join(outcome.block_reasons))
        return
    if outcome.block_reasons:
        hint = "" if arguments.temporary else f" See {arguments.quarantine} and {arguments.docs}/index.html."
        raise DataBlocked(f"The data are blocked: {'; '.join(outcome.block_reasons)}.{hint}")
    if origin:
        length_drift.record_accepted(arguments.accepted, data_sha256, outcome.length_histogram, origin)
    write_text(arguments.verdict, "passed\n")


if __name__ == "__main__":
    main()
