"""Champion and challenger: ``python -m pipelines.promote lora``; ``--rollback`` makes the version before live again.

The challenger takes the champion's place if its gain on the metric of params.yaml is real and no guard is broken.
Both answer the same rows: the champion is evaluated on those of today. Without a champion, the base is the one to
beat. Exit code 0: promoted, or rolled back; 3: the champion stays.
"""

import argparse
import sys
from pathlib import Path

from models.errors import UserError, program
from models.storage import read_json, sha256_of, sha256_of_json, write_json
from pipelines import evidence, registry
from pipelines.evidence import CHECKED, GENERAL, PREDICTIONS, PROBES, WEIGHTS
from pipelines.programs import run_module
from stages import params

DECISION, REASONS = Path("reports/promotion.json"), Path("reports/promotion.md")
EVIDENCE = Path("models/checkpoints/champion")  # the champion's answers to the rows of today
TIMES = Path("models/checkpoints/times")  # of each pair, so that what was decided once is decided so again
NOT_PROMOTED = 3


def promote(name: str) -> dict:
    """Decide, and promote if so; gives the decision, with the version if there is one."""
    if name not in params.load().adapters:
        raise UserError(f"params.yaml has no adapter {name!r}; it has {', '.join(params.load().adapters)}.")
    registry.refuse_without_git()
    with registry.held():
        return _promote(name)


def _promote(name: str) -> dict:
    challenger, champion = WEIGHTS / name, registry.champion()
    refuse_what_was_not_evaluated(challenger, PREDICTIONS / name)
    against = ("base", PREDICTIONS / "base")
    if champion is not None:
        refuse_the_champion_itself(challenger, champion)
        against = (f"champion {registry.live()}", evidence_of_champion(champion))
    times = times_of(champion, challenger)
    decide(against, (name, PREDICTIONS / name), times)
    decision = read_json(DECISION)
    if not decision["promote"]:
        return decision
    summary = f"Promote {name}: {decision['conditions'][0]['found']}"
    return decision | {"version": registry.register(challenger, (DECISION, REASONS), summary)}


def refuse_what_was_not_evaluated(challenger: Path, predictions: Path) -> None:
    """Raises UserError: there is no adapter, or the answers are another's than that which lies there."""
    if not (challenger / "manifest.json").is_file():
        raise UserError(f"There is no adapter in {challenger}; run `dvc repro` first.")
    answered = read_json(predictions / "figures.json").get("of", {})
    manifest = read_json(challenger / "manifest.json")
    lies_there = sha256_of(challenger / "adapter_model.safetensors")
    if not answered.get("weights_sha256") == manifest["weights_sha256"] == lies_there:
        raise UserError(f"The answers in {predictions} are not those of {challenger}; run `dvc repro` to evaluate it.")


def refuse_the_champion_itself(challenger: Path, champion: Path) -> None:
    weights = [read_json(folder / "manifest.json")["weights_sha256"] for folder in (challenger, champion)]
    if weights[0] == weights[1]:
        raise UserError(f"{challenger} is the champion already, as {registry.live()}.")


def evidence_of_champion(champion: Path) -> Path:
    """The champion's predictions on the rows of today; what is there of the same inputs is kept.

    Raises:
        UserError: it cannot be evaluated, because it belongs to another base, for example.
    """
    predictions, key = EVIDENCE / "predictions/champion", EVIDENCE / "key.json"
    knobs = params.load()
    files = [registry.POINTER, WEIGHTS / "base/base.json", PROBES]
    files += [folder / "receipt.json" for folder in (CHECKED, GENERAL)]
    inputs = {str(path): sha256_of(path) for path in files} | {"evaluate": knobs.evaluate.max_new_tokens}
    if key.is_file() and read_json(key) == inputs and predictions.is_dir():
        return predictions
    if evidence.evaluate("champion", champion, EVIDENCE) != 0:
        raise UserError(
            "The champion cannot be evaluated; the lines above say why. If it belongs to another base, retire it: "
            f"`git rm {registry.POINTER}`, commit, and promote again."
        )
    write_json(key, inputs)
    return predictions


def times_of(champion: Path | None, challenger: Path) -> Path:
    """What an answer takes champion and challenger, measured in turn; kept, since times are never twice the same."""
    manifests = [folder and read_json(folder / "manifest.json")["weights_sha256"] for folder in (champion, challenger)]
    inputs = [sha256_of(path) for path in (WEIGHTS / "base/base.json", CHECKED / "receipt.json")]
    found = TIMES / f"{sha256_of_json([manifests, inputs, params.load().evaluate.max_new_tokens])[:16]}.json"
    if found.is_file():
        return found
    sides = ("--champion", str(champion)) if champion else ()
    paths = ("--base", str(WEIGHTS / "base"), "--checked", str(CHECKED), "--challenger", str(challenger))
    if run_module("stages.promote.timing", *paths, *sides, "--out", str(found)) != 0:
        raise UserError("The answers could not be timed; the lines above say why.")
    return found


def decide(champion: tuple[str, Path], challenger: tuple[str, Path], times: Path) -> None:
    sides = {"champion": champion, "challenger": challenger}
    options = []
    for side, (name, predictions) in sides.items():
        options += [f"--{side}", name, f"--{side}-predictions", str(predictions)]
    options += ["--times", str(times)]
    if run_module("stages.promote", *options, "--decision", str(DECISION), "--markdown", str(REASONS)) != 0:
        raise UserError("No decision was made; the lines above say why.")


def roll_back() -> str:
    """Make the version before the live one live again; gives it.

    Raises:
        UserError: there is none.
    """
    registry.refuse_without_git()
    with registry.held():
        standing = registry.history()
        if len(standing) < 2:
            before = standing[0] if standing else "the first"
            raise UserError(f"There is no version before {before}; nothing was changed.")
        *_, version, current = standing
        registry.restore(version, f"Roll back from {current} to {version}")
        return version


@program
def main() -> None:
    parser = argparse.ArgumentParser(description="Promote an adapter to champion, if it is really better.")
    parser.add_argument("adapter", nargs="?", help="the challenger: its key under adapters: in params.yaml")
    parser.add_argument("--rollback", action="store_true", help="make the version before live again")
    arguments = parser.parse_args()
    if arguments.rollback == bool(arguments.adapter):
        raise UserError("Give either an adapter to promote, or --rollback.")
    if arguments.rollback:
        print(f"Live again · 已回滚到：champion {roll_back()}")
        return
    decision = promote(arguments.adapter)
    print(REASONS.read_text(encoding="utf-8"))
    if not decision["promote"]:
        sys.exit(NOT_PROMOTED)
    pushed = registry.publish()
    print(
        f"champion {decision['version']}",
        "pushed · 已推送" if pushed else "not pushed: no DVC remote · 未设远端，未推送",
    )
    print("Tell others with `git push --follow-tags`, and fetch it elsewhere · 推送标签后在别处获取：")
    print("dvc artifacts get REPOSITORY champion --stage live")


if __name__ == "__main__":
    main()
