"""Versions of the champion: DVC keeps the adapter, git and GTO's tags say which version was live when.

A version is a git tag ``champion@v2.0.0`` on the commit whose ``models/champion.dvc`` names the adapter's files; the
tag ``champion#live#3`` makes one live. ``dvc artifacts get REPOSITORY champion --stage live`` fetches that one.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from models.errors import UserError
from models.storage import writing_folder
from pipelines import dvc
from pipelines.programs import output_of

ARTIFACT, STAGE = "champion", "live"
FOLDER = Path("models/champion")
POINTER, IGNORED = FOLDER.with_suffix(".dvc"), FOLDER.with_name(".gitignore")


def refuse_without_identity() -> None:
    """Raises UserError: this is no git repository with a commit, or git does not know who commits."""
    for arguments, said in (
        (("rev-parse", "--verify", "HEAD"), "the champion's versions are git tags; run this in a git repository"),
        (("var", "GIT_COMMITTER_IDENT"), "git must know who commits; set user.name and user.email with `git config`"),
    ):
        try:
            output_of("git", *arguments)
        except UserError as error:
            raise UserError(f"{said[0].upper()}{said[1:]} ({error}).") from None


def versions() -> list[str]:
    """All versions, the oldest first."""
    tags = output_of("git", "tag", "--list", f"{ARTIFACT}@v*", "--sort=version:refname").split()
    return [tag.partition("@")[2] for tag in tags]


def live() -> str | None:
    """The version that is live, or None."""
    import gto

    return gto.api.show(".").get(ARTIFACT, {}).get("stage", {}).get(STAGE)


def register(adapter: Path, reports: Sequence[Path], message: str) -> str:
    """Make an adapter the champion: DVC takes a copy, a commit names it, tags number it; gives the version.

    Args:
        reports: files to commit with it.
    """
    import gto

    with writing_folder(FOLDER) as temporary:
        shutil.copytree(adapter, temporary, dirs_exist_ok=True)
    dvc.run("add", "--quiet", str(FOLDER))
    commit((POINTER, IGNORED, *reports), message)
    known = versions()
    version = f"v{int(known[-1][1:].split('.')[0]) + 1 if known else 1}.0.0"
    gto.api.register(".", ARTIFACT, "HEAD", version=version, message=message)
    make_live(version, message)
    return version


def restore(version: str, message: str) -> None:
    """Put an older version back in its place."""
    output_of("git", "checkout", f"{ARTIFACT}@{version}", "--", str(POINTER))
    dvc.run("checkout", "--quiet", "--force", str(POINTER))
    commit((POINTER,), message)
    make_live(version, message)


def make_live(version: str, message: str) -> None:
    import gto

    gto.api.assign(".", ARTIFACT, STAGE, version=version, message=message, force=True)


def commit(paths: Sequence[Path], message: str) -> None:
    """Commit these files and nothing else, whatever else is staged; nothing if they are as committed."""
    names = [str(path) for path in paths]
    output_of("git", "add", "--", *names)
    if output_of("git", "status", "--porcelain", "--", *names):
        output_of("git", "commit", "--quiet", "--message", message, "--", *names)


def publish() -> bool:
    """Push the champion to DVC's remote, if there is one; gives whether there is."""
    if not dvc.ask("remote", "list"):
        return False
    dvc.run("push", "--quiet", str(POINTER))
    return True
