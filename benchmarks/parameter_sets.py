"""Memory and speed of the parameter sets in ``params/``, at ChatGLM-6B's size with random weights.

``python benchmarks/parameter_sets.py --out benchmarks/results/parameter_sets.json`` on a machine with an NVIDIA GPU and
14 GB of free disk; ``--small`` runs a toy model on any machine. For each set, a process loads the base as stage train
does, and trains the set's adapter on rows that fill the token budget. Peak memory is PyTorch's ``max_memory_allocated``
over loading and training; tokens/s is the mean after the first third of the steps.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.random_checkpoint import describe_machine, make_checkpoint, read_checkpoint  # noqa: E402
from formats import data_params, params_schema  # noqa: E402
from models import adapters, model_loading, training  # noqa: E402
from models.chatglm import ChatGLMConfig  # noqa: E402
from models.peak_memory import peak_memory_gib  # noqa: E402
from models.prompt import IGNORED_LABEL  # noqa: E402


def make_rows(config: ChatGLMConfig, budget: data_params.Encode, count: int) -> list[dict]:
    """Return rows of random tokens that use the whole token budget."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(count):
        length = budget.max_prompt_tokens + budget.max_answer_tokens
        ids = torch.randint(1000, min(60_000, config.vocab_size - 4), (length,), generator=generator)
        ids[budget.max_prompt_tokens - 2] = config.gmask_token_id
        ids[budget.max_prompt_tokens - 1] = config.bos_token_id
        ids[-1] = config.eos_token_id
        labels = ids.clone()
        labels[: budget.max_prompt_tokens] = IGNORED_LABEL
        rows.append({"input_ids": ids.tolist(), "labels": labels.tolist()})
    return rows


def measure(checkpoint: Path, params: params_schema.Params, name: str, checkpointing: bool, steps: int) -> dict:
    """Train an adapter of a parameter set for a number of steps, and return its speed and memory."""
    adapter = params.adapters[name]
    base = read_checkpoint(checkpoint, params.base.model)
    model = model_loading.load_model(base, params.base.dtype, adapter.quantization)
    torch.manual_seed(0)
    adapted = adapters.attach_adapter(model, adapter.method, **adapter.attachment())
    result = training.fit(
        adapted,
        make_rows(model.config, params.encode, steps * adapter.batch_size),
        [],
        training.TrainConfig(adapter.batch_size, adapter.learning_rate, gradient_checkpointing=checkpointing),
    )
    records = [record for record in result.history if record["split"] == "train"]
    first, last = records[len(records) // 3], records[-1]
    tokens_per_step = result.tokens / result.steps
    steps_per_second = (last["step"] - first["step"]) / (last["seconds"] - first["seconds"])
    return {
        "gradient_checkpointing": checkpointing,
        "tokens_per_row": params.encode.max_prompt_tokens + params.encode.max_answer_tokens,
        "batch_size": adapter.batch_size,
        "steps": result.steps,
        "tokens_per_second": round(tokens_per_step * steps_per_second),
        "peak_memory_gib": round(peak_memory_gib(), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--one", nargs=3, metavar=("SET", "CHECKPOINT", "CHECKPOINTING"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        path, checkpoint, checkpointing = arguments.one
        params = params_schema.load(Path(path))
        (name,) = params.adapters
        figures = measure(Path(checkpoint), params, name, checkpointing == "True", arguments.steps)
        arguments.out.write_text(json.dumps({"set": Path(path).stem, **figures}))
        return
    results = []
    with tempfile.TemporaryDirectory(dir=arguments.out.parent) as scratch:
        checkpoint, figures_path = Path(scratch) / "base", Path(scratch) / "figures.json"
        make_checkpoint(checkpoint, arguments.small)
        for path in sorted((ROOT / "params").glob("*.yaml")):
            for checkpointing in (False, True):
                # A process for each case, so that peak memory does not include that of other cases.
                command = [sys.executable, __file__, "--out", str(figures_path), "--steps", str(arguments.steps)]
                subprocess.run([*command, "--one", str(path), str(checkpoint), str(checkpointing)], check=True)
                results.append(json.loads(figures_path.read_text()))
                print(results[-1], flush=True)
    arguments.out.write_text(json.dumps({**describe_machine(), "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
