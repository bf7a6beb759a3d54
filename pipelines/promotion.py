"""Champion and challenger: ``python -m pipelines.promotion lora``; ``--rollback`` makes the version before live again.

The challenger takes the champion's place if its gain on the metric of params.yaml is real and no guard is broken.
Both answer the same rows: the champion is evaluated on those of today. Without a champion, the base is the one to
beat. Exit code 0: promoted, or rolled back; 3: the champion stays.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import yaml

from formats import params_schema
from models import provenance
from models.command_line import entry_point
from models.errors import UserError
from models.storage import read_json, sha256_of, sha256_of_json, write_json, write_text
from pipelines import dvc, registry, stage_paths
from pipelines.processes import run_module
from pipelines.stage_paths import CHECKED, PREDICTIONS, WEIGHTS

DECISION, REASONS = Path("reports/promotion.json"), Path("reports/promotion.md")
LOCK = Path("dvc.lock")
EVIDENCE = Path("models/checkpoints/evidence")  # what models must be run for, kept by what it depends on:
ANSWERS = EVIDENCE / "answers"  # of the champion to the rows of today
TIMES = EVIDENCE / "times"  # of each pair, so that what was decided once is decided so again
HASHED = {"weights_sha256": "adapter_model.safetensors", "config_sha256": "adapter_config.json"}  # in a manifest
NOT_PROMOTED = 3


def promote(name: str) -> dict:
    """Decide, and promote if so; gives the decision, with the version if there is one."""
    if name not in params_schema.load().adapters:
        raise UserError(f"params.yaml has no adapter {name!r}; it has {', '.join(params_schema.load().adapters)}.")
    registry.refuse_without_git()
    with registry.held():
        return _promote(name)


def _promote(name: str) -> dict:
    refuse_what_changed(name)
    challenger, champion = WEIGHTS / name, registry.champion()
    refuse_what_was_not_evaluated(challenger, PREDICTIONS / name)
    against = ("base", PREDICTIONS / "base")
    if champion is not None:
        refuse_the_champion_itself(challenger, champion)
        against = (f"champion {registry.named()}", answers_of_champion(champion, name))
    times = times_of(champion, challenger)
    with tempfile.TemporaryDirectory() as scratch:
        decision = decide(against, (name, PREDICTIONS / name), times, Path(scratch))
        if not decision["promote"]:
            show(Path(scratch))
            return decision
        summary = f"Promote {name}: {decision['conditions'][0]['found']}"
        # The reports say that it was promoted; so they come and go with the promotion.
        version = registry.register(challenger, (DECISION, REASONS), summary, lambda: show(Path(scratch)))
        return decision | {"version": version}


def refuse_what_changed(name: str) -> None:
    """Raises UserError: data, settings, code or answers are not those that DVC saw when it evaluated."""
    stages = [f"evaluate@{each}" for each in dict.fromkeys(("base", name))]
    changed = json.loads(dvc.ask("status", "--json", "--with-deps", *stages) or "{}")
    if changed:
        stage, (what, *_) = next(iter(changed.items()))
        said = what if isinstance(what, str) else ", ".join(f"{key}: {', '.join(of)}" for key, of in what.items())
        raise UserError(f"Stage {stage} is not up to date ({said}); run `dvc repro`, then promote.")


def refuse_what_was_not_evaluated(challenger: Path, predictions: Path) -> None:
    """Raises UserError: there is no adapter, or the answers are another's than that which lies there."""
    if not (challenger / "manifest.json").is_file():
        raise UserError(f"There is no adapter in {challenger}; run `dvc repro` first.")
    answered = read_json(predictions / "figures.json").get("of", {})
    hashes = hashes_of(challenger)
    lies_there = {key: sha256_of(challenger / HASHED[key]) for key in hashes}
    if not hashes == lies_there == {key: answered.get(key) for key in hashes}:
        raise UserError(f"The answers in {predictions} are not those of {challenger}; run `dvc repro` to evaluate it.")


def hashes_of(adapter: Path) -> dict[str, str]:
    """The hashes of an adapter's files, as its manifest has them; older manifests have none of the configuration.

    Raises:
        UserError: the manifest is not one.
    """
    manifest = read_json(adapter / "manifest.json")
    hashes = {key: manifest.get(key, "") for key in HASHED} if isinstance(manifest, dict) else {}
    if not hashes.get("weights_sha256") or not all(isinstance(value, str) for value in hashes.values()):
        raise UserError(f"{adapter / 'manifest.json'} is no adapter's manifest; run `dvc repro` to train it again.")
    return {key: value for key, value in hashes.items() if value}


def weights_of(adapter: Path) -> str:
    """One string for an adapter's weights and configuration, to tell adapters apart by; see :func:`hashes_of`."""
    return " ".join(hashes_of(adapter).values())


def refuse_the_champion_itself(challenger: Path, champion: Path) -> None:
    """Raises UserError: it is the champion. What a promotion before did not get to push is pushed."""
    if weights_of(challenger) == weights_of(champion):
        registry.publish()
        raise UserError(f"{challenger} is the champion already, as {registry.named()}.")


