"""A clone of its own for every run, so that no run works in the user's workspace or in another's.

A clone is named after its run and stays until the run has ended: whoever takes up a run that died finds its
checkpoints there. Clones lie in ``TUNELINE_HOME``. Where the repository is a folder of this host they share its DVC
cache; where it is elsewhere they share one of their own, and everything goes through DVC's remote.
"""

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from models.errors import UserError
from models.storage import writing_folder
from pipelines import dvc
from pipelines.programs import output_of

HOME, REPOSITORY = "TUNELINE_HOME", "TUNELINE_REPOSITORY"
LINKS = "reflink,hardlink,copy"  # a base of gigabytes is not copied for each run, if the disk can help it
LOCKS = ("lock", "rwlock", "rwlock.lock")
# What git says of a repository that waiting does not bring.
FINAL = re.compile(
    r"not found|not appear to be a git repository|does not exist|Authentication failed|Permission denied"
)


def home() -> Path:
    """Where this host keeps clones and, for repositories elsewhere, DVC's cache."""
    return Path(os.environ.get(HOME) or Path.home() / ".cache/tuneline").absolute()


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


class RemoteAway(UserError):
    """DVC's remote or the repository does not take what it is sent, or does not give what it has; it may later."""


@dataclass(frozen=True)
class Clone:
    """A clone and where it came from."""

    folder: Path
    origin: str

    @property
    def address(self) -> str:
        """The origin as it may be shown: without a password, or a token in the place of a user's name."""
        parts = urlsplit(self.origin)
        secret = parts.password or (parts.username and parts.scheme in ("http", "https"))
        return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if secret else self.origin

    def git(self, *arguments: str) -> str:
        return output_of("git", "-C", str(self.folder), *arguments)

    def setting(self, key: str) -> str | None:
        """One of git's settings, or None."""
        try:
            return self.git("config", key)
        except UserError:
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
                dvc.ask("--cd", str(self.folder), "checkout", "--quiet", "--allow-missing", "--with-deps", *targets)

    def push_data(self, *options: str) -> None:
        """Bring what was made to DVC's remote.

        Raises:
            RemoteAway: it is full or unreachable; what is there is whole, and the rest can be pushed again.
            UserError: there is none where it would be needed.
        """
        if self.has_remote:
            try:
                dvc.run("--cd", str(self.folder), "push", "--quiet", *options)
            except UserError:
                raise RemoteAway("DVC's remote is full or unreachable; the lines above say more.") from None
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
        except UserError:
            try:
                self.git("ls-remote", "--heads", "origin")
            except UserError as error:
                raise RemoteAway(f"{self.address} does not answer ({error}).") from None
            raise

    def discard(self) -> None:
        """Remove it; under a name that counts as no clone first, since what writes there still may hinder that."""
        gone = self.folder.with_name(f".{self.folder.name}.{os.getpid()}.tmp")
        with suppress(OSError):
            self.folder.rename(gone)
        for folder in (self.folder, gone):
            shutil.rmtree(folder, ignore_errors=True)


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
    if made.folder.is_dir():
        # Whoever worked here is gone; DVC would wait for what it names, or for another that has its number now.
        for name in LOCKS:
            (made.folder / ".dvc/tmp" / name).unlink(missing_ok=True)
        return made
    made.folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with writing_folder(made.folder) as temporary:
        _fill(Clone(temporary, origin), revision)
    return made


def clones() -> list[tuple[str, float]]:
    """The runs whose clones this host has, each with the seconds since its clone was made."""
    folders = [path for path in (home() / "runs").glob("*") if path.is_dir() and not path.name.startswith(".")]
    return [(path.name, time.time() - path.stat().st_mtime) for path in folders]


def left_of(run: str) -> Clone | None:
    """The clone of a run, if this host has it; of one that was removed by half, without an origin."""
    folder = home() / "runs" / run
    if not folder.is_dir():
        return None
    if not (folder / ".git").is_dir():  # git would look above it
        return Clone(folder, "")
    return Clone(folder, Clone(folder, "").setting("remote.origin.url") or "")


def _fill(clone: Clone, revision: str) -> None:
    try:
        output_of("git", "clone", "--quiet", "--no-checkout", clone.origin, str(clone.folder))
    except UserError as error:
        if is_elsewhere(clone.origin) and not FINAL.search(str(error)):
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
        except UserError:
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
