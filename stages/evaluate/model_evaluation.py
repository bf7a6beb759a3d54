"""Evaluate a loaded model: scored rows of answers, and the metrics over them."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from formats import params_schema
from formats.probe_file import MET, UNMET, Probe, classify_identity
from measures import metrics
from models.generation import Answer, decode_answer, roundtrip_text
from models.peak_memory import peak_memory_gib
from models.prompt import encode_sample, find_learnt
from models.row_losses import mean_row_divergences, mean_row_losses
from models.sample import Message, Sample
from stages.evaluate.answer_cache import AnswerCache, generate_missing_answers
from stages.evaluate.scores import describe_answer, matches_exactly

NEAR_LIMIT = 0.9  # share of a token budget from which a row counts as near the limit


@dataclass(frozen=True)
class EvalSet:
    """Samples and probes that every model is evaluated on.

    Attributes:
        task: test samples of the task, which the models answer.
        general: held-out general conversations, to measure forgetting.
        probes: every wording of every probe; none if the data have no probes.
        chosen_by: evaluation samples of the task, whose loss chooses among parameter sets; they are not answered.
        general_matches: for general samples that occur in the training rows, their index and the similarity.
    """

    task: Sequence[Sample]
    general: Sequence[Sample]
    probes: Sequence[Probe]
    chosen_by: Sequence[Sample] = ()
    general_matches: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class EvalResult:
    """Scored rows by file name (``test``, ``general``, ``probes``, ``sampled``), and the metrics over them."""

    rows: dict[str, list[dict]]
    metrics: dict


class ModelUnderTest:
    """A loaded model with its tokenizer, its answer cache and the evaluation's parameters."""

    def __init__(self, model, tokenizer, cache: AnswerCache, params: params_schema.Params):
        self.model, self.tokenizer, self.cache = model, tokenizer, cache
        self.budgets, self.params, self.learn = params.encode, params.evaluate, params.train.learn

    def generate(
        self, kind: str, conversations: Sequence[Sequence[Message]], batch_size: int, seed: int | None = None
    ) -> list[Answer]:
        """Answer every conversation in place of its last message, the reference answer.

        Args:
            kind: prefix of the answers' keys in the cache.
            conversations: each ends with a question and its reference answer.
            batch_size: conversations per batch.
            seed: of sampling, or None for greedy decoding.
        """
        questions = {f"{kind} {number}": messages[:-1] for number, messages in enumerate(conversations)}
        return generate_missing_answers(
            self.model,
            self.tokenizer,
            questions,
            self.cache,
            max_new_tokens=self.params.max_new_tokens,
            batch_size=batch_size,
            seed=seed,
        )

    def roundtrip_text(self, text: str) -> str:
        """Encode and decode a text, as the model's answers are decoded."""
        return roundtrip_text(self.tokenizer, text)

    def encode(self, samples: Sequence[Sample]) -> list[list[dict]]:
        """Return for each sample the token ids of ``prompt`` and ``answer`` for every learnt answer, as in training."""
        encoded = []
        for sample in samples:
            ends = [index + 1 for index in find_learnt(sample.messages, self.learn)]
            pairs = [encode_sample(self.tokenizer, sample.messages[:end]) for end in ends]
            encoded.append([{"prompt": prompt, "answer": answer} for prompt, answer in pairs])
        return encoded


