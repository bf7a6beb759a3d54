"""Stage tokenizer: get the base's tokenizer before the other files of the base.

The data checks count tokens with it, so they can run before gigabytes of weights are downloaded or the tiny base is
pretrained. Writes ``family.json`` with the base's family, and copies of the files that its tokenizer is made of; for
``tiny`` a SentencePiece model trained on the base corpus. Fails if the base is not found.
"""

import argparse
import logging
import shutil
from pathlib import Path

from formats import data_params, params_schema
from models import base_verification
from models.command_line import entry_point
from models.families import FAMILY_FILE
from models.storage import atomic_write_folder, write_json

log = logging.getLogger("tuneline.tokenizer")


def train_tiny_tokenizer(corpus: Path, vocab_size: int, folder: Path) -> None:
    """Train the tiny base's tokenizer on its corpus."""
    from models import tiny_base_model

    conversations = tiny_base_model.read_corpus(corpus)
    texts = (message.content for messages in conversations for message in messages)
    tiny_base_model.train_tokenizer(texts, vocab_size, folder)


def copy_tokenizer(params: data_params.Base, folder: Path) -> None:
    """Copy the tokenizer files of a Hub repository or a folder, and the configuration, which has its end tokens."""
    source = base_verification.find_tokenizer(params.model, params.revision, params.family)
    for name in source.files:
        shutil.copyfile(source.folder / name, folder / name)
    write_json(folder / FAMILY_FILE, {"family": source.family})


@entry_point
def main() -> None:
    parser = argparse.ArgumentParser(description="Get the base's tokenizer.")
    parser.add_argument("--corpus", type=Path, required=True, help="JSON Lines file to train the tiny tokenizer on")
    parser.add_argument("--out", type=Path, required=True, help="folder for the tokenizer")
    arguments = parser.parse_args()
    params = params_schema.load().base

    with atomic_write_folder(arguments.out) as folder:
        if params.model == "tiny":
            train_tiny_tokenizer(arguments.corpus, params.tiny.vocab_size, folder)
        else:
            copy_tokenizer(params, folder)
    log.info("tokenizer: %s the tokenizer of %s", "trained" if params.model == "tiny" else "copied", params.model)


if __name__ == "__main__":
    main()
