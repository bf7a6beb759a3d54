"""``python -m stages.encode``: see the package's docstring."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from formats import params_schema, receipt
from models import base_model, model_loading
from models.command_line import entry_point
from models.errors import DataBlocked, UserError
from models.prompt import PROMPT_VERSION, encode_sample
from models.sample import Sample
from models.storage import atomic_write_folder, write_json, write_jsonl
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
        help="print the tokens of the row on this line of a JSON Lines file, and which are trained on, and exit",
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
    if checked.receipt.tokenizer_sha256 != base.tokenizer_sha256:
        raise DataBlocked(
            f"The tokens of {folder} were counted with another tokenizer than that of {base.name}; "
            "run `dvc repro -f tokenizer validate general`."
        )
    return checked, {split: [Sample.from_json(row) for row in checked.rows(split)] for split in receipt.SPLITS}


def encode_samples(tokenizer, samples: Sequence[Sample]) -> list[dict]:
    """Return each sample's ``id``, and its token ids: ``prompt [gMASK] <sop>`` and ``answer <eop>``."""
    rows = []
    for sample in tqdm(samples, desc="encode", unit="row", delay=2):
        prompt, answer = encode_sample(tokenizer, sample.messages)
        rows.append({"id": sample.id, "prompt": prompt, "answer": answer})
    return rows


def count_tokens(rows: Sequence[dict]) -> dict[str, int]:
    """Return the number of rows, of their tokens, and of their answers' tokens."""
    answer_tokens = sum(len(row["answer"]) for row in rows)
    prompt_tokens = sum(len(row["prompt"]) for row in rows)
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
    samples["train"] += replayed
    tokenizer = model_loading.load_tokenizer(base)
    encoded = {split: encode_samples(tokenizer, samples[split]) for split in receipt.ENCODED_SPLITS}
    with atomic_write_folder(arguments.out) as folder:
        for split, rows in encoded.items():
            write_jsonl(folder / f"{split}.jsonl", rows)
        receipt.write(
            folder,
            receipt.ENCODED_SPLITS,
            checked_sha256=checked.sha256,
            tokenizer_sha256=base.tokenizer_sha256,
            prompt_version=PROMPT_VERSION,
        )
    counts = {split: count_tokens(rows) for split, rows in encoded.items()}
    write_json(arguments.metrics, {"encoded": counts, "replayed": len(replayed)})
    log.info(
        "encode: %d training rows, %d of them general conversations; %d evaluation rows",
        counts["train"]["rows"],
        len(replayed),
        counts["eval"]["rows"],
    )


def show_row(file: str, line: str, tokenizer_folder: Path) -> None:
    """Print the tokens of one row.

    Raises:
        UserError: the file has no such row, the row is no conversation, or the folder has no tokenizer.
    """
    messages = read_conversation(Path(file), line)
    if not (tokenizer_folder / base_model.TOKENIZER).is_file():
        raise UserError(
            f"{tokenizer_folder} has no {base_model.TOKENIZER}; run `dvc repro tokenizer`, or name another folder with "
            "--tokenizer."
        )
    print_tokens(label_tokens(model_loading.load_tokenizer(tokenizer_folder), messages))


@entry_point
def main() -> None:
    arguments = parse_arguments()
    if arguments.show:
        show_row(*arguments.show, arguments.tokenizer)
    else:
        encode_checked(arguments)


if __name__ == "__main__":
    main()
