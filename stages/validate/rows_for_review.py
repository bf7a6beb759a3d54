"""Prepare rows for a review: ``python -m stages.validate.rows_for_review --rows FILE… --out FILE [--check]``.

Reads rows as the gate writes quarantined and warned ones, and writes a JSON list of what a person is shown of each: its
messages, with personal data and secrets masked unless ``--unmasked``. With ``--check``, the row checks run again, as
on a row that a person has just edited. A part of stage validate, because it parses, masks and checks as the gate does.
"""

import argparse
import base64
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from formats import params_schema
from formats.foreign_files import printable_name
from formats.raw_row import format_location
from formats.review_decisions import hash_content
from models.command_line import entry_point
from models.errors import UserError
from models.storage import read_numbered_jsonl, write_json
from stages.validate import privacy
from stages.validate.expectations import run_checks
from stages.validate.row_features import SENTENCE, compute_features, excerpt
from stages.validate.row_parsing import ParseFault, parse_content
from stages.validate.row_table import GateConfig


def read_row(record: dict, where: str) -> tuple[bytes, bytes]:
    """Return the bytes of a row as it was read, and those that the checks judge: of an edited row, the new ones.

    Raises:
        UserError: the record is not a row that the gate has written.
    """
    try:
        content = record["content"].encode() if "content" in record else base64.b64decode(record["content_base64"])
        edited = record.get("edited")
        return content, content if edited is None else json.dumps(edited, ensure_ascii=False).encode("utf-8", "replace")
    except (KeyError, TypeError, AttributeError, ValueError):
        raise UserError(f"{where}, is not a row of the gate; run `dvc repro -f validate` to write it again.") from None


def describe_row(record: dict, where: str, params: params_schema.Params, unmasked: bool) -> dict:
    """Return what a review shows of a row.

    Args:
        record: row as the gate writes it.
        where: place of the record, for an error message.
        unmasked: whether to show personal data and secrets.

    Returns:
        ``place``, ``content_sha256``, ``failed``, ``messages`` (or ``text``, if the row has none), ``unread`` keys,
        ``is_masked``, and ``content``, the JSON of the row, which is None if parts of it have to be masked.
    """
    raw, content = read_row(record, where)
    parsed, unread = parse_content(content, params)
    text = content.decode("utf-8", "replace")
    messages = [] if isinstance(parsed, ParseFault) else parsed
    is_private = any(privacy.mask(part) != part for part in (text, *(message.content for message in messages)))

    def show(part: str) -> str:
        return part if unmasked else privacy.mask(part)

    place = format_location(record.get("file", ""), record.get("line", 0), record.get("number", 0))
    return {
        "place": printable_name(place),
        "content_sha256": hash_content(raw),
        "failed": record.get("failed", []),
        "messages": [{"role": message.role, "content": show(message.content)} for message in messages],
        "text": "" if messages else show(text),
        "unread": [excerpt(key) for key in sorted(unread)],
        "is_masked": is_private and not unmasked,
        "content": None if is_private and not unmasked else text,
    }


def check_rows(records: Sequence[dict], config: GateConfig) -> list[dict]:
    """Return the records with the row checks that their content fails now, the cross-row checks left out."""
    parsed = [parse_content(read_row(record, "the edited row")[1], config.params)[0] for record in records]
    checks = [check for check in config.checks if check.scope == "row"]
    features = compute_features(parsed, config.vocabulary, config.params)
    failed: list[list[dict]] = [[] for _ in records]
    findings = run_checks(features.table, np.arange(len(records)), checks)
    for check, finding in zip(checks, findings, strict=True):
        for row, value in zip(finding.rows, finding.values, strict=True):
            shown = excerpt(value, SENTENCE) if isinstance(value, str) else value
            failed[row].append({"check": check.name, "severity": check.severity, "seen": shown, "limit": check.limit})
    return [record | {"failed": faults} for record, faults in zip(records, failed, strict=True)]


@entry_point
def main() -> None:
    parser = argparse.ArgumentParser(description="Prepare quarantined and warned rows for a review.")
    parser.add_argument("--rows", type=Path, nargs="+", required=True, help="rows as the gate writes them")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--unmasked", action="store_true", help="show personal data and secrets")
    parser.add_argument("--check", type=Path, metavar="TOKENIZER", help="run the row checks with this tokenizer")
    arguments = parser.parse_args()
    params = params_schema.load()
    numbered = [
        (f"{path}, line {number}", record) for path in arguments.rows for number, record in read_numbered_jsonl(path)
    ]
    places, records = [place for place, _ in numbered], [record for _, record in numbered]
    if arguments.check:
        records = check_rows(records, GateConfig(params, arguments.check, arguments.out.parent))
    rows = [
        describe_row(record, place, params, arguments.unmasked) for place, record in zip(places, records, strict=True)
    ]
    write_json(arguments.out, rows)


if __name__ == "__main__":
    main()
