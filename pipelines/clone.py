"""Git clones for runs: each run works in a clone of its own, never in the user's workspace.

A clone has the name of its run and stays until the run has ended, so that a restarted run finds its checkpoints.
Clones are in ``TUNELINE_HOME/runs``. Clones of a repository on this host share its DVC cache; clones of a repository
elsewhere share the cache ``TUNELINE_HOME/cache``, and exchange data with other hosts through DVC's remote.
"""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from formats import params_schema
from models.credentials import mask_credentials
from models.errors import DataBlocked, UserError
from models.storage import atomic_write_folder, remove_folder, seconds_since_modification
from pipelines import dvc
from pipelines.processes import ProgramFailed, RemoteUnavailable, output_of
from pipelines.retries import retry_while_unavailable

HOME, REPOSITORY = "TUNELINE_HOME", "TUNELINE_REPOSITORY"
CACHE_TYPES = "reflink,hardlink,copy"  # a base model of gigabytes is copied only where the file system has no links
DVC_LOCKS = ("lock", "rwlock", "rwlock.lock")
# git errors that a retry cannot fix, in any line of the output: the last line often has no reason.
GIT_PERMANENT = re.compile(
    r"not found|could not be found|not appear to be a git repository|does not exist|is not a git command"
    r"|Authentication failed|Permission denied|Permission to .* denied|remote error: access denied|certificate"
    r"|could not read (?:Username|Password)|returned error: 4(?!08|29)\d\d|Host key verification failed"
    r"|bad/illegal format|cannot run ssh|transport '.*' not allowed|No space left on device",
    re.IGNORECASE,
)
# git errors of a damaged clone.
GIT_DAMAGED = re.compile(
    r"not a git repository|single revision|bad object|unknown revision|corrupt|is empty|bad config"
)
# DVC errors of a remote that a retry cannot fix.
DVC_PERMANENT = re.compile(
    r"but requires '|configuration error|config file error|Unsupported URL|\b40[13], message=|Unauthorized|Forbidden"
    r"|Access ?Denied|Permission denied for user|InvalidAccessKeyId|SignatureDoesNotMatch|NoSuchBucket"
    r"|Unable to locate credentials"
)


def home() -> Path:
    """Return this host's folder for clones and for the DVC cache of repositories elsewhere.

    Raises:
        UserError: ``TUNELINE_HOME`` is not set, and this user has no home folder.
    """
    try:
        return Path(os.environ.get(HOME) or Path.home() / ".cache/tuneline").absolute()
    except RuntimeError:
        raise UserError(f"This user has no home folder; set {HOME} to a folder for clones.") from None


def repository() -> str:
    """Return the repository that runs clone, as an absolute path or a URL.

    ``TUNELINE_REPOSITORY`` names it; the default is the repository of the working directory.

    Raises:
        UserError: there is none.
    """
    try:
        origin = os.environ.get(REPOSITORY) or output_of("git", "rev-parse", "--show-toplevel")
    except UserError as error:
        raise UserError(f"There is no repository to clone ({error}); set {REPOSITORY} to its folder or URL.") from None
    return origin if is_remote(origin) else str(Path(origin).absolute())


def is_remote(origin: str) -> bool:
    """Return whether an origin is a URL or ``host:path``; otherwise it is a folder."""
    return re.match(r"[\w+.-]+://|[^/]+:", origin) is not None


