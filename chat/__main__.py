"""``python -m chat``: talk to the base model; ``--adapter lora``: to an adapter on it."""

import argparse
import contextlib
import sys
from pathlib import Path

from chat import terminal
from models import adapters, base
from models.errors import UserError, program


def find_adapter(weights: Path, name: str) -> Path:
    if Path(name).name != name or not (weights / name / adapters.MANIFEST).is_file():
        trained = sorted(path.parent.name for path in weights.glob(f"*/{adapters.MANIFEST}"))
        known = f"trained are: {', '.join(trained)}" if trained else "none is trained yet; run `make demo`"
        raise UserError(f"There is no adapter {name!r} in {weights}; {known}.")
    return weights / name


def positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


def load(weights: Path, adapter: str | None, dtype: str):
    """The model, its tokenizer, and what to call it."""
    if not (weights / "base" / base.RECORD).is_file():
        raise UserError(f"There is no base model in {weights / 'base'}; run `make demo` or `dvc repro base`.")
    found = base.read_record(weights / "base")
    tokenizer = base.load_tokenizer(found.folder)
    if adapter is None:
        return base.load_model(found, dtype), tokenizer, found.name
    return adapters.load(find_adapter(weights, adapter), found), tokenizer, f"{found.name} + {adapter}"


@program
def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m chat", description="Talk to the base model or an adapter on it.")
    parser.add_argument("--adapter", help="an adapter's key, such as lora or ptuning_v2")
    parser.add_argument("--weights", type=Path, default=Path("models/weights"))
    parser.add_argument("--dtype", choices=("auto", "float32", "float16", "bfloat16"), default="auto")
    parser.add_argument("--max-new-tokens", type=positive, default=256)
    parser.add_argument("--sample", action="store_true", help="sample instead of answering greedily")
    arguments = parser.parse_args()
    sys.stdin.reconfigure(errors="replace")  # bytes that are no UTF-8 shall not end the conversation
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  gives input() its line editing

    model, tokenizer, name = load(arguments.weights, arguments.adapter, arguments.dtype)

    from models.answering import Stream, greedy, sampled
    from models.prompt import encode_prompt

    generation = (sampled if arguments.sample else greedy)(model, arguments.max_new_tokens)
    room = model.config.max_sequence_length - arguments.max_new_tokens
    if room < 1:
        raise UserError(f"--max-new-tokens must be less than the model's {model.config.max_sequence_length} tokens.")
    terminal.run(
        name,
        start_answer=lambda messages: Stream(model, tokenizer, messages, generation),
        fits=lambda messages: len(encode_prompt(tokenizer, messages)) <= room,
    )


if __name__ == "__main__":
    main()
