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

from formats import params_schema, receipt
from measures.ngrams import has_near_duplicate, join_dialogue
from models import base_model, model_loading
from models.command_line import entry_point
from models.errors import DataBlocked, UserError
from models.prompt import PROMPT_VERSION, encode_sample
from models.sample import Sample
from models.storage import atomic_write_folder, write_json, write_jsonl
from models.text_normalization import normalize_text

log = logging.getLogger("tuneline.encode")
NEAR = 0.7  # the least similarity that validate.checks.no_near_duplicate may be set to


def read_checked(folder: Path, found: base_model.Base) -> tuple[receipt.Verified, dict[str, list[Sample]]]:
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


def replay(
    task: dict[str, list[Sample]], general: Sequence[Sample], share: float, seed: int, held_out: Sequence[Sample] = ()
) -> list[Sample]:
    """General samples that make ``share`` of all that is trained on: each as often as any other, or once more.

    What the task has too is left out, and what resembles an evaluation row, so that nothing is trained on that shall
    be evaluated.

    Args:
        general: samples to draw from.
        held_out: general samples for evaluation.

    Raises:
        UserError: too few are left to draw from.
    """
    wanted = round(len(task["train"]) * share / (1 - share))
    if not wanted:
        return []
    known = {sample.id for samples in task.values() for sample in samples}
    fresh = [sample for sample in general if sample.id not in known]
    unlike = without_evaluated(fresh, [*task["eval"], *held_out])
    if not unlike:
        raise UserError(
            "train.replay needs general conversations, but ingest.general gave none besides the task's and those that "
            "resemble evaluation rows; add others to ingest.general, or set train.replay to 0."
        )
    if len(unlike) < len(fresh):
        log.info("encode: %d general conversations resemble evaluation rows: not replayed", len(fresh) - len(unlike))
    draw, drawn = random.Random(seed), []
    while len(drawn) < wanted:
        drawn += draw.sample(unlike, min(len(unlike), wanted - len(drawn)))
    return drawn


def without_evaluated(samples: Sequence[Sample], evaluated: Sequence[Sample]) -> list[Sample]:
    """The samples that share no question in its context with an evaluated one, and are nearly the same as none."""
    asked = {beginnings(sample)[-2] for sample in evaluated}
    evaluated_beginnings = {key for sample in evaluated for key in beginnings(sample)}
    texts, others = ([normalize_text(join_dialogue(sample.messages)) for sample in part] for part in (samples, evaluated))
    near = has_near_duplicate(texts, others, NEAR)
    return [
        sample
        for sample, nearly_the_same in zip(samples, near, strict=True)
        if not nearly_the_same
        and asked.isdisjoint(keys := beginnings(sample))
        and keys[-1] not in evaluated_beginnings  # an evaluated conversation begins with the whole sample
    ]


def beginnings(sample: Sample) -> list[int]:
    """A key for each beginning of a conversation, of one message and more; system messages, blanks and forms aside."""
    keys, key = [], 0
    for message in sample.messages:
        if message.role != "system":
            key = hash((key, message.role, normalize_text(message.content)))
            keys.append(key)
    return keys


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


@entry_point
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("checked", "general", "base", "out", "metrics"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    arguments = parser.parse_args()
    knobs = params_schema.load().train

    found = base_model.read_record(arguments.base)
    checked, samples = read_checked(arguments.checked, found)
    replayed = []
    if knobs.replay:
        _, general = read_checked(arguments.general, found)
        replayed = replay(samples, general["train"], knobs.replay, knobs.seed, general["eval"])
    samples["train"] += replayed
    tokenizer = model_loading.load_tokenizer(found)
    encoded = {split: encode(tokenizer, each) for split, each in samples.items()}
    with atomic_write_folder(arguments.out) as folder:
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
