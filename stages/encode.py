"""Stage encode: checked samples to token ids.

Reads ``data/checked``, whose receipt it verifies first, and the base's tokenizer. Writes
``data/encoded``: the ids of prompts and answers for each split. ``validate`` has held every row to
the token budget already, with the same tokenizer, so nothing is cut or left out here. Fails if the
receipt does not match, or the base has another tokenizer than the data were checked with.
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
from stages import receipt

log = logging.getLogger("tuneline.encode")


def encode(tokenizer, samples: list[Sample]) -> list[dict]:
    """Ids of prompt and answer, with ``[gMASK] <sop>`` and ``<eop>``."""
    rows = []
    for sample in tqdm(samples, desc="encode", unit="row", delay=2):
        prompt, answer = encode_sample(tokenizer, sample.messages)
        rows.append({"id": sample.id, "prompt": prompt, "answer": answer})
    return rows


def count(rows: list[dict]) -> dict:
    answers = sum(len(row["answer"]) for row in rows)
    return {
        "rows": len(rows),
        "tokens": answers + sum(len(row["prompt"]) for row in rows),
        "answer_tokens": answers,
    }


@program
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("checked", "base", "out", "metrics"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    arguments = parser.parse_args()

    checked = receipt.verify(arguments.checked)
    found = base.read_record(arguments.base)
    if checked["tokenizer_sha256"] != found.tokenizer_sha256:
        raise DataBlocked(
            f"The tokens of {arguments.checked} were counted with another tokenizer than {found.name} has; "
            "run `dvc repro -f tokenizer validate`."
        )
    tokenizer = base.load_tokenizer(found.folder)
    encoded = {}
    for split in receipt.SPLITS:
        samples = [Sample.from_json(row) for row in read_jsonl(arguments.checked / f"{split}.jsonl")]
        encoded[split] = encode(tokenizer, samples)
    with writing_folder(arguments.out) as folder:
        for split, rows in encoded.items():
            write_jsonl(folder / f"{split}.jsonl", rows)
        receipt.write(
            folder,
            checked_sha256=checked["sha256"],
            tokenizer_sha256=found.tokenizer_sha256,
            prompt_version=PROMPT_VERSION,
        )
    write_json(arguments.metrics, {"encoded": {split: count(rows) for split, rows in encoded.items()}})
    log.info("encode: %d training rows, %d evaluation rows", *map(len, encoded.values()))


if __name__ == "__main__":
    main()
