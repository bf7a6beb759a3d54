"""What stands side by side: one column for each model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from measures import metrics
from measures.confidence_intervals import FEWEST
from models.errors import UserError
from models.storage import read_json, read_jsonl


@dataclass(frozen=True)
class Model:
    """One column of the comparison.

    Attributes:
        name: the model's key; ``figures``: over its rows.
        probes: judged; ``task``, ``general``: rows of answers with their scores.
        history: losses of its training.
    """

    name: str
    metrics: dict
    probes: list[dict]
    history: list[dict]
    task: list[dict]
    general: list[dict]


@dataclass(frozen=True)
class Figure:
    """One row of the comparison.

    Attributes:
        label: in English and Chinese.
        path: where it stands among a model's figures.
        show: how it is written.
        best: ``min`` or ``max`` if one end is better.
    """

    label: str
    path: tuple[str, ...]
    show: Callable[[float], str]
    best: Callable | None = None

    def of(self, model: Model) -> float | None:
        value = model.figures
        for key in self.path:
            value = None if value is None else value.get(key)
        return value

    def rows_of(self, model: Model) -> int | None:
        """How many rows the figure rests on; None if it is of no rows."""
        rows = {"eval": model.task, "general": model.general, "probes": model.probes}.get(self.path[0])
        return None if rows is None else len(rows)

    def written(self, model: Model) -> str:
        return self.show(self.of(model))


def _percent(share: float) -> str:
    return f"{share:.0%}"


@dataclass(frozen=True)
class Rate(Figure):
    """A rate, written with its interval of 95 %; at ``path`` stands what :func:`measures.metrics.rate` gives."""

    def of(self, model: Model) -> float | None:
        found = super().of(model)
        return found and found["rate"]

    def rows_of(self, model: Model) -> int | None:
        found = super().of(model)
        return found and found["of"]

    def written(self, model: Model) -> str:
        found = super().of(model)
        return f"{found['rate']:.0%} [{found['low']:.0%}, {found['high']:.0%}]"


@dataclass(frozen=True)
class NearLimit(Figure):
    """A figure that tells something only where rows are near the length limit."""

    def of(self, model: Model) -> float | None:
        near = model.figures["eval"].get("near_limit")
        return super().of(model) if near and near["rows"] else None

    def rows_of(self, model: Model) -> int | None:
        return model.figures["eval"][self.path[1]]["rows"]


QUALITY = (
    Rate("Probes met, single-turn · 单轮探针符合预期", ("probes", "rates", "single_turn"), _percent, max),
    Rate("Probes met, multi-turn · 多轮探针符合预期", ("probes", "rates", "multi_turn"), _percent, max),
    Figure("Probes matched exactly · 探针完全一致", ("probes", "exact_match"), _percent, max),
    Figure("Sampled answers met · 采样回答符合预期", ("probes", "sampled", "met"), _percent, max),
    Figure("Different when sampled · 采样时各不相同", ("probes", "sampled", "distinct"), _percent),
    Figure("Evaluation loss · 评测损失", ("eval", "loss"), "{:.4f}".format, min),
    Figure("Perplexity · 困惑度", ("eval", "perplexity"), "{:.3f}".format, min),
    Figure("ROUGE-1", ("eval", "rouge-1"), "{:.2f}".format, max),
    Figure("ROUGE-2", ("eval", "rouge-2"), "{:.2f}".format, max),
    Figure("ROUGE-L", ("eval", "rouge-l"), "{:.2f}".format, max),
    Figure("BLEU-4", ("eval", "bleu-4"), "{:.2f}".format, max),
    Figure("chrF", ("eval", "chrf"), "{:.2f}".format, max),
    NearLimit("Rows near the length limit · 接近长度上限的行", ("eval", "near_limit", "rows"), "{:d}".format),
    NearLimit("their loss · 其损失", ("eval", "near_limit", "loss"), "{:.4f}".format, min),
    NearLimit("loss of the others · 其余行的损失", ("eval", "far_from_limit", "loss"), "{:.4f}".format, min),
    Figure("Empty answers · 空回答", ("eval", "empty_rate"), _percent, min),
    Figure("Repetition · 重复", ("eval", "repetition"), _percent, min),
    Figure("Length to reference · 与参考的长度比", ("eval", "length_ratio"), "{:.2f}".format),
    Figure("Answers with the new name · 用新名字回答", ("probes", "drift", "new"), _percent, max),
    Figure("with the old name · 用旧名字回答", ("probes", "drift", "old"), _percent, min),
    Figure("with both: drift · 两者混用（语言漂移）", ("probes", "drift", "mixed"), _percent, min),
    Figure("General loss · 通用对话损失", ("general", "loss"), "{:.4f}".format, min),
    Figure("General ROUGE-L · 通用对话 ROUGE-L", ("general", "rouge-l"), "{:.2f}".format, max),
    Figure("Divergence from the base · 对基座的偏离（KL）", ("general", "divergence"), "{:.4f}".format, min),
)
RESOURCES = (
    Figure("Training loss, last · 训练损失（末）", ("training", "train_loss"), "{:.4f}".format),
    Figure("Training time, s · 训练用时（秒）", ("training", "seconds"), "{:.1f}".format),
    Figure("Training tokens/s · 训练速度", ("training", "tokens_per_second"), "{:.0f}".format),
    Figure("Training peak memory, GiB · 训练峰值内存", ("training", "peak_memory_gib"), "{:.2f}".format),
    Figure("Seconds per point of ROUGE-L · 每 1 点的秒数", ("beside", "seconds_per_point"), "{:.1f}".format, min),
    Figure("Wh per point of ROUGE-L · 每 1 点的瓦时", ("beside", "watt_hours_per_point"), "{:.3f}".format, min),
    Figure("Trainable parameters · 可训练参数", ("training", "trainable_parameters"), "{:,}".format),
    Figure("Time per answer, s · 每个回答用时（秒）", ("generation", "seconds_an_answer"), "{:.2f}".format),
    Figure("Answer tokens/s · 生成速度", ("generation", "tokens_per_second"), "{:.0f}".format),
    Figure("Answers equal to the first's · 与首列相同的回答", ("beside", "equal_answers"), _percent),
    Figure("Model in memory, GiB · 模型占用内存", ("generation", "model_gib"), "{:.3f}".format, min),
    Figure("Evaluation peak memory, GiB · 评测峰值内存", ("generation", "peak_memory_gib"), "{:.2f}".format),
)


def gather(names: list[str], predictions: Path, weights: Path, common: bool = False) -> list[Model]:
    """The models, in the order of ``names``; the first is what the others are held against.

    Args:
        common: whether rows that not all of them answered are left out, instead of refused.

    Raises:
        UserError: they answered different probes or rows, or have none in common, or were scored by different
            versions of the metrics.
    """
    models = []
    for name in names:
        history = _history_of(weights / name / "manifest.json")
        probes, task, general = (
            read_jsonl(predictions / name / f"{kind}.jsonl") for kind in ("probes", "eval", "general")
        )
        models.append(Model(name, read_json(predictions / name / metrics.FILE), probes, history, task, general))
    metrics.refuse_other_versions({model.name: model.figures for model in models})
    if not models[0].task:
        raise UserError("There are no evaluation rows to compare on; raise validate.eval_share in params.yaml.")
    for what in ("probes", "task", "general"):
        models = _alike(models, what, common)
    if common:
        models = [replace(model, figures=_once_more(model)) for model in models]
    return [replace(model, figures=model.figures | {"beside": beside(models[0], model)}) for model in models]


def _history_of(manifest: Path) -> list[dict]:
    """The losses of an adapter's training; none for the base, which has no manifest.

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
    raise UserError(f"{manifest} is no adapter's manifest; run `dvc repro` to train it again.")


