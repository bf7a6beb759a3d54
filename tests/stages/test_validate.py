import json
import subprocess
import sys

import numpy as np
import pytest
from gate import GOOD, Outcome, params_with
from hypothesis import given, settings
from hypothesis import strategies as st
from shared_data import ROOT, conversation, developer_file, write_rows

from formats import receipt
from formats.raw_rows import read_rows
from measures.ngrams import compute_repetition, hash_ngrams, jaccard_similarity
from stages.validate.dedup import near_duplicates
from stages.validate.length_drift import accept, drift, drift_class, histogram, last_accepted
from stages.validate.minhash import bands
from stages.validate.privacy import personal_data, secret
from stages.validate.row_features import role_fault


@pytest.fixture
def gate(base_folder, tmp_path):
    return lambda params=None: Outcome(tmp_path / "raw", base_folder, tmp_path / "kept", params)


BAD = [
    ("parseable", '{"context": "断'),
    ("parseable", '{"context": "问", "target": "答", "target": "又答"}'),
    ("parseable", '{"context": "问", "target": NaN}'),
    ("known_format", '{"question": "问", "answer": "答"}'),
    ("roles_alternate", '{"messages": [{"role": "user", "content": "只有问题"}]}'),
    ("nothing_blank", '{"context": "空的", "target": " \\n"}'),
    ("clean_characters", '{"context": "问", "target": "坏\\ufffd了"}'),
    ("clean_characters", '{"context": "问", "target": "响铃\\u0007"}'),
    ("clean_characters", '{"context": "问", "target": "半个\\ud83d字"}'),
    ("no_mojibake", '{"context": "问", "target": "鎴戞槸涓€涓"}'),
    ("no_mojibake", '{"context": "问", "target": "ä½ å¥½"}'),
    ("no_control_tokens", '{"context": "填 [MASK] 吧", "target": "好"}'),
    ("no_control_tokens", '{"context": "问", "target": "答</s>"}'),
    ("no_placeholders", '{"context": "问", "target": "我是 <NAME>。"}'),
    ("no_placeholders", '{"context": "问", "target": "我是 {{ name }}。"}'),
    ("no_html", '{"context": "问", "target": "第一行<br/>第二行"}'),
    ("no_boilerplate", '{"context": "问", "target": "作为一个AI语言模型，这个问题很难。"}'),
    ("known_language", json.dumps({"context": "问", "target": "Это ответ на русском языке, не на китайском."})),
    ("mostly_text", json.dumps({"context": "问", "target": "😀" * 6})),
    ("no_personal_data", '{"context": "问", "target": "请打 13812345678。"}'),
    ("no_personal_data", '{"context": "问", "target": "证件 11010519491231002X"}'),
    ("no_secrets", '{"context": "问", "target": "AKIAABCDEFGHIJKLMNOP"}'),
    ("right_name", '{"context": "问", "target": "我是ChatGPT。"}'),
    ("not_repetitive", json.dumps({"context": "问", "target": "好的" * 100})),
    ("answer_fits", json.dumps({"context": "问", "target": "".join(map(chr, range(0x4E00, 0x4E00 + 2000)))})),
    ("known_format", '{"context": "问", "target": "答", "tools": [{"name": "weather"}]}'),
    ("no_null_marks", '{"instruction": "茶叶怎么存？", "input": "", "output": "nan"}'),
    ("no_escapes", json.dumps({"context": "怎么泡茶？", "target": "第一步，温杯。\\n第二步，投茶。"})),
    ("unique", json.dumps(GOOD)),
]
COUNTED = [
    ("no_role_marks", '{"context": "价钱？", "target": "十元。<|im_end|>"}'),
    ("answer_whole", '{"context": "步骤？", "target": "先洗米，再加水，"}'),
]
WARNINGS = {"one_answer", "no_near_duplicate", "no_role_marks", "answer_whole"}


