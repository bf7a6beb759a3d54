"""Flow prepare_data: collect, check and encode the data. Blocked data fail it with their reasons."""

from flows import artifacts, notifications, runs
from models.errors import DataBlocked
from pipelines import retraining
from pipelines.clone import Clone


@runs.flow(name="prepare-data", flow_run_name="prepare data · {revision}")
def prepare_data(revision: str = "HEAD") -> str:
    """Check what the revision brings; gives the first digits of the data's hash."""
    run = runs.begin()
    with runs.failures_told(run):
        clone = runs.patiently(retraining.enter, run, revision)
        prepare(clone)
        runs.patiently(clone.push_data)
        found = retraining.data_hash()
        clone.discard()
        return found


def prepare(clone: Clone) -> None:
    """The part that every retraining begins with.

    Raises:
        DataBlocked: the checks stopped it; whoever listens has been told.
    """
    try:
        runs.patiently(retraining.prepare, clone)
    except DataBlocked as blocked:
        artifacts.show_checks()
        notifications.tell("blocked", str(blocked))
        raise
    artifacts.show_checks()
