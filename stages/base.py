"""Stage base: find and verify the base model, or train the tiny one.

For a hub id or a folder, writes ``base.json`` with the location and hashes of the files, which are not copied. For
``tiny``, trains a small ChatGLM on the base corpus, with the tokenizer of stage ``tokenizer``, and writes its files and
``base.json``. Fails if files are missing, truncated, or do not belong together.
"""

import argparse
import logging
import shutil
from pathlib import Path

from formats import data_params, params_schema
from models import base_model, base_verification, model_loading
from models.command_line import entry_point
from models.errors import UserError
from models.families import family_of
from models.prompt import encode_sample, label_sample
from models.storage import atomic_write_folder, sha256_of

log = logging.getLogger("tuneline.base")


def train_tiny_base(corpus: Path, tokenizer_folder: Path, params: data_params.Tiny, folder: Path) -> None:
    """Train the tiny base on the corpus and save it in the official file layout."""
    import torch

    from models import tiny_base_model, training
    from models.chatglm import ChatGLMForConditionalGeneration

    shutil.copytree(tokenizer_folder, folder, dirs_exist_ok=True)
    tokenizer = model_loading.load_tokenizer(folder)
    rows = [label_sample(*encode_sample(tokenizer, messages)) for messages in tiny_base_model.read_corpus(corpus)]
    torch.manual_seed(params.seed)
    model = ChatGLMForConditionalGeneration(
        tiny_base_model.build_config(tokenizer, params.hidden_size, params.layers, params.heads)
    )
    log.info("base: training a ChatGLM of %.1f million parameters", model.num_parameters() / 1e6)
    config = training.TrainConfig(
        params.batch_size,
        params.learning_rate,
        max_steps=params.steps,
        schedule="cosine",
        warmup=0.1,
        logs=50,
        seed=params.seed,
    )
    result = training.fit(model, rows, [], config)
    log.info("base: loss %.3f after %.0f s", result.loss("train"), result.seconds)
    model.save_pretrained(folder)


@entry_point
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True, help="conversations to train the tiny base on")
    parser.add_argument("--tokenizer", type=Path, required=True, help="output of stage tokenizer")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    params = params_schema.load().base

    with atomic_write_folder(arguments.out) as folder:
        if params.model == "tiny":
            train_tiny_base(arguments.corpus, arguments.tokenizer, params.tiny, folder)
            base = base_verification.verify_base(folder, name="tiny")
        else:
            base = base_verification.find_base(params.model, params.revision, params.family)
        if base.tokenizer_sha256 != sha256_of(arguments.tokenizer / family_of(base).vocabulary_file):
            raise UserError(
                f"The tokenizer in {base.folder} is not the one that the data were checked with. "
                "Run `dvc repro -f tokenizer`."
            )
        base_model.write_record(base, folder)
    log.info("base: %s, identity %s", base.name, base.identity[:12])


if __name__ == "__main__":
    main()