def test_every_check_finds_its_fault_and_only_that(gate, tmp_path):
    (tmp_path / "raw").mkdir()
    lines = [json.dumps(GOOD), *(line for _, line in BAD)]
    (tmp_path / "raw/a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    outcome = gate()
    assert outcome.failed(1) == set()
    for line, (check, _) in enumerate(BAD, start=2):
        binding = outcome.failed(line) - WARNINGS
        assert binding == {check}, lines[line - 1]
    assert outcome.written["quarantine"] == len(BAD)
    assert [row["content"] for row in outcome.rows["quarantine"]] == lines[1:]


def test_what_is_only_counted_goes_on(gate, tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/a.jsonl").write_text("\n".join(line for _, line in COUNTED), encoding="utf-8")
    outcome = gate()
    assert [outcome.failed(line) for line in (1, 2)] == [{check} for check, _ in COUNTED]
    assert outcome.written["quarantine"] == 0


def test_personal_data_and_secrets_are_masked_where_they_are_told():
    told = [
        personal_data("请打 13812345678。"),
        personal_data("卡 6222021234567890128"),
        secret("k AKIAABCDEFGHIJKLMNOP"),
    ]
    assert told == ["mobile number 138***", "bank card number 622***", "AKI***"]


def test_an_array_is_read_element_by_element(tmp_path):
    text = '\ufeff[\n {"context": "问", "target": "答"},\n\n {"x": [1, "]"]}, 3 ]\n'
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    rows = list(read_rows(tmp_path / "a.json", "a.json"))
    assert [json.loads(row.content) for row in rows] == [{"context": "问", "target": "答"}, {"x": [1, "]"]}, 3]
    assert [row.line for row in rows] == [2, 4, 4]
    content = text.encode()
    assert all(content[row.offset : row.offset + len(row.content)] == row.content for row in rows)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text("的一是在不了有和人这", max_size=30), min_size=1, max_size=12))
def test_similarity_is_that_of_the_sets_of_4_grams(texts):
    values, starts = hash_ngrams(texts)
    assert bands(values, starts).shape[0] == len(texts)
    sets = [{t[i : i + 4] for i in range(len(t) - 3)} or {t} for t in texts]
    for index in range(len(texts)):
        exact = len(sets[0] & sets[index]) / len(sets[0] | sets[index])
        assert jaccard_similarity(values[: starts[1]], values[starts[index] : starts[index + 1]]) == pytest.approx(exact)


def test_no_near_duplicate_stands_across_the_split(gate, tmp_path):
    draw = np.random.default_rng(0)
    words = "".join(map(chr, range(0x4E00, 0x4E00 + 500)))
    texts = ["".join(draw.choice(list(words), 60)) for _ in range(150)]
    rows = [{"context": text[:20], "target": text[20:]} for text in texts]
    rows += [{"context": f"{text[:20]}吗", "target": f"{text[20:]}。"} for text in texts]
    write_rows(tmp_path / "raw/a.jsonl", rows)
    outcome = gate()
    assert outcome.written["eval"] > 10
    sets = {
        side: [
            {t[i : i + 4] for i in range(len(t) - 3)} for t in (r["messages"][0]["content"] for r in outcome.rows[side])
        ]
        for side in ("train", "eval")
    }
    assert max(len(a & b) / len(a | b) for a in sets["train"] for b in sets["eval"]) < 0.8


def test_near_duplicates_are_found_in_a_crowd_made_from_one_template():
    """Every row shares three quarters with every other; its twin, 1,500 rows later, nearly all."""
    draw = np.random.default_rng(3)

    def altered(text: np.ndarray, count: int) -> np.ndarray:
        text = text.copy()
        text[draw.choice(len(text), count, replace=False)] = draw.integers(0x4E00, 0x9FA0, count)
        return text

    template = draw.integers(0x4E00, 0x9FA0, 300)
    family = [altered(template, 5) for _ in range(1500)]
    texts = ["".join(map(chr, text)) for text in (*family, *(altered(text, 1) for text in family))]
    values, starts = hash_ngrams(texts)
    pairs = near_duplicates(bands(values, starts), lambda row: values[starts[row] : starts[row + 1]], 0.8)
    found = {(later, earlier) for later, earlier, _ in pairs}
    assert sum((number + 1500, number) in found for number in range(1500)) >= 1490
    before = near_duplicates(bands(values, starts)[:2000], lambda row: values[starts[row] : starts[row + 1]], 0.8)
    assert before == [pair for pair in pairs if pair[0] < 2000]  # rows that follow change nothing


