import builtins
import json

import pytest

from chat import terminal
from models.errors import UserError
from models.generation import Answer
from models.sample import Message


class Stream:
    """An answer in two pieces."""

    def __init__(self, text, interrupted=False):
        self.interrupted = interrupted
        self.text, self.answer = text, Answer(text, tokens=5, seconds=0.5)

    def __iter__(self):
        yield self.text[:2]
        if self.interrupted:
            raise KeyboardInterrupt
        yield self.text[2:]


class Echo:
    """Answers with how many messages it saw, and with a mark where it shall answer differently."""

    def __init__(self, fits):
        self.asked, self.fits, self.name = [], fits, "tiny"

    def names(self):
        return ["base", "lora"]

    def switch(self, name):
        if name not in self.names():
            raise UserError(f"There is no adapter {name!r}.")
        self.name = f"tiny + {name}"

    def answer(self, messages, differently=False):
        self.asked.append(messages)
        interrupted = messages[-1].content == "太长"
        return Stream(f"我看到了{len(messages)}条{'，另说' * differently}。", interrupted)


@pytest.fixture
def talk(monkeypatch, capsys):
    """Type lines into the chat; gives what it printed and what the model was asked."""

    def run(*lines, fits=lambda messages: True):
        partner, typed = Echo(fits), iter(lines)

        def read(prompt=""):
            print(prompt, end="")
            line = next(typed, EOFError)
            if isinstance(line, type):
                raise line
            return line

        monkeypatch.setattr(builtins, "input", read)
        terminal.run(partner)
        return capsys.readouterr().out, partner.asked

    return run


def test_single_turn_forgets(talk):
    printed, asked = talk("1", "你好", "再说", "stop")
    assert [len(messages) for messages in asked] == [1, 1]
    assert "<|Human|>: 你好" in printed
    assert "<|ChatGLM-6B|>: 我看到了1条。" in printed
    assert "用时 0.50 秒，5 个词元，10.0 词元/秒" in printed
    assert printed.endswith("再见！\n")


def test_multi_turn_remembers_until_clear(talk):
    printed, asked = talk("2", "你好", "再说", "clear", "重来", "stop")
    assert [len(messages) for messages in asked] == [1, 3, 1]
    assert asked[1] == [Message("user", "你好"), Message("assistant", "我看到了1条。"), Message("user", "再说")]
    assert terminal.CLEARED in printed


def test_a_long_conversation_loses_its_oldest_turns_never_the_question(talk):
    printed, asked = talk("2", "一", "二", "三", "stop", fits=lambda messages: len(messages) <= 3)
    assert [message.content for message in asked[2] if message.role == "user"] == ["二", "三"]
    assert "最早的 1 轮" in printed
    printed, asked = talk("2", "一", "stop", fits=lambda messages: False)
    assert not asked
    assert terminal.TOO_LONG in printed


@pytest.mark.parametrize(
    "leave", [["1", EOFError], ["1", KeyboardInterrupt], [EOFError], ["stop"], ["2", "问", EOFError]]
)
def test_it_leaves_politely(talk, leave):
    assert talk(*leave)[0].endswith("再见！\n")


def test_ctrl_c_ends_an_answer_and_not_the_conversation(talk):
    printed, asked = talk("2", "你好", "太长", "再说", "stop")
    assert terminal.STOPPED in printed
    assert [len(messages) for messages in asked] == [1, 3, 3]  # the turn that was stopped is no part of it


def test_it_asks_again_for_the_mode_and_passes_over_empty_lines(talk):
    printed, asked = talk("3", "多轮对话", "", "你好", "stop")
    assert printed.count("请选择对话模式") == 2
    assert len(asked) == 1


def test_undo_takes_back_a_turn_and_then_there_is_none(talk):
    printed, asked = talk("2", "一", "二", "/undo", "三", "/undo", "/undo", "/undo", "stop")
    assert [message.content for message in asked[2]] == ["一", "我看到了1条。", "三"]
    assert "已撤回：二" in printed
    assert terminal.NOTHING in printed


@pytest.mark.parametrize("mode", ["1", "2"])
def test_retry_asks_the_last_question_again_for_another_answer(talk, mode):
    printed, asked = talk(mode, "一", "二", "/retry", "三", "stop")
    assert asked[2] == asked[1]
    assert "另说" in printed
    if mode == "2":
        assert [message.content for message in asked[3]][3] == "我看到了3条，另说。"


def test_another_adapter_answers_and_an_unknown_one_changes_nothing(talk):
    printed, asked = talk("2", "一", "/adapter lora", "二", "/adapter other", "/adapter", "stop")
    assert printed.count("现在由 tiny + lora 回答") == 3
    assert "There is no adapter 'other'" in printed
    assert len(asked[1]) == 3


def test_what_is_saved_is_a_row_that_ingest_reads(talk, tmp_path):
    from models.sample import read_messages

    file = tmp_path / "said.jsonl"
    talk("2", "一", "二", f"/save {file}", "stop")
    talk("1", "一", "二", f"/save {file}", "stop")
    rows = [read_messages(json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [len(row) for row in rows] == [4, 2, 2]
    assert rows[0][-1] == Message("assistant", "我看到了3条。")
    printed, _ = talk("1", "/save", "一", f"/save {tmp_path}/no/where.jsonl", "stop")
    assert terminal.NOTHING in printed
    assert "No such file or directory" in printed


def test_an_unknown_command_is_answered_with_the_commands(talk):
    printed, asked = talk("1", "/what", "stop")
    assert "/undo" in printed
    assert "base, lora" in printed
    assert not asked


def test_a_retry_without_an_answer_keeps_the_one_that_was(talk):
    """The second time that the question alone is asked, it does not fit any more."""
    asked_alone = []

    def fits(messages):
        asked_alone.append(len(messages))
        return asked_alone.count(1) <= 1

    printed, asked = talk("2", "一", "/retry", "/undo", "/undo", "stop", fits=fits)
    assert terminal.TOO_LONG in printed
    assert len(asked) == 1
    assert "已撤回：一" in printed
    assert terminal.NOTHING in printed


def test_a_path_that_cannot_be_is_told(talk):
    printed, asked = talk("1", "一", "/save a\0b", "二", "stop")
    assert "embedded null" in printed
    assert len(asked) == 2
