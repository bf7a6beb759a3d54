"""Terminal chat with the modes and commands of ChatGLM-6B's published demo, in English or Chinese."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from models.errors import UserError
from models.sample import Message
from texts import LANGUAGES, terminal_language, translatable, translate

HUMAN = "<|Human|>: "
MODES = {"1": False, "单轮对话": False, "single": False, "2": True, "多轮对话": True, "multi": True}
LANGUAGE_HINT = "/lang: English | 中文"  # shown in both languages
LANGUAGE_COMMANDS = ("/lang", "/language")

MODE_QUESTION = translatable("Choose a mode: 1 single-turn, 2 multi-turn")
NOT_A_MODE = translatable("Enter 1 or 2.")
WELCOME = translatable(
    "Chat with {name}. Type a message; clear deletes the conversation, stop exits, /help lists all commands."
)
HELP = {
    "clear": translatable("Delete the conversation"),
    "stop": translatable("Exit"),
    "/undo": translatable("Remove the last turn"),
    "/retry": translatable("Sample another answer to the last question"),
    "/adapter [NAME]": translatable("Switch the adapter; available: {names}"),
    "/save [FILE]": translatable("Append the conversation to a .jsonl file that stage ingest reads"),
    "/lang [en|zh]": translatable("Switch the language"),
    "Ctrl-C": translatable("Stop the current answer"),
}
CLEARED = translatable("Conversation deleted.")
GOODBYE = translatable("Goodbye!")
STATISTICS = translatable("({seconds:.2f} s, {tokens} tokens, {rate:.1f} tokens/s)")
TOO_LONG = translatable("(The question is too long for the model's context; shorten it.)")
TURNS_DROPPED = translatable("(Too long for the model's context: the oldest {turns} turns were left out.)")
NO_TURNS = translatable("(The conversation is empty.)")
UNDONE = translatable("(Removed: {question})")
SAVED = translatable("(Saved to {path})")
STOPPED = translatable("(Stopped; this turn is not part of the conversation.)")
CURRENT_MODEL = translatable("(Current model: {name})")
LANGUAGE_CHANGED = translatable("(The language is English.)")
UNKNOWN_LANGUAGE = translatable("(Unknown language; choose en or zh.)")


def read_line(prompt: str) -> str:
    """Read a line of input. Piped input is also printed, so that the transcript is complete."""
    line = input(prompt).strip()
    if not sys.stdin.isatty():
        print(line)
    return line


def shorten_to_fit(messages: list[Message], fits: Callable[[list[Message]], bool]) -> list[Message]:
    """Return a conversation without its oldest turns, as far as needed to fit; the question always stays."""
    while len(messages) > 1 and not fits(messages):
        messages = messages[2:]
    return messages


class Conversation:
    """The turns of a chat and its commands. Methods that handle input yield pieces of text to print.

    Args:
        model: a :class:`chat.chat_model.ChatModel`.
        language: ``en`` or ``zh``.

    Attributes:
        multi_turn: whether a prompt contains the earlier turns.
        turns: user and assistant messages, alternating.
    """

    def __init__(self, model, language: str):
        self.model, self.language, self.multi_turn = model, language, False
        self.turns: list[Message] = []
        self.commands = {
            "/undo": self.undo,
            "/retry": self.retry,
            "/adapter": self.switch_adapter,
            "/save": self.save,
            "/clear": self.clear,
            **dict.fromkeys(LANGUAGE_COMMANDS, self.switch_language),
        }

    def text(self, message: str, **values: object) -> str:
        """Return a message of the catalogue in the language of the chat."""
        return translate(message, self.language, **values)

    def choose_mode(self) -> None:
        """Ask for single-turn or multi-turn until the answer is valid.

        Raises:
            EOFError: the user stops the chat.
        """
        while (choice := read_line(f"{self.text(MODE_QUESTION)}\n> ")) not in MODES:
            command, _, argument = choice.partition(" ")
            if choice == "stop":
                raise EOFError
            if command in LANGUAGE_COMMANDS:
                print(*self.switch_language(argument.strip()), end="")
            elif command.startswith("/"):
                print(*self.help(), sep="", end="")
            else:
                print(self.text(NOT_A_MODE))
        self.multi_turn = MODES[choice]

    def handle_line(self, line: str) -> Iterator[str]:
        """Execute a command, or answer a question; an empty line does nothing."""
        command, _, argument = line.partition(" ")
        if line == "clear":
            yield from self.clear("")
        elif command in self.commands:
            yield from self.commands[command](argument.strip())
        elif line.startswith("/"):
            yield from self.help()
        elif line:
            yield from self.ask(line)

    def ask(self, question: str, force_sampling: bool = False) -> Iterator[str]:
        """Yield the answer to a question in pieces, with notices and statistics, and add the turn to the conversation.

        Args:
            force_sampling: sample the answer, even if the chat decodes greedily.
        """
        conversation = [*(self.turns if self.multi_turn else []), Message("user", question)]
        messages = shorten_to_fit(conversation, self.model.fits)
        if not self.model.fits(messages):
            yield self.text(TOO_LONG) + "\n"
            return
        if len(messages) < len(conversation):
            yield self.text(TURNS_DROPPED, turns=(len(conversation) - len(messages)) // 2) + "\n"
        stream = self.model.stream_answer(messages, force_sampling)
        yield f"<|{self.model.title}|>: "
        yield from stream
        answer = stream.answer
        rate = answer.tokens / answer.seconds if answer.seconds else 0.0
        yield "\n" + self.text(STATISTICS, seconds=answer.seconds, tokens=answer.tokens, rate=rate) + "\n"
        self.turns += [Message("user", question), Message("assistant", answer.text)]

    def help(self) -> Iterator[str]:
        width = max(map(len, HELP))
        names = ", ".join(self.model.names())
        for usage, description in HELP.items():
            yield f"{usage:{width}}  {self.text(description, names=names)}\n"

    def clear(self, _: str) -> Iterator[str]:
        self.turns.clear()
        yield self.text(CLEARED) + "\n"

    def undo(self, _: str) -> Iterator[str]:
        if not self.turns:
            yield self.text(NO_TURNS) + "\n"
            return
        question = self.turns[-2].content
        del self.turns[-2:]
        yield self.text(UNDONE, question=question) + "\n"

    def retry(self, _: str) -> Iterator[str]:
        if not self.turns:
            yield self.text(NO_TURNS) + "\n"
            return
        turn, self.turns = self.turns[-2:], self.turns[:-2]
        length = len(self.turns)
        try:
            yield from self.ask(turn[0].content, force_sampling=True)
        finally:
            if len(self.turns) == length:  # the new answer failed or was stopped: restore the old one
                self.turns += turn

    def switch_adapter(self, name: str) -> Iterator[str]:
        if name:
            try:
                self.model.switch(name)
            except UserError as error:
                yield f"{error}\n"
        yield self.text(CURRENT_MODEL, name=self.model.name) + "\n"

    def switch_language(self, language: str) -> Iterator[str]:
        """Switch to a language, or to the other one if none is given."""
        if language and language not in LANGUAGES:
            yield self.text(UNKNOWN_LANGUAGE) + "\n"
            return
        self.language = language or next(other for other in LANGUAGES if other != self.language)
        yield self.text(LANGUAGE_CHANGED) + "\n"

    def save(self, file: str) -> Iterator[str]:
        """Append the conversation to a JSON Lines file: one row, or in single-turn mode one per turn."""
        if not self.turns:
            yield self.text(NO_TURNS) + "\n"
            return
        pairs = [self.turns[start : start + 2] for start in range(0, len(self.turns), 2)]
        rows = [self.turns] if self.multi_turn else pairs
        path = Path(file or "conversation.jsonl").expanduser()
        try:
            with path.open("a", encoding="utf-8") as out:
                for row in rows:
                    out.write(
                        json.dumps({"messages": [message.to_json() for message in row]}, ensure_ascii=False) + "\n"
                    )
        except (OSError, ValueError) as error:
            yield f"{path}: {getattr(error, 'strerror', None) or error}\n"
            return
        yield self.text(SAVED, path=path) + "\n"


def print_pieces(pieces: Iterator[str], interrupted: str) -> None:
    """Print pieces of text as they are generated; Ctrl-C stops the generation and prints ``interrupted``."""
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        pieces.close()
        print("\n" + interrupted)


def run_chat(model) -> None:
    """Run a chat until ``stop``, Ctrl-D, or Ctrl-C outside an answer.

    Args:
        model: a :class:`chat.chat_model.ChatModel`.
    """
    conversation = Conversation(model, terminal_language())
    try:
        conversation.choose_mode()
        print(conversation.text(WELCOME, name=model.name))
        print(LANGUAGE_HINT)
        while (line := read_line(HUMAN)) not in ("stop", "/stop"):
            print_pieces(conversation.handle_line(line), conversation.text(STOPPED))
        print(conversation.text(GOODBYE))
    except (EOFError, KeyboardInterrupt):
        print("\n" + conversation.text(GOODBYE))
