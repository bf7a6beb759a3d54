"""Exchange of data between the clones of a retraining: commits under ``refs/tuneline/runs/``, on no branch.

The orchestrator publishes the prepared data for the agents that train; an agent publishes the measurements of champion
and challengers for the orchestrator. The data itself is in DVC's cache or remote. The last reader unpublishes the ref.
"""

import contextlib
import shutil
from pathlib import Path

from models.errors import UserError
from models.storage import write_text
from pipelines import dvc, promotion
from pipelines.clone import Clone
from pipelines.retries import retry_while_unavailable

REF = "refs/tuneline/runs/{run}"
EXCHANGED_MEASUREMENTS = Path("data/measured")  # while they are exchanged


def publish(clone: Clone, run: str) -> str:
    """Push the working tree of a clone as a commit that no branch contains; return its ref.

    The commit of the same content is the same: DVC finds experiments by their base commit, and a restarted run
    publishes again.

    Raises:
        RemoteUnavailable: DVC's remote or the origin is still unavailable after all retries.
    """
    clone.push_data()
    clone.git("add", "--all")
    tree = clone.git("write-tree")
    clone.git("reset", "--quiet")
    date = clone.git("show", "--no-patch", "--format=%cI", "HEAD")
    dates = {"GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date}
    commit = clone.git("commit-tree", tree, "-p", "HEAD", "-m", f"Prepared for {run}", **dates)
    clone.push("--force", "origin", f"{commit}:{REF.format(run=run)}")
    return REF.format(run=run)


@retry_while_unavailable
def unpublish(clone: Clone, run: str) -> None:
    """Delete the ref of a run from the origin.

    Raises:
        RemoteUnavailable: the origin is still unavailable after all retries.
    """
    _delete_ref(clone, run)


def try_unpublish(clone: Clone, run: str) -> None:
    """Delete the ref of a run, unless the origin is unavailable: a ref that stays there does no harm."""
    with contextlib.suppress(UserError):
        _delete_ref(clone, run)


def _delete_ref(clone: Clone, run: str) -> None:
    ref = REF.format(run=run)
    with clone.requiring_origin():
        if clone.git("ls-remote", "origin", ref):
            clone.git("push", "--quiet", "origin", f":{ref}")


def publish_measurements(clone: Clone, run: str) -> None:
    """Publish the measurements of champion and challengers, tracked by DVC; see :func:`publish`."""
    remove_measurements(clone)
    # A copy: git ignores the folder of the measurements, and DVC writes a .gitignore next to what it tracks.
    shutil.copytree(clone.folder / promotion.MEASUREMENT_CACHE, clone.folder / EXCHANGED_MEASUREMENTS)
    dvc.capture("add", str(EXCHANGED_MEASUREMENTS), folder=clone.folder)
    publish(clone, run)


@retry_while_unavailable
def fetch_measurements(clone: Clone, run: str) -> None:
    """Fetch the measurements that a run has published, and unpublish them.

    Raises:
        RemoteUnavailable: DVC's remote or the origin is still unavailable after all retries.
    """
    pointer = EXCHANGED_MEASUREMENTS.with_suffix(".dvc")
    with clone.requiring_origin():
        clone.git("fetch", "--quiet", "origin", REF.format(run=run))
        write_text(clone.folder / pointer, clone.git("show", f"FETCH_HEAD:{pointer}") + "\n")
    with clone.requiring_remote():
        dvc.capture("pull" if clone.has_remote else "checkout", "--force", str(pointer), folder=clone.folder)
    shutil.copytree(
        clone.folder / EXCHANGED_MEASUREMENTS, clone.folder / promotion.MEASUREMENT_CACHE, dirs_exist_ok=True
    )
    remove_measurements(clone)
    _delete_ref(clone, run)


def remove_measurements(clone: Clone) -> None:
    """Remove the copy of the measurements that is exchanged: it must not get into a commit of the branch."""
    shutil.rmtree(clone.folder / EXCHANGED_MEASUREMENTS, ignore_errors=True)
    (clone.folder / EXCHANGED_MEASUREMENTS.with_suffix(".dvc")).unlink(missing_ok=True)
