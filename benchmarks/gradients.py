"""Gradients in half precision compared with those in float32, by the number of labelled tokens per update.

``python -m benchmarks.gradients --out benchmarks/results/gradients.json`` on a machine with an NVIDIA GPU of 80 GB. At
ChatGLM-6B's width (14 of its 28 layers, random weights) the trainer accumulates the gradients of N labelled tokens; the
figure is the cosine between the adapter's gradient, as the optimizer receives it, and the gradient in float32. The
float16 cases also run without loss scaling, as a reference. ``--small`` runs a toy model on any machine.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.random_checkpoint import SMALL, describe_machine
from models import adapters
from models.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration
from models.prompt import IGNORED_LABEL
from models.training import TrainConfig
from models.training.batches import prepare_data
from models.training.loss_scaling import make_grad_scaler, needs_loss_scaling
from models.training.train_config import build_arguments
from models.training.trainer import AdapterTrainer, StepStatistics

NUM_LABELLED = (256, 8_448, 67_584)  # per update
SAMPLE = 128  # labelled tokens per sample
MAX_ROWS = 66  # per step
ADAPTERS = {
    "lora": {"rank": 4, "alpha": 32, "target_modules": ["query_key_value"]},
    "ptuning_v2": {"prefix_tokens": 128},
}


def make_model(config: ChatGLMConfig, method: str, dtype: str):
    """Return a random base in ``dtype`` with an adapter whose weights are nonzero and equal for all dtypes."""
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = ChatGLMForConditionalGeneration(config).requires_grad_(False).to(getattr(torch, dtype))
    torch.manual_seed(1)
    adapted = adapters.attach_adapter(model, method, **ADAPTERS[method])
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    return adapted


def make_rows(config: ChatGLMConfig, num_labelled: int) -> list[dict]:
    generator = torch.Generator().manual_seed(2)
    rows = []
    for _ in range(num_labelled // SAMPLE):
        prompt, answer = torch.randint(10, config.vocab_size - 40, (2, SAMPLE), generator=generator).tolist()
        prompt = [*prompt[:16], config.gmask_token_id, config.bos_token_id]
        rows.append({"input_ids": prompt + answer, "labels": [IGNORED_LABEL] * len(prompt) + answer})
    return rows


def compute_gradient(adapted, rows: list[dict], scale_loss: bool = True) -> torch.Tensor:
    """Return the gradient of the mean loss over all rows, accumulated over steps of equal size."""
    rows_per_step = next(size for size in range(min(MAX_ROWS, len(rows)), 0, -1) if len(rows) % size == 0)
    config = TrainConfig(
        rows_per_step, 1e-3, max_steps=1, max_grad_norm=1e9, gradient_accumulation=len(rows) // rows_per_step
    )
    adapters.get_base_model(adapted).gradient_checkpointing_enable({"use_reentrant": False})
    data = prepare_data(adapted.config, rows, [], config)
    with tempfile.TemporaryDirectory() as folder:
        arguments = build_arguments(config, Path(folder), evaluate=False, save=False)
        grad_scaler = None
        if scale_loss and needs_loss_scaling(adapted, config.autocast, config.sharded):
            grad_scaler = make_grad_scaler(arguments.device, rows, config.rows_per_update)
        statistics = StepStatistics(arguments.device)
        trainer = AdapterTrainer(adapted, arguments, data, statistics, callbacks=[], grad_scaler=grad_scaler)
        trainer.create_optimizer_and_scheduler(1)
        trainer.optimizer = trainer.accelerator.prepare(trainer.optimizer)
        num_labelled = torch.tensor(len(rows) * SAMPLE).to(adapted.device)
        for start in range(0, len(rows), rows_per_step):
            trainer.training_step(adapted, data.collate(rows[start : start + rows_per_step]), num_labelled)
        trainer._clip_grad_norm(adapted)
    gradients = [parameter.grad.flatten() for parameter in adapted.parameters() if parameter.requires_grad]
    return torch.cat(gradients).double().cpu()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    config = ChatGLMConfig(**(SMALL if arguments.small else {"num_layers": 14}))
    results = {
        "machine": describe_machine(),
        "layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "cases": [],
    }
    for method in ADAPTERS:
        expected = {}  # in float32, which is the first dtype
        for dtype in ("float32", "bfloat16", "float16"):
            adapted = make_model(config, method, dtype)
            for num_labelled in NUM_LABELLED:
                rows = make_rows(config, num_labelled)
                for scale_loss in (True, False) if dtype == "float16" else (True,):
                    gradient = compute_gradient(adapted, rows, scale_loss)
                    reference = expected.setdefault(num_labelled, gradient)
                    case = {
                        "method": method,
                        "dtype": dtype,
                        "labelled_tokens": num_labelled,
                        "loss_scaling": scale_loss,
                        "cosine": round(float(F.cosine_similarity(gradient, reference, dim=0)), 5),
                        "norm_ratio": round(float(gradient.norm() / reference.norm()), 5),
                        "zeros": round(float((gradient == 0).double().mean()), 4),
                    }
                    print(json.dumps(case), flush=True)
                    results["cases"].append(case)
                    adapted.zero_grad()
            del adapted
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    arguments.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
