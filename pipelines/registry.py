"""Registry of champion versions: DVC tracks the adapter, git tags record which version was live when.

A version is a git tag ``champion@v2.0.0`` on the commit whose ``models/champion.dvc`` points to the adapter's files;
the tag ``champion#live#3`` makes a version live. GTO writes both tags, so ``dvc artifacts get REPOSITORY champion
--stage live`` fetches the live version.

A change is atomic: after an error, files are restored to their committed state; after a kill, the next process that
takes the lock completes or reverts the change by its journal. All functions work on the repository in the working
directory.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from models.errors import UserError
from models.storage import atomic_write_folder, read_json, write_json
from pipelines import dvc
from pipelines.processes import ProgramFailed, output_of, terminate_by_environment

ARTIFACT, STAGE = "champion", "live"
FOLDER = Path("models/champion")
POINTER, GITIGNORE = FOLDER.with_suffix(".dvc"), FOLDER.with_name(".gitignore")
JOURNAL = Path("models/checkpoints/promotion.json")  # the change in progress
LOCK = JOURNAL.with_name(f".{ARTIFACT}.lock")
MARK = "TUNELINE_PROMOTING"  # environment variable of all programs of a promotion: the repository's folder
VERSION = re.compile(rf"{ARTIFACT}@(v(\d+)\.\d+\.\d+)")


def require_git() -> None:
    """Raise UserError if this is not a git repository with a commit and a branch, or git has no committer."""
    for arguments, message in (
        (("rev-parse", "--verify", "HEAD"), "The champion's versions are git tags; run this in a git repository"),
        (("symbolic-ref", "HEAD"), "No branch is checked out, so a commit would be lost; `git switch` to a branch"),
        (("var", "GIT_COMMITTER_IDENT"), "git has no committer; set user.name and user.email with `git config`"),
    ):
        try:
            output_of("git", *arguments)
        except UserError as error:
            raise UserError(f"{message} ({error}).") from None


# Read the registry ----------------------------------------------------------------------------------


def versions() -> dict[str, str]:
    """Return the commit of each version, the oldest first."""
    return {match[1]: commit for name, commit in _list_tags(f"{ARTIFACT}@*") if (match := VERSION.fullmatch(name))}


def live_history() -> list[str]:
    """Return the versions that a rollback goes back through, the live version last.

    Re-promoting an old version truncates the history after it.
    """
    version_by_commit = {commit: version for version, commit in versions().items()}
    history: list[str] = []
    for _, commit in _list_tags(f"{ARTIFACT}#{STAGE}#*"):
        version = version_by_commit.get(commit)
        if version in history:
            del history[history.index(version) + 1 :]
        elif version is not None:
            history.append(version)
    return history


def live_version() -> str | None:
    """Return the live version, or None if no champion was promoted yet."""
    return (live_history() or [None])[-1]


def _list_tags(pattern: str) -> Iterator[tuple[str, str]]:
    """Yield names of tags, sorted by the numbers in them, and their commits."""
    line_format = "%(refname:strip=2) %(objectname) %(*objectname)"
    lines = output_of(
        "git", "for-each-ref", "--sort=version:refname", f"--format={line_format}", f"refs/tags/{pattern}"
    )
    for line in lines.splitlines():
        name, *commits = line.split()
        yield name, commits[-1]  # an annotated tag has the tag object first


def version_at(revision: str = "HEAD") -> str:
    """Return the version of the champion in a revision, or "without a version here" if its tag was not fetched."""
    pointer = output_of("git", "rev-parse", f"{revision}:{POINTER}")
    for version, commit in reversed(versions().items()):
        if output_of("git", "ls-tree", "--object-only", commit, "--", str(POINTER)) == pointer:
            return version
    return "without a version here"


def fetch_champion() -> Path | None:
    """Check out or pull the champion of this branch; return its folder, or None if this branch has no champion.

    Raises:
        RemoteUnavailable: DVC's remote does not answer.
        UserError: neither DVC's cache nor a remote has the files.
    """
    if not POINTER.is_file():
        return None
    _checkout_champion()
    return FOLDER


def _checkout_champion() -> None:
    for command in ("checkout", "pull"):  # from the cache, then from a remote
        try:
            dvc.capture(command, "--force", str(POINTER))
            return
        except ProgramFailed as error:
            reason = error
    raise UserError(f"The champion's files are neither in DVC's cache nor in a remote ({reason}).")


# Change the registry --------------------------------------------------------------------------------


@contextmanager
def lock() -> Iterator[None]:
    """Hold the registry's lock during the block, after recovery of a change that was killed.

    The system releases the lock when this process ends, by whatever signal.

    Raises:
        UserError: another process holds the lock, or the change to recover belongs to another branch.
    """
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    try:
        # No fallback to a lock by the file's existence, which would survive kill -9.
        acquired = FileLock(LOCK, timeout=0, fallback_to_soft=False).acquire()
    except Timeout:
        raise UserError(f"Another process is promoting {ARTIFACT!r} here; wait until it ends, or stop it.") from None
    with acquired:
        # git and DVC outlive a killed process that started them.
        terminate_by_environment(MARK, str(Path.cwd()))
        recover()
        os.environ[MARK] = str(Path.cwd())
        try:
            yield
        finally:
            del os.environ[MARK]


def recover() -> None:
    """Complete a change whose process was killed after its commit, and revert one that was killed before."""
    if change := _read_journal():
        if _is_on_branch(change) and output_of("git", "rev-list", f"{change['head']}..HEAD", "--", str(POINTER)):
            _tag(change["version"], change["message"])
        else:
            _revert(change["reports"])
        JOURNAL.unlink()
    elif output_of("git", "diff", "--name-only", "--diff-filter=AM", "HEAD", "--", str(POINTER)):
        _revert(())  # an orphaned `dvc add`: only a promotion writes the pointer, and commits it


def _read_journal() -> dict | None:
    """Return the change in the journal, or None. A damaged journal is removed."""
    if not JOURNAL.is_file():
        return None
    with suppress(UserError, KeyError, TypeError, AttributeError):
        change = read_json(JOURNAL)
        values = [change.get(key) for key in ("head", "branch", "version", "message")]
        if all(isinstance(value, str) for value in (*values, *change["reports"])):
            return change
    JOURNAL.unlink()
    return None


def _is_on_branch(change: dict) -> bool:
    """Return whether the commit before the change is an ancestor of HEAD.

    Raises:
        UserError: it is not, and the branch of the change exists.
    """
    try:
        output_of("git", "merge-base", "--is-ancestor", change["head"], "HEAD")
        return True
    except ProgramFailed:
        branch = change["branch"]
        is_current = branch == output_of("git", "branch", "--show-current")
        if not is_current and output_of("git", "for-each-ref", f"refs/heads/{branch}"):
            raise UserError(
                f"A promotion was interrupted on branch {branch}; `git switch {branch}` and run this there first."
            ) from None
        return False


def register(
    adapter: Path, reports: Sequence[Path], message: str, write_reports: Callable[[], None] = lambda: None
) -> str:
    """Make an adapter the live champion: ``dvc add`` a copy, commit its pointer, tag the commit; return the version.

    Args:
        reports: files that ``write_reports`` writes, committed with the pointer; reverted on any error.
        message: of the commit and the tags.
    """
    last = max((int(VERSION.fullmatch(f"{ARTIFACT}@{version}")[2]) for version in versions()), default=0)
    version = f"v{last + 1}.0.0"
    with _transaction(version, message, reports):
        with atomic_write_folder(FOLDER) as temporary:
            shutil.copytree(adapter, temporary, dirs_exist_ok=True)
        dvc.capture("add", str(FOLDER))
        write_reports()
        commit((POINTER, GITIGNORE, *reports), message)
    return version


def restore(
    version: str, reports: Sequence[Path], message: str, write_reports: Callable[[], None] = lambda: None
) -> None:
    """Make an older version live again; see :func:`register`."""
    with _transaction(version, message, reports):
        output_of("git", "checkout", f"{ARTIFACT}@{version}", "--", str(POINTER))
        _checkout_champion()
        write_reports()
        commit((POINTER, *reports), message)


@contextmanager
def _transaction(version: str, message: str, reports: Sequence[Path]) -> Iterator[None]:
    """Set the version's tags after the block; after an error in it, restore pointer, folder and reports.

    The journal records the change for :func:`recover`.
    """
    head = output_of("git", "rev-parse", "HEAD")
    branch = output_of("git", "branch", "--show-current")
    change = {"head": head, "branch": branch, "version": version, "message": message}
    write_json(JOURNAL, change | {"reports": list(map(str, reports))})
    try:
        yield
    except BaseException:  # errors of git and DVC, and also a full disk or Ctrl-C
        recover()
        raise
    _tag(version, message)
    JOURNAL.unlink()


def _revert(reports: Iterable[str]) -> None:
    """Restore pointer, folder and reports to their committed state."""
    for path in (str(POINTER), *reports):
        if output_of("git", "ls-tree", "HEAD", "--", path):
            output_of("git", "checkout", "HEAD", "--", path)
        else:
            output_of("git", "rm", "--quiet", "--cached", "--force", "--ignore-unmatch", "--", path)
            Path(path).unlink(missing_ok=True)
    if POINTER.is_file():
        _checkout_champion()
    else:
        shutil.rmtree(FOLDER, ignore_errors=True)


def _tag(version: str, message: str) -> None:
    """Tag the commit of the current pointer with a version, and make the version live; existing tags stay."""
    import gto

    if version not in versions():
        commit_of_pointer = output_of("git", "log", "-1", "--format=%H", "--", str(POINTER))
        gto.api.register(".", ARTIFACT, commit_of_pointer, version=version, message=message)
    if live_version() != version:
        gto.api.assign(".", ARTIFACT, STAGE, version=version, message=message, force=True)


def commit(paths: Sequence[Path], message: str) -> None:
    """Commit these files if they have changed, and no other files, even if others are staged."""
    names = [str(path) for path in paths]
    output_of("git", "add", "--", *names)
    if output_of("git", "status", "--porcelain", "--", *names):
        output_of("git", "commit", "--quiet", "--message", message, "--", *names)


def push_champion() -> bool:
    """Push the champion to DVC's remote; return whether there is a remote."""
    if not dvc.load_config(Path())["remote"]:
        return False
    dvc.capture("push", str(POINTER))
    return True
