"""``python -m stages.evaluate``: see the package's docstring."""

import argparse
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from formats import params_schema, receipt
from measures import metrics
from models import adapters, base_model, provenance
from models.command_line import entry_point
from models.manifest import Manifest, parse_manifest
from models.prompt import PROMPT_VERSION
from models.sample import Sample
from models.storage import sha256_of_json, write_json, write_jsonl, writing_folder
from stages.evaluate.answer_cache import Kept
from stages.evaluate.model_evaluation import Model, Questions, measure
from stages.evaluate.probes import read_probes

log = logging.getLogger("tuneline.evaluate")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Evaluate the base model or one adapter.")
    parser.add_argument("--model", required=True, help="'base' or an adapter's key")
    parser.add_argument("--kept", type=Path, required=True, help="folder for answers, should it be killed")
    parser.add_argument(
        "--bits", type=int, choices=(16, 8, 4), help="of the base; by default as the adapter's training"
    )
    for name in ("base", "weights", "checked", "encoded", "general", "probes", "predictions", "metrics"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    return parser.parse_args()


def read_samples(checked: receipt.Verified) -> list[Sample]:
    """The evaluation samples; raises DataBlocked if they are not those of the receipt."""
    return [Sample.from_json(row) for row in checked.rows("eval")]


def key_of(model: Mapping, questions: Questions, knobs: params_schema.Params) -> str:
    """Hash of everything that the answers depend on, code and libraries included.

    Args:
        model: identity of the base, hash of the adapter's manifest, and bits of the base.
    """
    asked = [[asdict(sample) for sample in samples] for samples in (questions.task, questions.general)]
    inputs = {
        "model": dict(model),
        "samples": asked,
        "probes": [repr(probe) for probe in questions.probes],
        "evaluate": knobs.evaluate.model_dump(mode="json", exclude={"models"}),
        "dtype": knobs.base.dtype,
        "prompt": PROMPT_VERSION,
        "code": provenance.code_sha256("stages.evaluate"),
        "libraries": provenance.library_versions(),
    }
    return sha256_of_json(inputs)


def of_training(manifest: Manifest | None) -> dict:
    keys = (
        "train_loss",
        "seconds",
        "watt_hours",
        "peak_memory_gib",
        "tokens_per_second",
        "steps",
        "trainable_parameters",
    )
    return {key: manifest.training.get(key) for key in keys} if manifest else dict.fromkeys(keys, None)


@entry_point
def main() -> None:
    arguments, knobs = parse(), params_schema.load()
    checked, general = receipt.read(arguments.checked).verify(), receipt.read(arguments.general).verify()
    receipt.refuse_unrelated(receipt.read(arguments.encoded).verify(), checked)
    found = base_model.read_record(arguments.base)
    questions = Questions(read_samples(checked), read_samples(general), read_probes(arguments.probes))
    is_base = arguments.model == "base"
    manifest = None if is_base else parse_manifest(arguments.weights)  # load() checks the hashes
    bits = {"quantization": None if arguments.bits == 16 else arguments.bits} if arguments.bits else {}
    if is_base:
        model = base_model.load_model(found, knobs.base.dtype, **bits)
    else:
        model = adapters.load(arguments.weights, found, manifest=manifest, **bits)

    of = {
        "base_identity": found.identity,
        "weights_sha256": manifest and manifest.weights_sha256,
        "config_sha256": manifest and manifest.config_sha256,
    }
    key = key_of(of | {"bits": arguments.bits}, questions, knobs)
    kept = Kept(arguments.kept / f"{arguments.model}.{key[:16]}")
    measured = measure(Model(model, base_model.load_tokenizer(found), kept, knobs), questions)
    found_out = measured.figures | {
        "training": of_training(manifest),
        "of": of,
    }
    with writing_folder(arguments.predictions) as folder:
        for name, rows in measured.rows.items():
            write_jsonl(folder / f"{name}.jsonl", rows)
        write_json(folder / metrics.FILE, found_out)
    write_json(arguments.metrics, metrics.headlines(found_out))
    kept.discard()
    rate = found_out["probes"]["rates"]["all"]["rate"]
    losses = (found_out[name]["loss"] for name in ("eval", "general"))
    log.info("evaluate: %s: loss %.3f, general loss %.3f, probes met %.0f%%", arguments.model, *losses, 100 * rate)


if __name__ == "__main__":
    main()