def test_cutting_takes_the_oldest_turns_and_never_the_newest_question(gate, tmp_path):
    turn = "".join(map(chr, range(0x4E00, 0x4E00 + 400)))
    history = [[turn + "一", "好"], [turn + "二", "好"]]
    write_rows(tmp_path / "raw/a.jsonl", [{"prompt": "最新的问题？", "response": "答。", "history": history}, GOOD])
    assert gate().written["quarantine"] == 1
    outcome = gate(params_with(cut_history=True))
    (cut,) = (r for side in ("train", "eval") for r in outcome.rows[side] if r["messages"][-1]["content"] == "答。")
    assert cut["messages"][-2]["content"] == "最新的问题？"
    assert turn + "一" not in [message["content"] for message in cut["messages"]]
    assert "history_whole" in outcome.failed(1)


# Lengths -------------------------------------------------------------------------------------------


def test_length_drift_is_told_against_other_data_than_these(tmp_path):
    record = tmp_path / "accepted.json"
    assert last_accepted(record, "a") is None
    accept(record, "a", [10, 0, 0])
    assert last_accepted(record, "b") == [10, 0, 0]
    accept(record, "b", [0, 0, 10])
    assert last_accepted(record, "b") == [10, 0, 0]
    assert last_accepted(record, "c") == [0, 0, 10]
    accept(record, "b", [0, 0, 10])
    assert last_accepted(record, "b") == [10, 0, 0]
    assert drift_class(drift([10, 0, 0], [0, 0, 10])) == "large"
    assert drift_class(drift([100, 50, 10], [100, 50, 10])) == "none"
    assert [drift_class(index) for index in (None, 0.0, 0.0999, 0.1, 0.2499, 0.25)] == [
        "unknown",
        "none",
        "none",
        "slight",
        "slight",
        "large",
    ]


def test_data_of_another_source_are_compared_with_none(tmp_path):
    """As a user's first data with the demo's; back at the demo, it is known again."""
    record = tmp_path / "accepted.json"
    accept(record, "a", [10, 0], "demo")
    assert last_accepted(record, "mine 1", "mine") is None
    accept(record, "mine 1", [0, 10], "mine")
    assert last_accepted(record, "mine 2", "mine") == [0, 10]
    assert last_accepted(record, "b", "demo") == [10, 0]


@pytest.mark.parametrize(
    "content",
    [
        {"current": {"data": "a", "lengths": [10, 0]}, "former": None},  # as version 9671bfe wrote it
        {"sources": {"": {"current": {"data": "a", "lengths": [-1]}, "former": None}}},
        {"sources": {"": {"current": {"data": 1, "lengths": "x"}}}},
        {"sources": []},
        [],
    ],
)
def test_a_record_of_another_version_is_passed_over_with_a_sentence(tmp_path, caplog, content):
    record = tmp_path / "accepted.json"
    record.write_text(json.dumps(content))
    assert last_accepted(record, "b") is None
    assert "lengths are compared from the next data on" in caplog.text
    accept(record, "b", [1, 2])
    assert last_accepted(record, "c") == [1, 2]


@pytest.mark.parametrize(("former", "current"), [(6, 6), (30, 30), (30, 1000), (1000, 30), (400, 400), (3000, 900)])
def test_lengths_of_one_distribution_have_not_moved_however_few_they_are(former, current):
    """By a fixed limit of 0.25 the index called this large in 60 of 100 trials of 30 rows."""
    draw = np.random.default_rng(former + current)
    sides = [[histogram(draw.lognormal(4.5, 1, rows)) for rows in (former, current)] for _ in range(80)]
    moved = [drift(*pair) for pair in sides]
    assert sum(index > 0.25 for index in moved) <= 2
    assert sum(index > 0 for index in moved) <= 4


def test_lengths_that_moved_are_found_on_few_rows_and_told_by_the_index_on_many():
    draw = np.random.default_rng(0)
    short, long = (histogram(draw.lognormal(mean, 0.7, 40)) for mean in (4, 6))
    assert drift_class(drift(short, long)) == "large"
    before, after = [30_000, 40_000, 30_000], [20_000, 40_000, 40_000]
    by_hand = 0.1 * np.log(3 / 2) + 0.1 * np.log(4 / 3)
    assert drift(before, after) == pytest.approx(by_hand, abs=5e-4)
    assert drift(before, after) == drift(before, after)


