"""Stage tokenizer: the base's tokenizer, before anything else of the base.

The data checks count tokens with it, and run before a base of many gigabytes is fetched or the
tiny one is trained. Writes ``ice_text.model`` and ``tokenizer_config.json``: copies of the base's,
or for ``tiny`` a SentencePiece model trained on the base corpus. Fails if the base is not found.
"""

import argparse
import logging
import shutil
from pathlib import Path

from formats import params_schema
from models import base_model, base_verification
from models.command_line import entry_point
from models.storage import atomic_write_folder

log = logging.getLogger("tuneline.tokenizer")


@entry_point
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True, help="what the tiny base's tokenizer is trained on")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    chosen = params_schema.load().base

    with atomic_write_folder(arguments.out) as folder:
        if chosen.model == "tiny":
            from models import tiny_base_model

            conversations = tiny_base_model.read_corpus(arguments.corpus)
            texts = (message.content for messages in conversations for message in messages)
            tiny_base_model.train_tokenizer(texts, chosen.tiny.vocab_size, folder)
        else:
            found = base_verification.find_tokenizer(chosen.model, chosen.revision)
            for name in (base_model.TOKENIZER, base_model.TOKENIZER_CONFIG):
                shutil.copyfile(found / name, folder / name)
    log.info("tokenizer: that of %s", chosen.model)


if __name__ == "__main__":
    main()
