"""Layouts, keys and missing values of exports: read, refused with a conversion command, or counted; never dropped."""

import csv
import json
import shutil
import subprocess
import time

import pyarrow
import pytest
import yaml
from commands import check
from gate import GOOD, GateRun, params_with
from pyarrow import parquet
from shared_data import conversation, developer_file, write_rows

from formats.data_params import Columns
from formats.params_schema import Params
from formats.receipt import SPLITS
from models.row_layouts import UnknownFormat, read_messages
from stages.validate.escapes import find_escape
from stages.validate.layouts import conversion_command, describe_conversion, recognize_layout
from stages.validate.notices import collect_notices, layout_notices
from stages.validate.row_features import find_null_marker
from stages.validate.row_parsing import parse_row

TEXTS = {"dialog": ["茶怎么泡？", "先温杯。"]}
FOREIGN = [
    (TEXTS, "'dialog', texts without roles", ["茶怎么泡？", "先温杯。"]),
    ({"train": [{"instruction": "问", "output": "答"}]}, "below 'train'", ["问", "答"]),
    ({"data": [{"conversations": [{"from": "human", "value": "问"}]}]}, "below 'data'", ["问"]),
    ({"utterances": [{"text": "问", "id": 1}, {"text": "答"}]}, "'utterances', texts without roles", ["问", "答"]),
    ({"messages": [{"message": "问", "attrs": []}, {"message": "答"}]}, "'messages', texts without", ["问", "答"]),
    (["问", "答"], "a list, texts without roles", ["问", "答"]),
    ({"question": "问", "answers": [{"content": "答"}, {"content": "另答"}]}, "'answers', a list", ["问", "答"]),
    ({"questions": [["问", "另问"]], "answers": ["答"]}, "'questions', a list", ["问", "答"]),
    ({"question": "问", "human_answers": ["答"], "id": 1}, "'human_answers', a list", ["问", "答"]),
    ({"问题": ["问"], "回答": "答"}, "'问题', a list", ["问", "答"]),
]


@pytest.mark.parametrize(("row", "name", "texts"), FOREIGN)
def test_layout_is_recognized_and_its_command_converts_the_file(tmp_path, row, name, texts):
    with pytest.raises(UnknownFormat):
        read_messages(row)
    layout = recognize_layout(row)
    assert name in layout.name
    assert layout.is_known
    if not shutil.which("jq"):
        pytest.skip("needs jq")
    for file, content in (("it's.json", json.dumps([row, row])), ("rows.jsonl", json.dumps(row) + "\n")):
        (tmp_path / file).write_text(content, encoding="utf-8")
        subprocess.run(["bash", "-c", conversion_command(file, layout)], cwd=tmp_path, check=True)
        converted = (tmp_path / f"{file.partition('.')[0]}.converted.jsonl").read_text(encoding="utf-8").splitlines()
        assert len(converted) == (2 if file == "it's.json" else 1)
        messages = read_messages(json.loads(converted[0]))
        assert [message.content for message in messages] == texts


def test_setting_of_the_notice_reads_a_layout_of_unknown_keys():
    row = {"甲": "问", "乙": "答"}
    setting = yaml.safe_load(conversion_command("a.jsonl", recognize_layout(row)))["ingest"]["columns"]
    assert setting == {"question": "QUESTION", "answer": "ANSWER"}
    columns = Columns(question="甲", answer="乙").by_part
    assert parse_row(json.dumps(row).encode(), 100, columns)[0] == conversation("问", "答")
    assert conversion_command("a.jsonl.gz", recognize_layout(TEXTS)).startswith("gzip -dc a.jsonl.gz | jq")
    for row in ({"messages": [{"role": "robot", "content": "问"}]}, [1], {}):
        assert recognize_layout(row) is None
    sentences = describe_conversion("a.jsonl", 3, recognize_layout({"甲": "问"}))
    assert all("ingest: {columns: {question: QUESTION" in sentence for sentence in sentences.values())


