"""``python -m chat``: chat with the champion, or the base model if there is none; ``--adapter lora`` selects one."""

import argparse
import contextlib
import sys
from pathlib import Path

from chat import terminal
from chat.chat_model import ChatModel
from models.command_line import entry_point, parse_positive_int


@entry_point
def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m chat", description="Chat with the base model or an adapter on it.")
    parser.add_argument(
        "--adapter", help="base, champion, or an adapter's name (default: champion, or base if there is none)"
    )
    parser.add_argument(
        "--weights", type=Path, default=Path("models/weights"), help="folder of base model and adapters"
    )
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "float16", "bfloat16"),
        default="auto",
        help="dtype of the base model's weights; auto: dtype of the checkpoint, or the adapter's training dtype",
    )
    parser.add_argument(
        "--max-new-tokens", type=parse_positive_int, default=256, help="maximum length of an answer (default: 256)"
    )
    parser.add_argument("--sample", action="store_true", help="sample answers instead of greedy decoding")
    arguments = parser.parse_args()
    sys.stdin.reconfigure(errors="replace")  # input that is not UTF-8 must not end the chat
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  line editing and history for input()

    model = ChatModel(arguments.weights, arguments.adapter, arguments.dtype, arguments.max_new_tokens, arguments.sample)
    terminal.run_chat(model)


if __name__ == "__main__":
    main()
