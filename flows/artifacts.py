"""Artifacts of a run in Prefect's UI: tables and charts in the terminal's language, without text of samples."""

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
from pipelines import drift_monitor, promotion_report
from pipelines.promotion import PromotionResult
from pipelines.retraining import BRANCH, Outcome
from texts import terminal_language, translatable, translate

CHECKS = Path("reports/data_checks.json")
METRICS, TRAINING = Path("reports/metrics"), Path("reports/training")
VERDICTS = {"passed": translatable("The data passed."), "blocked": translatable("The data are blocked.")}
METRIC_LABELS = {  # by name in reports/metrics
    "loss": translatable("Evaluation loss"),
    "test": translatable("Test loss"),
    "rouge-l": "ROUGE-L",
    "exact": translatable("Exact matches"),
    "probes": translatable("Probes met"),
    "general": translatable("General loss"),
    "tok/s": translatable("Training speed, tokens/s"),
    "gib": translatable("Peak memory of training, GiB"),
}


def show_checks(folder: Path) -> None:
    """Create a table of the data checks that failed, with the row counts; locations and values stay in the report.

    Args:
        folder: of the repository.
    """
    checks = read_json(folder / CHECKS)
    rows = [
        _check_row(finding, finding["rows"], f"{finding['share']:.1%}") for finding in checks["rows"] if finding["rows"]
    ]
    rows += [_check_row(finding, "–", finding["seen"]) for finding in checks["data"] if not finding["passed"]]
    row_counts = translate(
        "{rows:,} rows = {train:,} training + {evaluation:,} evaluation + {test:,} test + {quarantined:,} quarantined",
        rows=checks["books"]["rows_in"],
        train=checks["books"]["train"],
        evaluation=checks["books"]["eval"],
        test=checks["books"]["test"],
        quarantined=checks["books"]["quarantined"],
    )
    description = f"{translate(VERDICTS[checks['verdict']])} {row_counts}"
    create_table_artifact(rows, key="data-checks", description=description)


def _check_row(finding: dict, rows: int | str, value: float | str) -> dict:
    return {
        translate("Check"): finding["check"],
        translate("Finding"): finding["meaning"][terminal_language()],
        translate("Rows"): rows,
        translate("Share or value"): value,
    }


def show_comparison(folder: Path, names: list[str]) -> None:
    """Create a table of the metrics of several models.

    Args:
        folder: of the repository.
        names: of the models.
    """
    metrics = {name: read_json(folder / METRICS / f"{name}.json") for name in names}
    rows = [
        {translate("Metric"): translate(label)}
        | {name: _format_number(values.get(key)) for name, values in metrics.items()}
        for key, label in METRIC_LABELS.items()
    ]
    create_table_artifact(rows, key="comparison", description=translate("Base model and adapters"))


def show_outcome(outcome: Outcome, repository: str) -> None:
    """Create a text with the decisions on all challengers and their reasons, and a link to the commit.

    Args:
        repository: its URL or folder.
    """
    if outcome.version:
        title = translate("Champion {version} was promoted.", version=outcome.version)
    else:
        title = translate("No adapter is better than the champion.")
    location = f"{BRANCH}, commit {outcome.commit}, `{repository}`"
    parts = [f"## {title}", location, *map(_render_decision, outcome.decisions)]
    if outcome.version:
        parts.append(f"```\ndvc artifacts get {repository} champion --rev champion@{outcome.version}\n```")
    show_text("promotion", "\n\n".join(parts))
    if repository.startswith("https://"):
        create_link_artifact(
            f"{repository.removesuffix('.git')}/commit/{outcome.commit}",
            link_text=f"{title} {BRANCH}",
            key="retrained",
        )


def _render_decision(decision: PromotionResult) -> str:
    title = promotion_report.render_title(decision.adapter, decision.is_promoted)
    return f"### {title}\n\n{promotion_report.render_conditions(decision.conditions)}"


def show_text(key: str, markdown: str) -> None:
    """Create an artifact of Markdown."""
    create_markdown_artifact(markdown, key=key)


def show_drift(report: dict, page: Path | None) -> None:
    """Create a table of all features with their distances.

    Args:
        report: of stage drift.
        page: Evidently's report, if there is one.
    """
    rows = [
        {
            translate("Feature"): feature["label"][terminal_language()],
            translate("Reference mean"): _format_number(feature["reference_mean"]),
            translate("Current mean"): _format_number(feature["current_mean"]),
            "p": f"{feature['p_value']:.2g}",
            translate("Distance"): f"{feature['distance']:.2f}",
            translate("Drifted"): "✗" if feature["drifted"] else "",
        }
        for feature in report["columns"]
    ]
    parts = [
        drift_monitor.describe_verdict(report),
        translate(
            "{reference:,} reference rows, {current:,} new rows, {unreadable:,} unreadable rows.",
            reference=report["rows"]["reference"],
            current=report["rows"]["current"],
            unreadable=report["rows"]["unreadable"],
        ),
        *([str(page)] if page else []),
    ]
    create_table_artifact(rows, key="drift", description=" ".join(parts))


def show_losses(name: str, history: list[dict]) -> None:
    """Create a chart of the losses of a training run."""
    points = [point for point in history if math.isfinite(point["loss"])]
    if points:
        create_image_artifact(loss_chart.render_data_url(name, points), key=f"loss-{_artifact_key(name)}")


@contextmanager
def progress(folder: Path, name: str, interval: float = 5.0) -> Iterator[None]:
    """Show a progress bar of a training run while the block runs.

    Args:
        folder: of the repository.
        name: of the adapter.
        interval: seconds between updates.
    """
    description = translate("Training of {adapter}", adapter=name)
    bar = create_progress_artifact(0.0, key=f"training-{_artifact_key(name)}", description=description)
    ended = threading.Event()

    def update_regularly() -> None:
        shown = 0.0
        while not ended.wait(interval):
            percent = read_progress(folder / TRAINING / name / "metrics.json")
            if percent > shown:
                shown = percent
                _update(bar, percent)

    # Prefect finds the run in the context variables, which a new thread does not inherit.
    thread = threading.Thread(target=contextvars.copy_context().run, args=(update_regularly,), daemon=True)
    thread.start()
    try:
        yield
        _update(bar, 100.0)
    finally:
        ended.set()
        thread.join()


def _update(bar: UUID, percent: float) -> None:
    """Update a progress bar; training continues if the server is unavailable."""
    with suppress(httpx.HTTPError, PrefectHTTPStatusError):
        update_progress_artifact(bar, percent)


def read_progress(metrics: Path) -> float:
    """Read from DVCLive's metrics how many percent of the steps are done; 0 if there is no such file yet."""
    try:
        return round(100 * read_json(metrics)["train"]["progress"], 1)
    except (UserError, KeyError):  # missing, or written by another version
        return 0.0


def _format_number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _artifact_key(name: str) -> str:
    """Return a name in the form of Prefect's keys: lower-case letters, digits and dashes."""
    return name.lower().replace("_", "-")