def _alike(models: list[Model], what: str, common: bool) -> list[Model]:
    """The models with the same rows of one kind, in the same order."""
    asked = [[_identity(row) for row in getattr(model, what)] for model in models]
    if all(ids == asked[0] for ids in asked):
        return models
    shared = set(asked[0]).intersection(*asked)
    if not (common and shared):
        raise UserError(
            f"The models were evaluated on different {'probes' if what == 'probes' else 'rows'}; "
            "run `dvc repro -f` for every evaluate stage."
        )
    return [
        replace(model, **{what: sorted((row for row in getattr(model, what) if _identity(row) in shared), key=_order)})
        for model in models
    ]


def _once_more(model: Model) -> dict:
    """A model's figures over the rows that are left of it.

    Raises:
        UserError: its rows are those of an older version.
    """
    try:
        return model.figures | {
            "eval": metrics.of_samples(model.task) | metrics.of_lengths(model.task),
            "general": metrics.of_samples(model.general),
            "probes": metrics.of_probes(model.probes),
        }
    except KeyError as error:
        raise UserError(f"The answers of {model.name} have no {error}: an older version evaluated it.") from None


def _identity(row: dict) -> tuple:
    """What was asked and what was expected, not by its id alone: a probe may have been rewritten under it."""
    return row["id"], row.get("wording"), question_of(row), row["reference"]


