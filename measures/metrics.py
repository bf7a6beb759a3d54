"""Metrics of a model, aggregated from its scored rows.

Metrics have a version; models that were scored by different versions are not compared.

A row of samples has ``loss`` (mean over the ``answer_tokens`` of its learnt answers), unless it is a plain text the
scores of :mod:`stages.evaluate.scores`, and ``divergence`` if the model has a base to compare with. A row of probes has
``met``, ``exact``, ``seen`` (whether its wording occurs in the training rows), and ``identity`` if the question is
about the assistant's name.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean

from models.errors import UserError

METRICS_FILE = "figures.json"  # all metrics of a model, beside its scored rows
# Raise this when the same answers get other scores. Version 2: references pass through the tokenizer, both texts are
# in NFKC, and a system message does not count as a turn of a probe. Metrics without a version have version 1.
# Version 3: scores are those of the test rows, of which the loss of the evaluation rows is kept apart; refusals count.
METRICS_VERSION = 3
CONFIDENCE_LEVEL = 0.95  # here rather than in confidence_intervals, a change of which must not repeat the evaluation
SCORES = ("rouge-1", "rouge-2", "rouge-l", "bleu-4", "chrf")
PROPERTIES = {
    "exact": "exact_match",
    "empty": "empty_rate",
    "refusal": "refusal_rate",
    "repetition": "repetition",
    "length_ratio": "length_ratio",
}


# Versions ------------------------------------------------------------------------------------------


def require_same_version(metrics_by_model: Mapping[str, dict]) -> None:
    """Check that the metrics of all models have the same version.

    Raises:
        UserError: the versions differ, so the scores are not comparable.
    """
    versions = {name: metrics.get("metrics_version", 1) for name, metrics in metrics_by_model.items()}
    if len(set(versions.values())) > 1:
        listed = ", ".join(f"{name} has version {version}" for name, version in versions.items())
        raise UserError(
            f"The models' metrics are not comparable, because their versions differ: {listed}. "
            "Run `dvc repro -f` with the current code to evaluate all of them again."
        )


# Samples -------------------------------------------------------------------------------------------


def rows_with(metric: str, rows: Sequence[dict]) -> list[dict]:
    """Return the rows that have a metric: a plain text has a loss, but no scores of an answer."""
    return [row for row in rows if metric in row]


def answered_rows(rows: Sequence[dict]) -> list[dict]:
    """Return the rows with scores of an answer."""
    return rows_with("rouge-l", rows)


def summarize_samples(rows: Sequence[dict]) -> dict:
    """Return token-level loss, perplexity and divergence, and the mean of every score over the answered rows.

    A score is None if no row was answered.
    """
    loss = mean_over_tokens(rows, "loss")
    # exp(700) is the largest power that fits into a double.
    metrics = {"rows": len(rows), "loss": round(loss, 6), "perplexity": round(math.exp(min(loss, 700)), 4)}
    if "divergence" in rows[0]:
        metrics["divergence"] = round(mean_over_tokens(rows, "divergence"), 6)
    names = {name: name for name in SCORES} | PROPERTIES
    answered = answered_rows(rows)
    scores = {name: round(fmean(row[key] for row in answered), 4) if answered else None for key, name in names.items()}
    return metrics | {"answered": len(answered)} | scores


def mean_over_tokens(rows: Sequence[dict], key: str) -> float:
    """Return the mean over the answer tokens of all rows, from the means of the rows."""
    return sum(row[key] * row["answer_tokens"] for row in rows) / sum(row["answer_tokens"] for row in rows)


def summarize_by_length(rows: Sequence[dict]) -> dict:
    """Return token-level loss and ROUGE-L of rows near the length limit and of the others, to show truncation."""
    near = [row for row in rows if row["near_limit"]]
    far = [row for row in rows if not row["near_limit"]]
    return {name: _loss_and_rouge(part) for name, part in (("near_limit", near), ("far_from_limit", far))}


def _loss_and_rouge(rows: Sequence[dict]) -> dict:
    if not rows:
        return {"rows": 0, "loss": None, "rouge-l": None}
    answered = answered_rows(rows)
    rouge = round(fmean(row["rouge-l"] for row in answered), 4) if answered else None
    return {"rows": len(rows), "loss": round(mean_over_tokens(rows, "loss"), 6), "rouge-l": rouge}


# Probes --------------------------------------------------------------------------------------------


def summarize_probes(rows: Sequence[dict]) -> dict | None:
    """Return pass rates of probes by kind, with confidence intervals, and identity shares; None without probes.

    Kinds: single-turn and multi-turn; wordings that occur in the training rows (seen), and all others (unseen).
    """
    if not rows:
        return None
    parts = {
        "single_turn": [row for row in rows if not has_history(row["messages"])],
        "multi_turn": [row for row in rows if has_history(row["messages"])],
        "seen": [row for row in rows if row.get("seen") is True],  # rows of older versions have no such key
        "unseen": [row for row in rows if row.get("seen") is False],
        "all": rows,
    }
    rates = {name: pass_rate(sum(row["met"] for row in part), len(part)) for name, part in parts.items()}
    exact = pass_rate(sum(row["exact"] for row in rows), len(rows))
    return {
        "exact_match": exact and exact["rate"],
        "met_single_turn": rates["single_turn"] and rates["single_turn"]["rate"],
        "met_multi_turn": rates["multi_turn"] and rates["multi_turn"]["rate"],
        "rates": rates,
        "drift": identity_shares([row["identity"] for row in rows if "identity" in row]),
    }


def decisive_probe_rate(metrics: Mapping) -> dict | None:
    """Return the pass rate that models are judged by: of the unseen wordings, of all if every wording is seen.

    Args:
        metrics: of a model.

    Returns:
        A result of :func:`pass_rate`; None without probes.
    """
    rates = (metrics.get("probes") or {}).get("rates", {})
    return rates.get("unseen") or rates.get("all")


def has_history(messages: Sequence[dict]) -> bool:
    """Return whether a row's question follows earlier turns; a system message is not a turn."""
    return sum(message.get("role") != "system" for message in messages) > 1


