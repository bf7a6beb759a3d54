"""Measure the time per answer of base, champion and challenger: ``python -m stages.promote.latency``.

All answer the same rows in one process, in alternating rounds: timings from different moments may differ by the load
of the machine. Load only ever makes a round slower, so the rounds repeat until the fastest round of each model is
confirmed by a second one that is about as fast, and the minimum over rounds counts for each row. Only one model is in
memory at a time. All answers have the same number of tokens, so that longer answers do not count as slower.
"""

import argparse
import gc
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from formats import params_schema
from models import adapter_files, base_model, model_loading
from models.command_line import entry_point
from models.families import family_of_config
from models.generation import generate_answers
from models.sample import Message, Sample
from models.storage import read_jsonl, write_json

log = logging.getLogger("tuneline.latency")
MAX_ROWS = 16  # evenly spaced test rows
MAX_TOKENS = 64  # per answer; evaluate.max_new_tokens if that is less
TEXT_CHARACTERS = 40  # of a plain text that are asked
CONFIRMATION_FACTOR = 1.1  # the second fastest round takes at most this factor of the fastest
MAX_ROUNDS = 6  # per model


def evenly_spaced(rows: Sequence, count: int = MAX_ROWS) -> list:
    """Return at most ``count`` rows, evenly spaced from the first one on."""
    return [rows[number * len(rows) // count] for number in range(count)] if len(rows) > count else list(rows)


def question_of(sample: Sample) -> tuple[Message, ...]:
    """Return the messages before the answer of a sample; for a plain text, its beginning as a question."""
    if len(sample.messages) > 1:
        return sample.messages[:-1]
    return (Message("user", sample.messages[0].content[:TEXT_CHARACTERS]),)


def time_answers(model, tokenizer, conversations: Sequence[Sequence[Message]], num_tokens: int) -> list[float]:
    """Return the seconds of each answer of ``num_tokens`` tokens, generated one at a time, as in a chat."""
    decoder = family_of_config(model.config).create_decoder()

    def generate(requests) -> dict:
        return dict(generate_answers(model, tokenizer, requests, num_tokens, 1, decoder, force_full_length=True))

    generate(conversations[:2])  # warm-up: compilation, CUDA graph capture, caches
    answers = generate(conversations)
    return [answers[number].seconds for number in range(len(conversations))]


def measure_alternately(
    adapters: Mapping[str, Path | None],
    base: base_model.Base,
    conversations: Sequence[Sequence[Message]],
    params: params_schema.Params,
) -> dict[str, float]:
    """Return the mean seconds per answer of each model, measured in alternating rounds.

    Args:
        adapters: adapter folder by name of the model; None for the base model.
        conversations: questions with the turns before them.
    """
    num_tokens = min(MAX_TOKENS, params.evaluate.max_new_tokens)
    tokenizer = model_loading.load_tokenizer(base)
    rounds: dict[str, list[list[float]]] = {name: [] for name in adapters}
    for _ in range(MAX_ROUNDS):
        for name, adapter in adapters.items():
            model = _load(adapter, base, params.base.dtype)
            rounds[name].append(time_answers(model, tokenizer, conversations, num_tokens))
            del model
            gc.collect()  # frees the memory for the next model
        if all(map(is_confirmed, rounds.values())):
            break
    else:
        log.warning("the machine was under load: latency is the minimum of %d rounds, unconfirmed", MAX_ROUNDS)
    return {name: _mean_of_minima(seconds_by_round) for name, seconds_by_round in rounds.items()}


def _load(adapter: Path | None, base: base_model.Base, dtype: str):
    return model_loading.load_model(base, dtype) if adapter is None else adapter_files.load_adapter(adapter, base)


def _mean_of_minima(rounds: Sequence[Sequence[float]]) -> float:
    """Return the mean over rows of each row's minimum over rounds."""
    minima = [min(seconds) for seconds in zip(*rounds, strict=True)]
    return round(sum(minima) / len(minima), 6)


def is_confirmed(rounds: Sequence[Sequence[float]]) -> bool:
    """Return whether the second fastest round of a model is about as fast as its fastest.

    Args:
        rounds: seconds of each row, for each round.
    """
    fastest = sorted(map(sum, rounds))[:2]
    return len(fastest) == 2 and fastest[1] <= CONFIRMATION_FACTOR * fastest[0]


@entry_point
def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the latency of base, champion and challenger.")
    parser.add_argument("--base", type=Path, required=True, help="folder of the base model")
    parser.add_argument("--checked", type=Path, required=True, help="folder of checked data")
    parser.add_argument("--challenger", type=Path, required=True, help="adapter folder")
    parser.add_argument("--champion", type=Path, help="adapter folder, if there is a champion")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    rows = evenly_spaced(read_jsonl(arguments.checked / "test.jsonl"))
    conversations = [question_of(Sample.from_json(row)) for row in rows]
    adapters = {"base": None, "champion": arguments.champion, "challenger": arguments.challenger}
    if arguments.champion is None:
        del adapters["champion"]
    base = base_model.read_record(arguments.base)
    seconds = measure_alternately(adapters, base, conversations, params_schema.load())
    write_json(arguments.out, {"seconds_an_answer": seconds, "rows": len(rows)})


if __name__ == "__main__":
    main()
