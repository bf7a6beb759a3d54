"""Versions of the champion: DVC keeps the adapter, git and GTO's tags say which version was live when.

A version is a git tag ``champion@v2.0.0`` on the commit whose ``models/champion.dvc`` names the adapter's files; the
tag ``champion#live#3`` makes one live. ``dvc artifacts get REPOSITORY champion --stage live`` fetches that one.
Where something fails on the way, or the process is killed, files are put back as they were committed.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from models.checkpoints import exclusive_lock
from models.errors import UserError
from models.storage import read_json, write_json, writing_folder
from pipelines import dvc
from pipelines.processes import ProgramFailed, end_leftovers, output_of

ARTIFACT, STAGE = "champion", "live"
FOLDER = Path("models/champion")
POINTER, IGNORED = FOLDER.with_suffix(".dvc"), FOLDER.with_name(".gitignore")
JOURNAL = Path("models/checkpoints/promotion.json")  # what is being changed
MARK = "TUNELINE_PROMOTING"  # in the environment of what a promotion starts: the folder
VERSION = re.compile(rf"{ARTIFACT}@(v(\d+)\.\d+\.\d+)")


def refuse_without_git() -> None:
    """Raises UserError: this is no git repository with a branch and a commit, or git does not know who commits."""
    for arguments, said in (
        (("rev-parse", "--verify", "HEAD"), "the champion's versions are git tags; run this in a git repository"),
        (("symbolic-ref", "HEAD"), "no branch is checked out, which could keep the champion; `git switch` to one"),
        (("var", "GIT_COMMITTER_IDENT"), "git must know who commits; set user.name and user.email with `git config`"),
    ):
        try:
            output_of("git", *arguments)
        except UserError as error:
            raise UserError(f"{said[0].upper()}{said[1:]} ({error}).") from None


# What is there -------------------------------------------------------------------------------------


def versions() -> dict[str, str]:
    """The commit of each version, the oldest first."""
    return {found[1]: commit for name, commit in _tags(f"{ARTIFACT}@*") if (found := VERSION.fullmatch(name))}


def history() -> list[str]:
    """The versions that rolling back would go through, the live one last.

    Whoever is made live again takes the place that it had: those that came behind it are gone.
    """
    version_of = {commit: version for version, commit in versions().items()}
    standing: list[str] = []
    for _, commit in _tags(f"{ARTIFACT}#{STAGE}#*"):
        version = version_of.get(commit)
        if version in standing:
            del standing[standing.index(version) + 1 :]
        elif version is not None:
            standing.append(version)
    return standing


def live() -> str | None:
    """The version that is live, or None."""
    return (history() or [None])[-1]


def _tags(pattern: str) -> Iterator[tuple[str, str]]:
    """Names of tags, numbers in them counted as such, and the commits that they stand on."""
    shape = "%(refname:strip=2) %(objectname) %(*objectname)"
    found = output_of("git", "for-each-ref", "--sort=version:refname", f"--format={shape}", f"refs/tags/{pattern}")
    for line in found.splitlines():
        name, *commits = line.split()
        yield name, commits[-1]


def named() -> str:
    """The version that the pointer of this branch is, or words for one that is none: tags may not have been fetched."""
    here = output_of("git", "rev-parse", f"HEAD:{POINTER}")
    for version, commit in reversed(versions().items()):
        if output_of("git", "ls-tree", "--object-only", commit, "--", str(POINTER)) == here:
            return version
    return "without a version here"


def champion() -> Path | None:
    """The champion's folder with the files that its pointer names, or None where this branch has no pointer.

    Raises:
        RemoteAway: DVC's remote does not answer.
        UserError: DVC has them neither in its cache nor in a remote.
    """
    if not POINTER.is_file():
        return None
    _materialize()
    return FOLDER


def _materialize() -> None:
    for command in (("checkout",), ("pull",)):  # the cache, then a remote
        try:
            dvc.ask(*command, "--force", str(POINTER))
            return
        except ProgramFailed as error:
            reason = error
    raise UserError(f"The champion's files are neither in DVC's cache nor in a remote ({reason}).")


# What changes it -----------------------------------------------------------------------------------


@contextmanager
def held() -> Iterator[None]:
    """Hold the champion for this process, once what a killed one left half done is ended.

    Raises:
        UserError: another process holds it, or the change that was interrupted belongs to another branch.
    """
    with exclusive_lock(JOURNAL.parent, ARTIFACT, "promoting"):
        # git and DVC, once started, outlive the process that started them.
        end_leftovers(MARK, str(Path.cwd()))
        mend()
        os.environ[MARK] = str(Path.cwd())
        try:
            yield
        finally:
            del os.environ[MARK]


def mend() -> None:
    """End a change whose process was killed: what it had not committed is put back, else its tags are set."""
    if begun := _begun():
        if _is_here(begun) and output_of("git", "rev-list", f"{begun['head']}..HEAD", "--", str(POINTER)):
            _tag(begun["version"], begun["message"])
        else:
            _put_back(begun["reports"])
        JOURNAL.unlink()
    elif output_of("git", "diff", "--name-only", "--diff-filter=AM", "HEAD", "--", str(POINTER)):
        _put_back(())  # only a promotion writes it, and commits what it writes


def _begun() -> dict | None:
    """What the journal says was begun; None if there is no journal. A damaged one is removed, and says nothing."""
    if not JOURNAL.is_file():
        return None
    with suppress(UserError, KeyError, TypeError, AttributeError):
        begun = read_json(JOURNAL)
        texts = [begun.get(key) for key in ("head", "branch", "version", "message")]
        if all(isinstance(text, str) for text in (*texts, *begun["reports"])):
            return begun
    JOURNAL.unlink()
    return None


def _is_here(begun: dict) -> bool:
    """Whether the commit that a change began on is a part of this branch.

    Raises:
        UserError: it is not, but its branch is there.
    """
    try:
        output_of("git", "merge-base", "--is-ancestor", begun["head"], "HEAD")
        return True
    except ProgramFailed:
        if begun["branch"] != output_of("git", "branch", "--show-current") and output_of(
            "git", "for-each-ref", f"refs/heads/{begun['branch']}"
        ):
            raise UserError(
                f"A promotion was interrupted on branch {begun['branch']}; switch to it and run this there first."
            ) from None
        return False


def register(
    adapter: Path, reports: Sequence[Path], message: str, write_reports: Callable[[], None] = lambda: None
) -> str:
    """Make an adapter the champion: DVC takes a copy, a commit names it, tags number it; gives the version.

    Args:
        reports: files to commit with it, which ``write_reports`` writes; put back if anything fails.
    """
    last = max((int(VERSION.fullmatch(f"{ARTIFACT}@{version}")[2]) for version in versions()), default=0)
    version = f"v{last + 1}.0.0"
    with _all_or_nothing(version, message, reports):
        with writing_folder(FOLDER) as temporary:
            shutil.copytree(adapter, temporary, dirs_exist_ok=True)
        dvc.ask("add", str(FOLDER))
        write_reports()
        commit((POINTER, IGNORED, *reports), message)
    return version


def restore(
    version: str, reports: Sequence[Path], message: str, write_reports: Callable[[], None] = lambda: None
) -> None:
    """Put an older version back in its place; see :func:`register`."""
    with _all_or_nothing(version, message, reports):
        output_of("git", "checkout", f"{ARTIFACT}@{version}", "--", str(POINTER))
        _materialize()
        write_reports()
        commit((POINTER, *reports), message)


@contextmanager
def _all_or_nothing(version: str, message: str, reports: Sequence[Path]) -> Iterator[None]:
    """Set the tags behind the block; if it fails, put pointer, folder and reports back as they were committed.

    The journal says what was begun, for :func:`mend`.
    """
    head, branch = (output_of("git", *asked) for asked in (("rev-parse", "HEAD"), ("branch", "--show-current")))
    begun = {"head": head, "branch": branch, "version": version, "message": message, "reports": list(map(str, reports))}
    write_json(JOURNAL, begun)
    try:
        yield
    except BaseException:  # a full disk or Ctrl-C no less than what git and DVC refuse
        mend()
        raise
    _tag(version, message)
    JOURNAL.unlink()


def _put_back(reports: Iterable[str]) -> None:
    for path in (str(POINTER), *reports):
        if output_of("git", "ls-tree", "HEAD", "--", path):
            output_of("git", "checkout", "HEAD", "--", path)
        else:
            output_of("git", "rm", "--quiet", "--cached", "--force", "--ignore-unmatch", "--", path)
            Path(path).unlink(missing_ok=True)
    if POINTER.is_file():
        _materialize()
    else:
        shutil.rmtree(FOLDER, ignore_errors=True)


def _tag(version: str, message: str) -> None:
    """Number the commit that the pointer has now, and make that version live, unless it is so already."""
    import gto

    if version not in versions():
        pointed = output_of("git", "log", "-1", "--format=%H", "--", str(POINTER))
        gto.api.register(".", ARTIFACT, pointed, version=version, message=message)
    if live() != version:
        gto.api.assign(".", ARTIFACT, STAGE, version=version, message=message, force=True)


def commit(paths: Sequence[Path], message: str) -> None:
    """Commit these files and nothing else, whatever else is staged; nothing if they are as committed."""
    names = [str(path) for path in paths]
    output_of("git", "add", "--", *names)
    if output_of("git", "status", "--porcelain", "--", *names):
        output_of("git", "commit", "--quiet", "--message", message, "--", *names)


def publish() -> bool:
    """Push the champion to DVC's remote, if there is one; gives whether there is."""
    if not dvc.settings(Path())["remote"]:
        return False
    dvc.ask("push", str(POINTER))
    return True
