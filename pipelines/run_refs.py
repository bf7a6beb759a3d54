"""What clones of a retraining hand to one another: commits that no branch names, data in DVC's cache or remote.

The orchestrator hands out what it has prepared, trainers take it; who has run champion and challengers hands out what
was measured. Whoever has taken the last of it withdraws it.
"""

import shutil
from pathlib import Path

from models.storage import write_text
from pipelines import dvc, promotion
from pipelines.clone import Clone
from pipelines.processes import ProgramFailed, output_of

REF = "refs/tuneline/runs/{run}"
MEASURED = Path("data/measured")  # on its way between two clones


def hand_out(clone: Clone, run: str) -> str:
    """Offer what was prepared to the trainers; gives the ref of it, which no branch names.

    The commit is the same for the same content: experiments are found by it, and whoever is taken up again offers anew.
    """
    clone.push_data()
    output_of("git", "add", "--all")
    tree = output_of("git", "write-tree")
    output_of("git", "reset", "--quiet")
    date = output_of("git", "show", "--no-patch", "--format=%cI", "HEAD")
    dates = {"GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date}
    commit = output_of("git", "commit-tree", tree, "-p", "HEAD", "-m", f"Prepared for {run}", **dates)
    clone.push("--force", "origin", f"{commit}:{REF.format(run=run)}")
    return REF.format(run=run)


def withdraw(run: str) -> None:
    """Take back what was handed out."""
    ref = REF.format(run=run)
    if output_of("git", "ls-remote", "origin", ref):
        output_of("git", "push", "--quiet", "origin", f":{ref}")


def hand_out_measurements(clone: Clone, run: str) -> None:
    """Offer what was measured of champion and challengers, as data of DVC's which no branch names."""
    discard_measurements()
    shutil.copytree(promotion.EVIDENCE, MEASURED)  # git ignores where they lie, and DVC wants to write beside them
    dvc.ask("add", str(MEASURED))
    hand_out(clone, run)


def take_measurements(clone: Clone, run: str) -> None:
    """Take what another had measured and handed out.

    Raises:
        RemoteAway: DVC's remote or the origin.
    """
    pointer = MEASURED.with_suffix(".dvc")
    with clone.needing_origin():
        clone.git("fetch", "--quiet", "origin", REF.format(run=run))
        write_text(clone.folder / pointer, clone.git("show", f"FETCH_HEAD:{pointer}") + "\n")
    try:
        dvc.ask("pull" if clone.has_remote else "checkout", "--force", str(pointer))
    except ProgramFailed:
        clone.refuse_if_away()
        raise
    shutil.copytree(MEASURED, promotion.EVIDENCE, dirs_exist_ok=True)
    discard_measurements()
    with clone.needing_origin():
        withdraw(run)


def discard_measurements() -> None:
    """Remove them from where no commit must find them."""
    shutil.rmtree(MEASURED, ignore_errors=True)
    MEASURED.with_suffix(".dvc").unlink(missing_ok=True)
