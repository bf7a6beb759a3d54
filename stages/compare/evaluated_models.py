"""The models of a comparison: their predictions, metrics and training losses, aligned by row."""

from dataclasses import dataclass, replace
from pathlib import Path

from measures import metrics
from models.errors import UserError
from models.storage import read_json, read_jsonl

ROW_FILES = {"task": "test.jsonl", "general": "general.jsonl", "probes": "probes.jsonl"}  # written by stage evaluate


@dataclass(frozen=True)
class EvaluatedModel:
    """A model with the results of its evaluation.

    Attributes:
        name: the adapter's key in params.yaml, or ``base``.
        figures: the metrics over its rows, as stage evaluate wrote them; ``relative`` is added by :func:`load_models`.
        history: logged losses of the training, ``{step, seconds, split, loss}``; empty for the base model.
        task: rows of the test split with answers and scores.
        general: rows of the general conversations with answers and scores.
        probes: judged answers to the probes, one row for each wording.
    """

    name: str
    figures: dict
    history: list[dict]
    task: list[dict]
    general: list[dict]
    probes: list[dict]


def load_models(
    names: list[str], predictions: Path, weights: Path, common_rows_only: bool = False
) -> list[EvaluatedModel]:
    """Load the models of a comparison, in the order of ``names``; the first one is the reference for the others.

    Args:
        names: of the folders below ``predictions`` and ``weights``.
        common_rows_only: compare on the rows that all models answered; otherwise differing rows are an error.

    Raises:
        UserError: the models answered different rows or probes, have none in common, or were scored by different
            versions of the metrics.
    """
    models = [_load_model(name, predictions / name, weights / name) for name in names]
    metrics.require_same_version({model.name: model.figures for model in models})
    if not models[0].task:
        raise UserError("There are no test rows to compare on; raise validate.test_share in params.yaml.")
    for kind in ROW_FILES:
        models = _align_rows(models, kind, common_rows_only)
    if common_rows_only:
        models = [replace(model, figures=_recompute_metrics(model)) for model in models]
    reference = models[0]
    return [
        replace(model, figures=model.figures | {"relative": relative_metrics(reference, model)}) for model in models
    ]


def _load_model(name: str, predictions: Path, weights: Path) -> EvaluatedModel:
    rows = {kind: read_jsonl(predictions / file) for kind, file in ROW_FILES.items()}
    history = _read_history(weights / "manifest.json")
    return EvaluatedModel(name, read_json(predictions / metrics.METRICS_FILE), history, **rows)


def _read_history(manifest: Path) -> list[dict]:
    """Return the training losses from an adapter's manifest; an empty list for the base model, which has none.

    Raises:
        UserError: the manifest is damaged.
    """
    if not manifest.is_file():
        return []
    try:
        history = read_json(manifest)["training"].get("history", [])
        if all(isinstance(point["step"], int) for point in history):
            return history
    except (TypeError, KeyError, AttributeError):
        pass
    raise UserError(f"{manifest} is not an adapter manifest; run `dvc repro` to train the adapter again.")


def _align_rows(models: list[EvaluatedModel], kind: str, common_rows_only: bool) -> list[EvaluatedModel]:
    """Return the models with the same rows of a kind (a key of :data:`ROW_FILES`) in the same order."""
    row_keys = [[_row_key(row) for row in getattr(model, kind)] for model in models]
    if all(keys == row_keys[0] for keys in row_keys):
        return models
    shared = set(row_keys[0]).intersection(*row_keys)
    if not (common_rows_only and shared):
        raise UserError(
            f"The models were evaluated on different {'probes' if kind == 'probes' else 'rows'}; "
            "run `dvc repro -f` for every evaluate stage."
        )
    return [
        replace(
            model, **{kind: sorted((row for row in getattr(model, kind) if _row_key(row) in shared), key=_row_order)}
        )
        for model in models
    ]


def _row_key(row: dict) -> tuple:
    """Return id, question and reference of a row: a probe may have been rewritten under the same id."""
    return row["id"], row.get("wording"), question_text(row), row["reference"]


def _row_order(row: dict) -> tuple:
    return row["id"], row.get("wording", 0), question_text(row)


def _recompute_metrics(model: EvaluatedModel) -> dict:
    """Return the metrics of a model over the rows that are left.

    Raises:
        UserError: a row lacks a score, because an older version of the code wrote it.
    """
    try:
        return model.figures | {
            "test": metrics.summarize_samples(model.task) | metrics.summarize_by_length(model.task),
            "general": metrics.summarize_samples(model.general),
            "probes": metrics.summarize_probes(model.probes),
        }
    except KeyError as error:
        raise UserError(
            f"The answers of {model.name} lack {error}, because an older version evaluated them; run `dvc repro -f` "
            "for its evaluate stage."
        ) from None


def relative_metrics(reference: EvaluatedModel, model: EvaluatedModel) -> dict:
    """Return the metrics that need a second model: share of equal answers, and training cost per point of ROUGE-L.

    The costs are None where the reference was trained, too, or where ROUGE-L did not rise.
    """
    if model is reference:
        return {}
    pairs = list(zip(*map(metrics.answered_rows, (reference.task, model.task)), strict=True))
    if not pairs:
        return {}
    gain = sum(row["rouge-l"] - reference_row["rouge-l"] for reference_row, row in pairs) / len(pairs)
    training = model.figures["training"]
    is_reference_untrained = reference.figures["training"].get("seconds") is None
    cost_per_point = {
        f"{key}_per_point": training[key] / gain if is_reference_untrained and gain > 0 and training.get(key) else None
        for key in ("seconds", "watt_hours")
    }
    equal = sum(reference_row["answer"] == row["answer"] for reference_row, row in pairs)
    return {"equal_answers": equal / len(pairs)} | cost_per_point


def loss_curves(models: list[EvaluatedModel]) -> list[dict]:
    """Return the logged losses of all adapters as one flat table, ``{adapter, step, seconds, split, loss}``."""
    return [{"adapter": model.name, **point} for model in models for point in model.history]


def question_text(row: dict) -> str:
    """Return the question of a row, preceded by the earlier turns of the conversation."""
    return " ⟶ ".join(message["content"] for message in row["messages"])


@dataclass(frozen=True)
class ProbeAnswers:
    """The answers of all models to one wording of a probe.

    Attributes:
        probe: the row of the first model.
        answers: the rows of all models, in their order.
        met_counts: for each model ``2/3``, how many wordings of this probe it met; empty if there is only one wording.
    """

    probe: dict
    answers: list[dict]
    met_counts: list[str]


def answers_to_first_wordings(models: list[EvaluatedModel]) -> list[ProbeAnswers]:
    """Return the answers to the first wording of each probe."""
    return [answers for answers in answers_to_probes(models) if not answers.probe.get("wording")]


def answers_to_probes(models: list[EvaluatedModel]) -> list[ProbeAnswers]:
    """Return the answers to every wording of every probe."""
    return [
        ProbeAnswers(
            probe, [model.probes[index] for model in models], [_met_count(model, probe["id"]) for model in models]
        )
        for index, probe in enumerate(models[0].probes)
    ]


def _met_count(model: EvaluatedModel, probe_id: str) -> str:
    rows = [row for row in model.probes if row["id"] == probe_id]
    return f"{sum(row['met'] for row in rows)}/{len(rows)}" if len(rows) > 1 else ""
