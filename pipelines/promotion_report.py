"""The decision of stage promote as text: one definition for the terminal, reports, commits and Prefect's UI."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from texts import LANGUAGES, translatable, translate

# By condition: its label, and the values that were compared. The values are those of stages.promote.promotion_rules.
_TEXTS = {
    "gain": (
        translatable("Gain"),
        translatable(
            "{metric}: {gain}, {confidence} interval [{low}, {high}]; more than {needed} required, which chance in "
            "rows, in seeds (spread {seed_spread}) and in the choice of the best of {candidates} does not explain"
        ),
    ),
    "answers": (
        translatable("Answers"),
        translatable(
            "ROUGE-L of the test answers: {gain}, {confidence} interval [{low}, {high}]; must not be proven worse"
        ),
    ),
    "forgetting": (
        translatable("Forgetting"),
        translatable("general loss {loss}, {reference}: {before}; rise of at most {allowed} allowed"),
    ),
    "general": (
        translatable("General answers"),
        translatable("general ROUGE-L {rouge}, {reference}: {before}; {kept} kept, at least {allowed} required"),
    ),
    "empty_rate": (translatable("Empty answers"), translatable("{rate} [{low}, {high}]; at most {allowed} allowed")),
    "refusals": (translatable("Refusals"), translatable("{rate} [{low}, {high}]; at most {allowed} allowed")),
    "repetition": (translatable("Repetition"), translatable("{rate}; at most {allowed} allowed")),
    "probes": (
        translatable("Probes met"),
        translatable("{after} [{low}, {high}], {reference}: {before}; fall of at most {allowed} allowed"),
    ),
    "latency": (
        translatable("Latency"),
        translatable("{after} times that of the base, {reference}: {before}; factor of at most {allowed} allowed"),
    ),
}
_TOO_FEW = {  # by condition; the condition on the probes is met without enough of them
    "gain": translatable("; {rows} rows are too few for an interval, at least {min_rows} needed"),
    "forgetting": translatable("; {rows} general rows are too few to judge, at least {min_rows} needed"),
    "general": translatable("; {rows} general rows are too few to judge, at least {min_rows} needed"),
    "probes": translatable("; {rows} probes are too few to judge, at least {min_rows} needed, so they do not count"),
}
_NUMBER_FORMATS = {  # by condition and value
    "gain": {"gain": "+.4f", "low": "+.4f", "high": "+.4f", "needed": ".4f", "seed_spread": ".1%"},
    "answers": {"gain": "+.2f", "low": "+.2f", "high": "+.2f"},
    "forgetting": {"loss": ".4f", "before": ".4f"},
    "general": {"rouge": ".2f", "before": ".2f", "kept": ".0%", "allowed": ".0%"},
    "empty_rate": {"rate": ".2%", "low": ".2%", "high": ".2%", "allowed": ".2%"},
    "refusals": {"rate": ".2%", "low": ".2%", "high": ".2%", "allowed": ".2%"},
    "repetition": {"rate": ".0%", "allowed": ".0%"},
    "probes": {"before": ".0%", "after": ".0%", "low": ".0%", "high": ".0%", "allowed": ".0%"},
    "latency": {"before": ".2f", "after": ".2f"},
}


@dataclass(frozen=True)
class Condition:
    """A condition of promotion.

    Attributes:
        name: a key of the texts above.
        is_met: whether the challenger meets it.
        values: what was compared, by name; None for a number that is not finite.
    """

    name: str
    is_met: bool
    values: Mapping[str, float | str | None]

    @classmethod
    def from_json(cls, entry: Mapping) -> "Condition":
        """Return a condition of ``reports/promotion.json``."""
        return cls(entry["condition"], entry["met"], entry["values"])

    def label(self, language: str | None = None) -> str:
        """Return the name of the condition in a language; None for the terminal's."""
        return translate(_TEXTS[self.name][0], language)

    def evidence(self, language: str | None = None) -> str:
        """Return the compared values as text in a language; None for the terminal's."""
        values = {name: self._format(name, value) for name, value in self.values.items()}
        text = translate(_TEXTS[self.name][1], language, **values)
        if self.values.get("rows", 0) < self.values.get("min_rows", 0):
            text += translate(_TOO_FEW[self.name], language, **values)
        return text

    def _format(self, name: str, value: float | str | None) -> str:
        if name == "confidence":
            return f"{100 * value:.4g} %"
        return "–" if value is None else format(value, _NUMBER_FORMATS[self.name].get(name, ""))


def render_title(challenger: str, is_promoted: bool, language: str | None = None) -> str:
    """Return the decision in one sentence."""
    message = translatable("{name}: promoted") if is_promoted else translatable("{name}: not promoted")
    return translate(message, language, name=challenger)


def render_conditions(conditions: Sequence[Condition], language: str | None = None) -> str:
    """Return a Markdown table of all conditions."""
    header = (translate("Condition", language), translate("Measured", language))
    rows = [
        f"| {'✓' if condition.is_met else '✗'} {condition.label(language)} | {condition.evidence(language)} |"
        for condition in conditions
    ]
    return "\n".join(["| {} | {} |".format(*header), "|---|---|", *rows])


def _render_start(started_from: str | None, language: str) -> list[str]:
    """Return a sentence about the adapters that the challenger was started from, none for new weights."""
    if not started_from:
        return []
    return [translate("The challenger started from: {adapters}.", language, adapters=started_from)]


def render_report(decision: Mapping) -> str:
    """Return the report of a decision as Markdown, with a section for each language.

    Args:
        decision: content of ``reports/promotion.json``.
    """
    conditions = [Condition.from_json(entry) for entry in decision["conditions"]]
    names = {"challenger": decision["challenger"], "champion": decision["champion"]}
    sections = [
        "\n\n".join(
            [
                f"# {render_title(decision['challenger'], decision['promote'], language)}",
                translate("Challenger: {challenger}. Champion: {champion}.", language, **names),
                *_render_start(decision.get("started_from"), language),
                render_conditions(conditions, language),
            ]
        )
        for language in LANGUAGES
    ]
    return "\n\n".join(sections) + "\n"
