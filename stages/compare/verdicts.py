"""The verdict on each adapter in one sentence, and the three numbers behind it; the comparison opens with them."""

from collections.abc import Sequence
from dataclasses import dataclass

from measures.confidence_intervals import MIN_ROWS, min_rows
from measures.metrics import answered_rows
from stages.compare.evaluated_models import EvaluatedModel
from stages.compare.paired_differences import PAIRED_METRICS, PairedDifference
from texts import translatable, translate

NOTE = translatable(
    "A verdict holds for this data and these rows; promotion also asks whether another seed would change it."
)
FORGETTING_SHARE = 0.95  # of the general ROUGE-L; below, the sentence says that the adapter has forgotten

_TASK = {
    "better": translatable("{adapter} is better than {reference} on the test rows"),
    "worse": translatable("{adapter} is worse than {reference} on the test rows"),
    "contradicted": translatable(
        "{adapter} predicts the test rows better than {reference} (loss), but its own answers are worse (ROUGE-L)"
    ),
    "unproven": translatable("{adapter} is not proven better than {reference} on the test rows"),
    "too few": translatable("{adapter} cannot be told from {reference}: {rows} rows are too few, {min_rows} needed"),
}
_GENERAL = {
    "kept": translatable("keeps {kept} of its answers to general conversations (ROUGE-L)"),
    "forgotten": translatable("has forgotten {lost} of its answers to general conversations (ROUGE-L)"),
    "unknown": translatable("was not measured on enough general conversations"),
}
_PASSED = {
    "probes": translatable("passes {passed} of the probes"),
    "exact": translatable("answers {passed} of the test rows exactly"),
    "perplexity": translatable("has a perplexity of {passed} on the test rows"),
}
_SENTENCE = translatable("{task}; it {general}, and {passed}.")
_LABELS = {
    "gain": translatable("Gain in test loss, with its interval"),
    "kept": translatable("General ROUGE-L kept"),
    "probes": translatable("Probes met"),
    "exact": translatable("Exact matches"),
    "perplexity": translatable("Perplexity"),
}


@dataclass(frozen=True)
class Verdict:
    """The verdict on an adapter.

    Attributes:
        difference: paired difference of the test loss from the reference's.
        answers: the same of the test answers' ROUGE-L; None if the test rows are plain texts.
        kept: share of the reference's general ROUGE-L, at most 1; None with too few general rows, or if the reference
            has none.
        passed_kind: ``probes``; ``exact`` without probes; ``perplexity`` if the test rows are plain texts.
        passed: pass rate of the probes, share of test rows that are answered exactly, or perplexity of the test rows.
    """

    difference: PairedDifference
    answers: PairedDifference | None
    kept: float | None
    passed_kind: str
    passed: float

    @property
    def outcome(self) -> str:
        """``better``, ``contradicted`` (a lower loss, but worse answers), ``worse``, ``unproven`` or ``too few``."""
        if not self.difference.is_bounded:
            return "too few"
        if not self.difference.is_significant:
            return "unproven"
        if self.difference.gain < 0:
            return "worse"
        is_worse = self.answers is not None and self.answers.is_significant and self.answers.gain < 0
        return "contradicted" if is_worse else "better"

    @property
    def tone(self) -> str:
        """``good``, ``bad``, ``mixed`` (better in part, or forgetful) or ``even``: the colour on the page."""
        if self.outcome == "contradicted":
            return "mixed"
        if self.outcome == "better":
            return "good" if self.kept is None or self.kept >= FORGETTING_SHARE else "mixed"
        return "bad" if self.outcome == "worse" else "even"

    def sentence(self, language: str) -> str:
        """Return the verdict as one sentence in a language."""
        difference = self.difference
        rows = difference.wins + difference.ties + difference.losses
        names = {"adapter": difference.after, "reference": difference.before}
        task = translate(_TASK[self.outcome], language, **names, rows=rows, min_rows=min_rows(difference.confidence))
        passed = translate(_PASSED[self.passed_kind], language, passed=self._passed_text)
        return translate(_SENTENCE, language, task=task, general=self._general(language), passed=passed)

    @property
    def _passed_text(self) -> str:
        return f"{self.passed:,.1f}" if self.passed_kind == "perplexity" else f"{self.passed:.0%}"

    def _general(self, language: str) -> str:
        if self.kept is None:
            return translate(_GENERAL["unknown"], language)
        kind = "kept" if self.kept >= FORGETTING_SHARE else "forgotten"
        return translate(_GENERAL[kind], language, kept=f"{self.kept:.0%}", lost=f"{1 - self.kept:.0%}")

    def numbers(self, language: str) -> list[tuple[str, str]]:
        """Return label and value of the three numbers behind the sentence."""
        kept = "–" if self.kept is None else f"{self.kept:.0%}"
        values = {
            "gain": f"{self.difference.gain_text} {self.difference.interval_text}",
            "kept": kept,
            self.passed_kind: self._passed_text,
        }
        return [(translate(_LABELS[name], language), value) for name, value in values.items()]


def judge_models(models: Sequence[EvaluatedModel], differences: Sequence[PairedDifference]) -> list[Verdict]:
    """Return the verdict on each model against the first.

    Args:
        differences: of :func:`stages.compare.paired_differences.paired_differences`.
    """
    reference, *adapters = models
    by_metric = {(difference.metric, difference.before, difference.after): difference for difference in differences}
    loss, rouge = PAIRED_METRICS[:2]
    return [
        Verdict(
            by_metric[loss, reference.name, adapter.name],
            by_metric.get((rouge, reference.name, adapter.name)),
            _share_kept(reference, adapter),
            *_passed(adapter),
        )
        for adapter in adapters
        if (loss, reference.name, adapter.name) in by_metric
    ]


def _share_kept(reference: EvaluatedModel, adapter: EvaluatedModel) -> float | None:
    rows = min(len(model.general) for model in (reference, adapter))
    before, after = (model.figures.get("general", {}).get("rouge-l") for model in (reference, adapter))
    return min(after / before, 1.0) if rows >= MIN_ROWS and before and after is not None else None


def _passed(adapter: EvaluatedModel) -> tuple[str, float]:
    rate = ((adapter.figures.get("probes") or {}).get("rates") or {}).get("all")
    if rate:
        return "probes", rate["rate"]
    answered = answered_rows(adapter.task)
    if not answered:
        return "perplexity", adapter.figures["test"]["perplexity"]
    return "exact", sum(bool(row.get("exact")) for row in answered) / len(answered)