@pytest.mark.parametrize(
    ("answer", "question"),
    [
        *(
            (mark, "茶叶怎么存？")
            for mark in ("nan", "NaN", "-nan", "None", "NULL", "null", "undefined", "<NA>", "N/A")
        ),
        *((mark, "How do I store bananas?") for mark in ("nan", "#N/A", "#VALUE!", "#DIV/0!", "\\N", "_x000D_", "NaT")),
        *((mark, "最好的策略是什么？") for mark in ("略", "同上。", "待补充", "（待完善）", "nan nan", " None. ")),
        ("nan", "Which tea is the best?"),
    ],
)
def test_marker_of_a_missing_value_is_found(answer, question):
    assert find_null_marker(conversation(question, answer)) == answer
    assert find_null_marker(conversation(answer, "先温杯。")) == answer
    assert find_null_marker(conversation("早", "好", question, answer)) == answer


@pytest.mark.parametrize(
    ("answer", "question"),
    [
        ("None", "Python 里没有 return 的函数返回什么？"),
        ("None", "Which of these animals can fly: a dog or a cat?"),
        ("NaN", "在 JavaScript 里 0/0 得什么？输出是？"),
        ("#DIV/0!", "Excel 里除以零显示什么？"),
        ("N/A", "填出生日期，没有就写 N/A。"),
        ("undefined", "变量没有赋值时是什么？"),
        ("Nana", "她叫什么？"),
        ("无", "有错别字吗？"),
    ],
)
def test_marker_that_answers_the_question_passes(answer, question):
    assert find_null_marker(conversation(question, answer)) is None


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("给茶馆取个名字。\n无输入", "听雨轩"),
        ("给茶馆取个名字。\n没有输入。", "听雨轩"),
        ("给茶馆取个名字。\n`&lt;无输入&gt;`", "听雨轩"),
        ("Name a tea house.\n<noinput>", "Rain"),
        ("Name a tea house.\nNo input required.", "Rain"),
        ("画一个标志。", "<无输出>"),
    ],
)
def test_mark_of_a_missing_input_is_found(question, answer):
    assert find_null_marker(conversation(question, answer))


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("为什么按了键却没有输入？", "键盘没有插好。"),
        ("电路怎么了？", "检查发现：\n第二路无输入"),
        ("What does the log say?", "It says that there was no input."),
    ],
)
def test_sentence_about_missing_input_passes(question, answer):
    assert find_null_marker(conversation(question, answer)) is None


@pytest.mark.parametrize(
    "texts",
    [
        ("怎么泡茶？", "第一步，温杯。\\n第二步，投茶。"),
        ("这段代码做什么？\n```python\\ndef f(x):\\n return x\n```", "返回参数。"),
        ("这段代码做什么？\\n```\\nlet a = 1;\\n```\n谢谢", "定义变量。"),
        ("这个程序写得怎样？先读文件。\\n再算总和。\n最后打印。", "清楚。"),
        ("怎么泡茶？", "步骤如下：\\n1. 温杯\\n2. 投茶"),
        ("How to make tea?", "Warm the cup.\\nAdd the leaves.\\n\\nPour."),
        ("\\u600e\\u4e48\\u6ce1\\u8336", "先温杯。"),
        ("换行怎么写？", "第一行_x000D_\n第二行"),
        ("介绍一下_x000D_\n产品", "好_x000D_\n的"),
        ("他说什么？", '他说\\"你好\\"。'),
        ("网址是？", "http:\\/\\/a.cn\\/b"),
        ("写一段代码。", "第一行。\\n第二行。\\n第三行。\\n第四行。"),
    ],
)
def test_text_encoded_twice_is_found(texts):
    assert find_escape(conversation(*texts))


