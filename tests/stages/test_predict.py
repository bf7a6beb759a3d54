"""Predictions: questions of every layout, and output that does not depend on interruptions."""

import csv
import json
from functools import partial

import pytest
from shared_data import ROOT, conversation, write_rows

from models import generation
from models.errors import UserError
from models.row_layouts import UnknownFormat
from models.sample import Message
from models.storage import read_jsonl
from stages.predict import __main__ as predict
from stages.predict.prediction_file import PredictionFile
from stages.predict.question_rows import parse_question, read_questions

QUESTION = conversation("你是谁？")


# Questions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "messages", "reference"),
    [
        ("你是谁？", QUESTION, None),
        ({"question": "你是谁？"}, QUESTION, None),
        ({"question": "你是谁？", "answer": ""}, QUESTION, None),
        ({"prompt": "你是谁？"}, QUESTION, None),
        ({"prompt": "你是谁？", "response": None}, QUESTION, None),
        ({"context": "你是谁？", "target": "我是小明。"}, QUESTION, "我是小明。"),
        ({"instruction": "翻译", "input": "你好"}, conversation("翻译\n你好"), None),
        ({"query": "你是谁？", "history": [["你好", "您好"]]}, conversation("你好", "您好", "你是谁？"), None),
        ({"prompt": "你是谁？", "system": "请简短。"}, (Message("system", "请简短。"), *QUESTION), None),
        ({"messages": [{"role": "user", "content": "你是谁？"}]}, QUESTION, None),
        (
            {"messages": [{"role": "user", "content": "你是谁？"}, {"role": "assistant", "content": "小明"}]},
            QUESTION,
            "小明",
        ),
    ],
)
def test_question_of_every_layout_is_read(row, messages, reference):
    assert parse_question(row) == (messages, reference)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"title": "x"}, "no known format"),
        (3, "must be a JSON object"),
        ({"prompt": " "}, "blank"),
        ({"prompt": ["你"]}, "must be text"),
        ({"messages": [{"role": "user", "content": "你"}, {"role": "user", "content": "我"}]}, "do not alternate"),
        ({"messages": [{"role": "system", "content": "你"}]}, "does not end with a question"),
        ({"prompt": "看图", "images": ["a.png"], "response": "x"}, "holds more than text"),
    ],
)
def test_row_without_a_question_is_refused(row, message):
    with pytest.raises(UnknownFormat, match=message):
        parse_question(row)


def test_each_line_of_a_text_file_is_a_question(tmp_path):
    path = tmp_path / "questions.txt"
    path.write_text("\ufeff你是谁？\r\n\n  再见\u2028吧\n", encoding="utf-8")
    rows = list(read_questions(path))
    assert [(row.location, row.messages[0].content) for row in rows] == [
        ("questions.txt:1", "你是谁？"),
        ("questions.txt:3", "再见\u2028吧"),
    ]
    path.write_bytes("你是谁".encode("gbk"))
    with pytest.raises(UserError, match="iconv -f GB18030"):
        list(read_questions(path))


