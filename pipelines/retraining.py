"""A retraining in parts that different machines can do, each in a clone of its own.

One process orchestrates: it prepares the data, hands each model that changed to whoever trains and evaluates it,
gathers the results, compares, promotes, and commits once, on branch ``tuneline/retrained``. That process is here; what
those do to whom it hands out is in :mod:`pipelines.agent_training`.
"""

import itertools
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from formats import params_schema
from models.errors import UserError
from models.storage import read_json, sha256_of
from pipelines import checkpoint_sync, dvc, promotion, registry, run_refs, stage_paths
from pipelines.clone import Clone, left_of, open_clone
from pipelines.finetune import refuse_if_blocked, state_of_checks
from pipelines.processes import ProgramFailed, RemoteAway, output_of

BRANCH = "tuneline/retrained"
PREPARED = ("encode", "base", "general")
# In the clone's settings, for whoever goes on in it:
ENTERED = "tuneline.entered"  # the commit that was taken in
CHAMPION = "tuneline.champion"  # the version that was live, as others had pushed it
ATTEMPTS = 3


def enter(run: str, revision: str = "HEAD") -> Clone:
    """Go into the run's clone: the branch of earlier retrainings, with what the revision brings.

    Raises:
        RemoteAway: the origin does not answer.
        UserError: both changed the same lines of a file.
    """
    clone = open_clone(run, revision)
    if clone.setting(ENTERED) is None and clone.git("branch", "--show-current"):  # it died on the way in
        clone.discard()
        clone = open_clone(run, revision)
    has_entered = clone.setting(ENTERED) is not None
    has_branch = not has_entered and fetch_branch(clone)
    os.chdir(clone.folder)  # behind what may be tried again: where it is tried from must not change
    if not has_entered:
        wanted = clone.git("rev-parse", "HEAD")
        if has_branch:
            clone.git("switch", "--quiet", BRANCH)
            merge(wanted)
        else:
            clone.git("switch", "--quiet", "--create", BRANCH)
        clone.git("config", CHAMPION, registry.live() or "none")
        clone.git("config", ENTERED, wanted)
    return clone


def fetch_branch(clone: Clone) -> bool:
    """Fetch the branch of earlier retrainings; False if there is none. Raises RemoteAway."""
    with clone.needing_origin():
        if not clone.git("ls-remote", "origin", f"refs/heads/{BRANCH}"):
            return False
        clone.git("fetch", "--quiet", "origin", f"{BRANCH}:{BRANCH}")
        return True


def merge(revision: str) -> None:
    """Take in another line of commits; what both made, such as dvc.lock, is theirs until DVC has run."""
    try:
        output_of("git", "merge", "--quiet", "--no-edit", "-X", "theirs", revision)
    except ProgramFailed as error:
        output_of("git", "merge", "--abort")
        raise UserError(f"{revision} and {BRANCH} cannot be merged ({error}); merge them by hand and push.") from None


def nothing_changed() -> bool:
    """Whether `dvc repro` would make nothing new. Data that are not checked out are no change."""
    try:
        planned = dvc.ask("repro", "--dry", "--allow-missing")
    except ProgramFailed:  # a stage whose inputs are still to be made
        return False
    would_run = set(re.findall(r"Running stage '([^']+)'", planned))
    # It reads whole folders, which differ while what lies in them is not checked out.
    return would_run <= {"compare"} and not brought_anything()


def brought_anything() -> bool:
    """Whether the revision has what earlier retrainings had not."""
    try:
        return bool(output_of("git", "diff", "--name-only", f"origin/{BRANCH}", "HEAD"))
    except ProgramFailed:  # there was no retraining yet
        return True


def prepare(clone: Clone) -> None:
    """Collect, check and encode the data, and make or verify the base.

    Raises:
        DataBlocked: the data checks stopped it.
        RemoteAway: what is needed is in DVC's remote, which does not answer.
        UserError: a stage failed.
    """
    params_schema.load()  # a slip of the pen is told before anything runs
    clone.take_data(*PREPARED)
    before = state_of_checks()
    try:
        dvc.run("repro", *clone.pull, *PREPARED)
    except RemoteAway:
        raise
    except UserError:
        refuse_if_blocked(before)
        clone.refuse_if_away()
        raise


