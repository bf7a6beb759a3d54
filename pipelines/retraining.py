"""Steps of a retraining by the process that orchestrates it: prepare, compare, promote, commit, push.

The orchestrator works in a clone, on branch ``tuneline/retrained``. It prepares the data, has agents train the models
that changed (:mod:`pipelines.agent_training`), compares, promotes, and pushes one commit.
"""

import contextlib
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from models.errors import UserError
from models.storage import read_json, sha256_of
from pipelines import checkpoint_sync, dvc, promotion, registry, run_refs, stage_paths
from pipelines.clone import Clone, existing_clone, open_clone
from pipelines.finetune import raise_if_blocked, read_report_state
from pipelines.processes import ProgramFailed, RemoteUnavailable
from pipelines.promotion import PromotionResult
from pipelines.retries import retry_while_unavailable

BRANCH = "tuneline/retrained"
PREPARED_STAGES = ("encode", "base", "general")
METRICS, DATA_CHECKS = Path("reports/metrics"), Path("reports/data_checks.json")
# git settings of the clone, for a restarted run:
MERGED_REVISION = "tuneline.entered"  # the commit that was merged into the branch
CHAMPION_BEFORE = "tuneline.champion"  # the live version in the origin before this retraining
MAX_PUSH_ATTEMPTS = 3


# Open the branch ------------------------------------------------------------------------------------


def open_branch_clone(run: str, revision: str = "HEAD") -> Clone:
    """Return the run's clone, on the branch of earlier retrainings with the revision merged.

    Raises:
        RemoteUnavailable: the origin is still unavailable after all retries.
        UserError: branch and revision conflict.
    """
    clone = open_clone(run, revision)
    if clone.config(MERGED_REVISION) is None and clone.git("branch", "--show-current"):  # killed while it merged
        clone.discard()
        clone = open_clone(run, revision)
    if clone.config(MERGED_REVISION) is None:
        _switch_to_branch(clone)
    return clone


def _switch_to_branch(clone: Clone) -> None:
    revision = clone.git("rev-parse", "HEAD")
    if fetch_branch(clone):
        clone.git("switch", "--quiet", BRANCH)
        merge_revision(clone, revision)
    else:
        clone.git("switch", "--quiet", "--create", BRANCH)
    clone.git("config", CHAMPION_BEFORE, live_version(clone) or "none")
    clone.git("config", MERGED_REVISION, revision)


@retry_while_unavailable
def fetch_branch(clone: Clone) -> bool:
    """Fetch the branch of earlier retrainings; return whether there is one.

    Raises:
        RemoteUnavailable: the origin is still unavailable after all retries.
    """
    with clone.requiring_origin():
        if not clone.git("ls-remote", "origin", f"refs/heads/{BRANCH}"):
            return False
        clone.git("fetch", "--quiet", "origin", f"{BRANCH}:{BRANCH}")
        return True


def merge_revision(clone: Clone, revision: str) -> None:
    """Merge a revision; where both sides changed the same lines, e.g. of dvc.lock, the revision's lines win.

    Raises:
        UserError: another conflict, such as a file that one side has removed.
    """
    try:
        clone.git("merge", "--quiet", "--no-edit", "-X", "theirs", revision)
    except ProgramFailed as error:
        clone.git("merge", "--abort")
        raise UserError(f"{revision} and {BRANCH} cannot be merged ({error}); merge them by hand and push.") from None


def live_version(clone: Clone) -> str | None:
    """Return the live version of the champion by the tags of the clone, or None."""
    with contextlib.chdir(clone.folder):
        return registry.live_version()


def promoted_version(clone: Clone) -> str | None:
    """Return the version that this retraining has promoted, possibly before a restart, or None."""
    live = live_version(clone)
    return None if live == clone.config(CHAMPION_BEFORE) else live


# Prepare --------------------------------------------------------------------------------------------


def is_up_to_date(clone: Clone) -> bool:
    """Return whether ``dvc repro`` would change nothing. Data that is not checked out counts as unchanged."""
    try:
        plan = dvc.capture("repro", "--dry", "--allow-missing", folder=clone.folder)
    except ProgramFailed:  # inputs of a stage do not exist yet
        return False
    stages = set(re.findall(r"Running stage '([^']+)'", plan))
    # Stage compare reads whole folders, which differ while their files are not checked out.
    return stages <= {"compare"} and not has_changes(clone)


def has_changes(clone: Clone) -> bool:
    """Return whether the revision differs from the last retraining."""
    try:
        return bool(clone.git("diff", "--name-only", f"origin/{BRANCH}", "HEAD"))
    except ProgramFailed:  # no retraining yet
        return True


