"""Stage encode: checked samples to token ids.

Reads ``data/checked``, whose receipt it verifies first, and the base's tokenizer. Writes
``data/encoded``: for each split the ids of prompts and answers, and for each split the samples
over the token budget, which are set aside whole, never cut. Fails if too many are, or a split is
left empty.
"""

import argparse
import logging
from pathlib import Path

from tqdm import tqdm

from models import base
from models.errors import DataBlocked, program
from models.prompt import PROMPT_VERSION, encode_sample
from models.sample import Sample
from models.storage import read_jsonl, write_json, write_jsonl, writing_folder
from stages import params, receipt

log = logging.getLogger("tuneline.encode")


def encode(tokenizer, samples: list[Sample], budget: params.Encode) -> tuple[list[dict], list[dict]]:
    """Rows within the budget, and the others with what they would have needed.

    Budgets count the prompt with its ``[gMASK] <sop>`` and the answer with its ``<eop>``.
    """
    within, over = [], []
    for sample in tqdm(samples, desc="encode", unit="row", delay=2):
        prompt, answer = encode_sample(tokenizer, sample.messages)
        if len(prompt) <= budget.max_prompt_tokens and len(answer) <= budget.max_answer_tokens:
            within.append({"id": sample.id, "prompt": prompt, "answer": answer})
        else:
            needed = {"prompt_tokens": len(prompt), "answer_tokens": len(answer)}
            over.append(sample.to_json() | needed)
    return within, over


def keep_books(encoded: dict[str, tuple[list, list]]) -> dict:
    books = {}
    for split, (within, over) in encoded.items():
        books[split] = {
            "rows": len(within),
            "over_budget": len(over),
            "tokens": sum(len(row["prompt"]) + len(row["answer"]) for row in within),
            "answer_tokens": sum(len(row["answer"]) for row in within),
        }
    return books


def refuse_unless_enough(books: dict, budget: params.Encode, out: Path) -> None:
    over = sum(book["over_budget"] for book in books.values())
    total = over + sum(book["rows"] for book in books.values())
    wish = (
        f"Raise encode.max_prompt_tokens ({budget.max_prompt_tokens}) or "
        f"encode.max_answer_tokens ({budget.max_answer_tokens})"
    )
    if over > budget.max_over_budget * total:
        raise DataBlocked(
            f"{over} of {total} samples are over the token budget, more than encode.max_over_budget allows "
            f"({budget.max_over_budget:.0%}). {wish}, or allow more."
        )
    for split, book in books.items():
        if not book["rows"]:
            raise DataBlocked(f"No sample of the {split} split is within the token budget. {wish}.")
    if over:
        log.warning("encode: %d of %d samples are over the token budget; see %s/over_budget", over, total, out)


@program
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("checked", "base", "out", "metrics"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    arguments = parser.parse_args()
    budget = params.load().encode

    checked = receipt.verify(arguments.checked)
    found = base.read_record(arguments.base)
    tokenizer = base.load_tokenizer(found.folder)
    samples = {
        split: [Sample.from_json(row) for row in read_jsonl(arguments.checked / f"{split}.jsonl")]
        for split in receipt.SPLITS
    }
    encoded = {split: encode(tokenizer, rows, budget) for split, rows in samples.items()}
    books = keep_books(encoded)
    for split, book in books.items():
        if book["rows"] + book["over_budget"] != len(samples[split]):
            raise RuntimeError(f"the books of the {split} split do not close: {book}")
    write_json(arguments.metrics, {"encoded": books})
    refuse_unless_enough(books, budget, arguments.out)
    with writing_folder(arguments.out) as folder:
        for split, (within, over) in encoded.items():
            write_jsonl(folder / f"{split}.jsonl", within)
            write_jsonl(folder / "over_budget" / f"{split}.jsonl", over)
        receipt.write(
            folder,
            checked_sha256=checked["sha256"],
            tokenizer_sha256=found.tokenizer_sha256,
            prompt_version=PROMPT_VERSION,
        )
    log.info("encode: %d training rows, %d evaluation rows", books["train"]["rows"], books["eval"]["rows"])


if __name__ == "__main__":
    main()
