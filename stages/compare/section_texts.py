"""Titles and notes of the comparison's sections, which the page, the Markdown files and the summary share."""

from collections.abc import Sequence

from measures.confidence_intervals import min_rows, simultaneous_confidence
from stages.compare.evaluated_models import EvaluatedModel, question_text
from stages.compare.paired_differences import count_comparisons
from texts import translatable

_MAX_NAMED = 5  # general rows in a note
TITLE = translatable("Comparison")
_LEAD = translatable(
    "All models were evaluated on the same {task} task rows, {general} general rows ({source}) and {probes} probe "
    "questions."
)
_LEAD_WITHOUT_PROBES = translatable(
    "All models were evaluated on the same {task} task rows and {general} general rows ({source})."
)
_GENERAL_NOTE = translatable(
    "{count} of the general rows occur in the training rows, so they do not measure forgetting: {questions}"
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
SEEN_NOTE = translatable(
    "Seen wordings occur in the training rows, exactly or nearly: the answer may be recalled. Unseen wordings show "
    "what the model has learnt; promotion and the DVC metric `probes` count these, if there are any."
)
SEEN, UNSEEN = translatable("seen wording"), translatable("unseen wording")
ALL_WORDINGS = translatable("All wordings ({count})")
LOSS_CURVES_TITLE = translatable("Loss curves")
LOSS_CURVES_NOTE = translatable("For the loss curves, see comparison.html or run `dvc plots show`.")
RESOURCES_TITLE = translatable("Resources")
SUMMARY_TITLE = translatable("Base model and adapters")
QUESTION = translatable("Question")
REFERENCE = translatable("Reference")
LIMITS = translatable("Limits")


def lead(models: Sequence[EvaluatedModel]) -> tuple[str, dict[str, object]]:
    """Return the message that says what the models were evaluated on, and its placeholders."""
    counts = {kind: len(getattr(models[0], kind)) for kind in ("task", "general", "probes")}
    source = models[0].figures.get("of", {}).get("general_source", "ingest.general")
    if counts["probes"]:
        return _LEAD, counts | {"source": source}
    del counts["probes"]
    return _LEAD_WITHOUT_PROBES, counts | {"source": source}


def general_note(models: Sequence[EvaluatedModel]) -> tuple[str, dict[str, object]] | None:
    """Return the message that names general rows of the training rows, and its placeholders; None without such rows."""
    questions = [question_text(row) for row in models[0].general if row.get("in_training")]
    if not questions:
        return None
    more = ["…"] if len(questions) > _MAX_NAMED else []
    return _GENERAL_NOTE, {"count": len(questions), "questions": ", ".join(questions[:_MAX_NAMED] + more)}


def probe_notes(models: Sequence[EvaluatedModel]) -> list[str]:
    """Return the messages below the title of the probes."""
    is_examined = any(row.get("seen") is not None for row in models[0].probes)
    return [PROBES_NOTE, SEEN_NOTE] if is_examined else [PROBES_NOTE]


def seen_label(probe: dict) -> str | None:
    """Return the label of a wording: seen or unseen; None if that was not examined."""
    return {True: SEEN, False: UNSEEN}.get(probe.get("seen"))


def differences_values(models: Sequence[EvaluatedModel]) -> dict[str, int | str]:
    """Return the placeholders of :data:`DIFFERENCES_NOTE`."""
    comparisons = count_comparisons(models)
    confidence = simultaneous_confidence(comparisons)
    return {"comparisons": comparisons, "confidence": f"{100 * confidence:.4g} %", "rows": min_rows(confidence)}
