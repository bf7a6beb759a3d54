import builtins

import pytest

from chat import terminal
from models.answering import Answer
from models.sample import Message


class Echo:
    """Answers with how many messages it saw, in two pieces."""

    asked: list

    def __init__(self, messages):
        type(self).asked.append(messages)
        self.text = f"我看到了{len(messages)}条。"
        self.answer = Answer(self.text, tokens=5, seconds=0.5)

    def __iter__(self):
        yield self.text[:2]
        yield self.text[2:]


@pytest.fixture
def talk(monkeypatch, capsys):
    """Type lines into the chat; gives what it printed and what the model was asked."""

    def run(*lines, fits=lambda messages: True):
        Echo.asked = []
        typed = iter(lines)

        def read(prompt=""):
            print(prompt, end="")
            line = next(typed, EOFError)
            if isinstance(line, type):
                raise line
            return line

        monkeypatch.setattr(builtins, "input", read)
        terminal.run("tiny", Echo, fits)
        return capsys.readouterr().out, Echo.asked

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


def test_it_asks_again_for_the_mode_and_passes_over_empty_lines(talk):
    printed, asked = talk("3", "多轮对话", "", "你好", "stop")
    assert printed.count("请选择对话模式") == 2
    assert len(asked) == 1
