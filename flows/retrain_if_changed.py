"""Flow retrain: on a schedule, the main job if anything changed, and nothing if not."""

from flows import runs
from flows.finetune_adapters import retrain_all


@runs.flow(name="retrain", flow_run_name="retrain · schedule")
def retrain_if_changed(revision: str = "HEAD") -> str:
    """Retrain if code, settings or data differ from those of the last time."""
    return retrain_all(revision, "schedule")
