"""Promote a challenger to champion: ``python -m pipelines.promotion lora``; ``--rollback`` restores the version before.

The challenger is promoted if the gain on the metric in params.yaml is significant and no guard is violated. Champion
and challenger answer the same rows: the champion is evaluated on the current ones. Without a champion, the challenger
is compared with the base model. Exit code 0: promoted, or rolled back; 3: not promoted.

All functions work on the repository in the working directory.
"""

import argparse
import json
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from formats import params_schema
from models import provenance
from models.command_line import entry_point
from models.errors import UserError
from models.storage import read_json, sha256_of, sha256_of_json, write_json, write_text
from pipelines import dvc, promotion_report, registry, stage_paths
from pipelines.processes import ProgramFailed, output_of, run_module
from pipelines.promotion_report import Condition
from pipelines.stage_paths import CHECKED, PREDICTIONS, WEIGHTS
from texts import in_all_languages, translate

DECISION, REASONS = Path("reports/promotion.json"), Path("reports/promotion.md")
DVC_LOCK = Path("dvc.lock")
# Caches of model runs, by a hash of everything that they depend on.
MEASUREMENT_CACHE = Path("models/checkpoints/evidence")
ANSWERS = MEASUREMENT_CACHE / "answers"  # of the champion to the current rows
LATENCIES = MEASUREMENT_CACHE / "times"  # of each pair: measured once, so that a decision can be repeated
HASHED_FILES = {  # by their key in a manifest
    "weights_sha256": "adapter_model.safetensors",
    "config_sha256": "adapter_config.json",
}
NOT_PROMOTED = 3


@dataclass(frozen=True)
class PromotionResult:
    """The decision on a challenger.

    Attributes:
        adapter: the challenger's key in params.yaml.
        version: of the champion that it became; None if it was not promoted.
    """

    adapter: str
    is_promoted: bool
    conditions: tuple[Condition, ...]
    version: str | None = None

    @property
    def unmet_conditions(self) -> list[Condition]:
        """The conditions that prevent the promotion."""
        return [condition for condition in self.conditions if not condition.is_met]


def require_adapter(params: params_schema.Params, name: str) -> None:
    """Raise UserError if params.yaml has no adapter of this name."""
    if name not in params.adapters:
        raise UserError(f"params.yaml has no adapter {name!r}; it has {', '.join(params.adapters)}.")


def promote(name: str) -> PromotionResult:
    """Decide on a challenger, and make it the champion if all conditions are met.

    Raises:
        UserError: the adapter was not evaluated as it is, or it is the champion already.
    """
    require_adapter(params_schema.load(), name)
    registry.require_git()
    with registry.lock():
        return _promote(name)


def _promote(name: str) -> PromotionResult:
    require_up_to_date(name)
    challenger, champion = WEIGHTS / name, registry.fetch_champion()
    require_evaluated(challenger, PREDICTIONS / name)
    opponent = ("base", PREDICTIONS / "base")
    if champion is not None:
        require_not_champion(challenger, champion)
        opponent = (f"champion {registry.version_at()}", evaluate_champion(champion, name))
    print(translate("Timing base, champion and challenger; this can take minutes."), flush=True)
    latencies = measure_latency(champion, challenger)
    with tempfile.TemporaryDirectory() as scratch:
        result = decide(opponent, (name, PREDICTIONS / name), latencies, Path(scratch))
        if not result.is_promoted:
            write_reports(Path(scratch))
            return result
        gain = result.conditions[0]
        message = f"Promote {name}\n\n{gain.label('en')}: {gain.evidence('en')}"
        # The registry reverts the reports with a failed promotion: they name it as promoted.
        reports = (DECISION, REASONS)
        version = registry.register(challenger, reports, message, lambda: write_reports(Path(scratch)))
        return replace(result, version=version)


# Preconditions --------------------------------------------------------------------------------------


def require_up_to_date(name: str) -> None:
    """Raise UserError if data, parameters, code or answers have changed since DVC evaluated base and challenger."""
    stages = [f"evaluate@{model}" for model in dict.fromkeys(("base", name))]
    changes = json.loads(dvc.capture("status", "--json", "--with-deps", *stages) or "{}")
    if changes:
        stage, (change, *_) = next(iter(changes.items()))
        if not isinstance(change, str):
            change = ", ".join(f"{kind}: {', '.join(paths)}" for kind, paths in change.items())
        raise UserError(f"Stage {stage} is not up to date ({change}); run `dvc repro`, then promote.")


def require_evaluated(challenger: Path, predictions: Path) -> None:
    """Raise UserError if the folder has no adapter, or the predictions are of another adapter."""
    if not (challenger / "manifest.json").is_file():
        raise UserError(f"There is no adapter in {challenger}; run `dvc repro` first.")
    evaluated = read_json(predictions / "figures.json").get("of", {})
    recorded = adapter_hashes(challenger)
    actual = {key: sha256_of(challenger / HASHED_FILES[key]) for key in recorded}
    if not recorded == actual == {key: evaluated.get(key) for key in recorded}:
        raise UserError(f"The answers in {predictions} are not those of {challenger}; run `dvc repro` to evaluate it.")


