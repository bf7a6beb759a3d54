import builtins
import json

import pytest

from chat import terminal
from models.errors import UserError
from models.generation import Answer
from models.row_layouts import read_messages
from models.sample import Message
from texts import translate


class FakeStream:
    """An answer in two pieces."""

    def __init__(self, text, interrupted=False):
        self.interrupted = interrupted
        self.text, self.answer = text, Answer(text, tokens=5, seconds=0.5)

    def __iter__(self):
        yield self.text[:2]
        if self.interrupted:
            raise KeyboardInterrupt
        yield self.text[2:]


class FakeModel:
    """Answers with the number of messages in the prompt; records the prompts."""

    def __init__(self, fits):
        self.prompts, self.fits, self.name, self.title = [], fits, "tiny", "ChatGLM-6B"

    def names(self):
        return ["base", "lora"]

    def switch(self, name):
        if name not in self.names():
            raise UserError(f"There is no adapter {name!r}.")
        self.name = f"tiny + {name}"

    def stream_answer(self, messages, force_sampling=False):
        self.prompts.append(messages)
        interrupted = messages[-1].content == "太长"
        return FakeStream(f"我看到了{len(messages)}条{'，另说' * force_sampling}。", interrupted)


@pytest.fixture(autouse=True, params=["en", "zh"])
def language(request, monkeypatch):
    """The language of the terminal."""
    monkeypatch.setenv("TUNELINE_LANG", request.param)
    return request.param


@pytest.fixture
def talk(monkeypatch, capsys):
    """Type lines into the chat; returns the output and the prompts that the model received."""

    def run(*lines, fits=lambda messages: True):
        model, typed = FakeModel(fits), iter(lines)

        def read(prompt=""):
            print(prompt, end="")
            line = next(typed, EOFError)
            if isinstance(line, type):
                raise line
            return line

        monkeypatch.setattr(builtins, "input", read)
        terminal.run_chat(model)
        return capsys.readouterr().out, model.prompts

    return run


def text(message: str, **values) -> str:
    return translate(message, **values)


def test_a_prompt_in_single_turn_mode_has_no_earlier_turns(talk):
    output, prompts = talk("1", "你好", "再说", "stop")
    assert [len(messages) for messages in prompts] == [1, 1]
    assert "<|Human|>: 你好" in output
    assert "<|ChatGLM-6B|>: 我看到了1条。" in output
    assert text(terminal.STATISTICS, seconds=0.5, tokens=5, rate=10.0) in output
    assert output.endswith(text(terminal.GOODBYE) + "\n")


def test_a_prompt_in_multi_turn_mode_has_the_turns_since_clear(talk):
    output, prompts = talk("2", "你好", "再说", "clear", "重来", "stop")
    assert [len(messages) for messages in prompts] == [1, 3, 1]
    assert prompts[1] == [Message("user", "你好"), Message("assistant", "我看到了1条。"), Message("user", "再说")]
    assert text(terminal.CLEARED) in output


def test_the_oldest_turns_are_dropped_if_the_prompt_is_too_long(talk):
    output, prompts = talk("2", "一", "二", "三", "stop", fits=lambda messages: len(messages) <= 3)
    assert [message.content for message in prompts[2] if message.role == "user"] == ["二", "三"]
    assert text(terminal.TURNS_DROPPED, turns=1) in output


def test_a_question_that_is_too_long_is_not_answered(talk):
    output, prompts = talk("2", "一", "stop", fits=lambda messages: False)
    assert not prompts
    assert text(terminal.TOO_LONG) in output


@pytest.mark.parametrize(
    "lines", [["1", EOFError], ["1", KeyboardInterrupt], [EOFError], ["stop"], ["2", "问", EOFError]]
)
def test_every_way_to_exit_ends_with_goodbye(talk, lines):
    assert talk(*lines)[0].endswith(text(terminal.GOODBYE) + "\n")


def test_ctrl_c_during_an_answer_drops_that_turn_only(talk):
    output, prompts = talk("2", "你好", "太长", "再说", "stop")
    assert text(terminal.STOPPED) in output
    assert [len(messages) for messages in prompts] == [1, 3, 3]


def test_the_mode_is_asked_again_and_empty_lines_are_ignored(talk):
    output, prompts = talk("3", "多轮对话", "", "你好", "stop")
    assert output.count(text(terminal.MODE_QUESTION)) == 2
    assert text(terminal.NOT_A_MODE) in output
    assert len(prompts) == 1