def test_damaged_row_has_its_reason(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text('{"question": "你好"}\n{"question": \n[1]\n', encoding="utf-8")
    assert [bool(row.fault) for row in read_questions(path)] == [False, True, True]


# Output --------------------------------------------------------------------------------------------


@pytest.fixture
def questions(tmp_path):
    rows = [{"question": "你" * (number % 7 + 1)} for number in range(21)]
    rows[4], rows[9] = {"picture": 1}, {"question": "你好" * 40}
    rows[11] |= {"history": [["你好", "再见"]]}
    rows[12] = {"context": "你是谁？", "target": "我是测试用的模型。"}
    return write_rows(tmp_path / "questions.jsonl", rows)


def run(monkeypatch, base_folder, questions, out, *options):
    arguments = ["--questions", str(questions), "--base", str(base_folder), "--out", str(out)]
    arguments += ["--max-new-tokens", "5", "--batch-size", "1", *options]
    monkeypatch.setattr("sys.argv", ["predict", *arguments])
    monkeypatch.chdir(ROOT)
    predict.main()


@pytest.fixture(autouse=True)
def short_context(monkeypatch):
    """The context leaves room for 60 tokens, which the longest question exceeds."""
    initialize = predict.Predictor.__init__

    def initialize_with_limit(self, *arguments):
        initialize(self, *arguments)
        self.max_prompt_tokens = 60

    monkeypatch.setattr(predict.Predictor, "__init__", initialize_with_limit)


def test_every_row_has_an_output_row_in_order(monkeypatch, base_folder, questions, tmp_path, caplog):
    run(monkeypatch, base_folder, questions, tmp_path / "out.jsonl", "--batch-size", "4")
    rows = read_jsonl(tmp_path / "out.jsonl")
    assert [row["location"] for row in rows] == [f"questions.jsonl:{number}" for number in range(1, 22)]
    assert [number for number, row in enumerate(rows) if row["answer"] is None] == [4, 9]
    assert "no known format" in rows[4]["fault"]
    assert "leave room for the answer" in rows[9]["fault"]
    assert rows[12]["reference"] == "我是测试用的模型。"
    assert all(0 <= row["tokens"] <= 5 for row in rows if row["answer"] is not None)
    assert not list(tmp_path.glob("out.jsonl.*"))
    with pytest.raises(SystemExit):
        run(monkeypatch, base_folder, questions, tmp_path / "out.jsonl")


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
@pytest.mark.parametrize("options", [(), ("--sample", "7")], ids=["greedy", "sampled"])
def test_interrupted_run_resumes_with_the_same_bytes(monkeypatch, base_folder, questions, tmp_path, suffix, options):
    whole, resumed = tmp_path / f"whole.{suffix}", tmp_path / f"resumed.{suffix}"
    run(monkeypatch, base_folder, questions, whole, *options)
    original, answered = generation.generate_answers, []

    def count_answers(*arguments, limit: int):
        for index, answer in original(*arguments):
            answered.append(index)
            if len(answered) == limit:
                raise KeyboardInterrupt
            yield index, answer

    monkeypatch.setattr(generation, "generate_answers", partial(count_answers, limit=11))
    with pytest.raises(SystemExit):
        run(monkeypatch, base_folder, questions, resumed, *options)
    assert not resumed.exists()
    written = resumed.with_name(f"{resumed.name}.partial")
    assert whole.read_bytes().startswith(written.read_bytes())
    written.write_bytes(written.read_bytes() + b"a row that was being written")
    answered.clear()
    monkeypatch.setattr(generation, "generate_answers", partial(count_answers, limit=100))
    run(monkeypatch, base_folder, questions, resumed, *options)
    assert resumed.read_bytes() == whole.read_bytes()
    assert 0 < len(answered) < 19, "answers of complete blocks are not generated again"


def test_csv_has_a_header_and_a_line_per_row(monkeypatch, base_folder, questions, tmp_path):
    run(monkeypatch, base_folder, questions, tmp_path / "out.csv")
    content = (tmp_path / "out.csv").read_text(encoding="utf-8-sig")
    rows = list(csv.DictReader(content.splitlines(keepends=True)))
    assert len(rows) == 21
    assert rows[0]["question"] == "你"
    assert rows[4]["fault"].startswith("no known format")
    assert (tmp_path / "out.csv").read_bytes().count(b"\xef\xbb\xbf") == 1


def test_answers_of_other_options_are_not_continued(tmp_path):
    with PredictionFile(tmp_path / "a.jsonl", "first") as file:
        file.append([{"messages": [], "fault": "x"}])
        with pytest.raises(UserError, match="another process"), PredictionFile(tmp_path / "a.jsonl", "first"):
            pass
    with pytest.raises(UserError, match="other options"), PredictionFile(tmp_path / "a.jsonl", "second"):
        pass
    with PredictionFile(tmp_path / "a.jsonl", "first") as file:
        assert (file.num_rows, file.faults) == (1, {"x": 1})
        file.finish()
    assert json.loads((tmp_path / "a.jsonl").read_text()) == {"messages": [], "fault": "x"}


def test_output_must_be_jsonl_or_csv(tmp_path):
    with pytest.raises(UserError, match="must end in"):
        PredictionFile(tmp_path / "a.xlsx", "key")