def require_not_champion(challenger: Path, champion: Path) -> None:
    """Raise UserError if the challenger is the champion. A push that failed at its promotion is repeated."""
    if adapter_fingerprint(challenger) == adapter_fingerprint(champion):
        registry.push_champion()
        raise UserError(f"{challenger} is the champion already, as {registry.version_at()}.")


def adapter_hashes(adapter: Path) -> dict[str, str]:
    """Return the hashes of an adapter's files by its manifest; older manifests have none of the configuration.

    Raises:
        UserError: the manifest is not valid.
    """
    manifest = read_json(adapter / "manifest.json")
    hashes = {key: manifest.get(key, "") for key in HASHED_FILES} if isinstance(manifest, dict) else {}
    if not hashes.get("weights_sha256") or not all(isinstance(value, str) for value in hashes.values()):
        raise UserError(f"{adapter / 'manifest.json'} is not an adapter's manifest; run `dvc repro` to train it again.")
    return {key: value for key, value in hashes.items() if value}


def adapter_fingerprint(adapter: Path) -> str:
    """Return one string that identifies an adapter's weights and configuration; see :func:`adapter_hashes`."""
    return " ".join(adapter_hashes(adapter).values())


# Measurements: answers of the champion, latencies of both -------------------------------------------


def measure(name: str) -> None:
    """Run the models that the decision on a challenger needs, unless their results are cached."""
    champion = registry.fetch_champion()
    if champion is not None:
        evaluate_champion(champion, name)
    measure_latency(champion, WEIGHTS / name)


def is_measured(name: str) -> bool:
    """Return whether the decision on a challenger needs no model to be run."""
    champion = registry.fetch_champion()
    has_answers = champion is None or _has_answers(*answers_key(champion, name), name)
    return has_answers and latency_file(champion, WEIGHTS / name).is_file()


def answers_key(champion: Path, challenger: str) -> tuple[Path, dict]:
    """Return the cache folder of the champion's answers to the challenger's rows, and everything they depend on."""
    inputs = {"champion": adapter_fingerprint(champion), **evaluation_inputs(challenger)}
    return ANSWERS / sha256_of_json(inputs)[:16], inputs


def evaluate_champion(champion: Path, challenger: str) -> Path:
    """Evaluate the champion on the challenger's rows, unless its answers are cached; return their folder.

    Raises:
        UserError: the champion cannot be evaluated, e.g. because it belongs to another base model.
    """
    folder, inputs = answers_key(champion, challenger)
    predictions, key = folder / "predictions/champion", folder / "key.json"
    if _has_answers(folder, inputs, challenger):
        return predictions
    key.unlink(missing_ok=True)
    if stage_paths.run_evaluate("champion", champion, folder) != 0:
        raise UserError(
            "The champion cannot be evaluated; the reason is in the output above. If it belongs to another base model, "
            f"retire it: `git rm {registry.POINTER}`, commit, and promote again."
        )
    write_json(key, inputs)
    return predictions


def _has_answers(folder: Path, inputs: dict, challenger: str) -> bool:
    """Return whether a cache folder has answers for these inputs, scored by the challenger's version of the metrics."""
    predictions, key = folder / "predictions/champion", folder / "key.json"
    if not (key.is_file() and read_json(key) == inputs and predictions.is_dir()):
        return False
    versions = {metrics_version(answers) for answers in (predictions, PREDICTIONS / challenger)}
    return len(versions) == 1


def metrics_version(predictions: Path) -> int | None:
    """Return the version of the metrics that scored a model's answers; None for the first, which was not recorded."""
    return read_json(predictions / "figures.json").get("metrics_version")


def evaluation_inputs(name: str) -> dict:
    """Return what the evaluation of an adapter depends on, apart from the adapter.

    Data, code and parameters are those in dvc.lock; library versions are those installed.

    Raises:
        UserError: dvc.lock has no evaluation of this adapter.
    """
    try:
        stage = yaml.safe_load(DVC_LOCK.read_text(encoding="utf-8"))["stages"][f"evaluate@{name}"]
        deps = {dep["path"]: dep.get("md5") for dep in stage["deps"] if dep["path"] != str(WEIGHTS / name)}
        return {"deps": deps, "params": stage.get("params"), "libraries": provenance.library_versions()}
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError):
        raise UserError(f"{DVC_LOCK} has no evaluation of {name}; run `dvc repro evaluate@{name}`.") from None