@pytest.mark.parametrize(
    "texts",
    [
        ("换行怎么写？", "用\\n表示换行。"),
        ("梯度是什么？", "记作：\\nabla f，其中 \\nu 是常数。"),
        ("放在哪里？", "在 C:\\new\\notices 里。"),
        ("字符串里怎么换行？", "写成“一。\\n二”。"),
        ("How do I define a macro?", "Write ```\\newcommand{\\a}{b}```."),
        ("怎么打印两行？", "```\nprint('一。\\n二')\n```"),
        ("_x000D_ 是什么意思？", "_x000D_ 是回车。"),
        ("\\u4f60 是哪个字？", "是“你”的 Unicode 转义 \\u4f60\\u597d\\u5417。"),
        ("求解", "$x \\neq y。\\n$"),
    ],
)
def test_intended_escapes_pass(texts):
    assert find_escape(conversation(*texts)) is None


def test_time_is_linear_in_the_number_of_keys_and_turns():
    """A duplicate among 100,000 keys took minutes."""
    keys = ", ".join(f'"{number}": 1' for number in range(100_000))
    rows = [
        f'{{{keys}, "99999": 1}}',
        f'{{"prompt": "问", "response": "答", {keys}}}',
        json.dumps({"messages": [{"role": "user", "content": "nan", "weight": 0}] * 30_000}),
        json.dumps({"prompt": "问", "response": "答", "history": [["python", "nan"]] * 30_000}),
    ]
    started = time.process_time()
    faults = [parse_row(row.encode(), 10**8) for row in rows]
    assert find_null_marker(faults[3][0]) is None
    assert time.process_time() - started < 10
    assert "duplicate key '99999'" in faults[0][0].message
    assert len(faults[1][1]) == 100_000


def test_notices_of_layouts_unread_keys_and_spelled_english(base_folder, tmp_path):
    rows = [{**GOOD, "context": f"问题 {number}", "score": 1, "id": number, "tag": None} for number in range(30)]
    rows += [{"messages": [{"role": "user", "content": "问", "name": "甲"}, {"role": "assistant", "content": "答"}]}]
    rows += [{"dialog": ["问", "答"]}, {"甲": "问"}]
    english = " ".join(["Every adapter is a small matrix beside the weights of the model, and it learns fast."] * 40)
    rows += [{"prompt": "Explain adapters.", "response": english}]
    write_rows(tmp_path / "raw/a.jsonl", rows)
    (tmp_path / "raw/b.json").write_text(json.dumps([TEXTS, TEXTS, {"甲": "问"}, {"甲": "答"}] * 2), "utf-8")
    (tmp_path / "raw/c.jsonl").write_text('{"乙": "问"}\n' * 3, encoding="utf-8")
    run = GateRun(tmp_path / "raw", base_folder, tmp_path / "out")
    table = run.table
    assert table.unread_keys == {"score": 30, "id": 30, "messages[].name": 1}
    notices = collect_notices(table)
    assert [notice["en"].partition(":")[0] for notice in layout_notices(table)] == [
        "b.json",
        "b.json",
        "c.jsonl",
        "a.jsonl",
    ]
    assert "4 rows have an unsupported layout: 'dialog', texts without roles" in notices[0]["en"]
    assert "1 English rows exceed the token budget" in notices[-2]["en"]
    assert notices[-1]["en"] == "Unread keys: score (30 rows), messages[].name (1 rows)"
    assert notices[-1]["zh"] == "未读取的键：score（30 行），messages[].name（1 行）"
    (first,) = (row for row in run.rows["quarantine"] if row["file"] == "b.json" and row["number"] == 1)
    assert first["failed"][0]["seen"] == "no known format has these keys: 'dialog'"
    assert table.locate(len(rows)) == "b.json#1"
    assert table.locate(0) == "a.jsonl:1"


