"""Speed of single answers at ChatGLM-6B's size, with random weights: ``generate()`` alone, and with our decoder.

``python -m benchmarks.decoding_speed --out benchmarks/results/decoding.json [CASE …]`` on a machine with an NVIDIA GPU
and 14 GB of free disk; ``--small`` runs a toy model on any machine. Each case generates 128 tokens for a prompt of 64,
in bfloat16 at batch size 1, both ways; the time includes the prompt's forward pass. The figure is the median of 5
answers after a warm-up. ``equal_tokens`` is the number of tokens before the two ways differ.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.random_checkpoint import describe_machine, make_checkpoint, read_checkpoint
from models import adapters, base_model, model_loading
from models.decoding import Decoder
from models.generation import greedy_config
from models.storage import write_json

PROMPT_TOKENS, ANSWER_TOKENS, RUNS = 64, 128, 5
ALL_LINEAR = {"target_modules": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]}
CASES = {
    "base": None,
    "lora": {"method": "lora", "rank": 4, "alpha": 32, "target_modules": ["query_key_value"]},
    "lora_everywhere": {"method": "lora", "rank": 16, "alpha": 32, **ALL_LINEAR},
    "ptuning_v2": {"method": "ptuning_v2", "prefix_tokens": 128},
}
TARGETS = {"base": 150}  # tokens/s


def time_answers(model, decoder: Decoder | None, num_tokens: int) -> tuple[list[float], list[int]]:
    """Return the seconds of each answer, and the answer's tokens."""
    config = model.config
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, min(60_000, config.vocab_size - 4), (1, PROMPT_TOKENS), generator=generator)
    ids[0, -2], ids[0, -1] = config.gmask_token_id, config.bos_token_id
    ids, generation = ids.to(model.device), greedy_config(model, num_tokens)
    generation.eos_token_id = None
    seconds = []
    for _ in range(RUNS + 1):
        started = time.perf_counter()
        with torch.inference_mode():
            output = model.generate(ids, generation_config=generation, custom_generate=decoder)
            tokens = output[0, PROMPT_TOKENS:].tolist()  # waits for the device
        seconds.append(time.perf_counter() - started)
    return seconds[1:], tokens


def measure(base: base_model.Base, attachment: dict | None, num_tokens: int) -> dict:
    model = model_loading.load_model(base, "bfloat16")
    if attachment is not None:
        torch.manual_seed(0)
        model = adapters.attach_adapter(model, **attachment).eval()
    generate_seconds, expected = time_answers(model, None, num_tokens)
    decoder_seconds, tokens = time_answers(model, Decoder(), num_tokens)
    pairs = enumerate(zip(tokens, expected, strict=True))
    return {
        "tokens_per_second": round(num_tokens / statistics.median(decoder_seconds), 1),
        "generate_tokens_per_second": round(num_tokens / statistics.median(generate_seconds), 1),
        "equal_tokens": next((index for index, (token, other) in pairs if token != other), num_tokens),
        "of_tokens": num_tokens,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--commit", help="commit of the code, outside a git repository")
    arguments = parser.parse_args()
    results = {"machine": describe_machine(arguments.commit), "cases": {}}
    with tempfile.TemporaryDirectory(dir=arguments.out.parent) as scratch:
        make_checkpoint(Path(scratch) / "base", arguments.small)
        base = read_checkpoint(Path(scratch) / "base")
        for name in arguments.cases or CASES:
            figures = measure(base, CASES[name], 16 if arguments.small else ANSWER_TOKENS)
            if name in TARGETS and not arguments.small:
                figures |= {"target": TARGETS[name], "met": figures["tokens_per_second"] >= TARGETS[name]}
            results["cases"][name] = figures
            print(name, json.dumps(figures), flush=True)
            write_json(arguments.out, results)


if __name__ == "__main__":
    main()