def pending() -> list[str]:
    """Names of the models whose training or evaluation must run, the base among them."""
    return [name for name in params_schema.load().evaluate.models if _would_run(name)]


def _would_run(name: str) -> bool:
    try:
        return "Running stage" in dvc.ask("repro", "--single-item", "--dry", "--allow-missing", *stages_of(name))
    except ProgramFailed:  # what it evaluates is not there yet
        return True


def stages_of(name: str) -> list[str]:
    return [f"evaluate@{name}"] if name == "base" else [f"train@{name}", f"evaluate@{name}"]


@dataclass(frozen=True)
class Outcome:
    """What a retraining came to.

    Attributes:
        decisions: of promotion, by adapter, the best one first.
        promoted: the version that this retraining made live, or None.
        commit: the branch's last.
    """

    decisions: dict[str, dict]
    promoted: str | None
    commit: str


def publish(clone: Clone, run: str) -> bool:
    """Push data, branch and versions, and take back what was handed out; False if others pushed in the meantime.

    Raises:
        RemoteAway: DVC's remote or the origin.
        UserError: the origin answers, and does not take it.
    """
    clone.push_data()  # first: a commit must not name what nobody can fetch
    tags = [f"refs/tags/{tag}:refs/tags/{tag}" for tag in output_of("git", "tag", "--list", "champion*").split()]
    with clone.needing_origin():
        try:
            output_of("git", "push", "--quiet", "--atomic", "origin", BRANCH, *tags)
        except ProgramFailed:
            if others_came_first():
                return False
            raise
        run_refs.withdraw(run)
    return True


def others_came_first() -> bool:
    """Whether the origin has commits on the branch that are not ours, or other versions under our numbers."""
    there = dict(reversed(line.split()) for line in output_of("git", "ls-remote", "origin").splitlines())
    ours = output_of("git", "for-each-ref", "--format=%(objectname) %(refname)", "refs/tags/champion*")
    if any(there.get(ref, commit) != commit for commit, ref in map(str.split, ours.splitlines())):
        return True
    if f"refs/heads/{BRANCH}" not in there:
        return False
    output_of("git", "fetch", "--quiet", "origin", BRANCH)
    return bool(output_of("git", "rev-list", "-1", f"HEAD..origin/{BRANCH}"))


def conclude(
    clone: Clone,
    run: str,
    cause: str,
    repro: Callable[[Clone], None] = Clone.repro,
    publish: Callable[[Clone, str], bool] = publish,
    measure: Callable[[Clone, list[str]], None] = lambda clone, names: None,
) -> Outcome:
    """Gather what was trained, compare, commit, promote what is better, and bring it all to the origin.

    Args:
        repro, publish: :meth:`Clone.repro` and :func:`publish`, or the same with more patience.
        measure: has others run the models that decisions on these challengers need; by default they are run here.

    Raises:
        UserError: a stage failed, or others changed the branch again and again.
    """
    for _ in range(ATTEMPTS):
        run_refs.discard_measurements()  # those that a killed process was taking
        repro(clone)
        commit_results(message(cause))
        if lacking := [name for name in challengers() if not promotion.is_measured(name)]:
            measure(clone, lacking)
        decisions = promote_the_best()
        if not any(decision["promote"] for decision in decisions.values()):
            commit_results(verdict(decisions))
        if publish(clone, run):
            return Outcome(decisions, new_champion(clone), output_of("git", "rev-parse", "--short", "HEAD"))
        take_in_others(clone)  # another retraining came first: compare again, with its champion
    raise UserError(f"Others changed {BRANCH} {ATTEMPTS} times in between; run it again when they have ended.")


