"""``python -m stages.drift``: see the package's docstring."""

import argparse
import json
import logging
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from formats import params_schema, raw_rows
from measures.confidence_intervals import FEWEST
from models import base_model
from models.command_line import entry_point
from models.sample import Message, Sample, UnknownFormat, read_messages
from models.storage import read_json, read_jsonl, write_json, writing
from models.vocabulary import Vocabulary
from stages.drift import conversation_features, quarantine_drift
from stages.drift.drift_tests import DRIFT, STEADY, UNKNOWN, Found, compare

log = logging.getLogger("tuneline.drift")
UNREADABLE = ("parseable", "known_format")  # checks that a row fails which holds no conversation


def read_raw(sources: Iterable[Path]) -> tuple[list[tuple[Message, ...]], int]:
    """Conversations in files of rows, and how many rows are none; what is wrong with those, stage validate says."""
    found, unreadable = [], 0
    for source in sources:
        for name, path in raw_rows.find_files(source).items():
            for row in raw_rows.read_rows(path, name):
                try:
                    found.append(read_messages(_without_origin(json.loads(row.content))))
                except (UnknownFormat, ValueError, RecursionError):
                    unreadable += 1
    return found, unreadable


def _without_origin(row: object) -> object:
    """The row without id and source, which rows have that passed the checks."""
    return {"messages": row["messages"]} if isinstance(row, dict) and "messages" in row else row


def some(conversations: Sequence, most: int) -> list:
    """All of them, or as many as ``most``, drawn with a fixed seed, in their order."""
    if len(conversations) <= most:
        return list(conversations)
    chosen = sorted(random.Random(0).sample(range(len(conversations)), most))
    return [conversations[number] for number in chosen]


def describe(reference: Sequence, current: Sequence, vocabulary: Vocabulary, topics: int) -> list:
    """Tables of both sides' features."""
    tables = [conversation_features.features(side, vocabulary) for side in (reference, current)]
    placed = conversation_features.topics(
        [[conversation_features.text_of(each) for each in side] for side in (reference, current)], topics
    )
    return [
        table.assign(**{f"topic_{number + 1}": places[:, number] for number in range(places.shape[1])})
        for table, places in zip(tables, placed, strict=True)
    ]


def report(found: Sequence[Found], rows: dict[str, int], verdict: str) -> dict:
    """What is written: the verdict first, then what drifted, then every column."""
    return {
        "verdict": verdict,
        "drifted": [conversation_features.label(each.column) for each in found if each.drifted],
        "rows": rows,
        "columns": [asdict(each) | {"label": conversation_features.label(each.column)} for each in found],
    }


def read_facts(path: Path | None) -> dict:
    """What a gate counted: a receipt, or what stage validate writes beside rows that passed; nothing without a path."""
    return read_json(path) if path else {}


def judge(reference: Sequence, current: Sequence, gates: tuple[dict, dict], arguments, knobs) -> list[Found]:
    """Every feature of which there are rows enough, and the share of rows that failed a row check.

    Args:
        gates: what the gates of both sides counted.
    """
    least_rows = max(knobs.least_rows, FEWEST)
    share_tests = int(quarantine_drift.is_comparable(*gates, least_rows))
    found, level = [], knobs.false_alarms
    if min(len(reference), len(current)) >= least_rows:
        tables = describe(reference, current, Vocabulary(arguments.tokenizer / base_model.TOKENIZER), knobs.topics)
        level /= tables[0].shape[1] + share_tests
        with writing(arguments.page) as page:
            found += compare(*tables, knobs.false_alarms, knobs.effect, page, share_tests)
    if share_tests:
        found.append(quarantine_drift.compare_shares(*(gate["books"] for gate in gates), level, knobs.effect))
    return found


def verdict_of(found: Sequence[Found]) -> str:
    """Drift if any column drifted; unknown if there were too few rows for features of texts, and nothing else moved."""
    if any(column.drifted for column in found):
        return DRIFT
    return STEADY if any(column.column != quarantine_drift.COLUMN for column in found) else UNKNOWN


@entry_point
def main() -> None:
    parser = argparse.ArgumentParser(description="Compare new rows with those that the champion learnt from.")
    parser.add_argument("--reference", type=Path, required=True, help="train.jsonl of checked data")
    parser.add_argument("--current", type=Path, nargs="+", required=True, help="files of rows that passed the checks")
    parser.add_argument("--reference-facts", type=Path, help="receipt of the reference")
    parser.add_argument("--current-facts", type=Path, help="facts.json beside the rows that passed")
    for name in ("tokenizer", "page", "figures"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    arguments, knobs = parser.parse_args(), params_schema.load().monitor
    gates = read_facts(arguments.reference_facts), read_facts(arguments.current_facts)
    reference = [Sample.from_json(row).messages for row in read_jsonl(arguments.reference)]
    current, unreadable = read_raw(arguments.current)
    books = gates[1].get("books", {})
    rows = {"reference": len(reference), "current": len(current), "quarantined": books.get("quarantined", 0)}
    rows["unreadable"] = unreadable + sum(books.get("failed", {}).get(name, 0) for name in UNREADABLE)
    found = judge(*(some(side, knobs.most_rows) for side in (reference, current)), gates, arguments, knobs)
    verdict = verdict_of(found)
    written = report(found, rows, verdict)
    write_json(arguments.figures, written)
    if verdict == UNKNOWN:
        log.info("drift: unknown: %d and %d rows are too few to tell", len(reference), len(current))
    else:
        log.info("drift: %s: %s", verdict, ", ".join(written["drifted"]) or "no feature")


if __name__ == "__main__":
    main()