@dataclass(frozen=True)
class Clone:
    """A clone of a repository. All methods work in its folder, whatever the working directory is.

    Attributes:
        folder: of the clone, absolute.
        origin: the repository that was cloned, a folder or a URL.
    """

    folder: Path
    origin: str

    @property
    def masked_origin(self) -> str:
        """The origin without a password or token, for messages."""
        return mask_credentials(self.origin)

    def git(self, *arguments: str, **environment: str) -> str:
        """Run git in the clone and return its output; see :func:`pipelines.processes.output_of`."""
        # The ceiling: in a folder that is not a repository, git would use the repository of a parent folder.
        ceiling = {"GIT_CEILING_DIRECTORIES": str(self.folder.parent)}
        return output_of("git", "-C", str(self.folder), *arguments, **ceiling, **environment)

    def config(self, key: str) -> str | None:
        """Return the value of a git setting, or None."""
        try:
            return self.git("config", key)
        except ProgramFailed:
            return None

    def params(self) -> params_schema.Params:
        """Read params.yaml of the clone.

        Raises:
            UserError: it is missing or not valid.
        """
        return params_schema.load(self.folder / "params.yaml")

    @property
    def shares_cache(self) -> bool:
        """Whether the clone uses the DVC cache of its origin."""
        return Path(self.origin, ".dvc").is_dir()  # a bare repository has no cache

    @property
    def has_remote(self) -> bool:
        """Whether the repository has a DVC remote."""
        return bool(dvc.load_config(self.folder)["remote"])

    @property
    def pull_option(self) -> tuple[str, ...]:
        """The option for ``dvc repro`` and ``dvc exp run`` that fetches known results from the remote."""
        return ("--pull",) if self.has_remote else ()

    @retry_while_unavailable
    def repro(self, *arguments: str) -> None:
        """Run ``dvc repro``; results that the remote has are fetched.

        Raises:
            RemoteUnavailable: the remote is still unavailable after all retries.
            UserError: a stage failed.
        """
        with self.requiring_remote():
            dvc.run_with_stage_error("repro", *self.pull_option, *arguments, folder=self.folder)

    def checkout_data(self, *targets: str) -> None:
        """Check out the outputs of these stages and of the stages before them, as far as the shared cache has them."""
        if self.shares_cache:
            with suppress(UserError):  # DVC reproduces what the cache has lost
                dvc.capture("checkout", "--allow-missing", "--with-deps", *targets, folder=self.folder)

    @retry_while_unavailable
    def push_data(self, *options: str) -> None:
        """Run ``dvc push``.

        Raises:
            RemoteUnavailable: the remote is still full or unreachable after all retries. Files in the remote are
                complete, and the next push continues.
            UserError: no remote is configured although hosts need one, or a retry cannot fix the error.
        """
        self._push_data(*options)

    def raise_if_unavailable(self) -> None:
        """Raise RemoteUnavailable if the repository has a DVC remote, and a push to it fails."""
        if self.has_remote:
            self._push_data()

    def _push_data(self, *options: str) -> None:
        if self.has_remote:
            try:
                dvc.capture("push", *options, folder=self.folder)
            except ProgramFailed as error:
                if DVC_PERMANENT.search(error.output):
                    raise UserError(f"DVC's remote cannot be used ({error}); see `dvc remote list`.") from None
                raise RemoteUnavailable(f"DVC's remote is full or unreachable ({error}).") from None
        elif not self.shares_cache:
            raise UserError(
                f"{self.masked_origin} has no DVC remote, through which hosts exchange data; add one with "
                "`dvc remote add --default`."
            )

    @contextmanager
    def requiring_remote(self) -> Iterator[None]:
        """Raise RemoteUnavailable instead of a UserError of the block if DVC's remote is unavailable."""
        try:
            yield
        except (RemoteUnavailable, DataBlocked):
            raise
        except UserError:
            self.raise_if_unavailable()
            raise

    @retry_while_unavailable
    def push(self, *arguments: str) -> None:
        """Run ``git push``.

        Raises:
            RemoteUnavailable: the origin is still unavailable after all retries.
            UserError: the origin rejects the push.
        """
        with self.requiring_origin():
            self.git("push", "--quiet", *arguments)

    @contextmanager
    def requiring_origin(self) -> Iterator[None]:
        """Raise RemoteUnavailable instead of a UserError of the block if the origin is unavailable."""
        try:
            yield
        except RemoteUnavailable:
            raise
        except UserError:
            try:
                self.git("ls-remote", "--heads", "origin")
            except UserError as error:
                raise RemoteUnavailable(f"{self.masked_origin} does not answer ({error}).") from None
            raise

    def discard(self) -> None:
        """Remove the clone."""
        remove_folder(self.folder)


@retry_while_unavailable
def open_clone(run: str, revision: str, origin: str | None = None) -> Clone:
    """Return the clone of a run; make it at a revision unless the run has one already.

    Args:
        run: name of the folder, such as the id of a flow run.
        revision: a branch, tag or commit of the origin (HEAD: its default branch), or a full ``refs/…`` name, which
            ``git clone`` does not fetch.
        origin: folder or URL; None for :func:`repository`.

    Raises:
        RemoteUnavailable: a repository elsewhere is still unavailable after all retries.
        UserError: there is no such repository or revision.
    """
    origin = origin or repository()
    clone = Clone(home() / "runs" / run, origin)
    if _is_intact(clone):
        # Locks of an earlier process: DVC would wait for a process that has ended, or for one that reuses its PID.
        for name in DVC_LOCKS:
            (clone.folder / ".dvc/tmp" / name).unlink(missing_ok=True)
        return clone
    clone.discard()  # a damaged clone
    clone.folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with atomic_write_folder(clone.folder) as temporary:
        _make_clone(Clone(temporary, origin), revision)
    return clone


