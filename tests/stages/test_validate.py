"""The data gate: every check, near-duplicates, drift of lengths, and the command that a user runs."""

import itertools
import json

import numpy as np
import pytest
from commands import check
from gate import GOOD, GateRun, params_with
from hypothesis import given, settings
from hypothesis import strategies as st
from shared_data import conversation, developer_file, write_rows

from formats import receipt
from formats.raw_rows import read_rows
from formats.receipt import SPLITS
from measures.ngrams import compute_repetition, hash_ngrams, jaccard_similarity
from stages.validate.dedup import find_near_duplicates
from stages.validate.length_drift import (
    classify_drift,
    compute_drift,
    compute_histogram,
    read_last_accepted,
    record_accepted,
)
from stages.validate.minhash import compute_bands
from stages.validate.privacy import find_personal_data, find_secret
from stages.validate.row_features import find_role_fault


@pytest.fixture
def gate(base_folder, tmp_path):
    return lambda params=None: GateRun(tmp_path / "raw", base_folder, tmp_path / "out", params)


BAD = [
    ("parseable", '{"context": "断'),
    ("parseable", '{"context": "问", "target": "答", "target": "又答"}'),
    ("parseable", '{"context": "问", "target": NaN}'),
    ("known_format", '{"foo": "问", "bar": "答"}'),
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
WARNED = [
    ("no_role_marks", '{"context": "价钱？", "target": "十元。<|im_end|>"}'),
    ("answer_whole", '{"context": "步骤？", "target": "先洗米，再加水，"}'),
]
WARNING_CHECKS = {"one_answer", "no_near_duplicate", "no_role_marks", "answer_whole"}


def test_every_check_finds_its_fault_and_no_other(gate, tmp_path):
    (tmp_path / "raw").mkdir()
    lines = [json.dumps(GOOD), *(line for _, line in BAD)]
    (tmp_path / "raw/a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    run = gate()
    assert run.failed(1) == set()
    for line, (name, _) in enumerate(BAD, start=2):
        assert run.failed(line) - WARNING_CHECKS == {name}, lines[line - 1]
    assert run.written["quarantine"] == len(BAD)
    assert [row["content"] for row in run.rows["quarantine"]] == lines[1:]


def test_rows_that_fail_a_warning_are_not_quarantined(gate, tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/a.jsonl").write_text("\n".join(line for _, line in WARNED), encoding="utf-8")
    run = gate()
    assert [run.failed(line) for line in (1, 2)] == [{check} for check, _ in WARNED]
    assert run.written["quarantine"] == 0


def test_personal_data_and_secrets_are_masked_in_findings():
    findings = [
        find_personal_data("请打 13812345678。"),
        find_personal_data("卡 6222021234567890128"),
        find_secret("k AKIAABCDEFGHIJKLMNOP"),
    ]
    assert findings == ["mobile number 138***", "bank card number 622***", "AKI***"]


def test_rows_of_an_array_have_the_bytes_and_lines_of_their_elements(tmp_path):
    text = '\ufeff[\n {"context": "问", "target": "答"},\n\n {"x": [1, "]"]}, 3 ]\n'
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    rows = list(read_rows(tmp_path / "a.json", "a.json"))
    assert [json.loads(row.content) for row in rows] == [{"context": "问", "target": "答"}, {"x": [1, "]"]}, 3]
    assert [row.line for row in rows] == [2, 4, 4]
    content = text.encode()
    assert all(content[row.offset : row.offset + len(row.content)] == row.content for row in rows)


def grams_of(text: str) -> set[str]:
    return {text[i : i + 4] for i in range(len(text) - 3)} or {text}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text("的一是在不了有和人这", max_size=30), min_size=1, max_size=12))
def test_similarity_is_the_jaccard_similarity_of_sets_of_4_grams(texts):
    values, starts = hash_ngrams(texts)
    assert compute_bands(values, starts).shape[0] == len(texts)
    sets = [grams_of(text) for text in texts]
    for index in range(len(texts)):
        exact = len(sets[0] & sets[index]) / len(sets[0] | sets[index])
        similarity = jaccard_similarity(values[: starts[1]], values[starts[index] : starts[index + 1]])
        assert similarity == pytest.approx(exact)


def test_near_duplicates_are_in_the_same_split(gate, tmp_path):
    draw = np.random.default_rng(0)
    words = "".join(map(chr, range(0x4E00, 0x4E00 + 500)))
    texts = ["".join(draw.choice(list(words), 60)) for _ in range(150)]
    rows = [{"context": text[:20], "target": text[20:]} for text in texts]
    rows += [{"context": f"{text[:20]}吗", "target": f"{text[20:]}。"} for text in texts]
    write_rows(tmp_path / "raw/a.jsonl", rows)
    run = gate()
    assert run.written["eval"] > 10
    grams = {split: [grams_of(row["messages"][0]["content"]) for row in run.rows[split]] for split in SPLITS}
    for first, second in itertools.combinations(SPLITS, 2):
        assert max(len(a & b) / len(a | b) for a in grams[first] for b in grams[second]) < 0.8


def test_near_duplicates_are_found_among_rows_of_one_template():
    """All rows have similarity 0.75 to each other; the near-duplicate of each row comes 1,500 rows later."""
    draw = np.random.default_rng(3)

    def altered(text: np.ndarray, count: int) -> np.ndarray:
        text = text.copy()
        text[draw.choice(len(text), count, replace=False)] = draw.integers(0x4E00, 0x9FA0, count)
        return text

    template = draw.integers(0x4E00, 0x9FA0, 300)
    family = [altered(template, 5) for _ in range(1500)]
    texts = ["".join(map(chr, text)) for text in (*family, *(altered(text, 1) for text in family))]
    values, starts = hash_ngrams(texts)
    bands = compute_bands(values, starts)

    def grams(row: int) -> np.ndarray:
        return values[starts[row] : starts[row + 1]]

    pairs = find_near_duplicates(bands, grams, 0.8)
    indices = {(later, earlier) for later, earlier, _ in pairs}
    assert sum((number + 1500, number) in indices for number in range(1500)) >= 1490
    before = find_near_duplicates(bands[:2000], grams, 0.8)
    assert before == [pair for pair in pairs if pair[0] < 2000]  # appended rows change no earlier pair


def test_cut_history_drops_the_oldest_turns_and_keeps_the_newest_question(gate, tmp_path):
    turn = "".join(map(chr, range(0x4E00, 0x4E00 + 400)))
    history = [[turn + "一", "好"], [turn + "二", "好"]]
    write_rows(tmp_path / "raw/a.jsonl", [{"prompt": "最新的问题？", "response": "答。", "history": history}, GOOD])
    assert gate().written["quarantine"] == 1
    run = gate(params_with(cut_history=True))
    rows = [row for split in SPLITS for row in run.rows[split]]
    (cut,) = (row for row in rows if row["messages"][-1]["content"] == "答。")
    assert cut["messages"][-2]["content"] == "最新的问题？"
    assert turn + "一" not in [message["content"] for message in cut["messages"]]
    assert "history_whole" in run.failed(1)


# Lengths -------------------------------------------------------------------------------------------


def test_lengths_are_compared_with_the_last_other_data(tmp_path):
    record = tmp_path / "accepted.json"
    assert read_last_accepted(record, "a") is None
    record_accepted(record, "a", [10, 0, 0])
    assert read_last_accepted(record, "b") == [10, 0, 0]
    record_accepted(record, "b", [0, 0, 10])
    assert read_last_accepted(record, "b") == [10, 0, 0]
    assert read_last_accepted(record, "c") == [0, 0, 10]
    record_accepted(record, "b", [0, 0, 10])
    assert read_last_accepted(record, "b") == [10, 0, 0]
    assert classify_drift(compute_drift([10, 0, 0], [0, 0, 10])) == "large"
    assert classify_drift(compute_drift([100, 50, 10], [100, 50, 10])) == "none"
    assert [classify_drift(index) for index in (None, 0.0, 0.0999, 0.1, 0.2499, 0.25)] == [
        "unknown",
        "none",
        "none",
        "slight",
        "slight",
        "large",
    ]


def test_data_of_another_source_are_not_compared(tmp_path):
    """A user's first data are not compared with the demo's; the demo's record is kept."""
    record = tmp_path / "accepted.json"
    record_accepted(record, "a", [10, 0], "demo")
    assert read_last_accepted(record, "mine 1", "mine") is None
    record_accepted(record, "mine 1", [0, 10], "mine")
    assert read_last_accepted(record, "mine 2", "mine") == [0, 10]
    assert read_last_accepted(record, "b", "demo") == [10, 0]


@pytest.mark.parametrize(
    "content",
    [
        {"current": {"data": "a", "lengths": [10, 0]}, "former": None},  # format of version 9671bfe
        {"sources": {"": {"current": {"data": "a", "lengths": [-1]}, "former": None}}},
        {"sources": {"": {"current": {"data": 1, "lengths": "x"}}}},
        {"sources": []},
        [],
    ],
)
def test_record_of_another_version_is_ignored_with_a_warning(tmp_path, caplog, content):
    record = tmp_path / "accepted.json"
    record.write_text(json.dumps(content))
    assert read_last_accepted(record, "b") is None
    assert "damaged or of another version" in caplog.text
    record_accepted(record, "b", [1, 2])
    assert read_last_accepted(record, "c") == [1, 2]


@pytest.mark.parametrize(("former", "current"), [(6, 6), (30, 30), (30, 1000), (1000, 30), (400, 400), (3000, 900)])
def test_samples_of_one_distribution_have_no_drift_however_few_rows(former, current):
    """Without the permutation test, PSI exceeded 0.25 in 60 of 100 trials of 30 rows."""
    draw = np.random.default_rng(former + current)
    pairs = [[compute_histogram(draw.lognormal(4.5, 1, rows)) for rows in (former, current)] for _ in range(80)]
    drifts = [compute_drift(*pair) for pair in pairs]
    assert sum(drift > 0.25 for drift in drifts) <= 2
    assert sum(drift > 0 for drift in drifts) <= 4


def test_drift_is_found_in_few_rows_and_is_the_psi_for_many():
    draw = np.random.default_rng(0)
    short, long = (compute_histogram(draw.lognormal(mean, 0.7, 40)) for mean in (4, 6))
    assert classify_drift(compute_drift(short, long)) == "large"
    before, after = [30_000, 40_000, 30_000], [20_000, 40_000, 40_000]
    by_hand = 0.1 * np.log(3 / 2) + 0.1 * np.log(4 / 3)
    assert compute_drift(before, after) == pytest.approx(by_hand, abs=5e-4)
    assert compute_drift(before, after) == compute_drift(before, after)


@pytest.mark.parametrize(
    ("former", "current"), [([5, 0], [9, 0]), ([0, 0], [1, 2]), ([1, 2], [0, 0]), ([1, 2], [1, 2, 3])]
)
def test_histograms_that_cannot_be_compared_have_no_drift(former, current):
    assert compute_drift(former, current) == 0.0


def test_empty_bins_do_not_change_drift():
    assert compute_drift([30, 40, 0, 0, 0], [10, 900, 0, 0, 0]) == compute_drift([30, 40], [10, 900]) > 0


def test_drift_of_more_rows_than_numpy_can_permute():
    assert compute_drift([10**9, 10**9], [10**9, 3 * 10**9]) == pytest.approx(0.25 * np.log(1.5 * 2), abs=0.05)


def test_role_faults_and_repetition():
    assert find_role_fault(conversation("问", "答", "问", "答")) is None
    assert find_role_fault(conversation("问", "答", "问")) == "does not end with the assistant"
    assert compute_repetition(["好" * 100, "各不相同的字" * 3], 50).tolist() == [pytest.approx(0.99, abs=0.01), 0.0]


# Command -------------------------------------------------------------------------------------------


def test_self_cognition_is_blocked_because_of_its_placeholders(tmp_path):
    done = check(developer_file("datasets/self_cognition.json"), "--out", tmp_path / "out")
    assert done.returncode == 2, done.stderr
    assert "no_placeholders (74 rows)" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out/checked").exists()
    assert len((tmp_path / "out/quarantine/rows.jsonl").read_bytes().splitlines()) == 74


def test_self_cognition_with_filled_placeholders_passes(tmp_path):
    text = developer_file("datasets/self_cognition.json").read_text(encoding="utf-8")
    (tmp_path / "a.json").write_text(text.replace("<NAME>", "小智").replace("<AUTHOR>", "wgs"), encoding="utf-8")
    done = check(tmp_path / "a.json", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert receipt.read(tmp_path / "out/checked").verify().receipt.books["rows_in"] == 80
    page = (tmp_path / "out/validation/index.html").read_text(encoding="utf-8")
    assert 'src="http' not in page
    assert "no_placeholders" in page


@pytest.mark.parametrize(("file", "share"), [("adgen_dev.jsonl", 0.01), ("oaast_sft_zh.json", 0.12)])
def test_few_rows_of_real_data_are_quarantined(tmp_path, file, share):
    vocabulary = developer_file("reference/chatglm-6b")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / file).write_bytes(developer_file(f"datasets/{file}").read_bytes())
    run = GateRun(tmp_path / "raw", vocabulary, tmp_path / "out")
    quarantined = run.written["quarantine"] / sum(run.written.values())
    assert 0 < quarantined < share, [row["failed"] for row in run.rows["quarantine"]]


def test_excerpts_are_printable_and_valid_utf8(gate, tmp_path):
    (tmp_path / "raw").mkdir()
    odd = '{"context": "问", "target": "{% \\u001b[31m\\ud83d %}"}'
    (tmp_path / "raw/a.jsonl").write_text(f"{json.dumps(GOOD)}\n{odd}\n", encoding="utf-8")
    (row,) = gate().rows["quarantine"]
    assert "{% \\u001b[31m\\ud83d %}" in [fault["seen"] for fault in row["failed"]]


def test_data_docs_show_locations_and_escape_values(tmp_path):
    rows = [GOOD | {"context": f"问题 {number}"} for number in range(40)]
    rows.append({"context": "问", "target": "{% <img src=x onerror=alert(1)> %}"})
    write_rows(tmp_path / "a.jsonl", rows)
    done = check(tmp_path / "a.jsonl", "--out", tmp_path / "out")
    assert done.returncode in (0, 2), done.stderr
    page = (tmp_path / "out/validation/index.html").read_text(encoding="utf-8")
    assert "a.jsonl:41: {% &lt;img src=x" in page
    assert not any(tag in page for tag in ("<img", "<script", "<link", "<iframe"))


def test_data_docs_have_both_languages_with_a_switch(tmp_path):
    write_rows(tmp_path / "a.jsonl", [GOOD])
    check(tmp_path / "a.jsonl", "--out", tmp_path / "out")
    page = (tmp_path / "out/validation/index.html").read_text(encoding="utf-8")
    assert '<span lang="en">Data checks</span><span lang="zh">数据检查</span>' in page
    assert "documentElement.lang" in page
    assert " · " not in page


@pytest.mark.parametrize(("language", "title"), [("en", "Data checks"), ("zh", "数据检查")])
def test_terminal_report_is_in_one_language(tmp_path, monkeypatch, language, title):
    monkeypatch.setenv("TUNELINE_LANG", language)
    report = check(write_rows(tmp_path / "a.jsonl", [GOOD, GOOD])).stderr
    assert title in report
    assert ("数据" in report) == (language == "zh")
