"""Flow retrain: finetune_adapters on a schedule; it ends at once if nothing has changed."""

from flows import finetune_adapters
from flows.lifecycle import flow


@flow(name="retrain", flow_run_name="retrain · schedule")
def retrain_if_changed(revision: str = "HEAD") -> str:
    """Retrain if code, parameters or data differ from those of the last retraining."""
    return finetune_adapters.retrain(revision, cause="schedule")
