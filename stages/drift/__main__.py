"""``python -m stages.drift``: see the package's docstring."""

import argparse
import json
import logging
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from models import base
from models.errors import program
from models.sample import Message, Sample, UnknownFormat, read_messages
from models.storage import read_jsonl, write_json, writing
from models.vocabulary import Vocabulary
from stages import params, raw
from stages.drift import features
from stages.drift.judge import DRIFT, STEADY, UNKNOWN, Found, compare

log = logging.getLogger("tuneline.drift")


def read_raw(sources: Iterable[Path]) -> tuple[list[tuple[Message, ...]], int]:
    """Conversations in raw files, and how many rows are none; what is wrong with those, stage validate says."""
    found, unreadable = [], 0
    for source in sources:
        for name, path in raw.find_files(source).items():
            for row in raw.read_rows(path, name):
                try:
                    found.append(read_messages(json.loads(row.content)))
                except (UnknownFormat, ValueError, RecursionError):
                    unreadable += 1
    return found, unreadable


def some(conversations: Sequence, most: int) -> list:
    """All of them, or as many as ``most``, drawn with a fixed seed, in their order."""
    if len(conversations) <= most:
        return list(conversations)
    chosen = sorted(random.Random(0).sample(range(len(conversations)), most))
    return [conversations[number] for number in chosen]


def describe(reference: Sequence, current: Sequence, vocabulary: Vocabulary, topics: int) -> list:
    """Tables of both sides' features."""
    tables = [features.features(side, vocabulary) for side in (reference, current)]
    placed = features.topics([[features.text_of(each) for each in side] for side in (reference, current)], topics)
    return [
        table.assign(**{f"topic_{number + 1}": places[:, number] for number in range(places.shape[1])})
        for table, places in zip(tables, placed, strict=True)
    ]


def report(found: Sequence[Found], rows: dict[str, int], verdict: str) -> dict:
    """What is written: the verdict first, then what drifted, then every column."""
    return {
        "verdict": verdict,
        "drifted": [features.label(each.column) for each in found if each.drifted],
        "rows": rows,
        "columns": [asdict(each) | {"label": features.label(each.column)} for each in found],
    }


@program
def main() -> None:
    parser = argparse.ArgumentParser(description="Compare new rows with those that the champion learnt from.")
    parser.add_argument("--reference", type=Path, required=True, help="train.jsonl of checked data")
    parser.add_argument("--current", type=Path, nargs="+", required=True, help="raw files or folders of them")
    for name in ("tokenizer", "page", "figures"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    arguments, knobs = parser.parse_args(), params.load().monitor
    reference = [Sample.from_json(row).messages for row in read_jsonl(arguments.reference)]
    current, unreadable = read_raw(arguments.current)
    rows = {"reference": len(reference), "current": len(current), "unreadable": unreadable}
    reference, current = (some(side, knobs.most_rows) for side in (reference, current))
    if min(len(reference), len(current)) < knobs.least_rows:
        write_json(arguments.figures, report([], rows, UNKNOWN))
        log.info("drift: unknown: %d and %d rows are too few to tell", len(reference), len(current))
        return
    tables = describe(reference, current, Vocabulary(arguments.tokenizer / base.TOKENIZER), knobs.topics)
    with writing(arguments.page) as page:
        found = compare(*tables, knobs.false_alarms, knobs.effect, page)
    verdict = DRIFT if any(each.drifted for each in found) else STEADY
    write_json(arguments.figures, report(found, rows, verdict))
    log.info("drift: %s: %s", verdict, ", ".join(report(found, rows, verdict)["drifted"]) or "no feature")


if __name__ == "__main__":
    main()
