"""Titles and notes of the comparison's sections, which the page, the Markdown files and the summary share."""

from collections.abc import Sequence

from measures.confidence_intervals import min_rows, simultaneous_confidence
from stages.compare.evaluated_models import EvaluatedModel
from stages.compare.paired_differences import count_comparisons
from texts import translatable

TITLE = translatable("Comparison")
LEAD = translatable(
    "All models were evaluated on the same {task} task rows, {general} general rows and {probes} probe questions."
)
QUALITY_TITLE = translatable("Quality")
DIFFERENCES_TITLE = translatable("Paired differences")
DIFFERENCES_NOTE = translatable(
    "Differences are paired by row, and every dialogue counts once (losses in the table above are means over tokens). "
    "Bold: the interval excludes zero. All {comparisons} intervals hold together with 95 % confidence (Bonferroni: "
    "each by itself with {confidence}), so the many comparisons make no difference significant by chance. Each is the "
    "smallest interval that contains the BCa bootstrap interval, the sign-flip interval, and a margin for kinds of "
    "rows absent from the sample. With fewer than {rows} rows there is no interval."
)
DIFFERENCES_HEADER = (
    translatable("Models"),
    translatable("Metric"),
    translatable("Gain"),
    translatable("Interval"),
    translatable("Better / equal / worse"),
)
TEXT_QUALITY_TITLE = translatable("Text quality")
TEXT_QUALITY_NOTE = translatable("Means over all answers, tested by Evidently.")
LOSS_CHANGES_TITLE = translatable("Largest changes in loss")
PROBES_TITLE = translatable("Answers to the probes")
PROBES_NOTE = translatable(
    "✓: the answer meets the expectation of the probe. ✗: it does not. 2/3: two of three wordings of the probe are met."
)
ALL_WORDINGS = translatable("All wordings ({count})")
LOSS_CURVES_TITLE = translatable("Loss curves")
LOSS_CURVES_NOTE = translatable("For the loss curves, see comparison.html or run `dvc plots show`.")
RESOURCES_TITLE = translatable("Resources")
SUMMARY_TITLE = translatable("Base model and adapters")
QUESTION = translatable("Question")
REFERENCE = translatable("Reference")
LIMITS = translatable("Limits")


def lead_values(models: Sequence[EvaluatedModel]) -> dict[str, int]:
    """Return the placeholders of :data:`LEAD`."""
    return {kind: len(getattr(models[0], kind)) for kind in ("task", "general", "probes")}


def differences_values(models: Sequence[EvaluatedModel]) -> dict[str, int | str]:
    """Return the placeholders of :data:`DIFFERENCES_NOTE`."""
    comparisons = count_comparisons(models)
    confidence = simultaneous_confidence(comparisons)
    return {"comparisons": comparisons, "confidence": f"{100 * confidence:.4g} %", "rows": min_rows(confidence)}