def list_clones() -> list[tuple[str, float]]:
    """Return the runs that have a clone on this host, each with the seconds since the clone was made."""
    ages = []
    for path in (home() / "runs").glob("[!.]*"):
        with suppress(FileNotFoundError):  # its run has just removed it
            if path.is_dir():
                ages.append((path.name, seconds_since_modification(path)))
    return ages


def existing_clone(run: str) -> Clone | None:
    """Return the clone of a run if this host has it. The origin of a half-removed clone is empty."""
    folder = home() / "runs" / run
    if not folder.is_dir():
        return None
    if not (folder / ".git").is_dir():  # git would use the repository of a parent folder
        return Clone(folder, "")
    return Clone(folder, Clone(folder, "").config("remote.origin.url") or "")


def _is_intact(clone: Clone) -> bool:
    """Return whether the folder is a git and DVC repository with a commit checked out.

    Raises:
        UserError: git refuses the folder, e.g. because it belongs to another user.
    """
    if not (clone.folder / ".git").is_dir() or not (clone.folder / ".dvc").is_dir():
        return False
    try:
        return bool(clone.git("rev-parse", "--verify", "HEAD^{commit}"))
    except ProgramFailed as error:
        if GIT_DAMAGED.search(error.output):
            return False
        raise


def _make_clone(clone: Clone, revision: str) -> None:
    try:
        output_of("git", "clone", "--quiet", "--no-checkout", "--", clone.origin, str(clone.folder))
    except ProgramFailed as error:
        if is_remote(clone.origin) and not GIT_PERMANENT.search(error.output):
            raise RemoteUnavailable(f"{clone.masked_origin} does not answer ({error}).") from None
        raise
    if revision.startswith("refs/"):
        with clone.requiring_origin():
            clone.git("fetch", "--quiet", "origin", revision)
    clone.git("checkout", "--quiet", "--detach", resolve_commit(clone, revision))
    if not (clone.folder / ".dvc").is_dir():
        raise UserError(f"{clone.masked_origin} is not a DVC repository; run `dvc init` there, and commit its files.")
    _configure_committer(clone)
    _configure_cache(clone)


def resolve_commit(clone: Clone, revision: str) -> str:
    """Return the commit of a revision: the ref fetched last, a branch of the origin, a tag or a commit.

    Raises:
        UserError: there is no such revision.
    """
    names = ("FETCH_HEAD",) if revision.startswith("refs/") else (f"origin/{revision}", revision)
    for name in names:
        try:
            return clone.git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
        except ProgramFailed:
            continue
    raise UserError(f"{clone.masked_origin} has no revision {revision!r}.")


def _configure_committer(clone: Clone) -> None:
    for key, value in (("user.name", "Tuneline"), ("user.email", "tuneline@localhost")):
        if clone.config(key) is None:
            clone.git("config", key, value)


def _configure_cache(clone: Clone) -> None:
    """Set DVC's cache, and copy the settings of an origin on this host that git does not track."""
    cache, remotes = str(home() / "cache"), {}
    if clone.shares_cache:
        _copy_local_config(clone)
        origin_config = dvc.load_config(Path(clone.origin))
        cache = str(origin_config["cache"].get("dir") or Path(clone.origin, ".dvc/cache"))
        # Remotes in folders: relative paths in the origin's config are relative to the origin; these are absolute.
        remotes = {name: str(remote["url"]) for name, remote in origin_config["remote"].items()}
        remotes = {name: url for name, url in remotes.items() if "://" not in url}
    with dvc.edit_local_config(clone.folder) as config:
        config["cache"] |= {"dir": cache, "type": CACHE_TYPES}
        for name, url in remotes.items():
            config["remote"].setdefault(name, {})["url"] = url


def _copy_local_config(clone: Clone) -> None:
    target, source = (Path(folder) / ".dvc/config.local" for folder in (clone.folder, clone.origin))
    if source.is_file():
        shutil.copyfile(source, target)
        target.chmod(0o600)  # it may hold keys
