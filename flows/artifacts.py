"""What a run leaves in Prefect's UI: tables and figures in English and Chinese, and no sample text."""

import contextvars
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import UUID

import httpx
from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.exceptions import PrefectHTTPStatusError

from flows import loss_chart
from models.errors import UserError
from models.storage import read_json
from pipelines.promotion import PromotionResult
from pipelines.retraining import BRANCH, Outcome

CHECKS = Path("reports/data_checks.json")
METRICS, TRAINING = Path("reports/metrics"), Path("reports/training")
FIGURES = {
    "loss": "evaluation loss · 评测损失",
    "perplexity": "perplexity · 困惑度",
    "rouge-l": "ROUGE-L",
    "bleu-4": "BLEU-4",
    "probes_met": "probes met · 探针符合率",
    "new_name": "new name · 新名字",
    "general_loss": "loss on general text · 通用文本损失",
    "training_seconds": "training, seconds · 训练秒数",
}


def show_checks(folder: Path) -> None:
    """The data checks that some row failed, and the books; places and values stay in the report."""
    checks = read_json(folder / CHECKS)
    rows = [_check(each, each["rows"], f"{each['share']:.1%}") for each in checks["rows"] if each["rows"]]
    rows += [_check(each, "–", each["seen"]) for each in checks["data"] if not each["passed"]]
    sides = "{rows_in:,} = train · 训练 {train:,} + eval · 评测 {eval:,} + quarantined · 隔离 {quarantined:,}".format(
        **checks["books"]
    )
    create_table_artifact(rows, key="data-checks", description=f"{checks['verdict']}: {sides}")


def _check(check: dict, rows: int | str, share: float | str) -> dict:
    found = f"{check['meaning']['en']} · {check['meaning']['zh']}"
    return {"check · 检查": check["check"], "found · 结果": found, "rows · 行": rows, "share · 占比": share}


def show_comparison(folder: Path, names: list[str]) -> None:
    """Figures of each model, side by side."""
    found = {name: read_json(folder / METRICS / f"{name}.json") for name in names}
    rows = [
        {"figure · 指标": label} | {name: _short(values.get(figure)) for name, values in found.items()}
        for figure, label in FIGURES.items()
    ]
    create_table_artifact(rows, key="comparison", description="Base and adapters · 基座与适配器")


def show_outcome(outcome: Outcome, address: str) -> None:
    """Which adapters were promoted or not and why, and where the results lie.

    Args:
        address: of the repository.
    """
    version = f"champion {outcome.version}" if outcome.version else "the champion stays · 擂主不变"
    where = f"{BRANCH}, commit {outcome.commit} · `{address}`"
    parts = [f"## {version}", where, *map(_decision, outcome.decisions)]
    if outcome.version:
        parts.append(f"```\ndvc artifacts get {address} champion --rev champion@{outcome.version}\n```")
    show_text("promotion", "\n\n".join(parts))
    if address.startswith("https://"):
        create_link_artifact(
            f"{address.removesuffix('.git')}/commit/{outcome.commit}",
            link_text=f"{version} · {BRANCH}",
            key="retrained",
        )


def _decision(decision: PromotionResult) -> str:
    title = "promoted · 晋级" if decision.is_promoted else "not promoted · 未晋级"
    rows = [
        f"| {'✓' if condition.is_met else '✗'} {condition.name} | {condition.values} |"
        for condition in decision.conditions
    ]
    heading = f"### {decision.adapter}: {title}"
    return "\n".join([heading, "", "| condition · 条件 | found · 结果 |", "|---|---|", *rows])


def show_text(key: str, markdown: str) -> None:
    create_markdown_artifact(markdown, key=key)


def show_drift(found: dict, page: Path | None) -> None:
    """Every feature, how far it moved, and whether that counts."""
    rows = [
        {
            "feature · 特征": each["label"],
            "before · 此前": _short(each["reference_mean"]),
            "now · 现在": _short(each["current_mean"]),
            "p": f"{each['p_value']:.2g}",
            "distance · 距离": f"{each['distance']:.2f}",
            "drift · 漂移": "✗" if each["drifted"] else "",
        }
        for each in found["columns"]
    ]
    sides = "reference · 参照 {reference:,}, new · 新 {current:,}, unreadable · 无法读取 {unreadable:,}".format(
        **found["rows"]
    )
    report = f" · {page}" if page else ""
    create_table_artifact(rows, key="drift", description=f"{found['verdict']}: {sides}{report}")


def show_losses(name: str, history: list[dict]) -> None:
    """The losses of a training, as a picture."""
    points = [point for point in history if math.isfinite(point["loss"])]
    if points:
        create_image_artifact(loss_chart.data_url(name, points), key=f"loss-{_key(name)}")


@contextmanager
def progress(folder: Path, name: str, seconds: float = 5.0) -> Iterator[None]:
    """A bar in the UI that follows the training in this folder, while the block runs."""
    bar = create_progress_artifact(0.0, key=f"training-{_key(name)}", description=f"Training · 训练 {name}")
    ended = threading.Event()

    def follow() -> None:
        shown = 0.0
        while not ended.wait(seconds):
            done = share_done(folder / TRAINING / name / "metrics.json")
            if done > shown:
                shown = done
                _move(bar, done)

    # A thread of its own knows of no run; this one's context tells it.
    follower = threading.Thread(target=contextvars.copy_context().run, args=(follow,), daemon=True)
    follower.start()
    try:
        yield
        _move(bar, 100.0)
    finally:
        ended.set()
        follower.join()


def _move(bar: UUID, percent: float) -> None:
    """Set a bar; a server that does not answer is no reason to end a training."""
    with suppress(httpx.HTTPError, PrefectHTTPStatusError):
        update_progress_artifact(bar, percent)


def share_done(metrics: Path) -> float:
    """Percent of the steps that a training has done, from the log that it writes."""
    try:
        return round(100 * read_json(metrics)["train"]["progress"], 1)
    except (UserError, KeyError):  # not there yet, or not of this kind
        return 0.0


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _key(name: str) -> str:
    """A name as Prefect's keys allow it: lower case, digits and dashes."""
    return name.lower().replace("_", "-")
