"""``python -m stages.evaluate``: see the package's docstring."""

import argparse
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from models import adapters, base
from models.answering import Answer, answer_all
from models.errors import UserError, program
from models.prompt import IGNORED_LABEL, label
from models.sample import QUESTION_AND_ANSWER, Message, Sample, UnknownFormat, read_messages
from models.storage import read_jsonl, read_numbered_jsonl, write_json, write_jsonl, writing_folder
from models.training import RightPadding, peak_memory_gib
from stages import params, receipt
from stages.evaluate.scores import matches_exactly, mean_scores, meets

log = logging.getLogger("tuneline.evaluate")
FORMAT_KEYS = {key for keys in QUESTION_AND_ANSWER for key in keys} | {"history", "input", "messages"}
PROBE_KEYS = {"id", "contains", "absent"} | FORMAT_KEYS


def eval_loss(model, rows: Sequence[dict], batch_size: int) -> float:
    """Mean loss over the labelled tokens of encoded rows."""
    collate = RightPadding(model.config.pad_token_id)
    rows = sorted((label(row["prompt"], row["answer"]) for row in rows), key=lambda row: len(row["input_ids"]))
    total, labelled = 0.0, 0
    for start in tqdm(range(0, len(rows), batch_size), desc="loss", unit="batch", delay=2):
        batch = {key: value.to(model.device) for key, value in collate(rows[start : start + batch_size]).items()}
        count = int((batch["labels"][:, 1:] != IGNORED_LABEL).sum())
        with torch.inference_mode():
            total += float(model(**batch).loss) * count
        labelled += count
    return total / labelled


def answer_rows(model, tokenizer, conversations: Sequence[Sequence[Message]], knobs, batch_size: int) -> list[Answer]:
    """Answers in the order of the conversations."""
    answers: list[Answer | None] = [None] * len(conversations)
    stream = answer_all(model, tokenizer, conversations, knobs.max_new_tokens, batch_size)
    for index, answer in tqdm(stream, total=len(answers), desc="answer", unit="row", delay=2):
        answers[index] = answer
    return answers


def read_probes(path: Path) -> list[dict]:
    """Probes with their messages.

    Raises:
        UserError: a probe has no id, expects nothing, or is in no accepted format.
    """
    probes = []
    for line, row in read_numbered_jsonl(path):
        try:
            messages = read_messages(row)
            refuse_odd_probe(row, messages)
        except UnknownFormat as error:
            raise UserError(f"{path}, line {line}: {error}.") from None
        probes.append(row | {"messages": messages})
    if not probes:
        raise UserError(f"{path} holds no probes.")
    return probes


def refuse_odd_probe(row: dict, messages: Sequence[Message]) -> None:
    """A probe that expects nothing would always be met: refuse it, and any key that may be a misspelling."""
    if unknown := row.keys() - PROBE_KEYS:
        raise UnknownFormat(f"a probe has no key {sorted(unknown)[0]!r}")
    if not isinstance(row.get("id"), str):
        raise UnknownFormat("a probe needs an 'id'")
    expected = [row.get("contains", []), row.get("absent", [])]
    if not any(expected) or not all(isinstance(pieces, list) and all(pieces) for pieces in expected):
        raise UnknownFormat("a probe needs 'contains' or 'absent', a list of texts that are not empty")
    if len(messages) < 2 or messages[-1].role != "assistant":
        raise UnknownFormat("a probe needs a question and the answer taught")


def prediction(identity: str, messages: Sequence[Message], answer: Answer) -> dict:
    return {
        "id": identity,
        "messages": [vars(message) for message in messages[:-1]],
        "reference": messages[-1].content,
        "answer": answer.text,
        "tokens": answer.tokens,
        "seconds": round(answer.seconds, 4),
    }


def judge_probe(probe: dict, answer: Answer) -> dict:
    return prediction(probe["id"], probe["messages"], answer) | {
        "met": meets(answer.text, probe),
        "exact": matches_exactly(answer.text, probe["messages"][-1].content),
    }