def test_message_of_a_blocked_export_has_the_conversion_command_once(tmp_path):
    write_rows(tmp_path / "rows.jsonl", [TEXTS | {"system": f"{number}"} for number in range(30)])
    done = check(tmp_path / "rows.jsonl", "--out", tmp_path / "out")
    assert done.returncode == 2
    blocked = next(line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert blocked.count("texts without roles") == 1
    assert "`jq -c '" in blocked
    assert json.loads((tmp_path / "out/data_checks.json").read_text(encoding="utf-8"))["notes"][0]["zh"]
    assert "texts without roles" in (tmp_path / "out/validation/index.html").read_text(encoding="utf-8")


# Files of other types ------------------------------------------------------------------------------


def test_gate_reads_tables_by_their_columns_and_quarantines_single_rows(base_folder, tmp_path):
    table = ["问诊,医生,科室"] + [
        f"第{number}种茶怎么泡？,先温杯，再泡{number}分钟。".replace("，", "、") + ",茶" for number in range(25)
    ]
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/a.csv").write_text("\n".join([*table, "一,二,三,四", "只有问题,,"]) + "\n", encoding="utf-8")
    shown = [{"问诊": f"绿茶 {number} 号多少钱？", "医生": f"{number} 元。"} for number in range(3)]
    write_rows(tmp_path / "raw/b.jsonl", [*shown, {**GOOD, "context": "茶馆在哪里？"}, {"text": "茶叶要密封，避光。"}])
    content = params_with().model_dump(by_alias=True, exclude_unset=True)
    content["ingest"] |= {"columns": {"question": "问诊", "answer": "医生"}}
    params = Params.model_validate(content)
    run = GateRun(tmp_path / "raw", base_folder, tmp_path / "out", params)
    faults = {
        run.table.locate(row): finding.values[index]
        for finding in run.decision.findings
        if finding.check in ("parseable", "known_format")
        for index, row in enumerate(finding.rows)
    }
    assert faults == {
        "a.csv:27": "4 cells below a header of 3; quote a cell that holds the delimiter",
    }
    assert "a.csv:28" in {
        run.table.locate(row)
        for finding in run.decision.findings
        if finding.check == "nothing_blank"
        for row in finding.rows
    }
    assert run.table.unread_keys == {"科室": 25}
    quarantined = {row["line"]: row for row in run.rows["quarantine"] if row["file"] == "a.csv"}
    assert json.loads(quarantined[28]["content"]) == {"问诊": "只有问题", "医生": "", "科室": ""}
    assert "offset" not in quarantined[28]
    assert sum(len(run.rows[split]) for split in SPLITS) >= 25
    plain = GateRun(tmp_path / "raw", base_folder, tmp_path / "general", params.for_general_data)
    assert sum("known_format" in plain.failed(line) for line in range(2, 27)) == 25


def test_flags_reach_the_samples_and_equal_texts_have_equal_ids(base_folder, tmp_path):
    turns = [{"from": "human", "value": "茶怎么泡？"}, {"from": "gpt", "value": "先温杯。"}]
    flagged = [
        *turns[:1],
        {**turns[1], "loss": False},
        {"from": "human", "value": "然后呢？"},
        {"from": "gpt", "value": "再投茶。"},
    ]
    write_rows(tmp_path / "raw/a.jsonl", [{"conversations": flagged}])
    run = GateRun(tmp_path / "raw", base_folder, tmp_path / "out")
    (sample,) = [row for split in SPLITS for row in run.rows[split]]
    assert [message.get("learn", True) for message in sample["messages"]] == [True, False, True, True]


def test_real_rows_are_judged_the_same_as_parquet_csv_and_json_lines(base_folder, tmp_path):
    rows = [json.loads(line) for line in developer_file("datasets/adgen_dev.jsonl").open(encoding="utf-8")][:300]
    write_rows(tmp_path / "jsonl/a.jsonl", rows)
    for folder in ("parquet", "csv"):
        (tmp_path / folder).mkdir()
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "parquet/a.parquet")
    with (tmp_path / "csv/a.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["content", "summary"])
        writer.writeheader()
        writer.writerows(rows)
    runs = [
        GateRun(tmp_path / folder, base_folder, tmp_path / f"{folder}-out") for folder in ("jsonl", "parquet", "csv")
    ]
    ids = [[row["id"] for row in run.rows["train"]] for run in runs]
    assert len(ids[0]) > 200
    assert ids[0] == ids[1] == ids[2]
