"""What training beside frozen layers in fp8 costs: the loss curve and the evaluation loss next to those of bfloat16.

``python -m benchmarks.fp8 --base models/weights/base --encoded data/encoded --out benchmarks/results/fp8.json``
on a machine with a GPU that has fp8, after ``dvc repro encode``. A LoRA is trained on the same rows in the same
order: with the base in bfloat16, with its layers in fp8, and in bfloat16 once more with other first weights,
which says what a difference means.
"""

import argparse
from pathlib import Path

import torch

from benchmarks.random_checkpoint import machine
from models import adapters, base_model, model_loading, precision, training
from models.prompt import label_sample
from models.storage import read_jsonl, write_json

LORA = {"rank": 16, "alpha": 32, "target_modules": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]}
RUNS = {"bf16": (False, 42), "fp8": (True, 42), "bf16, other first weights": (False, 43)}


def losses(found: base_model.Base, rows: dict, fp8: bool, seed: int) -> dict:
    model = model_loading.load_model(found, "bfloat16")
    torch.manual_seed(seed)
    tuned = adapters.attach_adapter(model, "lora", **LORA)
    if fp8:
        precision.convert_frozen_layers_to_fp8(model.transformer.layers)
    settings = training.TrainConfig(
        1, 2e-3, epochs=12, schedule="cosine", warmup=0.05, pack_tokens=1024, evaluations=12, logs=12, seed=42
    )
    history = training.fit(tuned, rows["train"], rows["eval"], settings).history
    torch._dynamo.reset()
    return {split: [point["loss"] for point in history if point["split"] == split] for split in ("train", "eval")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("base", "encoded", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--commit", help="of the code, where git does not know it")
    arguments = parser.parse_args()
    rows = {
        split: [label_sample(row["prompt"], row["answer"]) for row in read_jsonl(arguments.encoded / f"{split}.jsonl")]
        for split in ("train", "eval")
    }
    found = base_model.read_record(arguments.base)
    runs = {name: losses(found, rows, *how) for name, how in RUNS.items()}
    known = machine()
    write_json(arguments.out, {"machine": known | {"commit": arguments.commit or known["commit"]}, "runs": runs})
    for name, one in runs.items():
        pairs = zip(one["train"], runs["bf16"]["train"], strict=True)
        furthest = max(abs(loss / usual - 1) for loss, usual in pairs)
        print(f"{name}: evaluation loss {one['eval'][-1]:.4f}, training losses within {furthest:.2%} of bf16's")


if __name__ == "__main__":
    main()
