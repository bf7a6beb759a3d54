"""A clone of its own for every run, so that no run works in the user's workspace or in another's.

A clone is named after its run and stays until the run has ended: whoever takes up a run that died finds its
checkpoints there. Clones lie in ``TUNELINE_HOME``. Where the repository is a folder of this host they share its DVC
cache; where it is elsewhere they share one of their own, and everything goes through DVC's remote.
"""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from models.credentials import mask_credentials
from models.errors import UserError
from models.storage import remove_folder, seconds_since_change, writing_folder
from pipelines import dvc
from pipelines.processes import ProgramFailed, RemoteAway, output_of

HOME, REPOSITORY = "TUNELINE_HOME", "TUNELINE_REPOSITORY"
LINKS = "reflink,hardlink,copy"  # a base of gigabytes is not copied for each run, if the disk can help it
LOCKS = ("lock", "rwlock", "rwlock.lock")
# What git says of a repository that waiting does not bring, in any of its lines: its last one often names no reason.
FINAL = re.compile(
    r"not found|could not be found|not appear to be a git repository|does not exist|is not a git command"
    r"|Authentication failed|Permission denied|Permission to .* denied|remote error: access denied|certificate"
    r"|could not read (?:Username|Password)|returned error: 4(?!08|29)\d\d|Host key verification failed"
    r"|bad/illegal format|cannot run ssh|transport '.*' not allowed|No space left on device",
    re.IGNORECASE,
)
# What git says of a clone that is none any more.
DAMAGED = re.compile(r"not a git repository|single revision|bad object|unknown revision|corrupt|is empty|bad config")
# What DVC says of a remote that waiting does not mend.
DVC_FINAL = re.compile(
    r"but requires '|configuration error|config file error|Unsupported URL|\b40[13], message=|Unauthorized|Forbidden"
    r"|Access ?Denied|Permission denied for user|InvalidAccessKeyId|SignatureDoesNotMatch|NoSuchBucket"
    r"|Unable to locate credentials"
)


def home() -> Path:
    """Where this host keeps clones and, for repositories elsewhere, DVC's cache.

    Raises:
        UserError: no variable names it, and this user has no home.
    """
    try:
        return Path(os.environ.get(HOME) or Path.home() / ".cache/tuneline").absolute()
    except RuntimeError:
        raise UserError(f"This user has no home folder; set {HOME} to a folder for clones.") from None


def repository() -> str:
    """What is cloned: ``TUNELINE_REPOSITORY``, a folder or a URL; by default the repository that this runs in.

    Raises:
        UserError: neither is there.
    """
    try:
        found = os.environ.get(REPOSITORY) or output_of("git", "rev-parse", "--show-toplevel")
    except UserError as error:
        raise UserError(f"There is no repository to clone ({error}); set {REPOSITORY} to its folder or URL.") from None
    return found if is_elsewhere(found) else str(Path(found).absolute())


def is_elsewhere(repository: str) -> bool:
    """Whether it is a URL, or a host and a path as SSH takes them; else it is a folder."""
    return re.match(r"[\w+.-]+://|[^/]+:", repository) is not None


@dataclass(frozen=True)
class Clone:
    """A clone and where it came from."""

    folder: Path
    origin: str

    @property
    def address(self) -> str:
        """The origin as it may be shown: without a password, or a token in the place of a user's name."""
        return mask_credentials(self.origin)

    def git(self, *arguments: str) -> str:
        # Without a repository here, git would use one of a parent folder.
        return output_of("git", "-C", str(self.folder), *arguments, GIT_CEILING_DIRECTORIES=str(self.folder.parent))

    def setting(self, key: str) -> str | None:
        """One of git's settings, or None."""
        try:
            return self.git("config", key)
        except ProgramFailed:
            return None

    @property
    def shares_cache(self) -> bool:
        """Whether what is made here is in the origin's cache at once."""
        return Path(self.origin, ".dvc").is_dir()  # a bare repository has no cache

    @property
    def has_remote(self) -> bool:
        return bool(dvc.settings(self.folder)["remote"])

    def repro(self, *arguments: str) -> None:
        """Run ``dvc repro``, which takes from the remote what is there; for the clone that this process is in.

        Raises:
            RemoteAway: it failed, and the remote does not answer either.
            UserError: a stage failed.
        """
        try:
            dvc.tell("repro", *self.pull, *arguments)
        except RemoteAway:
            raise
        except UserError:
            self.refuse_if_away()
            raise

    def refuse_if_away(self) -> None:
        """Raises RemoteAway: there is a remote, and it does not take what this clone has."""
        if self.has_remote:
            self.push_data()

    @property
    def pull(self) -> tuple[str, ...]:
        """What `dvc repro` and `dvc exp run` are told, so that they take from the remote what is there."""
        return ("--pull",) if self.has_remote else ()

    def take_data(self, *targets: str) -> None:
        """Put what the shared cache has of these stages, and of those before them, where others look for it."""
        if self.shares_cache:
            with suppress(UserError):  # what the cache has lost, DVC makes again when it is needed
                dvc.ask("--cd", str(self.folder), "checkout", "--allow-missing", "--with-deps", *targets)

    def push_data(self, *options: str) -> None:
        """Bring what was made to DVC's remote.

        Raises:
            RemoteAway: it is full or unreachable; what is there is whole, and the rest can be pushed again.
            UserError: there is none where it would be needed, or none that waiting would mend.
        """
        if self.has_remote:
            try:
                dvc.ask("--cd", str(self.folder), "push", *options)
            except ProgramFailed as error:
                if DVC_FINAL.search(error.output):
                    raise UserError(f"DVC's remote cannot be used ({error}); see `dvc remote list`.") from None
                raise RemoteAway(f"DVC's remote is full or unreachable ({error}).") from None
        elif not self.shares_cache:
            raise UserError(f"{self.address} names no DVC remote, by which hosts share data; `dvc remote add -d` one.")

    def push(self, *what: str) -> None:
        """Push to the origin.

        Raises:
            RemoteAway: it does not answer.
            UserError: it answers, and does not take this.
        """
        with self.needing_origin():
            self.git("push", "--quiet", *what)

    @contextmanager
    def needing_origin(self) -> Iterator[None]:
        """Raises RemoteAway in place of what failed inside: the origin does not answer."""
        try:
            yield
        except RemoteAway:
            raise
        except UserError:
            try:
                self.git("ls-remote", "--heads", "origin")
            except UserError as error:
                raise RemoteAway(f"{self.address} does not answer ({error}).") from None
            raise

    def discard(self) -> None:
        """Remove it; under a name that counts as no clone first, since what writes there still may hinder that."""
        remove_folder(self.folder)


