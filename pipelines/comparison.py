"""Compare the models of two revisions: ``python -m pipelines.comparison REV REV``.

The base model and adapters of the first revision are compared with the adapters of the second one, and with its base
model if that differs, on the rows that all of them answered. DVC fetches the answers; the workspace is not changed.
A revision is a commit, a branch, a tag, or an expression such as ``HEAD~1``.
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


def short_commit(revision: str) -> str:
    """Return the abbreviated commit of a revision.

    Raises:
        UserError: there is no such revision.
    """
    try:
        return output_of("git", "rev-parse", "--verify", "--short", f"{revision}^{{commit}}")
    except ProgramFailed:
        raise UserError(f"There is no revision {revision!r} in this git repository.") from None


def fetch_models(commit: str, folder: Path) -> list[str]:
    """Fetch answers and manifests of all models of a commit into a folder, as ``NAME@COMMIT``; return these names.

    Raises:
        UserError: the commit has no answers, or DVC has not stored them.
    """
    names = []
    try:
        for name in dvc.capture("list", ".", str(stage_paths.PREDICTIONS), "--rev", commit, "--dvc-only").split():
            model = f"{name}@{commit}"
            _fetch_file(commit, stage_paths.PREDICTIONS / name, folder / "predictions" / model)
            if name != "base":
                manifest = stage_paths.WEIGHTS / name / "manifest.json"
                _fetch_file(commit, manifest, folder / "weights" / model / "manifest.json")
            names.append(model)
    except ProgramFailed as error:
        raise UserError(
            f"DVC has no answers of revision {commit} ({error}): commit dvc.lock after `dvc repro`, and fetch answers "
            "that are in a remote with `dvc fetch --all-commits`."
        ) from None
    return names


def order_models(first: list[str], second: list[str], predictions: Path) -> list[str]:
    """Return the models of two revisions in the order of the comparison: the first revision's base is the baseline."""

    def base_identity(name: str) -> str:
        return read_json(predictions / name / "figures.json")["of"]["base_identity"]

    names = sorted(first, key=lambda name: not name.startswith("base@"))
    bases = {base_identity(name) for name in names}
    return names + [name for name in second if not name.startswith("base@") or base_identity(name) not in bases]


def _fetch_file(commit: str, path: Path, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    dvc.capture("get", ".", str(path), "--rev", commit, "--out", str(out))


def compare(revisions: tuple[str, str], page: Path) -> None:
    """Write the comparison of two revisions, and print its summary.

    Args:
        page: HTML file; the Markdown file goes next to it.

    Raises:
        UserError: a revision has no answers, or both revisions are the same commit.
    """
    stage_paths.require_html(page)
    commits = [short_commit(revision) for revision in revisions]
    if commits[0] == commits[1]:
        raise UserError(f"{revisions[0]} and {revisions[1]} are the same commit.")
    with tempfile.TemporaryDirectory() as scratch:
        models = [fetch_models(commit, Path(scratch)) for commit in commits]
        names = order_models(*models, Path(scratch) / "predictions")
        print(stage_paths.run_compare(names, Path(scratch), page, "--common"))
        print(page)


@entry_point
def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the models of two revisions.")
    parser.add_argument("revisions", nargs=2, metavar="REV")
    parser.add_argument("--out", type=Path, default=OUT, help=f"HTML file; Markdown goes next to it ({OUT})")
    arguments = parser.parse_args()
    compare(tuple(arguments.revisions), arguments.out)


if __name__ == "__main__":
    main()