@retry_while_unavailable
def reproduce_data(clone: Clone) -> None:
    """Ingest, check and encode the data, and make or verify the base model.

    Raises:
        DataBlocked: the data checks block the data.
        RemoteUnavailable: DVC's remote is still unavailable after all retries.
        UserError: a stage failed.
    """
    clone.params()  # reports a mistake in params.yaml before anything runs
    clone.checkout_data(*PREPARED_STAGES)
    checks_before = read_report_state(clone.folder)
    with clone.requiring_remote():
        try:
            # dvc.run leaves the error of the stage out of its message: stages of raw data may quote samples.
            dvc.run("repro", *clone.pull_option, *PREPARED_STAGES, folder=clone.folder)
        except RemoteUnavailable:
            raise
        except UserError:
            raise_if_blocked(checks_before, clone.folder)
            raise


def find_outdated_models(clone: Clone) -> list[str]:
    """Return the models, including the base, whose training or evaluation must run."""
    return [name for name in clone.params().evaluate.models if _is_outdated(clone, name)]


def _is_outdated(clone: Clone, name: str) -> bool:
    options = ("--single-item", "--dry", "--allow-missing")
    try:
        return "Running stage" in dvc.capture("repro", *options, *model_stages(name), folder=clone.folder)
    except ProgramFailed:  # the adapter to evaluate does not exist yet
        return True


def model_stages(name: str) -> list[str]:
    """Return the DVC stages that train and evaluate a model; those of the base also rank the training answers."""
    # The ranking takes thousands of forward passes, and an agent with a GPU runs the stages of this list.
    return ["question_fit", f"evaluate@{name}"] if name == "base" else [f"train@{name}", f"evaluate@{name}"]


def compute_data_hash(clone: Clone) -> str:
    """Return the first 8 digits of the receipt's hash, which identifies the checked data."""
    return sha256_of(clone.folder / stage_paths.CHECKED / "receipt.json")[:8]


# Compare and promote --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """The result of a retraining.

    Attributes:
        decisions: on the challengers, the best one first.
        version: the champion that was promoted, or None.
        commit: the last commit of the branch, abbreviated.
    """

    decisions: tuple[PromotionResult, ...]
    version: str | None
    commit: str


def compare_models(clone: Clone, cause: str) -> None:
    """Collect the results of the agents, compare the models, and commit dvc.lock and reports.

    Raises:
        RemoteUnavailable: DVC's remote is still unavailable after all retries.
        UserError: a stage failed.
    """
    run_refs.remove_measurements(clone)  # Some are left behind if a process was killed while it fetched them.
    clone.repro()
    commit_results(clone, build_commit_message(clone, cause))


def commit_results(clone: Clone, message: str) -> None:
    """Commit all changed files, if there are any."""
    clone.git("add", "--all")
    if clone.git("diff", "--cached", "--name-only"):
        clone.git("commit", "--quiet", "--message", message)


def build_commit_message(clone: Clone, cause: str) -> str:
    """Return the message of a retraining's commit: cause, data, and loss and probes of each model."""
    rows = read_json(clone.folder / DATA_CHECKS)["books"]
    held_out = f"{rows['eval']} for evaluation, {rows['test']} for test"
    data = f"data: {compute_data_hash(clone)}, {rows['train']} rows for training, {held_out}"
    models = [f"{name}: {_format_metrics(clone, name)}" for name in clone.params().evaluate.models]
    return "\n".join([f"Retrain: {cause}", "", f"cause: {cause}", data, *models])


def _format_metrics(clone: Clone, name: str) -> str:
    metrics = read_json(clone.folder / METRICS / f"{name}.json")
    probes = f", probes met {metrics['probes']:.0%}" if "probes" in metrics else ""
    return f"loss {metrics['loss']:.4f}{probes}"


def rank_challengers(clone: Clone) -> list[str]:
    """Return the adapters to compare with the champion, the lowest loss first.

    An adapter with a higher loss than the champion's is not a challenger, if the champion is one of the adapters.
    """
    losses = {name: read_json(clone.folder / METRICS / f"{name}.json")["loss"] for name in clone.params().adapters}
    ranked = sorted(losses, key=losses.get)
    with contextlib.chdir(clone.folder):
        champion = registry.fetch_champion()
        champion_fingerprint = champion and promotion.adapter_fingerprint(champion)
        fingerprints = {name: promotion.adapter_fingerprint(stage_paths.WEIGHTS / name) for name in ranked}
    return list(itertools.takewhile(lambda name: fingerprints[name] != champion_fingerprint, ranked))


