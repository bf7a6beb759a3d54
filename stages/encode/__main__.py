"""``python -m stages.encode``: see the package's docstring."""

import argparse
import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tqdm import tqdm

from formats import params_schema, receipt
from models import base_model, model_loading
from models.command_line import entry_point
from models.errors import UserError
from models.families import family_of, recognize_tokenizer
from models.prompt import ANSWER_ROLES, Learn, find_learnt
from models.sample import Message, Sample
from models.storage import atomic_write_folder, write_json, write_jsonl
from models.thinking import strip_thinking
from stages.encode.replay import draw_replay_samples
from stages.encode.token_view import label_tokens, print_tokens, read_conversation

log = logging.getLogger("tuneline.encode")
TOKENIZER_FOLDER = Path("models/weights/tokenizer")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Encode checked samples as token ids, or show the tokens of one row.")
    parser.add_argument(
        "--show",
        nargs=2,
        metavar=("FILE", "LINE"),
        help="print the tokens of the conversation on this line of a JSON Lines file as they are encoded, a row for "
        "every learnt answer, and which are trained on, and exit",
    )
    parser.add_argument(
        "--tokenizer",
        type=Path,
        default=TOKENIZER_FOLDER,
        help="folder of the tokenizer for --show; default: %(default)s",
    )
    required = [
        parser.add_argument(f"--{name}", type=Path) for name in ("checked", "general", "base", "out", "metrics")
    ]
    arguments = parser.parse_args()
    missing = [option.option_strings[0] for option in required if getattr(arguments, option.dest) is None]
    if missing and not arguments.show:
        parser.error(f"the following arguments are required without --show: {', '.join(missing)}")
    return arguments


def read_checked(folder: Path, base: base_model.Base) -> tuple[receipt.VerifiedFolder, dict[str, list[Sample]]]:
    """Read the samples of each split.

    Raises:
        DataBlocked: the receipt does not match, or names another tokenizer than the base's.
    """
    checked = receipt.read(folder)
    checked.require_tokenizer(base.tokenizer_sha256, base.name)
    return checked, {split: [Sample.from_json(row) for row in checked.rows(split)] for split in receipt.SPLITS}


@dataclass
class RepeatFilter:
    """Recognizes answers that were encoded before, after the same messages.

    In a file with a row for every turn, row k repeats the answers of the rows before it.

    Attributes:
        repeated: number of repetitions so far.
    """

    repeated: int = 0
    _seen: set[bytes] = field(default_factory=set)

    def is_new(self, messages: Sequence[Message]) -> bool:
        """Whether no conversation with the same messages was seen before."""
        texts = [[message.role, message.content] for message in messages]
        digest = hashlib.blake2b(json.dumps(texts).encode("ascii"), digest_size=16).digest()
        if digest in self._seen:
            self.repeated += 1
            return False
        self._seen.add(digest)
        return True


def encode_samples(
    tokenizer, samples: Sequence[Sample], learn: Learn = "all", repeat_filter: RepeatFilter | None = None
) -> list[dict]:
    """Return the training rows of samples: ``id``, and ``parts``, token ids that are ignored and learnt in turn.

    The id is that of the sample; if several answers of the sample have a row of their own, followed by ``:`` and the
    number of the answer.

    Args:
        learn: see :func:`models.prompt.find_learnt`.
        repeat_filter: leaves out answers that were encoded before; None for none.
    """
    rows = []
    for sample in tqdm(samples, desc="encode", unit="row", delay=2):
        learnt = find_learnt(sample.messages, learn)
        new = {index for index in learnt if not repeat_filter or repeat_filter.is_new(sample.messages[: index + 1])}
        messages = [replace(message, learn=index in new) for index, message in enumerate(sample.messages)]
        encoded = tokenizer.family.encode_rows(tokenizer, messages) if new else []
        has_own_row = len(learnt) > 1 and (len(encoded) > 1 or not tokenizer.family.learns_all_in_one_row)
        for row in encoded:
            number = sum(message.role in ANSWER_ROLES for message in messages[: row.index + 1])
            rows.append({"id": f"{sample.id}:{number}" if has_own_row else sample.id, "parts": row.parts})
    return rows