def latency_file(champion: Path | None, challenger: Path) -> Path:
    """Return the cache file of the seconds per answer of base, champion (None: there is none) and challenger."""
    fingerprints = [folder and adapter_fingerprint(folder) for folder in (champion, challenger)]
    data = [sha256_of(path) for path in (WEIGHTS / "base/base.json", CHECKED / "receipt.json")]
    code = [provenance.code_sha256("stages.promote.latency"), provenance.library_versions()]
    max_new_tokens = params_schema.load().evaluate.max_new_tokens
    return LATENCIES / f"{sha256_of_json([fingerprints, data, code, max_new_tokens])[:16]}.json"


def measure_latency(champion: Path | None, challenger: Path) -> Path:
    """Time the answers of base, champion and challenger in turn, unless their latencies are cached; return the file.

    Raises:
        UserError: a model cannot be run.
    """
    file = latency_file(champion, challenger)
    if file.is_file():
        return file
    paths = {"base": WEIGHTS / "base", "checked": CHECKED, "challenger": challenger, "out": file}
    paths |= {"champion": champion} if champion else {}
    if run_module("stages.promote.latency", *stage_paths.path_options(paths)) != 0:
        raise UserError("The latency could not be measured; the reason is in the output above.")
    return file


# Decision -------------------------------------------------------------------------------------------


def decide(champion: tuple[str, Path], challenger: tuple[str, Path], latencies: Path, folder: Path) -> PromotionResult:
    """Run stage promote, and write the decision and its reasons to a folder.

    Args:
        champion, challenger: name and predictions of each.
        latencies: file of :func:`measure_latency`.

    Raises:
        UserError: the predictions cannot be compared.
    """
    paths = {"base-predictions": PREDICTIONS / "base", "times": latencies}
    paths |= {"champion-predictions": champion[1], "challenger-predictions": challenger[1]}
    paths |= {"decision": folder / DECISION.name, "records": folder / "champions.json"}
    write_json(paths["records"], read_records())
    names = ("--champion", champion[0], "--challenger", challenger[0])
    if run_module("stages.promote", *names, *stage_paths.path_options(paths)) != 0:
        raise UserError("No decision was made; the reason is in the output above.")
    decision = read_json(folder / DECISION.name)
    write_text(folder / REASONS.name, promotion_report.render_report(decision))
    conditions = tuple(map(Condition.from_json, decision["conditions"]))
    return PromotionResult(challenger[0], decision["promote"], conditions)


def read_records() -> dict[str, dict]:
    """Return what the decision kept of each live version and those before it, by version; older ones have no record."""
    records = {}
    for version in registry.live_history():
        with suppress(ProgramFailed, ValueError, KeyError, TypeError):
            decision = json.loads(output_of("git", "show", f"{registry.ARTIFACT}@{version}:{DECISION}"))
            records[version] = dict(decision["record"])
    return records


def write_reports(folder: Path) -> None:
    """Copy a decision and its reasons to the reports."""
    for path in (DECISION, REASONS):
        write_text(path, (folder / path.name).read_text(encoding="utf-8"))


def roll_back() -> str:
    """Make the version before the live version live again, and return it.

    Raises:
        UserError: there is no such version.
    """
    registry.require_git()
    with registry.lock():
        history = registry.live_history()
        if len(history) < 2:
            before = history[0] if history else "the first"
            raise UserError(f"There is no version before {before}; nothing was changed.")
        *_, version, current = history
        message = f"Roll back from {current} to {version}"
        registry.restore(version, (DECISION, REASONS), message, lambda: _write_rollback(current, version))
        registry.push_champion()
        return version


def _write_rollback(current: str, version: str) -> None:
    write_json(DECISION, {"rolled_back": {"from": current, "to": version}})
    sentences = in_all_languages(
        "The champion was rolled back from {current} to {version}.", current=current, version=version
    )
    write_text(REASONS, "\n\n".join(sentences.values()) + "\n")


@entry_point
def main() -> None:
    parser = argparse.ArgumentParser(description="Promote an adapter to champion if it is significantly better.")
    parser.add_argument("adapter", nargs="?", help="the challenger: its key under adapters: in params.yaml")
    parser.add_argument("--rollback", action="store_true", help="make the version before the live one live again")
    arguments = parser.parse_args()
    if arguments.rollback == bool(arguments.adapter):
        raise UserError("Pass either an adapter to promote, or --rollback.")
    if arguments.rollback:
        print(translate("Champion {version} is live again.", version=roll_back()))
        return
    result = promote(arguments.adapter)
    print(promotion_report.render_title(result.adapter, result.is_promoted))
    print(promotion_report.render_conditions(result.conditions))
    if not result.is_promoted:
        sys.exit(NOT_PROMOTED)
    is_pushed = registry.push_champion()
    print(translate("Live version: champion {version}.", version=result.version))
    if is_pushed:
        print(translate("Its files were pushed to DVC's remote."))
    else:
        print(translate("Its files were not pushed: there is no DVC remote."))
    print(translate("Publish its tags with `git push --follow-tags`. Elsewhere, fetch it with:"))
    print("dvc artifacts get REPOSITORY champion --stage live")


if __name__ == "__main__":
    main()