def evaluate_model(model: ModelUnderTest, eval_set: EvalSet) -> EvalResult:
    """Generate and score all answers, and compute the metrics.

    Raises:
        UserError: no answer of this tokenizer can pass one of the probes.
    """
    probes = [probe.roundtrip_text(model.roundtrip_text) for probe in eval_set.probes]
    started = time.perf_counter()
    rows = {
        "test": evaluate_samples(model, "test", eval_set.task),
        "general": evaluate_samples(model, "general", eval_set.general, with_divergence=True),
        "probes": evaluate_probes(model, probes),
        "sampled": sample_probe_answers(model, [probe for probe in probes if probe.wording == 0]),
    }
    for index, similarity in eval_set.general_matches.items():
        rows["general"][index]["in_training"] = similarity
    seconds = time.perf_counter() - started
    all_metrics = {
        "metrics_version": metrics.METRICS_VERSION,
        "eval": measure_loss(model, eval_set.chosen_by),
        "test": metrics.summarize_samples(rows["test"]) | metrics.summarize_by_length(rows["test"]),
        "general": metrics.summarize_samples(rows["general"]),
        "probes": summarize_all_probe_answers(rows["probes"], rows["sampled"]),
        "generation": summarize_generation(
            model, [row for kind in ("test", "general", "probes") for row in rows[kind] if "answer" in row], seconds
        ),
    }
    return EvalResult(rows, all_metrics)


def summarize_all_probe_answers(greedy: Sequence[dict], sampled: Sequence[dict]) -> dict | None:
    """Return the metrics over greedy and sampled answers to the probes; None without probes."""
    probes = metrics.summarize_probes(greedy)
    return probes and probes | {"sampled": metrics.summarize_sampled(sampled)}


def summarize_generation(model: ModelUnderTest, rows: Sequence[dict], seconds: float) -> dict:
    """Return speed and memory of the evaluation.

    Args:
        model: after the evaluation.
        rows: with greedy answers.
        seconds: wall-clock time of the evaluation.
    """
    answer_tokens, answer_seconds = (sum(row[key] for row in rows) for key in ("tokens", "seconds"))
    return {
        "tokens_per_second": round(answer_tokens / max(answer_seconds, 1e-9), 2),
        "seconds_an_answer": round(answer_seconds / max(len(rows), 1), 4),
        "seconds": round(seconds, 2),
        "peak_memory_gib": round(peak_memory_gib(), 3),
        "model_gib": round(model.model.get_memory_footprint() / 2**30, 4),
    }


# Samples -------------------------------------------------------------------------------------------


def evaluate_samples(
    model: ModelUnderTest, kind: str, samples: Sequence[Sample], with_divergence: bool = False
) -> list[dict]:
    """Return a row per sample: the mean token loss of its learnt answers, and the scored answer in place of the last.

    A plain text is not answered; its row has the loss alone.

    Args:
        model: the model to evaluate.
        kind: prefix of the answers' keys in the cache.
        samples: the samples to answer.
        with_divergence: add the KL divergence from the base, if the model has one.
    """
    encoded, batch_size = model.encode(samples), model.params.batch_size
    flat = [ids for answers in encoded for ids in answers]
    losses = mean_by_sample(mean_row_losses(model.model, flat, batch_size), encoded)
    divergences = mean_row_divergences(model.model, flat, batch_size) if with_divergence else None
    divergences = None if divergences is None else mean_by_sample(divergences, encoded)
    rows = []
    for index, (sample, answers) in enumerate(zip(samples, encoded, strict=True)):
        row = {"id": sample.id, "loss": round(losses[index], 6)}
        if divergences is not None:
            row["divergence"] = round(divergences[index], 6)
        row["near_limit"] = any(_is_near_limit(model, ids) for ids in answers)
        rows.append(row | {"answer_tokens": sum(len(ids["answer"]) for ids in answers)})
    _add_answers(model, kind, samples, encoded, rows)
    return rows


def mean_by_sample(means: Sequence[float], encoded: Sequence[Sequence[dict]]) -> list[float]:
    """Return the mean over all answer tokens of each sample, from the means of its answers.

    Args:
        means: of the answers of all samples, in order.
        encoded: see :meth:`ModelUnderTest.encode`.
    """
    sample_means, start = [], 0
    for answers in encoded:
        tokens = [len(ids["answer"]) for ids in answers]
        part = means[start : start + len(tokens)]
        start += len(tokens)
        # A single mean is kept as it is, without rounding errors.
        is_single = len(part) == 1
        sample_means.append(part[0] if is_single else float(np.average(part, weights=tokens)))
    return sample_means


