"""A chat in the terminal, in the spirit of ChatGLM-6B's own: single-turn or multi-turn, in Chinese and English."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from models.errors import UserError
from models.sample import Message

MODE_QUESTION = "请选择对话模式 · Choose a mode：1 单轮对话 single-turn　2 多轮对话 multi-turn\n> "
WELCOME = (
    "欢迎使用 {name}。输入内容即可对话，clear 清空对话历史，stop 终止程序，/help 查看其他命令。\n"
    "You talk to {name}. clear forgets the conversation, stop leaves, /help tells of other commands.\n"
)
HELP = (
    "/undo 撤回上一轮 · take back the last turn\n"
    "/retry 换一个回答 · another answer to the last question, sampled\n"
    "/adapter [名称] 切换适配器 · let another adapter answer: {names}\n"
    "/save [文件] 保存对话 · append the conversation to a .jsonl file, in a format that stage ingest reads\n"
    "clear 清空对话历史 · forget the conversation　stop 终止程序 · leave　Ctrl-C 停止当前回答 · end an answer\n"
)
HUMAN, MODEL = "<|Human|>: ", "<|ChatGLM-6B|>: "
MODES = {"1": False, "单轮对话": False, "single": False, "2": True, "多轮对话": True, "multi": True}
CLEARED, GOODBYE, NOT_A_MODE = "对话历史已清空 · forgotten。", "再见！", "请输入 1 或 2 · 1 or 2, please。"
TIME_USED = "（用时 {seconds:.2f} 秒，{tokens} 个词元，{rate:.1f} 词元/秒）"
TOO_LONG = "（问题太长，放不进模型的上下文，请缩短后再问 · too long for the model's context）"
FORGOTTEN = "（对话太长，最早的 {turns} 轮已略去 · the oldest turns were left out）"
NOTHING = "（还没有对话 · nothing was said yet）"
UNDONE = "（已撤回：{question} · taken back）"
SAVED = "（已保存到 {path} · saved）"
STOPPED = "（已停止，这一轮不计入对话 · stopped, and not a part of the conversation）"
SWITCHED = "（现在由 {name} 回答 · answers now）"


def ask(prompt: str) -> str:
    """Read a line; a line that was piped in is shown, so that the transcript is whole."""
    line = input(prompt).strip()
    if not sys.stdin.isatty():
        print(line)
    return line


def choose_multi_turn() -> bool:
    while (choice := ask(MODE_QUESTION)) not in MODES:
        if choice == "stop":
            raise EOFError
        print(NOT_A_MODE)
    return MODES[choice]


def within_budget(messages: list[Message], fits: Callable[[list[Message]], bool]) -> list[Message]:
    """The conversation without as many of its oldest turns as it takes to fit; the question always stays."""
    while len(messages) > 1 and not fits(messages):
        messages = messages[2:]
    return messages


class Conversation:
    """What was said, and what a line typed does to it. Everything yields the pieces of text to print.

    Args:
        partner: a :class:`chat.partner.Partner`.
        multi_turn: whether a question is asked with the turns before it.
    """

    def __init__(self, partner, multi_turn: bool):
        self.partner, self.multi_turn = partner, multi_turn
        self.turns: list[Message] = []
        self.commands = {
            "/undo": self.undo,
            "/retry": self.retry,
            "/adapter": self.adapter,
            "/save": self.save,
            "/clear": self.clear,
            "clear": self.clear,
        }

    def take(self, line: str) -> Iterator[str]:
        """A question, a command, or nothing."""
        command, _, argument = line.partition(" ")
        if line == "clear" or (command in self.commands and line.startswith("/")):
            yield from self.commands[command](argument.strip())
        elif line.startswith("/"):
            yield HELP.format(names=", ".join(self.partner.names()))
        elif line:
            yield from self.ask(line)

    def ask(self, question: str, differently: bool = False) -> Iterator[str]:
        asked = [*(self.turns if self.multi_turn else []), Message("user", question)]
        messages = within_budget(asked, self.partner.fits)
        if not self.partner.fits(messages):
            yield TOO_LONG + "\n"
            return
        if len(messages) < len(asked):
            yield FORGOTTEN.format(turns=(len(asked) - len(messages)) // 2) + "\n"
        stream = self.partner.answer(messages, differently)
        yield MODEL
        yield from stream
        answer = stream.answer
        rate = answer.tokens / answer.seconds if answer.seconds else 0.0
        yield "\n" + TIME_USED.format(seconds=answer.seconds, tokens=answer.tokens, rate=rate) + "\n"
        self.turns += [Message("user", question), Message("assistant", answer.text)]

    def clear(self, _: str) -> Iterator[str]:
        self.turns.clear()
        yield CLEARED + "\n"

    def undo(self, _: str) -> Iterator[str]:
        if not self.turns:
            yield NOTHING + "\n"
            return
        question = self.turns[-2].content
        del self.turns[-2:]
        yield UNDONE.format(question=question) + "\n"

    def retry(self, _: str) -> Iterator[str]:
        if not self.turns:
            yield NOTHING + "\n"
            return
        turn, self.turns = self.turns[-2:], self.turns[:-2]
        before = len(self.turns)
        try:
            yield from self.ask(turn[0].content, differently=True)
        finally:
            if len(self.turns) == before:  # no other answer came
                self.turns += turn

    def adapter(self, name: str) -> Iterator[str]:
        if name:
            try:
                self.partner.switch(name)
            except UserError as error:
                yield f"{error}\n"
        yield SWITCHED.format(name=self.partner.name) + "\n"

    def save(self, file: str) -> Iterator[str]:
        """Append what was said as one row of messages, or in single-turn a row for each question."""
        if not self.turns:
            yield NOTHING + "\n"
            return
        pairs = [self.turns[start : start + 2] for start in range(0, len(self.turns), 2)]
        rows = [self.turns] if self.multi_turn else pairs
        path = Path(file or "conversation.jsonl").expanduser()
        try:
            with path.open("a", encoding="utf-8") as out:
                for row in rows:
                    out.write(json.dumps({"messages": [vars(each) for each in row]}, ensure_ascii=False) + "\n")
        except (OSError, ValueError) as error:
            yield f"{path}: {getattr(error, 'strerror', None) or error}\n"
            return
        yield SAVED.format(path=path) + "\n"


def show(pieces: Iterator[str]) -> None:
    """Print as they come; Ctrl-C ends what is being said."""
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        pieces.close()
        print("\n" + STOPPED)


def run(partner) -> None:
    """Ask for the mode, converse, leave politely at ``stop``, Ctrl-D and Ctrl-C, which in an answer ends that alone."""
    try:
        conversation = Conversation(partner, choose_multi_turn())
        print(WELCOME.format(name=partner.name), end="")
        while (line := ask(HUMAN)) not in ("stop", "/stop"):
            show(conversation.take(line))
        print(GOODBYE)
    except (EOFError, KeyboardInterrupt):
        print("\n" + GOODBYE)
