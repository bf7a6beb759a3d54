"""Stage tokenizer: the base's tokenizer, before anything else of the base.

The data checks count tokens with it, and run before a base of many gigabytes is fetched or the
tiny one is trained. Writes ``ice_text.model`` and ``tokenizer_config.json``: copies of the base's,
or for ``tiny`` a SentencePiece model trained on the base corpus. Fails if the base is not found.
"""

import argparse
import logging
import shutil
from pathlib import Path

from models import base
from models.errors import program
from models.storage import writing_folder
from stages import params

log = logging.getLogger("tuneline.tokenizer")


@program
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True, help="what the tiny base's tokenizer is trained on")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    chosen = params.load().base

    with writing_folder(arguments.out) as folder:
        if chosen.model == "tiny":
            from models import tiny

            conversations = tiny.read_corpus(arguments.corpus)
            texts = (message.content for messages in conversations for message in messages)
            tiny.train_tokenizer(texts, chosen.tiny.vocab_size, folder)
        else:
            found = base.find_tokenizer(chosen.model, chosen.revision)
            for name in (base.TOKENIZER, base.TOKENIZER_CONFIG):
                shutil.copyfile(found / name, folder / name)
    log.info("tokenizer: that of %s", chosen.model)


if __name__ == "__main__":
    main()
