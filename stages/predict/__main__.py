"""``python -m stages.predict``: see the package's docstring."""

import argparse
import logging
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from formats import params_schema
from models import adapter_files, base_model, model_loading, provenance
from models.command_line import entry_point
from models.errors import UserError
from models.families import family_of_config
from models.manifest import parse_manifest
from models.storage import sha256_of_json
from stages.predict.prediction_file import PredictionFile
from stages.predict.question_rows import QuestionRow, read_questions

log = logging.getLogger("tuneline.predict")
BATCHES_PER_BLOCK = 8  # rows of similar length are batched within a block; an interruption costs one block at most


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Answer a file of questions.")
    parser.add_argument("--questions", type=Path, required=True, help="data file, folder, or text file")
    parser.add_argument("--base", type=Path, required=True, help="folder of the base model")
    parser.add_argument("--adapter", type=Path, help="folder of the adapter (default: none)")
    parser.add_argument("--out", type=Path, required=True, help=".jsonl or .csv file to write")
    parser.add_argument("--bits", type=int, choices=(16, 8, 4), help="quantization of the base")
    parser.add_argument("--max-new-tokens", type=int, required=True, help="maximum length of an answer")
    parser.add_argument("--batch-size", type=int, required=True, help="questions that are answered together")
    parser.add_argument("--sample", type=int, metavar="SEED", help="sample answers instead of greedy decoding")
    return parser.parse_args()


def load_model(base: base_model.Base, manifest, arguments: argparse.Namespace, dtype: str):
    """Load the base, or the adapter on it, whose hashes are verified."""
    quantization = {"quantization": None if arguments.bits == 16 else arguments.bits} if arguments.bits else {}
    if manifest is None:
        return model_loading.load_model(base, dtype, **quantization)
    return adapter_files.load_adapter(arguments.adapter, base, manifest=manifest, **quantization)


def output_key(rows: Sequence[QuestionRow], base: base_model.Base, manifest, settings: dict) -> str:
    """Return a hash of everything that the answers depend on, including code and library versions."""
    inputs = {
        "rows": [[row.location, [message.to_json() for message in row.messages], row.reference] for row in rows],
        "base": base.identity,
        "adapter": manifest and [manifest.weights_sha256, manifest.config_sha256],
        "settings": settings,
        "code": provenance.code_sha256("stages.predict"),
        "libraries": provenance.library_versions(),
    }
    return sha256_of_json(inputs)


class Predictor:
    """A loaded model that answers rows of questions in blocks.

    Args:
        seed: of sampling, or None for greedy decoding.
    """

    def __init__(self, model, tokenizer, max_new_tokens: int, batch_size: int, seed: int | None):
        self.model, self.tokenizer, self.decoder = model, tokenizer, family_of_config(model.config).create_decoder()
        self.max_new_tokens, self.batch_size, self.seed = max_new_tokens, batch_size, seed
        self.max_prompt_tokens = model.config.max_position_embeddings - max_new_tokens
        if self.max_prompt_tokens < 1:
            raise UserError(
                f"--max-new-tokens must be less than the model's {model.config.max_position_embeddings} tokens."
            )

    def answer(self, block: Sequence[QuestionRow]) -> Iterator[dict]:
        """Yield an output row for each row of a block, in their order."""
        from models.generation import generate_answers

        faults = [row.fault or self._find_excess(row) for row in block]
        asked = [index for index, fault in enumerate(faults) if fault is None]
        conversations = [block[index].messages for index in asked]
        stream = generate_answers(
            self.model, self.tokenizer, conversations, self.max_new_tokens, self.batch_size, self.decoder, self.seed
        )
        answers = {asked[number]: answer for number, answer in stream}
        for index, (row, fault) in enumerate(zip(block, faults, strict=True)):
            output = {"location": row.location, "messages": [message.to_json() for message in row.messages]}
            answer = answers.get(index)
            output |= {"answer": answer and answer.text, "tokens": answer and answer.tokens}
            output |= {} if row.reference is None else {"reference": row.reference}
            yield output | ({"fault": fault} if fault else {})

    def _find_excess(self, row: QuestionRow) -> str | None:
        """Return the reason if a prompt is too long, else None."""
        from models.prompt import encode_prompt

        length = len(encode_prompt(self.tokenizer, row.messages))
        if length <= self.max_prompt_tokens:
            return None
        return f"the prompt has {length} tokens; at most {self.max_prompt_tokens} leave room for the answer"


def write_predictions(predictor: Predictor, rows: Sequence[QuestionRow], file: PredictionFile) -> None:
    """Answer the rows that the file lacks, block by block."""
    remaining = iter(rows[file.num_rows :])
    with tqdm(total=len(rows), initial=file.num_rows, desc="answer", unit=" rows", delay=2) as bar:
        while block := list(islice(remaining, BATCHES_PER_BLOCK * predictor.batch_size)):
            file.append(list(predictor.answer(block)))
            bar.update(len(block))


@entry_point
def main() -> None:
    arguments, params = parse_arguments(), params_schema.load()
    rows = list(read_questions(arguments.questions))
    if not rows:
        raise UserError(f"{arguments.questions} has no questions; add some, one row each.")
    base = base_model.read_record(arguments.base)
    manifest = parse_manifest(arguments.adapter) if arguments.adapter else None
    settings = {name: getattr(arguments, name) for name in ("bits", "max_new_tokens", "batch_size", "sample")}
    key = output_key(rows, base, manifest, settings | {"dtype": params.base.dtype})
    with PredictionFile(arguments.out, key) as file:
        if file.num_rows:
            log.info("predict: resuming after %d of %d rows", file.num_rows, len(rows))
        model = load_model(base, manifest, arguments, params.base.dtype)
        tokenizer = model_loading.load_tokenizer(base)
        predictor = Predictor(model, tokenizer, arguments.max_new_tokens, arguments.batch_size, arguments.sample)
        write_predictions(predictor, rows, file)
        file.finish()
    log.info("predict: %d rows in %s", len(rows), arguments.out)
    for fault, count in file.faults.items():
        log.warning("predict: %d rows without an answer: %s", count, fault)


if __name__ == "__main__":
    main()