def summarize_sampled(rows: Sequence[dict]) -> dict | None:
    """Return the pass rate of sampled answers, and how many repeat none of the same probe's earlier answers.

    Returns:
        ``met``, a share of all answers; ``distinct``, a share of all answers but the first of each probe, or None
        with one answer per probe. None without rows.
    """
    if not rows:
        return None
    answers_by_probe: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        answers_by_probe[row["id"]].append(row["answer"])
    distinct = sum(len(set(answers)) - 1 for answers in answers_by_probe.values())
    repeats = len(rows) - len(answers_by_probe)
    return {
        "met": round(sum(row["met"] for row in rows) / len(rows), 4),
        "distinct": round(distinct / repeats, 4) if repeats else None,
    }


def pass_rate(passed: int, total: int) -> dict | None:
    """Return a rate with its 95 % Wilson score interval (Wilson 1927); None if ``total`` is 0."""
    if total == 0:
        return None
    from scipy.stats import binomtest

    interval = binomtest(passed, total).proportion_ci(confidence_level=CONFIDENCE_LEVEL, method="wilson")
    low, high = (round(float(bound), 4) for bound in interval)
    return {"rate": round(passed / total, 4), "low": low, "high": high, "of": total}


def identity_shares(identities: Sequence[str]) -> dict | None:
    """Return the shares of identity questions answered with the new name, the old one, both (mixed), or none."""
    if not identities:
        return None
    counts = Counter(identities)
    return {kind: round(counts[kind] / len(identities), 4) for kind in ("new", "old", "mixed", "none")}


# DVC metrics ---------------------------------------------------------------------------------------

# Name, path in the metrics file, decimals. Names are short, and there are eight of them: `dvc metrics show` makes one
# column of each, and is 120 characters wide with the demo's files. A header takes two characters more than its name.
DVC_METRICS = (
    ("loss", ("eval", "loss"), 6),  # nats per token, as exact as the loss of a row: sweeps choose by it
    ("test", ("test", "loss"), 6),  # nats per token of the rows that choose nothing
    ("rouge-l", ("test", "rouge-l"), 2),  # 0 to 100
    ("exact", ("test", "exact_match"), 4),  # share of test rows
    ("probes", ("decisive_probe_rate", "rate"), 4),  # share of the probes' unseen wordings that passed
    ("general", ("general", "loss"), 4),  # nats per token on general conversations
    ("tok/s", ("training", "tokens_per_second"), 0),  # of training
    ("gib", ("training", "peak_memory_gib"), 2),  # peak memory of training
)


def select_dvc_metrics(metrics: dict) -> dict[str, float]:
    """Return the metrics for `dvc metrics show`, `dvc metrics diff` and `dvc exp show`, without missing ones."""
    metrics = metrics | {"decisive_probe_rate": decisive_probe_rate(metrics)}
    selected = {}
    for name, path, decimals in DVC_METRICS:
        value = metrics
        for key in path:
            value = (value or {}).get(key)
        if value is not None:
            selected[name] = round(value, decimals) if decimals else round(value)
    return selected