def probe_metrics(judged: Sequence[dict]) -> dict:
    """Shares of probes met and matched to the letter, single-turn and multi-turn."""
    single = [row for row in judged if len(row["messages"]) == 1]
    multi = [row for row in judged if len(row["messages"]) > 1]

    def share(rows, key):
        return round(sum(row[key] for row in rows) / len(rows), 4) if rows else None

    return {
        "exact_match": share(judged, "exact"),
        "met_single_turn": share(single, "met"),
        "met_multi_turn": share(multi, "met"),
    }


def training_metrics(manifest: adapters.Manifest | None) -> dict:
    keys = ("train_loss", "seconds", "peak_memory_gib", "tokens_per_second", "steps", "trainable_parameters")
    return {key: manifest.training[key] for key in keys} if manifest else dict.fromkeys(keys, None)


def measure(model, tokenizer, arguments, knobs: params.Evaluate) -> tuple[dict, list[dict], list[dict]]:
    """Metrics, predictions on the evaluation rows, and judged probes."""
    started = time.perf_counter()
    encoded = read_jsonl(arguments.encoded / "eval.jsonl")
    loss = eval_loss(model, encoded, knobs.batch_size)
    within_budget = {row["id"] for row in encoded}  # answers are scored on the rows that the loss is of
    checked = [Sample.from_json(row) for row in read_jsonl(arguments.checked / "eval.jsonl")]
    samples = [sample for sample in checked if sample.id in within_budget]
    answers = answer_rows(model, tokenizer, [sample.messages[:-1] for sample in samples], knobs, knobs.batch_size)
    predictions = [prediction(s.id, s.messages, answer) for s, answer in zip(samples, answers, strict=True)]
    probes = read_probes(arguments.probes)
    # One at a time, so that each answer has a time of its own.
    answers_to_probes = answer_rows(model, tokenizer, [probe["messages"][:-1] for probe in probes], knobs, 1)
    judged = [judge_probe(probe, answer) for probe, answer in zip(probes, answers_to_probes, strict=True)]
    every = [*answers, *answers_to_probes]
    metrics = {
        "eval": {
            "loss": round(loss, 6),
            "perplexity": round(math.exp(min(loss, 700)), 4),
            **mean_scores([(row["answer"], row["reference"]) for row in predictions]),
            "empty_rate": round(sum(not row["answer"] for row in predictions) / len(predictions), 4),
        },
        "probes": probe_metrics(judged),
        "generation": {
            "tokens_per_second": round(sum(a.tokens for a in every) / sum(a.seconds for a in every), 2),
            "seconds": round(time.perf_counter() - started, 2),
            "peak_memory_gib": round(peak_memory_gib(), 3),
        },
    }
    return metrics, predictions, judged


@program
def main() -> None:
    parser = argparse.ArgumentParser(description="Evaluate the base model or one adapter.")
    parser.add_argument("--model", required=True, help="'base' or an adapter's key")
    for name in ("base", "weights", "checked", "encoded", "probes", "predictions", "metrics"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    arguments = parser.parse_args()
    knobs = params.load()

    receipt.verify_encoded(arguments.encoded, arguments.checked)
    found = base.read_record(arguments.base)
    is_base = arguments.model == "base"
    manifest = None if is_base else adapters.read_manifest(arguments.weights)
    model = base.load_model(found, knobs.base.dtype) if is_base else adapters.load(arguments.weights, found)
    tokenizer = base.load_tokenizer(found.folder)

    metrics, predictions, judged = measure(model, tokenizer, arguments, knobs.evaluate)
    with writing_folder(arguments.predictions) as folder:
        write_jsonl(folder / "eval.jsonl", predictions)
        write_jsonl(folder / "probes.jsonl", judged)
    write_json(arguments.metrics, metrics | {"training": training_metrics(manifest)})
    log.info("evaluate: %s, loss %.3f, probes met %s", arguments.model, metrics["eval"]["loss"], metrics["probes"])


if __name__ == "__main__":
    main()
