"""Gradients in half precision next to those of float32, by the number of labelled tokens of an update.

``python -m benchmarks.gradients --out benchmarks/results/gradients.json`` on a machine with an NVIDIA GPU of 80 GB. At
ChatGLM-6B's width (14 of its 28 layers, random weights) the trainer accumulates the gradients of N labelled tokens; the
figure is the cosine between the adapter's gradient, as the optimizer receives it, and the gradient in float32. The
float16 cases run once more without loss scaling, as a reference. ``--small`` runs a toy on any machine.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.random_checkpoint import SMALL, machine
from models import adapters
from models.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration
from models.training import TrainConfig, fit
from models.training.batches import PaddingCollator

LABELLED = (256, 8_448, 67_584)
SAMPLE = 128  # labelled tokens of a sample
ADAPTERS = {
    "lora": {"rank": 4, "alpha": 32, "target_modules": ["query_key_value"]},
    "ptuning_v2": {"prefix_tokens": 128},
}


def make_model(config: ChatGLMConfig, method: str, dtype: str):
    """A random base of a type with an adapter whose weights are the same in all types, and are not zero."""
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = ChatGLMForConditionalGeneration(config).requires_grad_(False).to(getattr(torch, dtype))
    torch.manual_seed(1)
    tuned = adapters.attach_adapter(model, method, **ADAPTERS[method])
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    return tuned


def make_rows(config: ChatGLMConfig, labelled: int) -> list[dict]:
    draw = torch.Generator().manual_seed(2)
    rows = []
    for _ in range(labelled // SAMPLE):
        prompt, answer = torch.randint(10, config.vocab_size - 40, (2, SAMPLE), generator=draw).tolist()
        prompt = [*prompt[:16], config.gmask_token_id, config.bos_token_id]
        rows.append({"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer})
    return rows


def gradient_of(tuned, rows: list[dict], scaled: bool = True) -> torch.Tensor:
    """The gradient of the mean loss over all rows, which the trainer takes in batches of at most 66."""
    config = adapters.get_base_model(tuned).config
    count = next(size for size in range(min(66, len(rows)), 0, -1) if len(rows) % size == 0)
    settings = TrainConfig(
        count,
        1e-3,
        max_steps=1,
        max_grad_norm=1e9,
        gradient_accumulation=len(rows) // count,
        gradient_checkpointing=True,
    )
    adapters.get_base_model(tuned).gradient_checkpointing_enable({"use_reentrant": False})
    with tempfile.TemporaryDirectory() as folder:
        trainer = fit._trainer(tuned, rows, [], settings, fit._arguments(settings, Path(folder), False, False))
        if not scaled:
            trainer.accelerator.scaler, trainer.unscales_gradients = None, False
        trainer.create_optimizer_and_scheduler(1)
        trainer.optimizer = trainer.accelerator.prepare(trainer.optimizer)
        collate, labelled = PaddingCollator(config.pad_token_id), torch.tensor(len(rows) * SAMPLE)
        for start in range(0, len(rows), count):
            trainer.training_step(tuned, collate(rows[start : start + count]), labelled.to(tuned.device))
        trainer._clip_grad_norm(tuned)
    gradients = [parameter.grad.flatten() for parameter in tuned.parameters() if parameter.requires_grad]
    return torch.cat(gradients).double().cpu()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    config = ChatGLMConfig(**(SMALL if arguments.small else {"num_layers": 14}))
    results = {"machine": machine(), "layers": config.num_layers, "hidden_size": config.hidden_size, "cases": []}
    for method in ADAPTERS:
        exact = {}
        for dtype in ("float32", "bfloat16", "float16"):
            tuned = make_model(config, method, dtype)
            for labelled in LABELLED:
                rows = make_rows(config, labelled)
                for scaled in (True, False) if dtype == "float16" else (True,):
                    gradient = gradient_of(tuned, rows, scaled)
                    exact.setdefault(labelled, gradient)
                    case = {"method": method, "dtype": dtype, "labelled_tokens": labelled, "loss_scaling": scaled}
                    case["cosine"] = round(float(F.cosine_similarity(gradient, exact[labelled], dim=0)), 5)
                    case["norm_ratio"] = round(float(gradient.norm() / exact[labelled].norm()), 5)
                    case["zeros"] = round(float((gradient == 0).double().mean()), 4)
                    print(json.dumps(case), flush=True)
                    results["cases"].append(case)
                    tuned.zero_grad()
            del tuned
            torch.cuda.empty_cache() if torch.cuda.is_available() else None
    arguments.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