def measure(name: str) -> None:
    """Run the models that a decision on this challenger needs, as far as that has not been done."""
    champion = registry.champion()
    if champion is not None:
        answers_of_champion(champion, name)
    times_of(champion, WEIGHTS / name)


def is_measured(name: str) -> bool:
    """Whether a decision on this challenger needs no model to be run."""
    champion = registry.champion()
    answered = champion is None or are_answered(*answers_key(champion, name), name)
    return answered and times_key(champion, WEIGHTS / name).is_file()


def answers_key(champion: Path, challenger: str) -> tuple[Path, dict]:
    """The folder for the champion's answers to what the challenger was asked, and what they depend on."""
    inputs = {"champion": weights_of(champion), **asked_of(challenger)}
    return ANSWERS / sha256_of_json(inputs)[:16], inputs


def answers_of_champion(champion: Path, challenger: str) -> Path:
    """The champion's predictions on what the challenger was asked; what is there of the same inputs is kept.

    Raises:
        UserError: it cannot be evaluated, because it belongs to another base, for example.
    """
    folder, inputs = answers_key(champion, challenger)
    predictions, key = folder / "predictions/champion", folder / "key.json"
    if are_answered(folder, inputs, challenger):
        return predictions
    key.unlink(missing_ok=True)
    if stage_paths.evaluate("champion", champion, folder) != 0:
        raise UserError(
            "The champion cannot be evaluated; the lines above say why. If it belongs to another base, retire it: "
            f"`git rm {registry.POINTER}`, commit, and promote again."
        )
    write_json(key, inputs)
    return predictions


def are_answered(folder: Path, inputs: dict, challenger: str) -> bool:
    """Whether a folder has the champion's answers of these inputs, scored by the challenger's metrics version."""
    predictions, key = folder / "predictions/champion", folder / "key.json"
    if not (key.is_file() and read_json(key) == inputs and predictions.is_dir()):
        return False
    versions = {metrics_version(answers) for answers in (predictions, PREDICTIONS / challenger)}
    return len(versions) == 1


def metrics_version(predictions: Path) -> int | None:
    """The version of the metrics that scored a model's answers; None of the first, which wrote none."""
    return read_json(predictions / "figures.json").get("metrics_version")


def asked_of(name: str) -> dict:
    """What the evaluation of an adapter depended on but for the adapter: data, code and settings as dvc.lock has them,
    and the versions of the libraries."""
    try:
        stage = yaml.safe_load(LOCK.read_text(encoding="utf-8"))["stages"][f"evaluate@{name}"]
        deps = {dep["path"]: dep.get("md5") for dep in stage["deps"] if dep["path"] != str(WEIGHTS / name)}
        return {"deps": deps, "params": stage.get("params"), "libraries": provenance.library_versions()}
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError):
        raise UserError(f"{LOCK} does not say what {name} was evaluated on; run `dvc repro evaluate@{name}`.") from None


def times_key(champion: Path | None, challenger: Path) -> Path:
    """The file for what an answer takes champion and challenger."""
    weights = [folder and weights_of(folder) for folder in (champion, challenger)]
    data = [sha256_of(path) for path in (WEIGHTS / "base/base.json", CHECKED / "receipt.json")]
    code = [provenance.code_sha256("stages.promote.latency"), provenance.library_versions()]
    return TIMES / f"{sha256_of_json([weights, data, code, params_schema.load().evaluate.max_new_tokens])[:16]}.json"


def times_of(champion: Path | None, challenger: Path) -> Path:
    """What an answer takes champion and challenger, measured in turn; kept, since times are never twice the same."""
    found = times_key(champion, challenger)
    if found.is_file():
        return found
    sides = ("--champion", str(champion)) if champion else ()
    paths = ("--base", str(WEIGHTS / "base"), "--checked", str(CHECKED), "--challenger", str(challenger))
    if run_module("stages.promote.latency", *paths, *sides, "--out", str(found)) != 0:
        raise UserError("The answers could not be timed; the lines above say why.")
    return found


def decide(champion: tuple[str, Path], challenger: tuple[str, Path], times: Path, folder: Path) -> dict:
    """The decision; it and its reasons go to the folder."""
    sides = {"champion": champion, "challenger": challenger}
    options = ["--base-predictions", str(PREDICTIONS / "base"), "--times", str(times)]
    for side, (name, predictions) in sides.items():
        options += [f"--{side}", name, f"--{side}-predictions", str(predictions)]
    made = ("--decision", str(folder / DECISION.name), "--markdown", str(folder / REASONS.name))
    if run_module("stages.promote", *options, *made) != 0:
        raise UserError("No decision was made; the lines above say why.")
    return read_json(folder / DECISION.name)


def show(folder: Path) -> None:
    """Put a decision among the reports."""
    for path in (DECISION, REASONS):
        write_text(path, (folder / path.name).read_text(encoding="utf-8"))


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
        said = f"Roll back from {current} to {version}"
        registry.restore(version, (DECISION, REASONS), said, lambda: _show_rollback(current, version))
        registry.publish()
        return version


def _show_rollback(current: str, version: str) -> None:
    write_json(DECISION, {"rolled_back": {"from": current, "to": version}})
    write_text(REASONS, f"# champion {current} → {version}: rolled back · 已回滚\n")


@entry_point
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
