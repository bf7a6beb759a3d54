"""Stage base: find and verify the base model, or make the tiny one.

For a hub id or a folder it writes ``base.json``, a record of where the files are and what they
hash to, without copying them. For ``tiny`` it trains a small ChatGLM on the base corpus, with the
tokenizer that stage ``tokenizer`` made, and puts the record beside it. Fails if files are missing,
cut off, or do not belong together.
"""

import argparse
import logging
import shutil
from pathlib import Path

from formats import params_schema
from models import base_model
from models.command_line import entry_point
from models.errors import UserError
from models.prompt import encode_sample, label
from models.storage import sha256_of, writing_folder

log = logging.getLogger("tuneline.base")


def make_tiny(corpus: Path, tokenizer_folder: Path, knobs: params_schema.Tiny, folder: Path) -> None:
    """Train the tiny base on the corpus and save it in the official file layout."""
    import torch

    from models import tiny_base_model, training
    from models.chatglm import ChatGLMForConditionalGeneration

    shutil.copytree(tokenizer_folder, folder, dirs_exist_ok=True)
    tokenizer = base_model.load_tokenizer(folder)
    rows = [label(*encode_sample(tokenizer, messages)) for messages in tiny_base_model.read_corpus(corpus)]
    torch.manual_seed(knobs.seed)
    model = ChatGLMForConditionalGeneration(
        tiny_base_model.configure(tokenizer, knobs.hidden_size, knobs.layers, knobs.heads)
    )
    log.info("base: training a ChatGLM of %.1f million parameters", model.num_parameters() / 1e6)
    settings = training.TrainConfig(
        knobs.batch_size,
        knobs.learning_rate,
        max_steps=knobs.steps,
        schedule="cosine",
        warmup=0.1,
        logs=50,
        seed=knobs.seed,
    )
    fitted = training.fit(model, rows, [], settings)
    log.info("base: loss %.3f after %.0f s", fitted.loss("train"), fitted.seconds)
    model.save_pretrained(folder)


@entry_point
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True, help="what the tiny base learns")
    parser.add_argument("--tokenizer", type=Path, required=True, help="what stage tokenizer found or made")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    chosen = params_schema.load().base

    with writing_folder(arguments.out) as folder:
        if chosen.model == "tiny":
            make_tiny(arguments.corpus, arguments.tokenizer, chosen.tiny, folder)
            found = base_model.verify(folder, name="tiny")
        else:
            found = base_model.find(chosen.model, chosen.revision)
        if found.tokenizer_sha256 != sha256_of(arguments.tokenizer / base_model.TOKENIZER):
            raise UserError(f"{found.folder} changed since the data were checked; run `dvc repro -f tokenizer`.")
        base_model.write_record(found, folder)
    log.info("base: %s, identity %s", found.name, found.identity[:12])


if __name__ == "__main__":
    main()
