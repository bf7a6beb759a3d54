"""Stage train: fit one adapter.

Reads ``data/encoded``, the receipts of which it verifies before any model loads, and the base
model. Writes the adapter folder with its manifest, and DVCLive's log of losses. Killed, it goes on from
its last checkpoint when it runs again on the same inputs. Fails if the data are not those that were
checked, or the tokens are another tokenizer's.
"""

import argparse
import logging
import shutil
import subprocess
from pathlib import Path

from models import base
from models.errors import DataBlocked, UserError, program
from models.prompt import PROMPT_VERSION, label
from models.storage import read_jsonl, sha256_of, sha256_of_json
from stages import params, receipt

log = logging.getLogger("tuneline.train")


def code_commit() -> str | None:
    """The git commit of the code, with ``+`` if tracked files differ from it."""
    try:
        run = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"], capture_output=True, text=True
        )
    except FileNotFoundError:
        return None
    return run.stdout.strip() or None


def refuse_other_tokens(encoded: Path, found: base.Base) -> None:
    made = receipt.verify(encoded)
    if (made["tokenizer_sha256"], made["prompt_version"]) != (found.tokenizer_sha256, PROMPT_VERSION):
        raise DataBlocked(f"{encoded} was encoded with another tokenizer or prompt; run `dvc repro encode`.")


def read_rows(encoded: Path, split: str) -> list[dict]:
    return [label(row["prompt"], row["answer"]) for row in read_jsonl(encoded / f"{split}.jsonl")]


def train(model, encoded: Path, knobs: params.Fit, shared: params.Train, live, checkpoint_folder: Path):
    """Fit the adapter; every loss goes to DVCLive as it comes."""
    from models import training

    def log_loss(point: dict) -> None:
        live.step = point["step"]
        live.log_metric(f"{point['split']}/loss", point["loss"])
        live.log_metric("seconds", point["seconds"])
        live.make_summary()

    return training.fit(
        model,
        read_rows(encoded, "train"),
        read_rows(encoded, "eval"),
        pad_token_id=model.config.pad_token_id,
        batch_size=knobs.batch_size,
        gradient_accumulation=knobs.gradient_accumulation,
        learning_rate=knobs.learning_rate,
        epochs=knobs.epochs,
        schedule=knobs.schedule,
        warmup=knobs.warmup,
        weight_decay=knobs.weight_decay,
        max_grad_norm=knobs.max_grad_norm,
        gradient_checkpointing=knobs.gradient_checkpointing,
        pack_tokens=knobs.pack_tokens,
        evaluations=shared.evaluations,
        seed=shared.seed,
        on_loss=log_loss,
        checkpoint_folder=checkpoint_folder,
    )


def describe(fitted, parameters: tuple[int, int]) -> dict:
    """The training summary that the manifest keeps.

    Args:
        parameters: how many are trained, and how many there are in all.
    """
    from models import training

    return {
        "steps": fitted.steps,
        "seconds": fitted.seconds,
        "tokens": fitted.tokens,
        "tokens_per_second": round(fitted.tokens / fitted.seconds, 1),
        "peak_memory_gib": round(training.peak_memory_gib(), 3),
        "train_loss": fitted.last_loss("train"),
        "eval_loss": fitted.last_loss("eval"),
        "trainable_parameters": parameters[0],
        "all_parameters": parameters[1],
        "history": fitted.history,
    }


@program
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--adapter", required=True, help="its key under adapters: in params.yaml")
    for name in ("checked", "encoded", "base", "out", "log", "checkpoints"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    arguments = parser.parse_args()
    knobs = params.load()
    if arguments.adapter not in knobs.adapters:
        raise UserError(f"params.yaml has no adapter {arguments.adapter!r}; it has {', '.join(knobs.adapters)}.")
    adapter = knobs.adapters[arguments.adapter]

    checked = receipt.verify_encoded(arguments.encoded, arguments.checked)
    found = base.read_record(arguments.base)
    refuse_other_tokens(arguments.encoded, found)

    from models import checkpoints

    inputs = {"encoded": sha256_of(arguments.encoded / receipt.RECEIPT), "base": found.identity}
    inputs |= {"dtype": knobs.base.dtype, "train": knobs.train.model_dump(mode="json"), "prompt": PROMPT_VERSION}
    key = sha256_of_json(inputs | {"adapter": adapter.model_dump(mode="json")})
    with checkpoints.alone(arguments.checkpoints, arguments.adapter):
        folder = checkpoints.prepare(arguments.checkpoints, arguments.adapter, key)
        make_adapter(arguments, knobs, found, checked["sha256"], folder)
        shutil.rmtree(folder)


def make_adapter(arguments, knobs: params.Params, found: base.Base, receipt_sha256: str, folder: Path) -> None:
    """Load the base, fit the adapter that the arguments name, and save it with its manifest."""
    import torch
    from dvclive import Live

    from models import adapters, precision

    adapter = knobs.adapters[arguments.adapter]
    model = base.load_model(found, knobs.base.dtype, adapter.quantization)
    torch.manual_seed(knobs.train.seed)
    model = adapters.attach(model, adapter.method, **adapter.attachment())
    parameters = model.get_nb_trainable_parameters()
    log.info("train: %s with %d trainable parameters", arguments.adapter, parameters[0])
    if knobs.train.precision == "fp8":
        precision.freeze_in_fp8(model.get_base_model().transformer.layers)
    with Live(str(arguments.log), save_dvc_exp=False, dvcyaml=None, monitor_system=False) as live:
        fitted = train(model, arguments.encoded, adapter, knobs.train, live, folder)
    manifest = adapters.Manifest(
        name=arguments.adapter,
        method=adapter.method,
        settings=adapter.model_dump(mode="json") | {"seed": knobs.train.seed, "precision": knobs.train.precision},
        base=found.name,
        base_identity=found.identity,
        tokenizer_sha256=found.tokenizer_sha256,
        prompt_version=PROMPT_VERSION,
        quantization=adapter.quantization,
        dtype=knobs.base.dtype,
        receipt_sha256=receipt_sha256,
        code_commit=code_commit(),
        training=describe(fitted, parameters),
    )
    adapters.save(model, arguments.out, manifest)
    log.info("train: %s done in %.0f s", arguments.adapter, fitted.seconds)


if __name__ == "__main__":
    main()
