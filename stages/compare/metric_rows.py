"""The rows of the comparison's metric tables: label, position among a model's metrics, and number format."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from measures.confidence_intervals import MIN_ROWS
from stages.compare.evaluated_models import EvaluatedModel
from texts import translatable

MISSING = "–"


@dataclass(frozen=True)
class MetricRow:
    """A row of a metric table.

    Attributes:
        label: English; translated when it is shown.
        path: keys that lead to the value in a model's metrics.
        number_format: for ``str.format``.
        best: ``min`` or ``max``; None if neither end is better.
    """

    label: str
    path: tuple[str, ...]
    number_format: str
    best: Callable | None = None

    def value(self, model: EvaluatedModel) -> float | None:
        """Return the value of a model, None if the model has none."""
        return self._entry(model)

    def num_rows(self, model: EvaluatedModel) -> int | None:
        """Return the number of rows that the value is computed over, None for a metric that is not over rows."""
        rows = {"test": model.task, "general": model.general, "probes": model.probes}.get(self.path[0])
        return None if rows is None else len(rows)

    def format(self, model: EvaluatedModel) -> str:
        """Return the value of a model as text."""
        value = self.value(model)
        return MISSING if value is None else self.number_format.format(value)

    def _entry(self, model: EvaluatedModel):
        entry = model.figures
        for key in self.path:
            entry = None if entry is None else entry.get(key)
        return entry


@dataclass(frozen=True)
class RateRow(MetricRow):
    """A rate with its 95 % interval; the entry at ``path`` is a result of :func:`measures.metrics.pass_rate`."""

    def value(self, model: EvaluatedModel) -> float | None:
        rate = self._entry(model)
        return rate and rate["rate"]

    def num_rows(self, model: EvaluatedModel) -> int | None:
        rate = self._entry(model)
        return rate and rate["of"]

    def format(self, model: EvaluatedModel) -> str:
        rate = self._entry(model)
        if rate is None:
            return MISSING
        value, low, high = (self.number_format.format(rate[key]) for key in ("rate", "low", "high"))
        return f"{value} [{low}, {high}]"


@dataclass(frozen=True)
class LengthLimitRow(MetricRow):
    """A metric that is shown only if some test rows are near the length limit."""

    def value(self, model: EvaluatedModel) -> float | None:
        near_limit = model.figures["test"].get("near_limit")
        return self._entry(model) if near_limit and near_limit["rows"] else None

    def num_rows(self, model: EvaluatedModel) -> int | None:
        return model.figures["test"][self.path[1]]["rows"]


QUALITY = (
    RateRow(translatable("Probes met, single-turn"), ("probes", "rates", "single_turn"), "{:.0%}", max),
    RateRow(translatable("Probes met, multi-turn"), ("probes", "rates", "multi_turn"), "{:.0%}", max),
    RateRow(translatable("Probes met, unseen wordings"), ("probes", "rates", "unseen"), "{:.0%}", max),
    RateRow(translatable("Probes met, wordings seen in training"), ("probes", "rates", "seen"), "{:.0%}", max),
    MetricRow(translatable("Probes matched exactly"), ("probes", "exact_match"), "{:.0%}", max),
    MetricRow(translatable("Probes met by sampled answers"), ("probes", "sampled", "met"), "{:.0%}", max),
    MetricRow(translatable("Distinct sampled answers"), ("probes", "sampled", "distinct"), "{:.0%}"),
    MetricRow(translatable("Test loss"), ("test", "loss"), "{:.4f}", min),
    MetricRow(translatable("Evaluation loss, by which sweeps choose"), ("eval", "loss"), "{:.4f}", min),
    MetricRow(translatable("Perplexity"), ("test", "perplexity"), "{:.3f}", min),
    MetricRow("ROUGE-1", ("test", "rouge-1"), "{:.2f}", max),
    MetricRow("ROUGE-2", ("test", "rouge-2"), "{:.2f}", max),
    MetricRow("ROUGE-L", ("test", "rouge-l"), "{:.2f}", max),
    MetricRow("BLEU-4", ("test", "bleu-4"), "{:.2f}", max),
    MetricRow("chrF", ("test", "chrf"), "{:.2f}", max),
    LengthLimitRow(translatable("Rows near the length limit"), ("test", "near_limit", "rows"), "{:d}"),
    LengthLimitRow(translatable("Loss of rows near the length limit"), ("test", "near_limit", "loss"), "{:.4f}", min),
    LengthLimitRow(translatable("Loss of all other rows"), ("test", "far_from_limit", "loss"), "{:.4f}", min),
    MetricRow(translatable("Empty answers"), ("test", "empty_rate"), "{:.0%}", min),
    MetricRow(translatable("Refusals"), ("test", "refusal_rate"), "{:.0%}", min),
    MetricRow(translatable("Repetition"), ("test", "repetition"), "{:.0%}", min),
    MetricRow(translatable("Length relative to the reference"), ("test", "length_ratio"), "{:.2f}"),
    MetricRow(translatable("Answers with the new name"), ("probes", "drift", "new"), "{:.0%}", max),
    MetricRow(translatable("Answers with the old name"), ("probes", "drift", "old"), "{:.0%}", min),
    MetricRow(translatable("Answers with both names"), ("probes", "drift", "mixed"), "{:.0%}", min),
    MetricRow(translatable("General loss"), ("general", "loss"), "{:.4f}", min),
    MetricRow(translatable("General ROUGE-L"), ("general", "rouge-l"), "{:.2f}", max),
    MetricRow(translatable("KL divergence from the base model"), ("general", "divergence"), "{:.4f}", min),
)
RESOURCES = (
    MetricRow(translatable("Started from"), ("training", "started_from"), "{}"),
    MetricRow(translatable("Final training loss"), ("training", "train_loss"), "{:.4f}"),
    MetricRow(translatable("Training time, s"), ("training", "seconds"), "{:.1f}"),
    MetricRow(translatable("Training speed, tokens/s"), ("training", "tokens_per_second"), "{:.0f}"),
    MetricRow(translatable("Peak memory of training, GiB"), ("training", "peak_memory_gib"), "{:.2f}"),
    MetricRow(translatable("Training time per point of ROUGE-L, s"), ("relative", "seconds_per_point"), "{:.1f}", min),
    MetricRow(
        translatable("Training energy per point of ROUGE-L, Wh"), ("relative", "watt_hours_per_point"), "{:.3f}", min
    ),
    MetricRow(translatable("Trainable parameters"), ("training", "trainable_parameters"), "{:,}"),
    MetricRow(translatable("Time per answer, s"), ("generation", "seconds_an_answer"), "{:.2f}"),
    MetricRow(translatable("Generation speed, tokens/s"), ("generation", "tokens_per_second"), "{:.0f}"),
    MetricRow(translatable("Answers equal to those of the first model"), ("relative", "equal_answers"), "{:.0%}"),
    MetricRow(translatable("Model size in memory, GiB"), ("generation", "model_gib"), "{:.3f}", min),
    MetricRow(translatable("Peak memory of evaluation, GiB"), ("generation", "peak_memory_gib"), "{:.2f}"),
)


def rows_with_values(rows: Sequence[MetricRow], models: Sequence[EvaluatedModel]) -> list[MetricRow]:
    """Return the rows of which at least one model has a value."""
    return [row for row in rows if any(row.value(model) is not None for model in models)]


def are_best(row: MetricRow, models: Sequence[EvaluatedModel]) -> list[bool]:
    """Return for each model whether its value is the best of the row.

    No value is the best where neither end is better, where all values are equal, or where a value is computed over
    fewer than :data:`measures.confidence_intervals.MIN_ROWS` rows.
    """
    values = [row.value(model) for model in models]
    num_rows = [row.num_rows(model) for model, value in zip(models, values, strict=True) if value is not None]
    known = [value for value in values if value is not None]
    if not row.best or len(set(known)) < 2 or any(count is not None and count < MIN_ROWS for count in num_rows):
        return [False] * len(models)
    best = row.best(known)
    return [value == best for value in values]
