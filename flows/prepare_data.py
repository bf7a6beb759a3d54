"""Flow prepare_data: ingest, check and encode the data. Fails with the reasons if the data is blocked."""

from flows import artifacts, notifications
from flows.lifecycle import flow, reporting_failure, set_up_run
from models.errors import DataBlocked
from pipelines import retraining
from pipelines.clone import Clone


@flow(name="prepare-data", flow_run_name="prepare data · {revision}")
def prepare_data(revision: str = "HEAD") -> str:
    """Check the data of a revision, and return the first 8 digits of its hash."""
    run = set_up_run()
    with reporting_failure(run):
        clone = retraining.open_branch_clone(run, revision)
        prepare(clone)
        clone.push_data()
        data_hash = retraining.compute_data_hash(clone)
        clone.discard()
        return data_hash


def prepare(clone: Clone) -> None:
    """Reproduce the data's stages, and show the data checks in Prefect's UI.

    Raises:
        DataBlocked: the data checks block the data; a notification was sent.
    """
    try:
        retraining.reproduce_data(clone)
    except DataBlocked as blocked:
        artifacts.show_checks(clone.folder)
        notifications.notify("blocked", str(blocked))
        raise
    artifacts.show_checks(clone.folder)
