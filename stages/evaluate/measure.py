"""From a loaded model to rows of answers with their scores, and the figures over them."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from models.answering import Answer
from models.prompt import encode_sample
from models.sample import Message, Sample
from models.training import peak_memory_gib
from stages import params
from stages.evaluate.answers import Kept, ask
from stages.evaluate.losses import row_divergences, row_losses
from stages.evaluate.probes import MET, UNMET, Probe, drift, identity_of, rate
from stages.evaluate.scores import describe, matches_exactly, means

NEAR = 0.9  # share of a token budget from which a row counts as near its limit
NAMES = {"exact": "exact_match", "empty": "empty_rate"}  # what the mean of a property is called


@dataclass(frozen=True)
class Questions:
    """What a model is asked: rows of the task, general ones, and probes."""

    task: Sequence[Sample]
    general: Sequence[Sample]
    probes: Sequence[Probe]


@dataclass(frozen=True)
class Measured:
    """Rows by file name, and the figures over them."""

    rows: dict[str, list[dict]]
    figures: dict


class Model:
    """A loaded model with all that is needed to ask it."""

    def __init__(self, model, tokenizer, kept: Kept, knobs: params.Params):
        self.model, self.tokenizer, self.kept = model, tokenizer, kept
        self.budgets, self.knobs = knobs.encode, knobs.evaluate

    def answers(
        self, kind: str, conversations: Sequence[Sequence[Message]], batch_size: int, seed: int | None = None
    ) -> list[Answer]:
        """Answers to conversations but for their last message, which is the one taught."""
        asked = {f"{kind} {number}": messages[:-1] for number, messages in enumerate(conversations)}
        how = {"max_new_tokens": self.knobs.max_new_tokens, "batch_size": batch_size, "seed": seed}
        return ask(self.model, self.tokenizer, asked, self.kept, **how)

    def encode(self, samples: Sequence[Sample]) -> list[dict]:
        pairs = [encode_sample(self.tokenizer, sample.messages) for sample in samples]
        return [{"prompt": prompt, "answer": answer} for prompt, answer in pairs]


def measure(model: Model, questions: Questions) -> Measured:
    """Ask everything and judge the answers."""
    started = time.perf_counter()
    task, eval_figures = of_samples(model, "eval", questions.task)
    general, general_figures = of_samples(model, "general", questions.general, divergence=True)
    probes = of_probes(model, questions.probes)
    sampled = sampled_probes(model, [probe for probe in questions.probes if probe.wording == 0])
    every = [*task, *general, *probes]
    tokens, seconds = (sum(row[key] for row in every) for key in ("tokens", "seconds"))
    figures = {
        "eval": eval_figures | of_lengths(task),
        "general": general_figures,
        "probes": probe_figures(probes) | {"sampled": variety(sampled)},
        "generation": {
            "tokens_per_second": round(tokens / max(seconds, 1e-9), 2),
            "seconds_an_answer": round(seconds / len(every), 4),
            "seconds": round(time.perf_counter() - started, 2),
            "peak_memory_gib": round(peak_memory_gib(), 3),
        },
    }
    return Measured({"eval": task, "general": general, "probes": probes, "sampled": sampled}, figures)


def of_samples(model: Model, kind: str, samples: Sequence[Sample], divergence: bool = False) -> tuple[list[dict], dict]:
    """Rows and figures of samples; with their divergence from the base, where there is one."""
    encoded = model.encode(samples)
    losses = row_losses(model.model, encoded, model.knobs.batch_size)
    moved = row_divergences(model.model, encoded, model.knobs.batch_size) if divergence else None
    answers = model.answers(kind, [sample.messages for sample in samples], model.knobs.batch_size)
    rows = []
    for number, (sample, row, answer) in enumerate(zip(samples, encoded, answers, strict=True)):
        judged = _row(sample.id, sample.messages, answer) | {"loss": round(losses[number], 6)}
        judged |= {} if moved is None else {"divergence": round(moved[number], 6)}
        near = len(row["prompt"]) >= NEAR * model.budgets.max_prompt_tokens
        near |= len(row["answer"]) >= NEAR * model.budgets.max_answer_tokens
        judged |= {"near_limit": near, "answer_tokens": len(row["answer"])}
        rows.append(judged | describe(answer.text, sample.messages[-1].content))
    loss = token_mean(rows, "loss")
    figures = {"rows": len(rows), "loss": round(loss, 6), "perplexity": round(math.exp(min(loss, 700)), 4)}
    figures |= {} if moved is None else {"divergence": round(token_mean(rows, "divergence"), 6)}
    return rows, figures | _means(rows)


def token_mean(rows: Sequence[dict], key: str) -> float:
    """The mean over all tokens of all answers taught, from the means of the rows."""
    return sum(row[key] * row["answer_tokens"] for row in rows) / sum(row["answer_tokens"] for row in rows)


def of_lengths(rows: Sequence[dict]) -> dict:
    """The figures once more for rows near the length limit and for the others: what truncation may have cost."""
    near, far = ([row for row in rows if row["near_limit"] == each] for each in (True, False))
    return {name: _of_length(each) for name, each in (("near_limit", near), ("far_from_limit", far))}


def _of_length(rows: Sequence[dict]) -> dict:
    if not rows:
        return {"rows": 0, "loss": None, "rouge-l": None}
    rouge = fmean(row["rouge-l"] for row in rows)
    return {"rows": len(rows), "loss": round(token_mean(rows, "loss"), 6), "rouge-l": round(rouge, 4)}


def _means(rows: Sequence[dict]) -> dict:
    keys = ("rouge-1", "rouge-2", "rouge-l", "bleu-4", "chrf", "exact", "empty", "repetition", "length_ratio")
    described = means([{key: row[key] for key in keys} for row in rows])
    return {NAMES.get(name, name): value for name, value in described.items()}


def _row(identity: str, messages: Sequence[Message], answer: Answer) -> dict:
    return {
        "id": identity,
        "messages": [vars(message) for message in messages[:-1]],
        "reference": messages[-1].content,
        "answer": answer.text,
        "tokens": answer.tokens,
        "seconds": round(answer.seconds, 4),
    }


# Probes --------------------------------------------------------------------------------------------


def of_probes(model: Model, probes: Sequence[Probe]) -> list[dict]:
    """One row for each wording of each probe."""
    # One at a time, so that each answer has a time of its own.
    answers = model.answers("probe", [probe.messages for probe in probes], 1)
    return [judge(probe, answer) for probe, answer in zip(probes, answers, strict=True)]


def sampled_probes(model: Model, probes: Sequence[Probe]) -> list[dict]:
    """One row for each seed and probe."""
    rows = []
    for seed in range(model.knobs.samples):
        answers = model.answers(f"seed {seed}", [probe.messages for probe in probes], 1, seed)
        rows += [judge(probe, answer) | {"seed": seed} for probe, answer in zip(probes, answers, strict=True)]
    return rows


def variety(sampled: Sequence[dict]) -> dict | None:
    """How often sampled answers meet their probe, and how many behind a probe's first one are new: from 0 to 1."""
    if not sampled:
        return None
    of_probe: dict[str, list[str]] = {}
    for row in sampled:
        of_probe.setdefault(row["id"], []).append(row["answer"])
    new, later = (sum(count(each) - 1 for each in of_probe.values()) for count in (lambda a: len(set(a)), len))
    return {
        "met": round(sum(row["met"] for row in sampled) / len(sampled), 4),
        "distinct": round(new / later, 4) if later else None,
    }


