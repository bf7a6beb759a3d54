"""Losses of a training run on a base in fp8, compared with those on a base in bfloat16.

``python -m benchmarks.fp8 --base models/weights/base --encoded data/encoded --out benchmarks/results/fp8.json``
on a machine with an fp8 GPU, after ``dvc repro encode``. A LoRA is trained on the same rows in the same order: on a
base in bfloat16, on one with layers in fp8, and in bfloat16 with other initial weights, as a scale for the difference.
"""

import argparse
from pathlib import Path

import torch

from benchmarks.random_checkpoint import describe_machine
from models import adapters, base_model, model_loading, precision, training
from models.prompt import label_sample
from models.storage import read_jsonl, write_json

LORA = {"rank": 16, "alpha": 32, "target_modules": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]}
RUNS = {"bf16": (False, 42), "fp8": (True, 42), "bf16, other first weights": (False, 43)}


def train(base: base_model.Base, rows: dict[str, list[dict]], fp8: bool, seed: int) -> dict[str, list[float]]:
    """Return the losses by split."""
    model = model_loading.load_model(base, "bfloat16")
    torch.manual_seed(seed)
    adapted = adapters.attach_adapter(model, "lora", **LORA)
    if fp8:
        precision.convert_frozen_layers_to_fp8(model.transformer.layers)
    config = training.TrainConfig(
        1, 2e-3, epochs=12, schedule="cosine", warmup=0.05, pack_tokens=1024, evaluations=12, logs=12, seed=42
    )
    history = training.fit(adapted, rows["train"], rows["eval"], config).history
    torch._dynamo.reset()
    return {split: [record["loss"] for record in history if record["split"] == split] for split in ("train", "eval")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("base", "encoded", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--commit", help="commit of the code, outside a git repository")
    arguments = parser.parse_args()
    rows = {
        split: [label_sample(row["prompt"], row["answer"]) for row in read_jsonl(arguments.encoded / f"{split}.jsonl")]
        for split in ("train", "eval")
    }
    base = base_model.read_record(arguments.base)
    runs = {name: train(base, rows, fp8, seed) for name, (fp8, seed) in RUNS.items()}
    write_json(arguments.out, {"machine": describe_machine(arguments.commit), "runs": runs})
    for name, losses in runs.items():
        pairs = zip(losses["train"], runs["bf16"]["train"], strict=True)
        largest = max(abs(loss / reference - 1) for loss, reference in pairs)
        print(f"{name}: evaluation loss {losses['eval'][-1]:.4f}, training losses within {largest:.2%} of bf16")


if __name__ == "__main__":
    main()
