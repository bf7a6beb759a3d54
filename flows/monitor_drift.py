"""Flow monitor_drift: new rows against those that the champion learnt from; drift starts a retraining.

Logged chats are looked at too where ``TUNELINE_CHATS`` names their folder in the agent's environment.
"""

import os
from datetime import UTC, datetime
from pathlib import Path

from prefect import runtime

from flows import artifacts, notifications, runs
from formats import params_schema
from pipelines import drift_monitor, retraining
from pipelines.clone import Clone

CHATS = "TUNELINE_CHATS"


@runs.flow(name="monitor-drift", flow_run_name="monitor drift")
def monitor_drift(revision: str = "HEAD", again: bool = False) -> str:
    """Look for drift, and retrain if there is some.

    Args:
        again: retrain although drift of the same features has started a retraining today.
    """
    run = runs.begin()
    with runs.failures_told(run):
        return _monitor(runs.patiently(retraining.enter, run, revision), revision, again)


def _monitor(clone: Clone, revision: str, again: bool) -> str:
    clone.take_data("tokenizer")
    found = drift_monitor.monitor(sources())
    kept = keep_page(clone)
    artifacts.show_drift(found, kept)
    clone.discard()
    if found["verdict"] != "drift":
        print(f"{found['verdict']} · 没有漂移" if found["verdict"] == "steady" else found["verdict"])
        return found["verdict"]
    cause = in_words(found["drifted"])
    started, new = start_retraining(revision, found["drifted"], again)
    if new:
        notifications.tell("drift", cause, drifted=found["drifted"], rows=found["rows"])
    print(f"{cause} → {started}")
    return cause


def in_words(drifted: list[str], named: int = 2) -> str:
    """The cause as run and commit are called by it: the first features, and how many more."""
    more = f" and {len(drifted) - named} more" if len(drifted) > named else ""
    return f"drift: {', '.join(drifted[:named])}{more}"


def sources() -> list[Path]:
    """What is new: the raw data of params.yaml, and logged chats if they may be read, and there are any."""
    found = [Path(params_schema.load().ingest.source)]
    if chats := os.environ.get(CHATS):
        if Path(chats).is_dir() and not any(Path(chats).iterdir()):
            print(f"{chats} holds no chats yet · 还没有对话")
        else:
            found.append(Path(chats))
    return found


def keep_page(clone: Clone) -> Path | None:
    """Put the report where it outlives the clone; gives its path."""
    if not drift_monitor.PAGE.is_file():
        return None
    kept = clone.folder.parent.parent / "reports" / f"drift-{datetime.now(UTC):%Y%m%dT%H%M%S}.html"
    kept.parent.mkdir(exist_ok=True)
    return drift_monitor.PAGE.replace(kept)


def start_retraining(revision: str, drifted: list[str], again: bool) -> tuple[str, bool]:
    """Start one for this drift, unless one was started today; gives its name, and whether it is new."""
    cause = in_words(drifted)
    run = runs.start(
        "finetune-adapters/finetune-adapters",
        key=f"drift {datetime.now(UTC):%Y-%m-%d} {sorted(drifted)}" + (f" {runtime.flow_run.id}" if again else ""),
        name=f"finetune · {cause}",
        parameters={"revision": revision, "cause": cause},
    )
    return run.name, runs.tag_of(runtime.flow_run.id) in run.tags
