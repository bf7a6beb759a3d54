"""Parameters after training: sections evaluate, compare, promote and monitor of params.yaml."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from formats.params_section import Count, Section
from formats.training_params import Adapter, AdapterName

NO_PROBES = "data/no_probes"


class Evaluate(Section):
    """Evaluation of the base and of every adapter."""

    probes: Annotated[str, Field(min_length=1)]
    """Your own questions: a file of [probes](file-formats.md#probes) or a folder of them; ``data/no_probes`` for none.

    The demo's probes count only if ``ingest.source`` is the demo's, too.
    """
    max_new_tokens: Count = 128
    """Longest generated answer in tokens."""
    samples: Annotated[int, Field(ge=0)] = 0
    """Sampled answers per probe, with seeds from 0 on, besides the greedy one."""
    batch_size: Count = 16
    """Prompts that are decoded together."""
    models: dict[AdapterName, Adapter | None]
    """Models to evaluate: ``base``, and every adapter by ``<<: *adapters``."""

    @field_validator("probes", mode="before")
    @classmethod
    def _refuse_null(cls, source: object) -> object:
        if source is None:  # DVC has no dependency that is null
            raise ValueError(f"null is not a path; write {NO_PROBES} to evaluate without probes")
        return source


class Compare(Section):
    """Comparison report."""

    answer_characters: Count = 60
    """Characters per answer in the terminal summary."""


class Guards(Section):
    """Largest regressions that still allow a promotion; see :mod:`stages.promote.promotion_rules`."""

    forgetting: Annotated[float, Field(ge=0)] = 0.1
    """Increase of the mean token loss on general conversations, in nats, over the best of base and champions."""
    general: Annotated[float, Field(ge=0, le=1)] = 0.85
    """Smallest share of the ROUGE-L on general conversations that is kept, of the best of base and champions."""
    empty_rate: Annotated[float, Field(ge=0, le=1)] = 0.02
    """Share of empty answers, from 0 to 1."""
    refusals: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Share of answers that refuse where their reference does not, from 0 to 1."""
    repetition: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Mean share of an answer's 4-grams that occur earlier in it, from 0 to 1."""
    probes: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Decrease of the probe pass rate against the best of base and champions, from 0 to 1."""
    latency: Annotated[float, Field(ge=1)] = 2.0
    """Time per answer of equal length, as a multiple of the fastest of base and champions."""


class Promote(Section):
    """When a challenger replaces the champion: its gain is significant and no guard fails."""

    metric: Literal["loss", "rouge-l", "bleu-4", "chrf"] = "loss"
    """Metric per test row that must improve; ``loss`` is the mean token loss of a row."""
    margin: Annotated[float, Field(ge=0)] = 0.01
    """Smallest gain that is worth a promotion: the gain's lower confidence bound exceeds it, as a share of the mean."""
    seed_spread: Annotated[float, Field(ge=0, lt=1)] = 0.04
    """Standard deviation between seeds of a model's true mean of ``metric``, as a share of it.

    The gain must exceed what differences of this size make by chance.
    """
    guards: Guards = Guards()
    """Largest regressions that still allow a promotion."""


class Monitor(Section):
    """Drift of new rows from the champion's training rows; see :mod:`stages.drift.drift_tests`."""

    false_alarms: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Family-wise significance level: share of comparisons of unchanged data that raise an alarm."""
    effect: Annotated[float, Field(ge=0)] = 0.2
    """Smallest shift that counts as drift, in standard deviations of the reference."""
    topics: Annotated[int, Field(ge=0)] = 4
    """Number of topics that are compared; 0 for none."""
    least_rows: Count = 20
    """Rows below which the verdict is ``unknown``."""
    most_rows: Count = 5000
    """Rows that are compared at most; a random sample if there are more."""
