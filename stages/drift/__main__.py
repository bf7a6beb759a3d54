"""``python -m stages.drift``: see the package's docstring."""

import argparse
import json
import logging
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import pandas

from formats import params_schema, raw_rows, verdict_params
from measures.confidence_intervals import MIN_ROWS
from models.command_line import entry_point
from models.families import recognize_tokenizer
from models.row_layouts import UnknownFormat, read_messages
from models.sample import Message, Sample
from models.storage import atomic_write, read_json, read_jsonl, write_json
from stages.drift import conversation_features, quarantine_drift
from stages.drift.drift_tests import DRIFT, STEADY, UNKNOWN, FeatureDrift, bonferroni_level, compare_features

log = logging.getLogger("tuneline.drift")
UNREADABLE_CHECKS = ("parseable", "known_format")  # rows that fail these checks have no conversation

Conversation = tuple[Message, ...]


def read_conversations(sources: Iterable[Path]) -> tuple[list[Conversation], int]:
    """Return the conversations in raw data files, and the number of rows without one."""
    conversations, num_unreadable = [], 0
    for source in sources:
        for name, path in raw_rows.find_files(source).items():
            for row in raw_rows.read_rows(path, name):
                try:
                    conversations.append(read_messages(remove_origin(json.loads(row.content))))
                except (UnknownFormat, ValueError, RecursionError):
                    num_unreadable += 1
    return conversations, num_unreadable


def remove_origin(row: object) -> object:
    """Remove id and source, the fields that the data checks add to a row."""
    return {"messages": row["messages"]} if isinstance(row, dict) and "messages" in row else row


def sample_rows(conversations: Sequence[Conversation], max_rows: int) -> list[Conversation]:
    """Return all conversations, or ``max_rows`` of them in their order, sampled with a fixed seed."""
    if len(conversations) <= max_rows:
        return list(conversations)
    indices = sorted(random.Random(0).sample(range(len(conversations)), max_rows))
    return [conversations[index] for index in indices]


def build_tables(datasets: Sequence[Sequence[Conversation]], vocabulary, num_topics: int) -> list[pandas.DataFrame]:
    """Return a table of features for each dataset, one row for each conversation."""
    texts = [[conversation_features.topic_text(messages) for messages in dataset] for dataset in datasets]
    topics = conversation_features.compute_topics(texts, num_topics)
    return [
        conversation_features.compute_features(dataset, vocabulary).assign(
            **{f"topic_{number + 1}": coordinates[:, number] for number in range(coordinates.shape[1])}
        )
        for dataset, coordinates in zip(datasets, topics, strict=True)
    ]


def compare_datasets(
    datasets: tuple[Sequence[Conversation], Sequence[Conversation]],
    check_records: tuple[dict, dict],
    tokenizer: Path,
    page: Path,
    params: verdict_params.Monitor,
) -> list[FeatureDrift]:
    """Compare every feature that has enough rows, and the share of rows that failed a row check.

    Args:
        datasets: conversations of the reference, and the current ones.
        check_records: row counts, checks and tokenizer that the data checks recorded for each dataset.
        tokenizer: folder of the base model's tokenizer.
        page: file for Evidently's report; not written if there are too few rows.
    """
    min_rows = max(params.least_rows, MIN_ROWS)
    num_share_tests = int(quarantine_drift.is_comparable(*check_records, min_rows))
    features: list[FeatureDrift] = []
    if min(map(len, datasets)) >= min_rows:
        tables = build_tables(datasets, recognize_tokenizer(tokenizer).load_vocabulary(tokenizer), params.topics)
        significance_level = bonferroni_level(params.false_alarms, tables[0].shape[1] + num_share_tests)
        with atomic_write(page) as path:
            features += compare_features(*tables, significance_level, params.effect, path)
    if num_share_tests:
        significance_level = bonferroni_level(params.false_alarms, len(features) + num_share_tests)
        row_counts = (record["books"] for record in check_records)
        features.append(quarantine_drift.compare_shares(*row_counts, significance_level, params.effect))
    return features


def decide_verdict(features: Sequence[FeatureDrift]) -> str:
    """Return drift if any feature drifted; unknown if no conversation feature was tested; else no drift."""
    if any(feature.drifted for feature in features):
        return DRIFT
    has_conversations = any(feature.column != conversation_features.QUARANTINED_SHARE for feature in features)
    return STEADY if has_conversations else UNKNOWN


def build_report(features: Sequence[FeatureDrift], row_counts: dict[str, int]) -> dict:
    """Return the report: the verdict, the features that drifted, row counts, and all features with their labels."""
    return {
        "verdict": decide_verdict(features),
        "drifted": [feature.column for feature in features if feature.drifted],
        "rows": row_counts,
        "columns": [
            asdict(feature) | {"label": conversation_features.feature_label(feature.column)} for feature in features
        ],
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare new rows with the champion's training data.")
    parser.add_argument("--reference", type=Path, required=True, help="train.jsonl of checked data")
    parser.add_argument("--current", type=Path, nargs="+", required=True, help="files of rows that passed the checks")
    parser.add_argument("--reference-facts", type=Path, help="receipt of the reference")
    parser.add_argument("--current-facts", type=Path, help="facts.json that the data checks wrote for the new rows")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of the base model's tokenizer")
    parser.add_argument("--page", type=Path, required=True, help="HTML report of Evidently to write")
    parser.add_argument("--figures", type=Path, required=True, help="JSON report to write")
    return parser.parse_args()


@entry_point
def main() -> None:
    arguments, params = parse_arguments(), params_schema.load().monitor
    check_records = tuple(
        read_json(path) if path else {} for path in (arguments.reference_facts, arguments.current_facts)
    )
    reference = [Sample.from_json(row).messages for row in read_jsonl(arguments.reference)]
    current, num_unreadable = read_conversations(arguments.current)
    datasets = sample_rows(reference, params.most_rows), sample_rows(current, params.most_rows)
    features = compare_datasets(datasets, check_records, arguments.tokenizer, arguments.page, params)
    checked = check_records[1].get("books", {})
    row_counts = {
        "reference": len(reference),
        "current": len(current),
        "quarantined": checked.get("quarantined", 0),
        "unreadable": num_unreadable + sum(checked.get("failed", {}).get(name, 0) for name in UNREADABLE_CHECKS),
    }
    report = build_report(features, row_counts)
    write_json(arguments.figures, report)
    if report["verdict"] == UNKNOWN:
        log.info("drift unknown: %d reference rows and %d new rows are too few", len(reference), len(current))
    else:
        log.info("%s: %s", report["verdict"], ", ".join(report["drifted"]) or "no feature has drifted")


if __name__ == "__main__":
    main()