@pytest.mark.parametrize(
    ("former", "current"), [([5, 0], [9, 0]), ([0, 0], [1, 2]), ([1, 2], [0, 0]), ([1, 2], [1, 2, 3])]
)
def test_lengths_that_tell_nothing_have_not_moved(former, current):
    assert drift(former, current) == 0.0


def test_lengths_that_no_row_has_change_nothing():
    assert drift([30, 40, 0, 0, 0], [10, 900, 0, 0, 0]) == drift([30, 40], [10, 900]) > 0


def test_lengths_of_more_rows_than_can_be_permuted():
    assert drift([10**9, 10**9], [10**9, 3 * 10**9]) == pytest.approx(0.25 * np.log(1.5 * 2), abs=0.05)


def test_roles_and_repetition():
    assert role_fault(conversation("问", "答", "问", "答")) is None
    assert role_fault(conversation("问", "答", "问")) == "does not end with the assistant"
    assert compute_repetition(["好" * 100, "各不相同的字" * 3], 50).tolist() == [pytest.approx(0.99, abs=0.01), 0.0]


# As a user runs it -----------------------------------------------------------------------------------


def check(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pipelines.check", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_self_cognition_as_it_stands_is_blocked_for_its_placeholders(tmp_path):
    done = check(developer_file("datasets/self_cognition.json"), "--out", tmp_path / "out")
    assert done.returncode == 2, done.stderr
    assert "no_placeholders (74 rows)" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out/checked").exists()
    assert len((tmp_path / "out/quarantine/rows.jsonl").read_bytes().splitlines()) == 74


def test_self_cognition_with_its_placeholders_filled_passes(tmp_path):
    text = developer_file("datasets/self_cognition.json").read_text(encoding="utf-8")
    (tmp_path / "a.json").write_text(text.replace("<NAME>", "小智").replace("<AUTHOR>", "wgs"), encoding="utf-8")
    done = check(tmp_path / "a.json", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert receipt.read(tmp_path / "out/checked").verify().receipt.books["rows_in"] == 80
    page = (tmp_path / "out/validation/index.html").read_text(encoding="utf-8")
    assert 'src="http' not in page
    assert "no_placeholders" in page


@pytest.mark.parametrize(("file", "share"), [("adgen_dev.jsonl", 0.01), ("oaast_sft_zh.json", 0.08)])
def test_real_data_lose_few_rows_with_the_real_vocabulary(tmp_path, file, share):
    vocabulary = developer_file("reference/chatglm-6b")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / file).write_bytes(developer_file(f"datasets/{file}").read_bytes())
    outcome = Outcome(tmp_path / "raw", vocabulary, tmp_path / "kept")
    lost = outcome.written["quarantine"] / sum(outcome.written.values())
    assert 0 < lost < share, [row["failed"] for row in outcome.rows["quarantine"]]


def test_what_a_report_shows_can_be_printed_and_written(gate, tmp_path):
    (tmp_path / "raw").mkdir()
    odd = '{"context": "问", "target": "{% \\u001b[31m\\ud83d %}"}'
    (tmp_path / "raw/a.jsonl").write_text(f"{json.dumps(GOOD)}\n{odd}\n", encoding="utf-8")
    (row,) = gate().rows["quarantine"]
    assert "{% \\u001b[31m\\ud83d %}" in [each["seen"] for each in row["failed"]]


def test_data_docs_show_the_place_of_each_value_and_never_run_it(tmp_path):
    rows = [GOOD | {"context": f"问题 {number}"} for number in range(40)]
    rows.append({"context": "问", "target": "{% <img src=x onerror=alert(1)> %}"})
    write_rows(tmp_path / "a.jsonl", rows)
    done = check(tmp_path / "a.jsonl", "--out", tmp_path / "out")
    assert done.returncode in (0, 2), done.stderr
    page = (tmp_path / "out/validation/index.html").read_text(encoding="utf-8")
    assert "a.jsonl:41: {% &lt;img src=x" in page
    assert not any(tag in page for tag in ("<img", "<script", "<link", "<iframe"))