def count_tokens(rows: Sequence[dict]) -> dict[str, int]:
    """Return the number of rows, of their tokens, and of their answers' tokens."""
    answer_tokens = sum(len(part) for row in rows for part in row["parts"][1::2])
    prompt_tokens = sum(len(part) for row in rows for part in row["parts"][::2])
    return {"rows": len(rows), "tokens": answer_tokens + prompt_tokens, "answer_tokens": answer_tokens}


def encode_checked(arguments: argparse.Namespace) -> None:
    """Run the stage."""
    params = params_schema.load().train
    base = base_model.read_record(arguments.base)
    checked, samples = read_checked(arguments.checked, base)
    replayed = []
    if params.replay:
        _, general = read_checked(arguments.general, base)
        held_out = [*general["eval"], *general["test"]]
        replayed = draw_replay_samples(samples, general["train"], params.replay, params.seed, held_out)
    tokenizer = model_loading.load_tokenizer(base)
    filters = {split: RepeatFilter() for split in receipt.ENCODED_SPLITS}
    encoded = {
        split: encode_samples(tokenizer, samples[split], params.learn, repeat_filter)
        for split, repeat_filter in filters.items()
    }
    # Not filtered: a general conversation may be drawn several times, to make up its share.
    encoded["train"] += encode_samples(tokenizer, replayed, params.learn)
    with atomic_write_folder(arguments.out) as folder:
        for split, rows in encoded.items():
            write_jsonl(folder / f"{split}.jsonl", rows)
        receipt.write(
            folder,
            receipt.ENCODED_SPLITS,
            checked_sha256=checked.sha256,
            tokenizer_sha256=base.tokenizer_sha256,
            prompt_version=family_of(base).prompt_version(base),
        )
    counts = {split: count_tokens(rows) | {"repeated": filters[split].repeated} for split, rows in encoded.items()}
    write_json(arguments.metrics, {"encoded": counts, "replayed": len(replayed)})
    log_counts(counts, len(replayed))


def log_counts(counts: dict[str, dict[str, int]], replayed: int) -> None:
    """Log the number of rows of each split, and of the answers that are not encoded again."""
    log.info(
        "encode: %d training rows, with those of %d general conversations; %d evaluation rows",
        counts["train"]["rows"],
        replayed,
        counts["eval"]["rows"],
    )
    if repeated := sum(split_counts["repeated"] for split_counts in counts.values()):
        log.info("encode: %d answers repeat an earlier row with the same turns before them; encoded once", repeated)


def show_row(file: str, line: str, tokenizer_folder: Path) -> None:
    """Print the tokens of all rows that are encoded from one line.

    Raises:
        UserError: the file has no such row, the row is no conversation, or the folder has no tokenizer.
    """
    params = params_schema.load()
    messages = read_conversation(Path(file), line)
    if params.validate_.thinking == "strip":
        messages = strip_thinking(messages)
    vocabulary_file = recognize_tokenizer(tokenizer_folder).vocabulary_file
    if not (tokenizer_folder / vocabulary_file).is_file():
        raise UserError(
            f"{tokenizer_folder} has no {vocabulary_file}; run `dvc repro tokenizer`, or name another folder with "
            "--tokenizer."
        )
    tokenizer = model_loading.load_tokenizer(tokenizer_folder)
    rows = tokenizer.family.encode_rows(tokenizer, messages, params.train.learn)
    for number, row in enumerate(rows, start=1):
        if len(rows) > 1:
            print(f"row {number} of {len(rows)}:")
        print_tokens(label_tokens(tokenizer, row))


@entry_point
def main() -> None:
    arguments = parse_arguments()
    if arguments.show:
        show_row(*arguments.show, arguments.tokenizer)
    else:
        encode_checked(arguments)


if __name__ == "__main__":
    main()