def _order(row: dict) -> tuple:
    return row["id"], row.get("wording", 0), question_of(row)


def beside(first: Model, model: Model) -> dict:
    """Figures of a model that only another one gives: equal answers, and what each point of ROUGE-L cost."""
    if model is first:
        return {}
    pairs = list(zip(first.task, model.task, strict=True))
    gain = sum(new["rouge-l"] - old["rouge-l"] for old, new in pairs) / len(pairs)
    training = model.figures["training"]
    untrained = first.figures["training"].get("seconds") is None
    per_point = {
        f"{key}_per_point": training[key] / gain if untrained and gain > 0 and training.get(key) else None
        for key in ("seconds", "watt_hours")
    }
    return {"equal_answers": sum(old["answer"] == new["answer"] for old, new in pairs) / len(pairs)} | per_point


def curves(models: list[Model]) -> list[dict]:
    """Every loss of every adapter as one flat table."""
    return [{"adapter": model.name, **point} for model in models for point in model.history]


def best_of(figure: Figure, models: list[Model]) -> float | None:
    """The best value of a row, if one end is better, the models differ, and there are rows enough to say so."""
    having = [model for model in models if figure.of(model) is not None]
    if any(rows is not None and rows < FEWEST for rows in map(figure.rows_of, having)):
        return None
    values = [figure.of(model) for model in having]
    return figure.best(values) if figure.best and len(set(values)) > 1 else None


def written(figure: Figure, model: Model) -> str:
    return "–" if figure.of(model) is None else figure.written(model)


def shown(of: Sequence[Figure], models: Sequence[Model]) -> list[Figure]:
    """Those that some model has."""
    return [figure for figure in of if any(figure.of(model) is not None for model in models)]


def first_wordings(models: Sequence[Model]) -> list[tuple[dict, list[dict], list[str]]]:
    """Each probe as it was put first: its row of the first model, those of all, and how many wordings each met."""
    found = []
    for index, probe in enumerate(models[0].probes):
        if not probe.get("wording"):
            of_probe = [[row for row in model.probes if row["id"] == probe["id"]] for model in models]
            counts = [f"{sum(row['met'] for row in rows)}/{len(rows)}" if len(rows) > 1 else "" for rows in of_probe]
            found.append((probe, [model.probes[index] for model in models], counts))
    return found


def question_of(probe: dict) -> str:
    """The question of a probe, with the turns before it."""
    *before, last = [message["content"] for message in probe["messages"]]
    return " ⟶ ".join([*before, last])
