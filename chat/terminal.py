"""A chat in the terminal, in the spirit of ChatGLM-6B's own: single-turn or multi-turn, in Chinese."""

import sys
from collections.abc import Callable, Iterator

from models.sample import Message

MODE_QUESTION = "请选择对话模式：1 单轮对话　2 多轮对话\n> "
WELCOME = "欢迎使用 {name}。输入内容即可对话，clear 清空对话历史，stop 终止程序。"
HUMAN, MODEL = "<|Human|>: ", "<|ChatGLM-6B|>: "
CLEARED, GOODBYE, NOT_A_MODE = "对话历史已清空。", "再见！", "请输入 1 或 2。"
TIME_USED = "（用时 {seconds:.2f} 秒，{tokens} 个词元，{rate:.1f} 词元/秒）"
TOO_LONG = "（问题太长，放不进模型的上下文，请缩短后再问）"
FORGOTTEN = "（对话太长，最早的 {turns} 轮已略去）"


def ask(prompt: str) -> str:
    """Read a line; a line that was piped in is shown, so that the transcript is whole."""
    line = input(prompt).strip()
    if not sys.stdin.isatty():
        print(line)
    return line


def choose_multi_turn() -> bool:
    while (choice := ask(MODE_QUESTION)) not in ("1", "2", "单轮对话", "多轮对话"):
        if choice == "stop":
            raise EOFError
        print(NOT_A_MODE)
    return choice in ("2", "多轮对话")


def within_budget(messages: list[Message], fits: Callable[[list[Message]], bool]) -> list[Message]:
    """The conversation without as many of its oldest turns as it takes to fit; the question always stays."""
    while len(messages) > 1 and not fits(messages):
        messages = messages[2:]
    return messages


def converse(start_answer: Callable, fits: Callable[[list[Message]], bool], multi_turn: bool) -> Iterator[str]:
    """The conversation, as the pieces of text to print; ends by StopIteration at ``stop``.

    Args:
        start_answer: gives a :class:`models.answering.Stream` for messages.
        fits: whether messages leave room for an answer.
    """
    history: list[Message] = []
    while (question := ask(HUMAN)) != "stop":
        if question == "clear":
            history = []
            yield CLEARED + "\n"
            continue
        if not question:
            continue
        asked = [*history, Message("user", question)]
        messages = within_budget(asked, fits)
        if not fits(messages):
            yield TOO_LONG + "\n"
            continue
        if len(messages) < len(asked):
            yield FORGOTTEN.format(turns=(len(asked) - len(messages)) // 2) + "\n"
        stream = start_answer(messages)
        yield MODEL
        yield from stream
        answer = stream.answer
        rate = answer.tokens / answer.seconds if answer.seconds else 0.0
        yield "\n" + TIME_USED.format(seconds=answer.seconds, tokens=answer.tokens, rate=rate) + "\n"
        if multi_turn:
            history = [*messages, Message("assistant", answer.text)]
    yield GOODBYE + "\n"


def run(name: str, start_answer: Callable, fits: Callable[[list[Message]], bool]) -> None:
    """Ask for the mode, converse, leave politely at ``stop``, Ctrl-D and Ctrl-C."""
    try:
        multi_turn = choose_multi_turn()
        print(WELCOME.format(name=name))
        for piece in converse(start_answer, fits, multi_turn):
            print(piece, end="", flush=True)
    except (EOFError, KeyboardInterrupt):
        print("\n" + GOODBYE)
