"""The comparison between two revisions: ``python -m pipelines.comparison REV REV``.

Base and adapters of the first revision stand beside the adapters of the second, and its base if that is another one,
on the rows that all of them answered. DVC fetches what it has of each; the workspace stays as it is. A revision is
whatever git takes for one: a commit, a branch, a tag, ``HEAD~1``.
"""

import argparse
import tempfile
from pathlib import Path

from models.command_line import entry_point
from models.errors import UserError
from models.storage import read_json
from pipelines import dvc, stage_paths
from pipelines.processes import ProgramFailed, output_of

OUT = Path("reports/revisions.html")


def short(revision: str) -> str:
    """A commit's short name.

    Raises:
        UserError: there is no such revision.
    """
    try:
        return output_of("git", "rev-parse", "--verify", "--short", f"{revision}^{{commit}}")
    except ProgramFailed:
        raise UserError(f"git knows no revision {revision!r}.") from None


def fetch(commit: str, folder: Path) -> list[str]:
    """Put what a revision has of every model into a folder, as ``NAME@COMMIT``; gives these names.

    Raises:
        UserError: it has none, or DVC has not kept it.
    """
    names = []
    try:
        for name in dvc.ask("list", ".", str(stage_paths.PREDICTIONS), "--rev", commit, "--dvc-only").split():
            own = f"{name}@{commit}"
            _get(commit, stage_paths.PREDICTIONS / name, folder / "predictions" / own)
            if name != "base":
                _get(commit, stage_paths.WEIGHTS / name / "manifest.json", folder / "weights" / own / "manifest.json")
            names.append(own)
    except ProgramFailed as error:
        raise UserError(
            f"Revision {commit} has no answers that DVC could find ({error}): commit dvc.lock after `dvc repro`, and "
            "`dvc fetch --all-commits` what lies in a remote."
        ) from None
    return names


def side_by_side(first: list[str], second: list[str], predictions: Path) -> list[str]:
    """Names in the order of the comparison: the first one's base is what all others are measured by."""

    def base_of(name: str) -> str:
        return read_json(predictions / name / "figures.json")["of"]["base_identity"]

    names = sorted(first, key=lambda name: not name.startswith("base@"))
    bases = {base_of(name) for name in names}
    return names + [name for name in second if not name.startswith("base@") or base_of(name) not in bases]


def _get(commit: str, path: Path, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    dvc.ask("get", ".", str(path), "--rev", commit, "--out", str(out))


def compare(revisions: tuple[str, str], out: Path) -> None:
    """Write the comparison of two revisions."""
    if out.suffix != ".html":
        raise UserError(f"--out: {out} is to be a page; let its name end with .html.")
    commits = [short(revision) for revision in revisions]
    if commits[0] == commits[1]:
        raise UserError(f"{revisions[0]} and {revisions[1]} are the same commit.")
    with tempfile.TemporaryDirectory() as scratch:
        found = [fetch(commit, Path(scratch)) for commit in commits]
        names = side_by_side(*found, Path(scratch) / "predictions")
        stage_paths.compare(names, Path(scratch), out, "--common")
        print((Path(scratch) / "summary.txt").read_text(encoding="utf-8"))
        print(out)


@entry_point
def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the models of two revisions.")
    parser.add_argument("revisions", nargs=2, metavar="REV")
    parser.add_argument("--out", type=Path, default=OUT, help=f"the page; Markdown goes beside it ({OUT})")
    arguments = parser.parse_args()
    compare(tuple(arguments.revisions), arguments.out)


if __name__ == "__main__":
    main()
