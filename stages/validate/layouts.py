"""Layouts of rows that other programs write and that are not read: their names, and how jq converts them."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from models.sample import QUESTION_ANSWER_KEYS, quote_value

_QUESTIONS = (
    "question", "query", "instruction", "prompt", "ask", "q", "problem", "human", "user", "input", "问题", "问", "提问",
    "指令", "src", "source_text",
)  # fmt: skip
_ANSWERS = (
    "answer", "response", "output", "completion", "chosen", "a", "reply", "solution", "assistant", "bot", "gpt",
    "target", "label", "答案", "回答", "答", "回复", "输出", "tgt", "target_text",
)  # fmt: skip
_TURNS = ("conversations", "conversation", "messages", "dialogue", "dialog", "dialogs", "chat", "turns")
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant"}


@dataclass(frozen=True)
class Layout:
    """A layout that is not accepted.

    Attributes:
        name, name_zh: as a sentence names it.
        program: of jq, which makes accepted rows of a row; None where nothing can.
        is_known: False if only the names of the keys are known.
    """

    name: str
    name_zh: str
    program: str | None = None
    is_known: bool = True


def recognize(row: object) -> Layout | None:
    """The layout of a row that has no accepted one; None if it is no object or has the right keys."""
    if not isinstance(row, dict) or not row:
        return None
    return _of_turns(row) or _of_texts(row) or _of_rows(row) or _of_pair(row) or _of_text(row) or _unknown(row)


def _of_turns(row: Mapping) -> Layout | None:
    """Conversations under other names: ShareGPT and its kin."""
    for key in _TURNS:
        turns = row.get(key)
        if not isinstance(turns, list) or not turns or not isinstance(turns[0], dict):
            continue
        for role, content in (("from", "value"), ("role", "content"), ("role", "value"), ("from", "content")):
            if {role, content} <= turns[0].keys():
                if (key, role, content) == ("messages", "role", "content") and not _has_foreign_role(turns):
                    return None
                kind = "ShareGPT: " if content == "value" else ""
                turn = f"{{role: ({json.dumps(_ROLES)}[.{role}] // .{role}), content: .{content}}}"
                program = f"del({_path(key)}) + {{messages: [{_path(key)}[] | {turn}]}}"
                return Layout(*_named(f"{kind}{key!r}", role, content), program)
        if pair := _pair_of(turns[0]):
            turn = f'{{role: "user", content: {_path(pair[0])}}}, {{role: "assistant", content: {_path(pair[1])}}}'
            return Layout(*_named(repr(key), *pair), f"{{messages: [{_path(key)}[] | {turn}]}}")
    return None


def _has_foreign_role(turns: list) -> bool:
    return any(isinstance(turn, dict) and turn.get("role") in tuple(_ROLES) for turn in turns)


def _named(key: str, first: str, second: str) -> tuple[str, str]:
    return f"{key} of {first!r} and {second!r}", f"{key}（含 {first!r} 和 {second!r}）"


def _of_texts(row: Mapping) -> Layout | None:
    """A list of texts that user and assistant say in turn."""
    for key in (*_TURNS, "data", "items"):
        turns = row.get(key)
        if isinstance(turns, list) and len(turns) > 1 and all(isinstance(turn, str) for turn in turns):
            turn = '{role: (if .key % 2 == 0 then "user" else "assistant" end), content: .value}'
            program = f"{{messages: [{_path(key)} | to_entries[] | {turn}]}}"
            return Layout(f"{key!r}, a list of texts", f"{key!r}（文本列表）", program)
    return None


def _of_rows(row: Mapping) -> Layout | None:
    """A file whose rows lie in a list below one key."""
    for key, value in row.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            keys = value[0].keys()
            if "messages" in keys or any(keys >= set(pair) for pair in QUESTION_ANSWER_KEYS):
                name = quote_value(key)
                return Layout(f"a list of rows below {name}", f"{name} 下的行列表", f"{_path(key)}[]")
    return None


def _of_pair(row: Mapping) -> Layout | None:
    """A question and an answer under other names."""
    if not (pair := _pair_of(row)):
        return None
    question, answer = pair
    names = f"{question!r} and {answer!r}", f"{question!r} 和 {answer!r}"
    if isinstance(row[answer], list):
        return Layout(*names, f"{{messages: {_path(answer)}}}" if answer == "chosen" else None)
    # The text that the question is about, such as Dolly's `context`.
    about = next((key for key in ("input", "context", "passage") if key in row and key not in pair), None)
    keys = {"instruction": question, "input": about, "output": answer}
    if about is None:
        keys = {"prompt": question, "response": answer}
    system = next((key for key in ("system", "system_prompt") if key in row), None)
    keys |= ({"system": system} if system else {}) | ({"history": "history"} if "history" in row else {})
    return Layout(*names, "{" + ", ".join(f"{new}: {_path(old)}" for new, old in keys.items()) + "}")


def _of_text(row: Mapping) -> Layout | None:
    if isinstance(row.get("text"), str):
        return Layout("'text' alone, without question and answer", "只有 'text'，没有问题和回答")
    return None


def _unknown(row: Mapping) -> Layout | None:
    if "messages" in row:
        return None
    keys = ", ".join(map(quote_value, list(row)[:6]))
    return Layout(f"the keys {keys}", f"键 {keys}", is_known=False)


def _pair_of(row: Mapping) -> tuple[str, str] | None:
    """The row's own names of question and answer, whatever their case."""
    own = {key.lower(): key for key in reversed(row)}
    question = next((own[name] for name in _QUESTIONS if name in own), None)
    answer = next((own[name] for name in _ANSWERS if name in own and own[name] != question), None)
    return (question, answer) if question is not None and answer is not None else None


def _path(key: str) -> str:
    return f".{key}" if key.isascii() and key.isidentifier() else f".[{json.dumps(key, ensure_ascii=False)}]"


# Sentences -----------------------------------------------------------------------------------------


def sentence(file: str, rows: int, layout: Layout) -> dict[str, str]:
    """What is wrong with a file, what is accepted, and what converts it, by language."""
    pairs = [" + ".join(keys) for keys in QUESTION_ANSWER_KEYS]
    accepted = ", ".join((*pairs, "messages: [{role, content}, …]"))
    command = command_of(file, layout)
    en = f"{file}: {rows:,} rows have a layout that is not read: {layout.name}. Accepted keys: {accepted}."
    zh = f"{file}：{rows:,} 行的格式无法读取：{layout.name_zh}。可接受的键：{accepted}。"
    if command is None:
        return {"en": en, "zh": zh}
    hint = ("", "") if layout.is_known else (" (put your own keys for QUESTION and ANSWER)", "（请换成您自己的键）")
    return {"en": f"{en} To convert it{hint[0]}: `{command}`", "zh": f"{zh}转换命令{hint[1]}：`{command}`"}


def command_of(file: str, layout: Layout) -> str | None:
    """A line for the shell that converts a file, be it JSON Lines or one array; None where nothing can."""
    program = layout.program or (None if layout.is_known else "{prompt: .QUESTION, response: .ANSWER}")
    if program is None:
        return None
    stem = file.removesuffix(".gz").removesuffix(".jsonl").removesuffix(".json")
    target, source = shlex.quote(f"{stem}.converted.jsonl"), shlex.quote(file)
    rows = f"jq -c {shlex.quote(f'(arrays[], objects) | {program}')}"
    return f"gzip -dc {source} | {rows} > {target}" if file.endswith(".gz") else f"{rows} {source} > {target}"
