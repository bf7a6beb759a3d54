"""How long champion and challenger take for an answer: ``python -m stages.promote.latency``.

Times of different moments are times of different machines: another card, another load beside it. So both answer the
same rows in one process, in turn, champion, challenger, champion, challenger. What else runs only ever makes a round
longer, so the turns go on until the quickest round of each side is confirmed by another that is about as quick; and of
each row the shortest time counts. One model is loaded at a time, since there may be no memory for two. All answers
have the same number of tokens: who was taught to say more is not slower.
"""

import argparse
import gc
import logging
from collections.abc import Sequence
from pathlib import Path

from formats import params_schema
from models import adapters, base_model
from models.command_line import entry_point
from models.decoding import Decoder
from models.generation import generate_answers
from models.sample import Message, Sample
from models.storage import read_jsonl, write_json

log = logging.getLogger("tuneline.timing")
ROWS = 16  # spread over the evaluation rows
TOKENS = 64  # of an answer, or evaluate.max_new_tokens if that is less
CONFIRMED = 1.1  # the second quickest round of a side takes at most so many times as long as the quickest
ROUNDS = 6  # of each side, at most: a machine that never rests is not waited for


def spread(rows: Sequence, count: int = ROWS) -> list:
    """At most so many of the rows, evenly from the first to the last."""
    return [rows[number * len(rows) // count] for number in range(count)] if len(rows) > count else list(rows)


def seconds_of(model, tokenizer, conversations: Sequence[Sequence[Message]], tokens: int) -> list[float]:
    """Seconds of each answer, of so many tokens, asked one at a time, as in a chat."""
    decoder = Decoder()

    def answers_to(asked) -> dict:
        return dict(generate_answers(model, tokenizer, asked, tokens, 1, decoder, force_full_length=True))

    # What is compiled, recorded or brought into caches by the first answers is not what an answer costs.
    answers_to(conversations[:2])
    answers = answers_to(conversations)
    return [answers[number].seconds for number in range(len(conversations))]


def in_turn(
    folders: dict[str, Path | None], found: base_model.Base, questions: Sequence, knobs: params_schema.Params
) -> dict:
    """Mean seconds of an answer for each side; a side without a folder is the base itself."""
    length = min(TOKENS, knobs.evaluate.max_new_tokens)
    tokenizer = base_model.load_tokenizer(found)
    rounds: dict[str, list[list[float]]] = {side: [] for side in folders}
    for _ in range(ROUNDS):
        for side, folder in folders.items():
            model = base_model.load_model(found, knobs.base.dtype) if folder is None else adapters.load(folder, found)
            rounds[side].append(seconds_of(model, tokenizer, questions, length))
            del model
            gc.collect()  # its memory is needed for the next
        if all(map(confirmed, rounds.values())):
            break
    else:
        log.warning("the machine was busy all the time: the shortest of %d rounds count, unconfirmed", ROUNDS)
    best = {side: [min(each) for each in zip(*times, strict=True)] for side, times in rounds.items()}
    return {side: round(sum(times) / len(times), 6) for side, times in best.items()}


def confirmed(rounds: Sequence[Sequence[float]]) -> bool:
    """Whether two rounds of a side took about as long, and none was quicker.

    Args:
        rounds: of each, the seconds of its rows.
    """
    quickest = sorted(map(sum, rounds))[:2]
    return len(quickest) == 2 and quickest[1] <= CONFIRMED * quickest[0]


@entry_point
def main() -> None:
    parser = argparse.ArgumentParser(description="Time champion and challenger in turn.")
    for name in ("base", "checked", "challenger", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--champion", type=Path, help="its folder; without one, the base")
    arguments = parser.parse_args()
    samples = spread([Sample.from_json(row) for row in read_jsonl(arguments.checked / "eval.jsonl")])
    folders = {"champion": arguments.champion, "challenger": arguments.challenger}
    seconds = in_turn(
        folders, base_model.read_record(arguments.base), [each.messages[:-1] for each in samples], params_schema.load()
    )
    write_json(arguments.out, {"seconds_an_answer": seconds, "rows": len(samples)})


if __name__ == "__main__":
    main()
