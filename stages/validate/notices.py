"""Notices beside the checks: unsupported layouts, unread keys, and English rows that the tokenizer spells in letters.

A notice is a sentence by language.
"""

from collections.abc import Sequence

import numpy as np

from formats.foreign_files import printable_name
from stages.validate.layouts import describe_conversion
from stages.validate.probe_contamination import SeenProbe
from stages.validate.reviewed_rows import count_reviewed, rows_with_decision
from stages.validate.row_decisions import Decision
from stages.validate.row_features import excerpt
from stages.validate.row_table import OTHER_KEYS, RowTable
from texts import LANGUAGES, in_all_languages, translatable, translate

_MAX_PROBES = 24  # in a notice
_MAX_LAYOUTS = 5  # layouts per report; a folder may have thousands of files
# Keys for bookkeeping, which are not training text: counted in the metrics, but not part of the notice.
_BOOKKEEPING = {
    *("id", "_id", "idx", "index", "uid", "uuid", "guid", "qid", "row_id", "sample_id", "prompt_id", "hash", "md5"),
    *("conversation_id", "dialog_id", "conv_id", "conv", "turn", "round", "split", "version", "license", "author"),
    *("source", "source_file", "source_url", "origin", "dataset", "data_source", "file", "url", "link", "model"),
    *("category", "class", "type", "task", "task_type", "task_name", "topic", "domain", "subject", "field", "tag"),
    *("tags", "lang", "language", "creator", "annotator", "model_name", "date", "time", "timestamp", "created_at"),
    *("updated_at", "create_time", "sha256", "meta", "metadata", "extra"),
}


def collect_notices(table: RowTable) -> list[dict[str, str]]:
    """Return all notices about the rows as they were read, each a sentence by language."""
    return [*layout_notices(table), *_spelling_notice(table), *_unread_key_notice(table)]


def layout_notices(table: RowTable) -> list[dict[str, str]]:
    """Return a notice for each unsupported layout, most frequent first.

    Unknown keys are reported only if half of the rows of a file have them.
    """
    frequent = [
        (rows, *file_and_layout)
        for file_and_layout, rows in table.layouts.items()
        if file_and_layout != OTHER_KEYS
        and (file_and_layout[1].is_known or 2 * rows >= np.count_nonzero(table.files == file_and_layout[0]))
    ]
    frequent.sort(key=lambda entry: (-entry[0], entry[1], entry[2].name))
    return [describe_conversion(printable_name(file), rows, layout) for rows, file, layout in frequent[:_MAX_LAYOUTS]]


def _spelling_notice(table: RowTable) -> list[dict[str, str]]:
    rows = int(table.is_spelled.sum())
    if not rows:
        return []
    return [
        in_all_languages(
            "{rows:,} English rows exceed the token budget because this tokenizer (the one of the tiny base) splits "
            "English into single letters. A real base needs a quarter of the tokens: set base.model, or raise "
            "encode.max_prompt_tokens and encode.max_answer_tokens.",
            rows=rows,
        )
    ]


def review_notices(table: RowTable, decision: Decision) -> list[dict[str, str]]:
    """Return what the decisions of a review did, and which of them had no effect."""
    if not decision.reviews:
        return []
    counts = count_reviewed(table.matches, decision.reviews, decision.is_quarantined)
    notices = [
        in_all_languages(
            "Review: {kept:,} rows kept, {dropped:,} dropped, {edited:,} edited.",
            **{name: counts[name] for name in ("kept", "dropped", "edited")},
        )
    ]
    if counts["overruled"]:
        is_overruled = rows_with_decision(table.matches, decision.reviews, "keep") & decision.is_quarantined
        first = printable_name(table.locate(int(np.flatnonzero(is_overruled)[0])))
        notices.append(
            in_all_languages(
                "Review: {rows:,} rows to keep are quarantined nevertheless, because they fail a required check or one "
                "of severity block; the first is {first}. Edit or drop them.",
                rows=counts["overruled"],
                first=first,
            )
        )
    if counts["unmatched"]:
        notices.append(
            in_all_languages(
                "Review: {count:,} decisions match no row; their rows have changed or are gone.",
                count=counts["unmatched"],
            )
        )
    return notices


def _unread_key_notice(table: RowTable) -> list[dict[str, str]]:
    unread = [
        (key, rows)
        for key, rows in table.unread_keys.most_common()
        if key.rpartition("[].")[2].lower() not in _BOOKKEEPING
    ]
    if not unread:
        return []
    return [{language: _list_unread_keys(unread, language) for language in LANGUAGES}]


def seen_probe_notice(table: RowTable, seen_probes: Sequence[SeenProbe]) -> list[dict[str, str]]:
    """Return a notice that lists probes that occur in training rows, the most similar first; none without probes."""
    if not seen_probes:
        return []
    ordered = sorted(seen_probes, key=lambda probe: -probe.similarity)
    listed = ", ".join(
        f"{excerpt(probe.question)} ({printable_name(table.locate(probe.row))}, {probe.similarity:.0%})"
        for probe in ordered[:_MAX_PROBES]
    )
    message = (
        translatable("Probe questions in training rows ({count}): {probes}, …")
        if len(ordered) > _MAX_PROBES
        else translatable("Probe questions in training rows ({count}): {probes}")
    )
    return [in_all_languages(message, count=len(ordered), probes=listed)]


def _list_unread_keys(unread: list[tuple[str, int]], language: str) -> str:
    counts = [translate("{key} ({rows:,} rows)", language, key=key, rows=rows) for key, rows in unread]
    return translate("Unread keys: {keys}", language, keys=("，" if language == "zh" else ", ").join(counts))
