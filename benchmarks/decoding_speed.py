"""Speed of one answer at ChatGLM-6B's size, with random weights: ``generate()`` as it is, and as the chat uses it.

``python -m benchmarks.decoding_speed --out benchmarks/results/decoding.json [CASE …]`` on a machine with an NVIDIA GPU
and 14 GB of free disk; ``--small`` runs a toy of that layout on any machine. Each case answers one prompt of 64 tokens
with 128, both ways, in bfloat16 and at batch 1, the prompt's own pass included; the figure is the median of 5 answers
after one, each waited for. ``equal_tokens`` says after how many tokens the two ways part.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.random_checkpoint import base_of, machine, make_checkpoint
from models import adapters, base_model, model_loading
from models.decoding import Decoder
from models.generation import greedy_config
from models.storage import write_json

PROMPT, ANSWER, RUNS = 64, 128, 5
EVERYWHERE = {"target_modules": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]}
CASES = {
    "base": None,
    "lora": {"method": "lora", "rank": 4, "alpha": 32, "target_modules": ["query_key_value"]},
    "lora_everywhere": {"method": "lora", "rank": 16, "alpha": 32, **EVERYWHERE},
    "ptuning_v2": {"method": "ptuning_v2", "prefix_tokens": 128},
}
TARGET = {"base": 150}  # tokens/s


def answers(model, decoder: Decoder | None, length: int) -> tuple[list[float], list[int]]:
    """Seconds of each answer, and its tokens."""
    config = model.config
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, min(60_000, config.vocab_size - 4), (1, PROMPT), generator=generator)
    ids[0, -2], ids[0, -1] = config.gmask_token_id, config.bos_token_id
    ids, how = ids.to(model.device), greedy_config(model, length)
    how.eos_token_id = None
    seconds = []
    for _ in range(RUNS + 1):
        started = time.perf_counter()
        with torch.inference_mode():
            tokens = model.generate(ids, generation_config=how, custom_generate=decoder)[0, PROMPT:].tolist()
        seconds.append(time.perf_counter() - started)  # the tokens are here, so the device is done
    return seconds[1:], tokens


def measure(found: base_model.Base, attachment: dict | None, length: int) -> dict:
    model = model_loading.load_model(found, "bfloat16")
    if attachment is not None:
        torch.manual_seed(0)
        model = adapters.attach_adapter(model, **attachment).eval()
    plain, expected = answers(model, None, length)
    recorded, tokens = answers(model, Decoder(), length)
    same = next((place for place, pair in enumerate(zip(tokens, expected, strict=True)) if pair[0] != pair[1]), length)
    return {
        "tokens_per_second": round(length / statistics.median(recorded), 1),
        "generate_tokens_per_second": round(length / statistics.median(plain), 1),
        "equal_tokens": same,
        "of_tokens": length,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--commit", help="of the code, where git does not know it")
    arguments = parser.parse_args()
    known = machine()
    results = {"machine": known | {"commit": arguments.commit or known["commit"]}, "cases": {}}
    with tempfile.TemporaryDirectory(dir=arguments.out.parent) as scratch:
        make_checkpoint(Path(scratch) / "base", arguments.small)
        found = base_of(Path(scratch) / "base")
        for name in arguments.cases or CASES:
            figures = measure(found, CASES[name], 16 if arguments.small else ANSWER)
            if name in TARGET and not arguments.small:
                figures |= {"target": TARGET[name], "met": figures["tokens_per_second"] >= TARGET[name]}
            results["cases"][name] = figures
            print(name, json.dumps(figures), flush=True)
            write_json(arguments.out, results)


if __name__ == "__main__":
    main()
