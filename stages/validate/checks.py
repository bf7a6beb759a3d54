"""The checks: names, features, limits and severities, in the order of reports."""

from dataclasses import asdict, dataclass
from typing import Literal

from formats.params_schema import Params
from texts import in_all_languages, translatable, translate


@dataclass(frozen=True)
class Check:
    """A named check of one feature.

    Attributes:
        name: in params.yaml, quarantine and reports.
        column: the feature, a column of a table with a row per sample, or a single row for all data.
        group: title of the section of reports.
        scope: ``row`` for a feature of one row, ``review`` for a decision of a person, ``cross_row`` for a feature that
            depends on all other rows, ``data`` for one of all data.
        severity: ``warn``, ``quarantine`` or ``block``.
        maximum, minimum: limits of the feature; None and None if the feature must be absent.
        fault: description of what fails the check, in the catalogue of texts.
    """

    name: str
    column: str
    group: str
    scope: Literal["row", "review", "cross_row", "data"]
    severity: str
    maximum: float | None
    minimum: float | None
    fault: str

    @property
    def limit(self) -> float | None:
        """The maximum or minimum; None if the feature must be absent."""
        return self.maximum if self.minimum is None else self.minimum

    def describe(self, language: str) -> str:
        """Return name, severity, fault and limit of the check as one line."""
        if self.limit is None:
            message = translatable("{check} ({severity}): {fault}")
        elif self.minimum is None:
            message = translatable("{check} ({severity}): {fault}, maximum {limit}")
        else:
            message = translatable("{check} ({severity}): {fault}, minimum {limit}")
        severity, fault = (translate(text, language) for text in (SEVERITIES[self.severity], self.fault))
        return translate(message, language, check=self.name, severity=severity, fault=fault, limit=self.limit)

    def to_json(self) -> dict:
        """Return the check as part of reports/data_checks.json."""
        fault = in_all_languages(self.fault)
        return {"check": self.name, "severity": self.severity, "meaning": fault, "limit": self.limit}

    def to_receipt(self) -> dict:
        """Return the check as part of the receipt, without texts: a new wording is no reason to retrain."""
        fields = asdict(self)
        return {name: fields[name] for name in ("name", "column", "scope", "severity", "maximum", "minimum")}


SEVERITIES = {"warn": translatable("warn"), "quarantine": translatable("quarantine"), "block": translatable("block")}
_ROW_CHECKS = {
    translatable("Structure"): {
        "parseable": translatable("row that is not JSON in UTF-8, or too long"),
        "known_format": translatable("row in none of the accepted formats"),
        "roles_alternate": translatable("roles in the wrong order"),
        "nothing_blank": translatable("empty or blank text"),
    },
    translatable("Characters"): {
        "clean_characters": translatable("replacement, control or surrogate characters"),
        "no_mojibake": translatable("text decoded in the wrong encoding (mojibake)"),
        "no_control_tokens": translatable("control token of the tokenizer in a text"),
        "mostly_text": translatable("mostly symbols instead of text"),
        "known_language": translatable("text in another language"),
    },
    translatable("Length"): {
        "prompt_fits": translatable("prompt over the token budget"),
        "answer_fits": translatable("answer over the token budget"),
        "answer_whole": translatable("truncated answer"),
        "history_whole": translatable("oldest turns cut to fit the token budget"),
    },
    translatable("Artifacts"): {
        "no_placeholders": translatable("unfilled placeholder"),
        "no_html": translatable("HTML tags or entities in a text"),
        "no_role_marks": translatable("role marks or a prompt template in a text"),
        "no_boilerplate": translatable("refusal, or 'as an AI language model'"),
        "not_repetitive": translatable("answer that repeats itself"),
        "right_name": translatable("answer that claims to be another assistant"),
        "no_null_marks": translatable("marker of a missing value, such as nan, instead of a text"),
        "no_escapes": translatable("literal escape sequences in a text"),
    },
    translatable("Privacy"): {
        "no_personal_data": translatable("personal data"),
        "no_secrets": translatable("key, token or password"),
    },
}
# Not in params.yaml, because a decision to drop a row always quarantines it.
_REVIEW_CHECKS = {translatable("Review"): {"review": translatable("row dropped in a review")}}
_CROSS_ROW_CHECKS = {
    translatable("Duplicates and split"): {
        "unique": translatable("copy of an earlier row"),
        "no_near_duplicate": translatable("near-duplicate of an earlier row"),
        "one_answer": translatable("another answer to the question of an earlier row"),
        "no_leakage": translatable("row related to rows of two splits (leakage)"),
    }
}
_DATASET_CHECKS = {
    translatable("Data set"): {
        "enough_rows": translatable("too few accepted rows"),
        "few_quarantined": translatable("too large a share of quarantined rows"),
        "few_cut": translatable("too large a share of rows with cut turns"),
        "no_probe_in_training": translatable("probe questions that occur in the training rows"),
        "diverse": translatable("rows too similar to each other"),
        "steady_lengths": translatable("row lengths that drifted from the last accepted data"),
    }
}
_CHECKS = {"row": _ROW_CHECKS, "review": _REVIEW_CHECKS, "cross_row": _CROSS_ROW_CHECKS, "data": _DATASET_CHECKS}


def build_checks(params: Params) -> list[Check]:
    """Return all checks with their severities and limits in params.yaml, in the order of reports."""
    maxima, minima = _limits(params)
    checks = []
    for scope, groups in _CHECKS.items():
        for group, faults in groups.items():
            for name, fault in faults.items():
                column, maximum = maxima.get(name, (None, None))
                column, minimum = minima.get(name, (column or f"{name}_fault", None))
                severity = "quarantine" if scope == "review" else getattr(params.validate_.checks, name).severity
                checks.append(Check(name, column, group, scope, severity, maximum, minimum, fault))
    return checks


def _limits(params: Params) -> tuple[dict, dict]:
    """Return column and maximum, and column and minimum, of the checks of numeric features, by name."""
    limits, budget = params.validate_.checks, params.encode
    maxima = {
        "prompt_fits": ("prompt_tokens", budget.max_prompt_tokens),
        "answer_fits": ("answer_tokens", budget.max_answer_tokens),
        "history_whole": ("turns_cut", 0),
        "nothing_blank": ("blank_texts", 0),
        "not_repetitive": ("repetition", limits.not_repetitive.limit),
        "mostly_text": ("symbol_share", limits.mostly_text.limit),
        "known_language": ("other_language_share", limits.known_language.limit),
        "few_quarantined": ("quarantined_share", limits.few_quarantined.limit),
        "few_cut": ("cut_share", limits.few_cut.limit),
        "no_probe_in_training": ("probes_in_training", limits.no_probe_in_training.limit),
        "steady_lengths": ("length_drift", limits.steady_lengths.limit),
    }
    minima = {"enough_rows": ("good_rows", limits.enough_rows.limit), "diverse": ("diversity", limits.diverse.limit)}
    return maxima, minima
