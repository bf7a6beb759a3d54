"""Stage encode: checked samples to token ids.

Reads ``data/checked`` and ``data/general/checked``, whose receipts it verifies first, and the base's tokenizer.
Writes ``data/encoded``: the ids of prompts and answers for each split, with as many general conversations
among those to train on as ``train.replay`` says. ``validate`` has held every row to the token budget already,
with the same tokenizer, so nothing is cut or left out here. Fails if a receipt does not match, or the base
has another tokenizer than the data were checked with.
"""

import argparse
import logging
import random
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from models import base
from models.errors import DataBlocked, UserError, program
from models.prompt import PROMPT_VERSION, encode_sample
from models.sample import Sample
from models.storage import write_json, write_jsonl, writing_folder
from stages import params, receipt

log = logging.getLogger("tuneline.encode")


def read_checked(folder: Path, found: base.Base) -> tuple[receipt.Verified, dict[str, list[Sample]]]:
    """The verified folder and the samples of each split.

    Raises:
        DataBlocked: the receipt does not match, or names another tokenizer than the base's.
    """
    checked = receipt.read(folder)
    if checked.receipt.tokenizer_sha256 != found.tokenizer_sha256:
        raise DataBlocked(
            f"The tokens of {folder} were counted with another tokenizer than {found.name} has; "
            "run `dvc repro -f tokenizer validate general`."
        )
    return checked, {split: [Sample.from_json(row) for row in checked.rows(split)] for split in receipt.SPLITS}


def replay(task: dict[str, list[Sample]], general: Sequence[Sample], share: float, seed: int) -> list[Sample]:
    """General samples that make ``share`` of all that is trained on: each as often as any other, or once more.

    What the task has too is left out, so that nothing is trained on that shall be evaluated.

    Raises:
        UserError: too few are left to draw from.
    """
    wanted = round(len(task["train"]) * share / (1 - share))
    known = {sample.id for samples in task.values() for sample in samples}
    fresh = [sample for sample in general if sample.id not in known]
    if wanted and not fresh:
        raise UserError("train.replay needs general conversations, but ingest.general gave none besides the task's.")
    draw, drawn = random.Random(seed), []
    while len(drawn) < wanted:
        drawn += draw.sample(fresh, min(len(fresh), wanted - len(drawn)))
    return drawn


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
    for name in ("checked", "general", "base", "out", "metrics"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    arguments = parser.parse_args()
    knobs = params.load().train

    found = base.read_record(arguments.base)
    checked, samples = read_checked(arguments.checked, found)
    replayed = []
    if knobs.replay:
        _, general = read_checked(arguments.general, found)
        replayed = replay(samples, general["train"], knobs.replay, knobs.seed)
    samples["train"] += replayed
    tokenizer = base.load_tokenizer(found)
    encoded = {split: encode(tokenizer, each) for split, each in samples.items()}
    with writing_folder(arguments.out) as folder:
        for split, rows in encoded.items():
            write_jsonl(folder / f"{split}.jsonl", rows)
        receipt.write(
            folder,
            checked_sha256=checked.sha256,
            tokenizer_sha256=found.tokenizer_sha256,
            prompt_version=PROMPT_VERSION,
        )
    counts = {split: count(rows) for split, rows in encoded.items()}
    write_json(arguments.metrics, {"encoded": counts, "replayed": len(replayed)})
    rows = counts["train"]["rows"], len(replayed), counts["eval"]["rows"]
    log.info("encode: %d training rows, %d of them general; %d evaluation rows", *rows)


if __name__ == "__main__":
    main()
