"""Champion and challenger: ``python -m pipelines.promote lora``; ``--rollback`` makes the version before live again.

The challenger takes the champion's place if its gain on the metric of params.yaml is real and no guard is broken.
Both answer the same rows: the champion is evaluated on those of today. Without a champion, the base is the one to
beat. Exit code 0: promoted, or rolled back; 3: the champion stays.
"""

import argparse
import sys
from pathlib import Path

from models.errors import UserError, program
from models.storage import read_json, sha256_of, write_json
from pipelines import evidence, registry
from pipelines.evidence import CHECKED, GENERAL, PREDICTIONS, PROBES, WEIGHTS
from pipelines.programs import run_module
from stages import params

DECISION, REASONS = Path("reports/promotion.json"), Path("reports/promotion.md")
EVIDENCE = Path("models/checkpoints/champion")  # the champion's answers to the rows of today
NOT_PROMOTED = 3


def promote(name: str) -> dict:
    """Decide, and promote if so; gives the decision, with the version if there is one."""
    if name not in params.load().adapters:
        raise UserError(f"params.yaml has no adapter {name!r}; it has {', '.join(params.load().adapters)}.")
    registry.refuse_without_identity()
    challenger = WEIGHTS / name
    refuse_the_champion_itself(challenger)
    against = ("base", PREDICTIONS / "base")
    if registry.FOLDER.is_dir():
        against = (f"champion {registry.live()}", evidence_of_champion())
    decide(against, (name, PREDICTIONS / name))
    decision = read_json(DECISION)
    if not decision["promote"]:
        return decision
    summary = f"Promote {name}: {decision['conditions'][0]['found']}"
    return decision | {"version": registry.register(challenger, (DECISION, REASONS), summary)}


def refuse_the_champion_itself(challenger: Path) -> None:
    manifests = [folder / "manifest.json" for folder in (challenger, registry.FOLDER)]
    if not manifests[0].is_file():
        raise UserError(f"There is no adapter in {challenger}; run `dvc repro` first.")
    if manifests[1].is_file() and sha256_of(manifests[0]) == sha256_of(manifests[1]):
        raise UserError(f"{challenger} is the champion already, as {registry.live()}.")


def evidence_of_champion() -> Path:
    """The champion's predictions on the rows of today; what is there of the same inputs is kept.

    Raises:
        UserError: it cannot be evaluated, because it belongs to another base, for example.
    """
    predictions, key = EVIDENCE / "predictions/champion", EVIDENCE / "key.json"
    knobs = params.load()
    files = [registry.FOLDER / "manifest.json", PROBES, *(each / "receipt.json" for each in (CHECKED, GENERAL))]
    inputs = {str(path): sha256_of(path) for path in files} | {"evaluate": knobs.evaluate.max_new_tokens}
    if key.is_file() and read_json(key) == inputs and predictions.is_dir():
        return predictions
    if evidence.evaluate("champion", registry.FOLDER, EVIDENCE) != 0:
        raise UserError(
            "The champion cannot be evaluated; the lines above say why. If it belongs to another base, retire it: "
            f"`git rm {registry.POINTER}`, and promote again."
        )
    write_json(key, inputs)
    return predictions


def decide(champion: tuple[str, Path], challenger: tuple[str, Path]) -> None:
    sides = {"champion": champion, "challenger": challenger}
    options = []
    for side, (name, predictions) in sides.items():
        options += [f"--{side}", name, f"--{side}-predictions", str(predictions)]
    if run_module("stages.promote", *options, "--decision", str(DECISION), "--markdown", str(REASONS)) != 0:
        raise UserError("No decision was made; the lines above say why.")


def roll_back() -> str:
    """Make the version before the live one live again; gives it.

    Raises:
        UserError: there is none.
    """
    registry.refuse_without_identity()
    known, current = registry.versions(), registry.live()
    if current is None or known.index(current) == 0:
        raise UserError(f"There is no version before {current or 'the first'}; nothing was rolled back.")
    version = known[known.index(current) - 1]
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
    print("Fetch it elsewhere · 在别处获取：dvc artifacts get REPOSITORY champion --stage live")


if __name__ == "__main__":
    main()