def test_help_is_shown_before_the_mode_is_chosen(talk):
    output, prompts = talk("/help", "1", "stop")
    assert output.count("/undo") == 1
    assert text(terminal.NOT_A_MODE) not in output
    assert not prompts


def test_undo_removes_the_last_turn(talk):
    output, prompts = talk("2", "一", "二", "/undo", "三", "/undo", "/undo", "/undo", "stop")
    assert [message.content for message in prompts[2]] == ["一", "我看到了1条。", "三"]
    assert text(terminal.UNDONE, question="二") in output
    assert text(terminal.NO_TURNS) in output


@pytest.mark.parametrize("mode", ["1", "2"])
def test_retry_samples_another_answer_to_the_last_question(talk, mode):
    output, prompts = talk(mode, "一", "二", "/retry", "三", "stop")
    assert prompts[2] == prompts[1]
    assert "另说" in output
    if mode == "2":
        assert [message.content for message in prompts[3]][3] == "我看到了3条，另说。"


def test_retry_without_a_new_answer_keeps_the_old_one(talk):
    """The question fits when it is asked first, but not when it is asked again."""
    lengths = []

    def fits(messages):
        lengths.append(len(messages))
        return lengths.count(1) <= 1

    output, prompts = talk("2", "一", "/retry", "/undo", "/undo", "stop", fits=fits)
    assert text(terminal.TOO_LONG) in output
    assert len(prompts) == 1
    assert text(terminal.UNDONE, question="一") in output
    assert text(terminal.NO_TURNS) in output


def test_adapter_switches_the_model_and_keeps_it_if_the_name_is_unknown(talk):
    output, prompts = talk("2", "一", "/adapter lora", "二", "/adapter other", "/adapter", "stop")
    assert output.count(text(terminal.CURRENT_MODEL, name="tiny + lora")) == 3
    assert "There is no adapter 'other'" in output
    assert len(prompts[1]) == 3


def test_a_saved_conversation_is_an_accepted_row(talk, tmp_path):
    file = tmp_path / "saved.jsonl"
    talk("2", "一", "二", f"/save {file}", "stop")
    talk("1", "一", "二", f"/save {file}", "stop")
    rows = [read_messages(json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [len(row) for row in rows] == [4, 2, 2]
    assert rows[0][-1] == Message("assistant", "我看到了3条。")


def test_errors_of_save_are_printed(talk, tmp_path):
    output, prompts = talk("1", "/save", "一", f"/save {tmp_path}/no/where.jsonl", "/save a\0b", "二", "stop")
    assert text(terminal.NO_TURNS) in output
    assert "No such file or directory" in output
    assert "embedded null" in output
    assert len(prompts) == 2


@pytest.mark.parametrize("command", ["/help", "/unknown"])
def test_help_and_unknown_commands_list_all_commands(talk, command):
    output, prompts = talk("1", command, "stop")
    for usage in terminal.HELP:
        assert usage in output
    assert "base, lora" in output
    assert not prompts


OTHER = {"en": "zh", "zh": "en"}


def test_lang_switches_to_the_other_language_and_back(talk, language):
    output, prompts = talk("1", "/lang", "/undo", "/language", "/undo", "stop")
    no_turns = [translate(terminal.NO_TURNS, name) for name in (OTHER[language], language)]
    assert output.index(no_turns[0]) < output.index(no_turns[1])
    assert output.endswith(text(terminal.GOODBYE) + "\n")
    assert not prompts


@pytest.mark.parametrize("target", ["en", "zh"])
def test_lang_with_a_name_switches_to_that_language(talk, target):
    output, _ = talk("1", f"/lang {target}", f"/lang {target}", "stop")
    assert output.count(translate(terminal.LANGUAGE_CHANGED, target)) == 2
    assert output.endswith(translate(terminal.GOODBYE, target) + "\n")


def test_an_unknown_language_changes_nothing(talk):
    output, _ = talk("1", "/lang fr", "stop")
    assert text(terminal.UNKNOWN_LANGUAGE) in output
    assert output.endswith(text(terminal.GOODBYE) + "\n")


def test_the_language_can_be_switched_at_the_question_for_the_mode(talk, language):
    output, prompts = talk("/lang", "2", "你好", "stop")
    assert translate(terminal.MODE_QUESTION, OTHER[language]) in output
    assert output.endswith(translate(terminal.GOODBYE, OTHER[language]) + "\n")
    assert len(prompts) == 1


def test_a_switch_keeps_the_conversation(talk):
    assert [len(messages) for messages in talk("2", "一", "/lang", "二", "stop")[1]] == [1, 3]
