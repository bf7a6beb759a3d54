"""What stands side by side: one column for each model."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from models.errors import UserError
from models.storage import read_json, read_jsonl


@dataclass(frozen=True)
class Model:
    """One column of the comparison: a model's key, its metrics, judged probes and losses."""

    name: str
    metrics: dict
    probes: list[dict]
    history: list[dict]


@dataclass(frozen=True)
class Figure:
    """One row of the comparison.

    Attributes:
        label: in English and Chinese.
        path: where the figure stands in a model's metrics.
        show: how it is written.
        best: ``min`` or ``max`` if one end is better.
    """

    label: str
    path: tuple[str, ...]
    show: Callable[[float], str]
    best: Callable | None = None

    def of(self, model: Model) -> float | None:
        value = model.metrics
        for key in self.path:
            value = value[key]
        return value


def _percent(share: float) -> str:
    return f"{share:.0%}"


QUALITY = (
    Figure("Probes met, single-turn · 单轮探针符合预期", ("probes", "met_single_turn"), _percent, max),
    Figure("Probes met, multi-turn · 多轮探针符合预期", ("probes", "met_multi_turn"), _percent, max),
    Figure("Probes matched exactly · 探针完全一致", ("probes", "exact_match"), _percent, max),
    Figure("Evaluation loss · 评测损失", ("eval", "loss"), "{:.4f}".format, min),
    Figure("Perplexity · 困惑度", ("eval", "perplexity"), "{:.3f}".format, min),
    Figure("ROUGE-1", ("eval", "rouge-1"), "{:.2f}".format, max),
    Figure("ROUGE-2", ("eval", "rouge-2"), "{:.2f}".format, max),
    Figure("ROUGE-L", ("eval", "rouge-l"), "{:.2f}".format, max),
    Figure("BLEU-4", ("eval", "bleu-4"), "{:.2f}".format, max),
)
RESOURCES = (
    Figure("Training loss, last · 训练损失（末）", ("training", "train_loss"), "{:.4f}".format),
    Figure("Training time, s · 训练用时（秒）", ("training", "seconds"), "{:.1f}".format),
    Figure("Training tokens/s · 训练速度", ("training", "tokens_per_second"), "{:.0f}".format),
    Figure("Training peak memory, GiB · 训练峰值内存", ("training", "peak_memory_gib"), "{:.2f}".format),
    Figure("Trainable parameters · 可训练参数", ("training", "trainable_parameters"), "{:,}".format),
    Figure("Answer tokens/s · 生成速度", ("generation", "tokens_per_second"), "{:.0f}".format),
    Figure("Evaluation peak memory, GiB · 评测峰值内存", ("generation", "peak_memory_gib"), "{:.2f}".format),
)


def gather(names: list[str], metrics: Path, predictions: Path, weights: Path) -> list[Model]:
    """The models, in the order of ``names``, the first being the base.

    Raises:
        UserError: they answered different probes.
    """
    models = []
    for name in names:
        manifest = weights / name / "manifest.json"
        history = read_json(manifest)["training"]["history"] if name != "base" else []
        probes = read_jsonl(predictions / name / "probes.jsonl")
        models.append(Model(name, read_json(metrics / f"{name}.json"), probes, history))
    asked = [[probe["id"] for probe in model.probes] for model in models]
    if any(ids != asked[0] for ids in asked):
        raise UserError("The models were evaluated on different probes; run `dvc repro -f` for every evaluate stage.")
    return models


def curves(models: list[Model]) -> list[dict]:
    """Every loss of every adapter as one flat table."""
    return [{"adapter": model.name, **point} for model in models for point in model.history]


def best_of(figure: Figure, models: list[Model]) -> float | None:
    """The best value of a row, if one end is better and the models differ."""
    values = [value for model in models if (value := figure.of(model)) is not None]
    return figure.best(values) if figure.best and len(set(values)) > 1 else None


def written(figure: Figure, model: Model) -> str:
    value = figure.of(model)
    return "–" if value is None else figure.show(value)


def question_of(probe: dict) -> str:
    """The question of a probe, with the turns before it."""
    *before, last = [message["content"] for message in probe["messages"]]
    return " ⟶ ".join([*before, last])
