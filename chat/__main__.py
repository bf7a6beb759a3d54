"""``python -m chat``: talk to the champion, or to the base where there is none; ``--adapter lora``: to an adapter."""

import argparse
import contextlib
import sys
from pathlib import Path

from chat import terminal
from chat.partner import Partner
from models.command_line import entry_point


def positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


@entry_point
def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m chat", description="Talk to the base model or an adapter on it.")
    parser.add_argument("--adapter", help="base, champion, or an adapter's key; the champion, if there is one")
    parser.add_argument("--weights", type=Path, default=Path("models/weights"))
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "float16", "bfloat16"),
        default="auto",
        help="of the base's weights; auto is that of its checkpoint, or beside an adapter that of its training",
    )
    parser.add_argument("--max-new-tokens", type=positive, default=256)
    parser.add_argument("--sample", action="store_true", help="sample instead of answering greedily")
    arguments = parser.parse_args()
    sys.stdin.reconfigure(errors="replace")  # bytes that are no UTF-8 shall not end the conversation
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  gives input() its line editing

    partner = Partner(arguments.weights, arguments.adapter, arguments.dtype, arguments.max_new_tokens, arguments.sample)
    terminal.run(partner)


if __name__ == "__main__":
    main()