def unmeasured_challengers(clone: Clone) -> list[str]:
    """Return the challengers on which a decision needs a GPU, to run them and the champion."""
    with contextlib.chdir(clone.folder):
        return [name for name in rank_challengers(clone) if not promotion.is_measured(name)]


def promote_best(clone: Clone) -> tuple[PromotionResult, ...]:
    """Try to promote the challengers, the best one first, until one is promoted; return the decisions.

    If none is promoted, the reasons are committed.
    """
    decisions: list[PromotionResult] = []
    with contextlib.chdir(clone.folder):
        for name in rank_challengers(clone):
            decisions.append(promotion.promote(name))
            if decisions[-1].is_promoted:
                return tuple(decisions)
    commit_results(clone, rejection_message(decisions))
    return tuple(decisions)


def rejection_message(decisions: Sequence[PromotionResult]) -> str:
    """Return a commit message with the unmet conditions of each challenger."""
    names = ", ".join(decision.adapter for decision in decisions)
    reasons = [
        f"{decision.adapter}: "
        + "; ".join(f"{condition.label('en')}: {condition.evidence('en')}" for condition in decision.unmet_conditions)
        for decision in decisions
    ]
    return "\n".join([f"Keep the champion: {names} not promoted", "", *reasons])


# Push -----------------------------------------------------------------------------------------------


def push_results(clone: Clone, run: str) -> bool:
    """Push data, branch and tags, and unpublish the run's ref.

    Returns:
        False if another process has pushed to the branch, or a version of the same number, in the meantime.

    Raises:
        RemoteUnavailable: DVC's remote or the origin is still unavailable after all retries.
        UserError: the origin rejects the push for another reason.
    """
    clone.push_data()  # before the commit: data of a pushed commit must be in the remote
    if not _push_branch(clone):
        return False
    run_refs.unpublish(clone, run)
    return True


@retry_while_unavailable
def _push_branch(clone: Clone) -> bool:
    tags = [f"refs/tags/{tag}:refs/tags/{tag}" for tag in clone.git("tag", "--list", "champion*").split()]
    with clone.requiring_origin():
        try:
            clone.git("push", "--quiet", "--atomic", "origin", BRANCH, *tags)
        except ProgramFailed:
            if has_remote_changes(clone):
                return False
            raise
    return True


def has_remote_changes(clone: Clone) -> bool:
    """Return whether the origin has new commits on the branch, or other versions under the numbers of the clone."""
    remote_refs = dict(reversed(line.split()) for line in clone.git("ls-remote", "origin").splitlines())
    tags = clone.git("for-each-ref", "--format=%(objectname) %(refname)", "refs/tags/champion*").splitlines()
    if any(remote_refs.get(ref, commit) != commit for commit, ref in map(str.split, tags)):
        return True
    if f"refs/heads/{BRANCH}" not in remote_refs:
        return False
    clone.git("fetch", "--quiet", "origin", BRANCH)
    return bool(clone.git("rev-list", "-1", f"HEAD..origin/{BRANCH}"))


def merge_remote_changes(clone: Clone) -> None:
    """Replace the clone's version tags by those of the origin, and merge the origin's branch and champion.

    Tags are deleted first: a restarted run that was killed in between cannot push, and gets here again.

    Raises:
        RemoteUnavailable: the origin is still unavailable after all retries.
    """
    if tags := clone.git("tag", "--list", "champion*").split():
        clone.git("tag", "--delete", *tags)
    _fetch_version_tags(clone)
    version = live_version(clone)
    clone.git("config", CHAMPION_BEFORE, version or "none")
    if clone.git("for-each-ref", f"refs/remotes/origin/{BRANCH}"):
        merge_revision(clone, f"origin/{BRANCH}")
    if version:  # it may have been promoted on another branch
        merge_revision(clone, f"{registry.ARTIFACT}@{version}")


@retry_while_unavailable
def _fetch_version_tags(clone: Clone) -> None:
    with clone.requiring_origin():
        clone.git("fetch", "--quiet", "origin", "refs/tags/champion*:refs/tags/champion*")


def read_outcome(clone: Clone, decisions: tuple[PromotionResult, ...]) -> Outcome:
    """Return the outcome of a retraining that was pushed."""
    return Outcome(decisions, promoted_version(clone), clone.git("rev-parse", "--short", "HEAD"))


def discard_run(run: str) -> None:
    """Remove the clone of a run that has ended, its published ref, and its uploaded checkpoints."""
    clone = existing_clone(run)
    if clone is None:
        return
    if clone.origin:
        run_refs.try_unpublish(clone, run)
        checkpoint_sync.remove_checkpoints(clone, run)
    clone.discard()
