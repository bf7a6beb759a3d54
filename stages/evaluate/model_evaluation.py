"""From a loaded model to rows of answers with their scores, and the figures over them."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from formats import params_schema
from measures import metrics
from models.generation import Answer, decode_answer, roundtrip_text
from models.prompt import encode_sample
from models.sample import Message, Sample
from models.training import peak_memory_gib
from stages.evaluate.answer_cache import Kept, ask
from stages.evaluate.probes import MET, UNMET, Probe, identity_of
from stages.evaluate.row_losses import row_divergences, row_losses
from stages.evaluate.scores import describe, matches_exactly

NEAR = 0.9  # share of a token budget from which a row counts as near its limit


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
    metrics: dict


class Model:
    """A loaded model with all that is needed to ask it."""

    def __init__(self, model, tokenizer, kept: Kept, knobs: params_schema.Params):
        self.model, self.tokenizer, self.kept = model, tokenizer, kept
        self.budgets, self.knobs = knobs.encode, knobs.evaluate

    def answers(
        self, kind: str, conversations: Sequence[Sequence[Message]], batch_size: int, seed: int | None = None
    ) -> list[Answer]:
        """Answers to conversations but for their last message, which is the one taught."""
        asked = {f"{kind} {number}": messages[:-1] for number, messages in enumerate(conversations)}
        how = {"max_new_tokens": self.knobs.max_new_tokens, "batch_size": batch_size, "seed": seed}
        return ask(self.model, self.tokenizer, asked, self.kept, **how)

    def roundtrip_text(self, text: str) -> str:
        """A text as an answer of its ids reads."""
        return roundtrip_text(self.tokenizer, text)

    def encode(self, samples: Sequence[Sample]) -> list[dict]:
        pairs = [encode_sample(self.tokenizer, sample.messages) for sample in samples]
        return [{"prompt": prompt, "answer": answer} for prompt, answer in pairs]


def measure(model: Model, questions: Questions) -> Measured:
    """Ask everything and judge the answers."""
    asked_probes = [probe.roundtrip_text(model.roundtrip_text) for probe in questions.probes]
    started = time.perf_counter()
    task = ask_samples(model, "eval", questions.task)
    general = ask_samples(model, "general", questions.general, divergence=True)
    probes = ask_probes(model, asked_probes)
    sampled = sampled_probes(model, [probe for probe in asked_probes if probe.wording == 0])
    every = [*task, *general, *probes]
    tokens, seconds = (sum(row[key] for row in every) for key in ("tokens", "seconds"))
    found = {
        "metrics_version": metrics.METRICS_VERSION,
        "eval": metrics.of_samples(task) | metrics.of_lengths(task),
        "general": metrics.of_samples(general),
        "probes": metrics.of_probes(probes) | {"sampled": metrics.variety(sampled)},
        "generation": {
            "tokens_per_second": round(tokens / max(seconds, 1e-9), 2),
            "seconds_an_answer": round(seconds / len(every), 4),
            "seconds": round(time.perf_counter() - started, 2),
            "peak_memory_gib": round(peak_memory_gib(), 3),
            "model_gib": round(model.model.get_memory_footprint() / 2**30, 4),
        },
    }
    return Measured({"eval": task, "general": general, "probes": probes, "sampled": sampled}, found)


def ask_samples(model: Model, kind: str, samples: Sequence[Sample], divergence: bool = False) -> list[dict]:
    """One row for each sample; with its divergence from the base, where there is one."""
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
        reference = decode_answer(model.tokenizer, row["answer"][:-1])  # without <eop>
        rows.append(judged | describe(answer.text, reference))
    return rows


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


def ask_probes(model: Model, probes: Sequence[Probe]) -> list[dict]:
    """One row for each wording of each probe."""
    # One at a time, so that each answer has a time of its own.
    answers = model.answers("probe", [probe.messages for probe in probes], 1)
    return [judge(model, probe, answer) for probe, answer in zip(probes, answers, strict=True)]


def sampled_probes(model: Model, probes: Sequence[Probe]) -> list[dict]:
    """One row for each seed and probe."""
    rows = []
    for seed in range(model.knobs.samples):
        answers = model.answers(f"seed {seed}", [probe.messages for probe in probes], 1, seed)
        rows += [judge(model, probe, answer) | {"seed": seed} for probe, answer in zip(probes, answers, strict=True)]
    return rows


def judge(model: Model, probe: Probe, answer: Answer) -> dict:
    """A row with the verdict on an answer to a probe, whose expectation has gone through the model's tokenizer."""
    met = probe.expectation.met(answer.text)
    judged = _row(probe.id, probe.messages, answer) | {
        "wording": probe.wording,
        "met": met,
        "verdict": MET if met else UNMET,
        "exact": matches_exactly(answer.text, model.roundtrip_text(probe.messages[-1].content)),
    }
    return judged if probe.names is None else judged | {"identity": identity_of(answer.text, *probe.names)}