def _add_answers(
    model: ModelUnderTest, kind: str, samples: Sequence[Sample], encoded: Sequence[Sequence[dict]], rows: list[dict]
) -> None:
    """Answer every sample but plain texts in place of the last learnt answer; add answers and scores to the rows."""
    conversations = [sample.messages[: find_learnt(sample.messages, model.learn)[-1] + 1] for sample in samples]
    asked = [index for index, messages in enumerate(conversations) if len(messages) > 1]
    answers = model.generate(kind, [conversations[index] for index in asked], model.params.batch_size)
    for index, answer in zip(asked, answers, strict=True):
        reference = decode_answer(model.tokenizer, encoded[index][-1]["answer"][:-1])  # without <eop>
        rows[index] |= _answer_row(samples[index].id, conversations[index], answer)
        rows[index] |= describe_answer(answer.text, reference, conversations[index][:-1])
    for row, messages in zip(rows, conversations, strict=True):
        if len(messages) == 1:
            row |= {"messages": [], "reference": messages[0].content}


def measure_loss(model: ModelUnderTest, samples: Sequence[Sample]) -> dict:
    """Return the number of samples and the mean loss over their learnt answers' tokens, None without samples."""
    if not samples:
        return {"rows": 0, "loss": None}
    encoded = [ids for answers in model.encode(samples) for ids in answers]
    losses = mean_row_losses(model.model, encoded, model.params.batch_size)
    rows = [{"loss": loss, "answer_tokens": len(ids["answer"])} for loss, ids in zip(losses, encoded, strict=True)]
    return {"rows": len(samples), "loss": round(metrics.mean_over_tokens(rows, "loss"), 6)}


def _is_near_limit(model: ModelUnderTest, ids: dict) -> bool:
    budgets = model.budgets
    return (
        len(ids["prompt"]) >= NEAR_LIMIT * budgets.max_prompt_tokens
        or len(ids["answer"]) >= NEAR_LIMIT * budgets.max_answer_tokens
    )


def _answer_row(identifier: str, messages: Sequence[Message], answer: Answer) -> dict:
    return {
        "id": identifier,
        "messages": [message.to_json() for message in messages[:-1]],
        "reference": messages[-1].content,
        "answer": answer.text,
        "tokens": answer.tokens,
        "seconds": round(answer.seconds, 4),
    }


# Probes --------------------------------------------------------------------------------------------


def evaluate_probes(model: ModelUnderTest, probes: Sequence[Probe]) -> list[dict]:
    """Return a row per wording of each probe with the greedy answer and its verdict."""
    # Batches of one, so that the time of each answer is measured by itself.
    answers = model.generate("probe", [probe.messages for probe in probes], 1)
    return [judge_answer(model, probe, answer) for probe, answer in zip(probes, answers, strict=True)]


def sample_probe_answers(model: ModelUnderTest, probes: Sequence[Probe]) -> list[dict]:
    """Return a row per seed and probe with a sampled answer and its verdict."""
    rows = []
    for seed in range(model.params.samples):
        answers = model.generate(f"seed {seed}", [probe.messages for probe in probes], 1, seed)
        rows += [
            judge_answer(model, probe, answer) | {"seed": seed} for probe, answer in zip(probes, answers, strict=True)
        ]
    return rows


def judge_answer(model: ModelUnderTest, probe: Probe, answer: Answer) -> dict:
    """Return a row with the verdict on an answer.

    Args:
        model: the model that gave the answer.
        probe: with expectations after :meth:`Probe.roundtrip_text`.
        answer: to the probe.
    """
    is_met = probe.expectation.is_met_by(answer.text)
    row = _answer_row(probe.id, probe.messages, answer) | {
        "wording": probe.wording,
        "seen": probe.is_seen,
        "met": is_met,
        "verdict": MET if is_met else UNMET,
        "exact": matches_exactly(answer.text, model.roundtrip_text(probe.messages[-1].content)),
    }
    return row if probe.names is None else row | {"identity": classify_identity(answer.text, *probe.names)}