def take_in_others(clone: Clone) -> None:
    """Give up versions of our own under numbers that others' may have, and merge what they have pushed.

    In this order: killed in between, it cannot push, and comes here again.
    """
    if tags := output_of("git", "tag", "--list", "champion*").split():
        output_of("git", "tag", "--delete", *tags)
    with clone.needing_origin():
        output_of("git", "fetch", "--quiet", "origin", "refs/tags/champion*:refs/tags/champion*")
    live = registry.live()
    clone.git("config", CHAMPION, live or "none")
    if output_of("git", "for-each-ref", f"refs/remotes/origin/{BRANCH}"):
        merge(f"origin/{BRANCH}")
    if live:  # it may have been promoted elsewhere than on the branch
        merge(f"{registry.ARTIFACT}@{live}")


def new_champion(clone: Clone) -> str | None:
    """The version that this retraining made live, be it in an earlier life of its process."""
    live = registry.live()
    return None if live == clone.setting(CHAMPION) else live


def commit_results(said: str) -> None:
    """Commit dvc.lock and the reports with this message, if anything changed."""
    output_of("git", "add", "--all")
    if output_of("git", "diff", "--cached", "--name-only"):
        output_of("git", "commit", "--quiet", "--message", said)


def message(cause: str) -> str:
    """A commit's message: what caused it, which data, and the figures of each model."""
    rows = read_json(Path("reports/metrics/data.json"))["data"]
    data = f"data: {data_hash()} · {rows['train']} rows to train on, {rows['eval']} to evaluate"
    lines = [f"{name}: {_figures(name)}" for name in params_schema.load().evaluate.models]
    return "\n".join([f"Retrain: {cause}", "", f"cause: {cause}", data, *lines])


def _figures(name: str) -> str:
    figures = read_json(Path(f"reports/metrics/{name}.json"))
    return f"loss {figures['loss']:.4f}, probes met {figures['probes_met']:.0%}"


def data_hash() -> str:
    """The first digits of the receipt's hash, which stands for all checked data."""
    return sha256_of(stage_paths.CHECKED / "receipt.json")[:8]


def promote_the_best() -> dict[str, dict]:
    """Offer the adapters as challengers, the best first, until one is promoted; gives the decisions by adapter."""
    decisions: dict[str, dict] = {}
    for name in challengers():
        decisions[name] = promotion.promote(name)
        if decisions[name]["promote"]:
            break
    return decisions


def challengers() -> list[str]:
    """Adapters that may be better than the champion, the best first; those behind the champion itself are not."""
    champion = registry.champion()
    live = champion and promotion.weights_of(champion)
    return list(itertools.takewhile(lambda name: promotion.weights_of(stage_paths.WEIGHTS / name) != live, ranked()))


def verdict(decisions: dict[str, dict]) -> str:
    """A commit's message: why none of the challengers was promoted."""
    lines = [f"{name}: {'; '.join(reasons_against(decision))}" for name, decision in decisions.items()]
    return "\n".join([f"Keep the champion: {', '.join(decisions)} not promoted", "", *lines])


def reasons_against(decision: dict) -> list[str]:
    """The conditions of promotion that a challenger did not meet."""
    return [f"{each['condition']}: {each['found']}" for each in decision["conditions"] if not each["met"]]


def ranked() -> list[str]:
    """Adapters by their evaluation loss, the best first."""
    losses = {name: read_json(Path(f"reports/metrics/{name}.json"))["loss"] for name in params_schema.load().adapters}
    return sorted(losses, key=losses.get)


def abandon(run: str) -> None:
    """Remove what is left of a run that will not go on: its clone, and what it handed out."""
    clone = left_of(run)
    if clone is None:
        return
    if clone.origin:
        ref = run_refs.REF.format(run=run)
        with suppress(UserError):  # the origin may be away; what stays there is in nobody's way
            if clone.git("ls-remote", "origin", ref):
                clone.git("push", "--quiet", "origin", f":{ref}")
        checkpoint_sync.withdraw(clone, run)
    clone.discard()
