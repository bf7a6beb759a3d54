"""``python -m stages.evaluate``: see the package's docstring."""

import argparse
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from formats import params_schema, receipt
from formats.probe_file import read_probes
from measures import metrics
from models import adapter_files, base_model, model_loading, provenance
from models.base_model import Base
from models.command_line import entry_point
from models.families import family_of
from models.manifest import Manifest, parse_manifest
from models.sample import Sample
from models.storage import atomic_write_folder, sha256_of_json, write_json, write_jsonl
from stages.evaluate.answer_cache import AnswerCache
from stages.evaluate.contaminated_rows import mark_seen_probes, match_general_samples
from stages.evaluate.model_evaluation import EvalResult, EvalSet, ModelUnderTest, evaluate_model

log = logging.getLogger("tuneline.evaluate")
TRAINING_FIELDS = (
    "train_loss",
    "seconds",
    "watt_hours",
    "peak_memory_gib",
    "tokens_per_second",
    "steps",
    "trainable_parameters",
)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Evaluate the base model or one adapter.")
    parser.add_argument("--model", required=True, help="'base' or an adapter's key")
    parser.add_argument("--kept", type=Path, required=True, help="folder of the answer cache")
    parser.add_argument(
        "--bits",
        type=int,
        choices=(16, 8, 4),
        help="quantization of the base; default: as in the adapter's training, or params.yaml's dtype",
    )
    for name in ("base", "weights", "checked", "encoded", "general", "predictions", "metrics"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    return parser.parse_args()


def read_eval_set(checked: receipt.VerifiedFolder, general: receipt.VerifiedFolder, probes: Path | None) -> EvalSet:
    """Read test rows, evaluation rows, general rows and probes, and find those that occur in the training rows.

    Nothing is chosen by general rows, so both of their held-out splits are used: forgetting is measured on more rows.

    Args:
        probes: file or folder of probes, or None.

    Raises:
        DataBlocked: the rows do not match the receipt.
        UserError: a probe is invalid.
    """

    def read(folder: receipt.VerifiedFolder, *splits: str) -> list[Sample]:
        return [Sample.from_json(row) for split in splits for row in folder.rows(split)]

    general_samples = read(general, "eval", "test")
    marked = mark_seen_probes(read_probes(probes), checked) if probes else []
    matches = match_general_samples(general_samples, checked)
    return EvalSet(read(checked, "test"), general_samples, marked, read(checked, "eval"), matches)


def load_model(base: Base, manifest: Manifest | None, arguments: argparse.Namespace, dtype: str):
    """Load the base, or the adapter on it, whose hashes are verified."""
    bits = arguments.bits
    quantization = {"quantization": None if bits == 16 else bits} if bits else {}
    if manifest is None:
        return model_loading.load_model(base, dtype, **quantization)
    return adapter_files.load_adapter(arguments.weights, base, manifest=manifest, **quantization)


def cache_key(model: Mapping, prompt_version: str, eval_set: EvalSet, params: params_schema.Params) -> str:
    """Return a hash of everything that the answers depend on, including code and library versions.

    Args:
        model: identity of the base, hashes of the adapter, and bits of the base.
        prompt_version: of the base's family.
    """
    samples = [
        [asdict(sample) for sample in samples] for samples in (eval_set.task, eval_set.chosen_by, eval_set.general)
    ]
    inputs = {
        "model": dict(model),
        "samples": samples,
        "probes": [repr(probe) for probe in eval_set.probes],
        "evaluate": params.evaluate.model_dump(mode="json", exclude={"models"}),
        "dtype": params.base.dtype,
        "prompt": prompt_version,
        "code": provenance.code_sha256("stages.evaluate"),
        "libraries": provenance.library_versions(),
    }
    return sha256_of_json(inputs)


def training_summary(manifest: Manifest | None) -> dict:
    """Return loss, cost and warm start of the training from the manifest; None for every field of the base."""
    training = manifest.training if manifest else {}
    ancestors = (manifest and manifest.started_from) or ()
    names = [f"{ancestor['source']} ({ancestor['weights_sha256'][:8]})" for ancestor in ancestors]
    return {field: training.get(field) for field in TRAINING_FIELDS} | {"started_from": " ← ".join(names) or None}


def describe_probes(all_metrics: dict) -> str:
    """Return the end of the log message: the pass rates of the probes by kind; empty without probes."""
    rates = (all_metrics["probes"] or {}).get("rates", {})
    parts = [
        f"{rates[kind]['rate']:.0%} of {rates[kind]['of']} {kind} wordings"
        for kind in ("seen", "unseen")
        if rates.get(kind)
    ]
    return f"; probes passed: {', '.join(parts)}" if parts else ""


def write_result(result: EvalResult, extra: dict, arguments: argparse.Namespace) -> dict:
    """Write scored rows, all metrics and the DVC metrics; return all metrics.

    Args:
        extra: metrics that are not computed from the rows.
    """
    all_metrics = result.metrics | extra
    with atomic_write_folder(arguments.predictions) as folder:
        for name, rows in result.rows.items():
            write_jsonl(folder / f"{name}.jsonl", rows)
        write_json(folder / metrics.METRICS_FILE, all_metrics)
    write_json(arguments.metrics, metrics.select_dvc_metrics(all_metrics))
    return all_metrics


@entry_point
def main() -> None:
    arguments, params = parse_arguments(), params_schema.load()
    checked, general = receipt.read(arguments.checked).verify(), receipt.read(arguments.general).verify()
    receipt.refuse_unrelated(receipt.read(arguments.encoded).verify(), checked)
    base = base_model.read_record(arguments.base)
    eval_set = read_eval_set(checked, general, params.probes)
    manifest = None if arguments.model == "base" else parse_manifest(arguments.weights)
    model = load_model(base, manifest, arguments, params.base.dtype)

    identity = {
        "base_identity": base.identity,
        "weights_sha256": manifest and manifest.weights_sha256,
        "config_sha256": manifest and manifest.config_sha256,
    }
    key = cache_key(identity | {"bits": arguments.bits}, family_of(base).prompt_version(base), eval_set, params)
    cache = AnswerCache(arguments.kept / f"{arguments.model}.{key[:16]}")
    of = identity | {"general_source": params.ingest.general}
    result = evaluate_model(ModelUnderTest(model, model_loading.load_tokenizer(base), cache, params), eval_set)
    written = write_result(result, {"training": training_summary(manifest), "of": of}, arguments)
    cache.delete()
    log.info(
        "evaluate: %s: test loss %.3f per token, %.3f on general conversations%s",
        arguments.model,
        written["test"]["loss"],
        written["general"]["loss"],
        describe_probes(written),
    )


if __name__ == "__main__":
    main()
