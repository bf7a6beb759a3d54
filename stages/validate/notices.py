"""What a person should know of the data beside the checks: other layouts, keys that nothing reads, a foreign tokenizer.

Each note is a sentence in both languages, by language.
"""

import numpy as np

from formats.foreign_files import ascii_if_odd
from stages.validate.layouts import sentence
from stages.validate.row_table import OTHERS, RowTable

_MOST = 5  # layouts per report: folders may hold thousands of files
# Keys for bookkeeping, whose values are not training text: counted in the metrics, and left out of the notes.
_BOOKKEEPING = {
    *("id", "_id", "idx", "index", "uid", "uuid", "guid", "qid", "row_id", "sample_id", "prompt_id", "hash", "md5"),
    *("conversation_id", "dialog_id", "conv_id", "conv", "turn", "round", "split", "version", "license", "author"),
    *("source", "source_file", "source_url", "origin", "dataset", "data_source", "file", "url", "link", "model"),
    *("category", "class", "type", "task", "task_type", "task_name", "topic", "domain", "subject", "field", "tag"),
    *("tags", "lang", "language", "creator", "annotator", "model_name", "date", "time", "timestamp", "created_at"),
    *("updated_at", "create_time", "sha256", "meta", "metadata", "extra"),
}


def notes_of(examined: RowTable) -> list[dict[str, str]]:
    return [*layout_notes(examined), *_token_note(examined), *_key_note(examined)]


def layout_notes(examined: RowTable) -> list[dict[str, str]]:
    """A sentence for each layout that many rows of a file have. Single rows without known keys are not worth one."""
    counted = [(item, rows) for item, rows in examined.layouts.items() if item != OTHERS]
    many = [
        (rows, *item)
        for item, rows in counted
        if item[1].is_known or 2 * rows >= np.count_nonzero(examined.files == item[0])
    ]
    many.sort(key=lambda entry: (-entry[0], entry[1], entry[2].name))
    return [sentence(ascii_if_odd(file), rows, layout) for rows, file, layout in many[:_MOST]]


def _token_note(examined: RowTable) -> list[dict[str, str]]:
    rows = int(examined.spelled.sum())
    if not rows:
        return []
    en = (
        f"{rows:,} English rows are over the token budget because this tokenizer, as the tiny base's does, cuts "
        "English into single letters; a real base takes a quarter of the tokens: set base.model, or raise "
        "encode.max_prompt_tokens and encode.max_answer_tokens."
    )
    zh = (
        f"{rows:,} 行英文超出词元预算，因为这个分词器（tiny 基座就是如此）把英文切成单个字母；"
        "真实基座只需四分之一的词元：请设置 base.model，或调高 encode.max_prompt_tokens 和 encode.max_answer_tokens。"
    )
    return [{"en": en, "zh": zh}]


def _key_note(examined: RowTable) -> list[dict[str, str]]:
    unread = [
        (key, rows)
        for key, rows in examined.unread.most_common()
        if key.removeprefix("messages[].").lower() not in _BOOKKEEPING
    ]
    if not unread:
        return []
    return [
        {
            "en": "unread keys: " + ", ".join(f"{key} ({rows:,} rows)" for key, rows in unread),
            "zh": "未读取的键：" + "，".join(f"{key}（{rows:,} 行）" for key, rows in unread),
        }
    ]
