"""Stage base: find and verify the base model, or make the tiny one.

For a hub id or a folder it writes ``base.json``, a record of where the files are and what they
hash to, without copying them. For ``tiny`` it trains a SentencePiece model and a small ChatGLM on
the base corpus and puts the record beside them. Fails if files are missing, cut off, or do not
belong together.
"""

import argparse
import logging
from pathlib import Path

from models import base
from models.errors import UserError, program
from models.prompt import encode_sample, label
from models.sample import UnknownFormat, read_messages
from models.storage import read_numbered_jsonl, writing_folder
from stages import params

log = logging.getLogger("tuneline.base")


def read_corpus(path: Path) -> list:
    """Messages of every row of the base corpus."""
    conversations = []
    for line, row in read_numbered_jsonl(path):
        try:
            conversations.append(read_messages(row))
        except UnknownFormat as error:
            raise UserError(f"{path}, line {line}: {error}.") from None
    if not conversations:
        raise UserError(f"{path} is empty; the tiny base needs conversations to learn from.")
    return conversations


def make_tiny(corpus: Path, knobs: params.Tiny, folder: Path) -> None:
    """Train the tiny base on the corpus and save it in the official file layout."""
    import torch

    from models import tiny, training
    from models.chatglm import ChatGLMForConditionalGeneration

    conversations = read_corpus(corpus)
    texts = (message.content for messages in conversations for message in messages)
    tokenizer = tiny.train_tokenizer(texts, knobs.vocab_size, folder)
    rows = [label(*encode_sample(tokenizer, messages)) for messages in conversations]
    torch.manual_seed(knobs.seed)
    model = ChatGLMForConditionalGeneration(tiny.configure(tokenizer, knobs.hidden_size, knobs.layers, knobs.heads))
    log.info("base: training a ChatGLM of %.1f million parameters", model.num_parameters() / 1e6)
    fitted = training.fit(
        model,
        rows,
        [],
        pad_token_id=tokenizer.pad_token_id,
        batch_size=knobs.batch_size,
        learning_rate=knobs.learning_rate,
        max_steps=knobs.steps,
        schedule="cosine",
        warmup=0.1,
        seed=knobs.seed,
    )
    log.info("base: loss %.3f after %.0f s", fitted.last_loss("train"), fitted.seconds)
    model.save_pretrained(folder)


@program
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True, help="what the tiny base learns")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    chosen = params.load().base

    with writing_folder(arguments.out) as folder:
        if chosen.model == "tiny":
            make_tiny(arguments.corpus, chosen.tiny, folder)
            found = base.verify(folder, name="tiny")
        else:
            found = base.find(chosen.model, chosen.revision)
        base.write_record(found, folder)
    log.info("base: %s, identity %s", found.name, found.identity[:12])


if __name__ == "__main__":
    main()
