"""``python -m stages.evaluate``: see the package's docstring."""

import argparse
import logging
from pathlib import Path

from models import adapters, base
from models.errors import program
from models.prompt import PROMPT_VERSION
from models.sample import Sample
from models.storage import read_jsonl, sha256_of, sha256_of_json, write_json, write_jsonl, writing_folder
from stages import figures, params, receipt
from stages.evaluate.answers import Kept
from stages.evaluate.measure import Model, Questions, measure
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


def read_samples(checked: Path) -> list[Sample]:
    return [Sample.from_json(row) for row in read_jsonl(checked / "eval.jsonl")]


def key_of(arguments: argparse.Namespace, knobs: params.Params, found: base.Base, weights: str | None) -> str:
    """Hash of everything that the answers depend on."""
    receipts = [sha256_of(folder / receipt.RECEIPT) for folder in (arguments.checked, arguments.general)]
    how = {"tokens": knobs.evaluate.max_new_tokens, "dtype": knobs.base.dtype, "prompt": PROMPT_VERSION}
    inputs = {"base": found.identity, "weights": weights, "data": receipts, "probes": sha256_of(arguments.probes)}
    how |= {"samples": knobs.evaluate.samples, "bits": arguments.bits, "metrics": figures.METRICS_VERSION}
    return sha256_of_json(inputs | how)


def of_training(manifest: adapters.Manifest | None) -> dict:
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


@program
def main() -> None:
    arguments, knobs = parse(), params.load()
    receipt.verify_encoded(arguments.encoded, arguments.checked)
    receipt.verify(arguments.general)
    found = base.read_record(arguments.base)
    questions = Questions(
        read_samples(arguments.checked), read_samples(arguments.general), read_probes(arguments.probes)
    )
    is_base = arguments.model == "base"
    manifest = None if is_base else adapters.read_manifest(arguments.weights)
    bits = {"quantization": None if arguments.bits == 16 else arguments.bits} if arguments.bits else {}
    if is_base:
        model = base.load_model(found, knobs.base.dtype, **bits)
    else:
        model = adapters.load(arguments.weights, found, **bits)

    key = key_of(arguments, knobs, found, manifest and manifest.weights_sha256)
    kept = Kept(arguments.kept / f"{arguments.model}.{key[:16]}")
    measured = measure(Model(model, base.load_tokenizer(found.folder), kept, knobs), questions)
    found_out = measured.figures | {
        "training": of_training(manifest),
        "of": {"base_identity": found.identity, "weights_sha256": manifest and manifest.weights_sha256},
    }
    with writing_folder(arguments.predictions) as folder:
        for name, rows in measured.rows.items():
            write_jsonl(folder / f"{name}.jsonl", rows)
        write_json(folder / figures.FILE, found_out)
    write_json(arguments.metrics, figures.headlines(found_out))
    kept.discard()
    rate = found_out["probes"]["rates"]["all"]["rate"]
    losses = (found_out[name]["loss"] for name in ("eval", "general"))
    log.info("evaluate: %s: loss %.3f, general loss %.3f, probes met %.0f%%", arguments.model, *losses, 100 * rate)


if __name__ == "__main__":
    main()
