"""``python -m chat``: chat with the champion, else the base model; ``--adapter lora``: chat with an adapter."""

import argparse
import contextlib
import sys
from pathlib import Path

from chat import terminal
from chat.chat_model import ChatModel
from models.command_line import entry_point


def positive_int(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


@entry_point
def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m chat", description="Chat with the base model or an adapter on it.")
    parser.add_argument(
        "--adapter", help="base, champion, or an adapter's name; by default the champion if there is one"
    )
    parser.add_argument("--weights", type=Path, default=Path("models/weights"))
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "float16", "bfloat16"),
        default="auto",
        help="dtype of the base model's weights; auto: that of the checkpoint, or with an adapter that of its training",
    )
    parser.add_argument("--max-new-tokens", type=positive_int, default=256)
    parser.add_argument("--sample", action="store_true", help="sample answers instead of greedy decoding")
    arguments = parser.parse_args()
    sys.stdin.reconfigure(errors="replace")  # input that is not UTF-8 must not end the chat
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  line editing and history for input()

    model = ChatModel(arguments.weights, arguments.adapter, arguments.dtype, arguments.max_new_tokens, arguments.sample)
    terminal.run(model)


if __name__ == "__main__":
    main()