def judge(probe: Probe, answer: Answer) -> dict:
    met = probe.expectation.met(answer.text)
    judged = _row(probe.id, probe.messages, answer) | {
        "wording": probe.wording,
        "met": met,
        "verdict": MET if met else UNMET,
        "exact": matches_exactly(answer.text, probe.messages[-1].content),
    }
    return judged if probe.names is None else judged | {"identity": identity_of(answer.text, *probe.names)}


def probe_figures(judged: Sequence[dict]) -> dict:
    """Rates of probes met with their intervals, single-turn and multi-turn, and the drift of identity."""
    single = [row for row in judged if len(row["messages"]) == 1]
    multi = [row for row in judged if len(row["messages"]) > 1]
    rates = {
        name: rate(sum(row["met"] for row in rows), len(rows))
        for name, rows in (("single_turn", single), ("multi_turn", multi), ("all", judged))
    }
    exact = rate(sum(row["exact"] for row in judged), len(judged))
    return {
        "exact_match": exact and exact["rate"],
        "met_single_turn": rates["single_turn"] and rates["single_turn"]["rate"],
        "met_multi_turn": rates["multi_turn"] and rates["multi_turn"]["rate"],
        "rates": rates,
        "drift": drift([row["identity"] for row in judged if "identity" in row]),
    }


# The short form ------------------------------------------------------------------------------------

HEADLINES = {
    "loss": ("eval", "loss"),
    "perplexity": ("eval", "perplexity"),
    "rouge-l": ("eval", "rouge-l"),
    "bleu-4": ("eval", "bleu-4"),
    "chrf": ("eval", "chrf"),
    "exact_match": ("eval", "exact_match"),
    "empty_rate": ("eval", "empty_rate"),
    "probes_met": ("probes", "rates", "all", "rate"),
    "probes_met_multi_turn": ("probes", "met_multi_turn"),
    "new_name": ("probes", "drift", "new"),
    "old_name": ("probes", "drift", "old"),
    "general_loss": ("general", "loss"),
    "divergence": ("general", "divergence"),
    "seconds_an_answer": ("generation", "seconds_an_answer"),
    "training_seconds": ("training", "seconds"),
    "training_memory_gib": ("training", "peak_memory_gib"),
    "trainable_parameters": ("training", "trainable_parameters"),
}


def headlines(figures: dict) -> dict[str, float]:
    """The figures that ``dvc metrics diff`` and ``dvc exp show`` list; those that a model has."""
    found = {}
    for name, path in HEADLINES.items():
        value = figures
        for key in path:
            value = (value or {}).get(key)
        if value is not None:
            found[name] = value
    return found