def open_clone(run: str, revision: str, origin: str | None = None) -> Clone:
    """The clone of a run, at a revision; as it was left, if the run began before.

    Args:
        run: a name for the folder, such as a flow run's id.
        revision: a branch, tag or commit of the origin, HEAD being its default branch; or a full ``refs/…``, which
            clones do not bring along.

    Raises:
        RemoteAway: a repository elsewhere does not answer.
        UserError: the repository or the revision is not there.
    """
    origin = origin or repository()
    made = Clone(home() / "runs" / run, origin)
    if _is_whole(made):
        # Whoever worked here is gone; DVC would wait for what it names, or for another that has its number now.
        for name in LOCKS:
            (made.folder / ".dvc/tmp" / name).unlink(missing_ok=True)
        return made
    made.discard()  # what is there is no clone that git and DVC could use
    made.folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with writing_folder(made.folder) as temporary:
        _fill(Clone(temporary, origin), revision)
    return made


def clones() -> list[tuple[str, float]]:
    """The runs whose clones this host has, each with the seconds since its clone was made."""
    found = []
    for path in (home() / "runs").glob("[!.]*"):
        with suppress(FileNotFoundError):  # its run removes it
            if path.is_dir():
                found.append((path.name, seconds_since_change(path)))
    return found


def left_of(run: str) -> Clone | None:
    """The clone of a run, if this host has it; of one that was removed by half, without an origin."""
    folder = home() / "runs" / run
    if not folder.is_dir():
        return None
    if not (folder / ".git").is_dir():  # git would look above it
        return Clone(folder, "")
    return Clone(folder, Clone(folder, "").setting("remote.origin.url") or "")


def _is_whole(clone: Clone) -> bool:
    """Whether a clone is one: a folder that git and DVC know, with a commit that is checked out.

    Raises:
        UserError: git does not say, because the folder is somebody else's, for example.
    """
    if not (clone.folder / ".git").is_dir() or not (clone.folder / ".dvc").is_dir():
        return False
    try:
        return bool(clone.git("rev-parse", "--verify", "HEAD^{commit}"))
    except ProgramFailed as error:
        if DAMAGED.search(error.output):
            return False
        raise


def _fill(clone: Clone, revision: str) -> None:
    try:
        output_of("git", "clone", "--quiet", "--no-checkout", "--", clone.origin, str(clone.folder))
    except ProgramFailed as error:
        if is_elsewhere(clone.origin) and not FINAL.search(error.output):
            raise RemoteAway(f"{clone.address} does not answer ({error}).") from None
        raise
    if revision.startswith("refs/"):
        with clone.needing_origin():
            clone.git("fetch", "--quiet", "origin", revision)
    clone.git("checkout", "--quiet", "--detach", commit_of(clone, revision))
    if not (clone.folder / ".dvc").is_dir():
        raise UserError(f"{clone.address} is no repository of DVC's; run `dvc init` there, and commit what it makes.")
    _say_who_commits(clone)
    _settle(clone)


def commit_of(clone: Clone, revision: str) -> str:
    """The commit that a revision names: what was fetched last, a branch of the origin, a tag, a commit."""
    names = ("FETCH_HEAD",) if revision.startswith("refs/") else (f"origin/{revision}", revision)
    for name in names:
        try:
            return clone.git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
        except ProgramFailed:
            continue
    raise UserError(f"{clone.address} has no revision {revision!r}.")


def _say_who_commits(clone: Clone) -> None:
    for key, value in (("user.name", "Tuneline"), ("user.email", "tuneline@localhost")):
        if clone.setting(key) is None:
            clone.git("config", key, value)


def _settle(clone: Clone) -> None:
    """Say where DVC's cache is, and take over from a folder of this host what a clone does not bring along."""
    cache, remotes = str(home() / "cache"), {}
    if clone.shares_cache:
        _copy_own_settings(clone)
        theirs = dvc.settings(Path(clone.origin))
        cache = str(theirs["cache"].get("dir") or Path(clone.origin, ".dvc/cache"))
        # Folders named relative to the repository; DVC tells them as whole paths.
        remotes = {name: str(each["url"]) for name, each in theirs["remote"].items() if "://" not in each["url"]}
    with dvc.own_settings(clone.folder) as ours:
        ours["cache"] |= {"dir": cache, "type": LINKS}
        for name, url in remotes.items():
            ours["remote"].setdefault(name, {})["url"] = url


def _copy_own_settings(clone: Clone) -> None:
    """The settings of this host, and remotes beside the repository."""
    ours, theirs = (Path(folder) / ".dvc/config.local" for folder in (clone.folder, clone.origin))
    if theirs.is_file():
        shutil.copyfile(theirs, ours)
        ours.chmod(0o600)  # it may hold keys
