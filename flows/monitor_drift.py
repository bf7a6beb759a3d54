"""Flow monitor_drift: compare new rows with the champion's training data; drift starts a retraining.

Logged chats count as new rows too if ``TUNELINE_CHATS`` in the agent's environment names their folder.
"""

import contextlib
import os
from datetime import UTC, datetime
from pathlib import Path

from prefect import runtime

from flows import artifacts, notifications
from flows.child_runs import start_child_run
from flows.lifecycle import flow, reporting_failure, set_up_run
from flows.run_metadata import child_tag
from formats import params_schema
from pipelines import drift_monitor, retraining
from pipelines.clone import Clone
from texts import translate

CHATS = "TUNELINE_CHATS"


@flow(name="monitor-drift", flow_run_name="monitor drift")
def monitor_drift(revision: str = "HEAD", again: bool = False) -> str:
    """Detect drift, and start a retraining if there is any.

    Args:
        again: start a retraining even if drift of the same features has started one today.

    Returns:
        The result in one sentence.
    """
    run = set_up_run()
    with reporting_failure(run):
        clone = retraining.open_branch_clone(run, revision)
        report = detect_drift(clone)
        artifacts.show_drift(report, keep_page(clone))
        clone.discard()
        if report["verdict"] == "drift":
            return retrain_for_drift(report, revision, again)
        sentence = drift_monitor.describe_verdict(report)
        print(sentence)
        return sentence


def detect_drift(clone: Clone) -> dict:
    """Return the report of stage drift on the new rows."""
    clone.checkout_data("tokenizer")
    with contextlib.chdir(clone.folder):
        return drift_monitor.detect_drift(list_sources())


def list_sources() -> list[Path]:
    """Return the sources of new rows: raw data of params.yaml, and the folder of logged chats unless it is empty."""
    sources = [Path(params_schema.load().ingest.source)]
    if chats := os.environ.get(CHATS):
        if Path(chats).is_dir() and not any(Path(chats).iterdir()):
            print(translate("There are no chats in {folder} yet.", folder=chats))
        else:
            sources.append(Path(chats))
    return sources


def keep_page(clone: Clone) -> Path | None:
    """Move the drift report out of the clone, which will be removed; return its path, or None without a report."""
    page = clone.folder / drift_monitor.PAGE
    if not page.is_file():
        return None
    kept = clone.folder.parent.parent / "reports" / f"drift-{datetime.now(UTC):%Y%m%dT%H%M%S}.html"
    kept.parent.mkdir(exist_ok=True)
    return page.replace(kept)


def retrain_for_drift(report: dict, revision: str, again: bool) -> str:
    """Start a retraining, unless drift of the same features has started one today; return the cause."""
    cause = describe_cause(report["drifted"])
    day, features = f"{datetime.now(UTC):%Y-%m-%d}", sorted(report["drifted"])
    child = start_child_run(
        "finetune-adapters/finetune-adapters",
        key=f"drift {day} {features}" + (f" {runtime.flow_run.id}" if again else ""),
        name=f"finetune · {cause}",
        parameters={"revision": revision, "cause": cause},
    )
    if child_tag(runtime.flow_run.id) in child.tags:  # else another run of this flow has started it
        notifications.notify("drift", cause, drifted=report["drifted"], rows=report["rows"])
    print(f"{cause} → {child.name}")
    return cause


def describe_cause(drifted: list[str], shown: int = 2) -> str:
    """Return the cause for names of runs and commits: the first features, and the number of the others."""
    more = f" and {len(drifted) - shown} more" if len(drifted) > shown else ""
    return f"drift: {', '.join(drifted[:shown])}{more}"
