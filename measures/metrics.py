"""Figures over a model's rows: those of stage evaluate, and once more those of a part of the rows.

They carry the version of the metrics. Figures of different versions are refused wherever models are compared.

A row of samples has ``loss`` (a mean over its ``answer_tokens``), scores, properties, and ``divergence`` where the
model has a base below it; a row of probes has ``met``, ``exact``, and ``identity`` where it was asked.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean

from models.errors import UserError

FILE = "figures.json"  # beside a model's rows
# Raised whenever the same answers give other scores. 2: references go through the tokenizer, NFKC on both sides, and a
# system message is no turn of a probe. Figures without a version are of version 1.
METRICS_VERSION = 2
SCORES = ("rouge-1", "rouge-2", "rouge-l", "bleu-4", "chrf")
PROPERTIES = {"exact": "exact_match", "empty": "empty_rate", "repetition": "repetition", "length_ratio": "length_ratio"}


# Versions ------------------------------------------------------------------------------------------


def refuse_other_versions(figures_by_name: Mapping[str, dict]) -> None:
    """Check that the figures of all models have one metrics version.

    Raises:
        UserError: they have not, so that their scores do not compare.
    """
    versions = {name: figures.get("metrics_version", 1) for name, figures in figures_by_name.items()}
    if len(set(versions.values())) > 1:
        listed = ", ".join(f"{name} by version {version}" for name, version in versions.items())
        raise UserError(
            f"The models were scored by different versions of the metrics ({listed}), so their scores do not compare; "
            "run `dvc repro -f` with the present code to evaluate them again."
        )


# Samples -------------------------------------------------------------------------------------------


def of_samples(rows: Sequence[dict]) -> dict:
    """Loss and perplexity over all tokens, and the mean of everything else over rows."""
    loss = token_mean(rows, "loss")
    figures = {"rows": len(rows), "loss": round(loss, 6), "perplexity": round(math.exp(min(loss, 700)), 4)}
    if "divergence" in rows[0]:
        figures["divergence"] = round(token_mean(rows, "divergence"), 6)
    names = {name: name for name in SCORES} | PROPERTIES
    return figures | {label: round(fmean(row[name] for row in rows), 4) for name, label in names.items()}


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


# Probes --------------------------------------------------------------------------------------------


def of_probes(judged: Sequence[dict]) -> dict:
    """Rates of probes met with their intervals, single-turn and multi-turn, and the drift of identity."""
    single = [row for row in judged if not has_history(row["messages"])]
    multi = [row for row in judged if has_history(row["messages"])]
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


def has_history(asked: Sequence[dict]) -> bool:
    """Whether other turns precede the question of a row; a system message is no turn."""
    return sum(message.get("role") != "system" for message in asked) > 1


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


def rate(met: int, of: int) -> dict | None:
    """A rate with Wilson's interval of 95 % (Wilson 1927); None of nothing."""
    if of == 0:
        return None
    from scipy.stats import binomtest

    interval = binomtest(met, of).proportion_ci(confidence_level=0.95, method="wilson")
    low, high = (round(float(each), 4) for each in interval)
    return {"rate": round(met / of, 4), "low": low, "high": high, "of": of}


def drift(identities: Sequence[str]) -> dict | None:
    """Shares of identity questions that were answered with the new name, the old one, both, or none."""
    if not identities:
        return None
    counts = Counter(identities)
    return {kind: round(counts[kind] / len(identities), 4) for kind in ("new", "old", "mixed", "none")}


# The short form ------------------------------------------------------------------------------------

HEADLINES = {
    "metrics_version": ("metrics_version",),
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
