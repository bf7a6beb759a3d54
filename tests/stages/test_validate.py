import json

import pandas as pd
import pytest
from given import conversation, shared, write_rows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.sample import Sample, sample_id
from stages.params import Validate
from stages.validate.__main__ import (
    keep_books,
    let_through,
    print_table,
    quarantined_row,
    reason_to_block,
    write_quarantine,
)
from stages.validate.expectations import judge, suite
from stages.validate.features import describe, parse, repetition, role_fault
from stages.validate.reading import read_rows
from stages.validate.split import split

LIMITS = Validate()


def run(folder, limits=LIMITS):
    """Rows, samples and the names of the checks that each row failed."""
    rows = list(read_rows(folder))
    samples = parse(rows)
    checks = suite(limits)
    features = pd.DataFrame(describe(rows, samples), columns=["row", *(check.column for check in checks)])
    failed = {}
    for failure in judge(features, checks):
        failed.setdefault(failure.row, []).append(failure)
    return rows, samples, failed


def names(failed: dict, row: int) -> set[str]:
    return {failure.check.name for failure in failed.get(row, [])}


GOOD = {"context": "你是谁？", "target": "我是一个小模型。"}
BAD = [
    ("parseable", '{"context": "断'),
    ("known_format", '{"question": "问", "answer": "答"}'),
    ("roles_alternate", '{"messages": [{"role": "user", "content": "只有问题"}]}'),
    ("nothing_blank", '{"context": "空的", "target": " \\n"}'),
    ("clean_characters", '{"context": "问", "target": "坏\\ufffd了"}'),
    ("clean_characters", '{"context": "问", "target": "响铃\\u0007"}'),
    ("clean_characters", '{"context": "问", "target": "半个\\ud83d字"}'),
    ("no_mojibake", '{"context": "问", "target": "鎴戞槸涓€涓"}'),
    ("no_control_tokens", '{"context": "填 [MASK] 吧", "target": "好"}'),
    ("no_control_tokens", '{"context": "问", "target": "答</s>"}'),
    ("no_placeholders", '{"context": "问", "target": "我是 <NAME>。"}'),
    ("no_placeholders", '{"context": "问", "target": "我是 {{ name }}。"}'),
    ("not_too_long", json.dumps({"context": "问", "target": "".join(map(chr, range(0x4E00, 0x4E00 + 4001)))})),
    ("not_repetitive", json.dumps({"context": "问", "target": "好的" * 100})),
    ("unique", json.dumps(GOOD)),
]


@pytest.mark.parametrize(("check", "line"), BAD, ids=[f"{name}-{index}" for index, (name, _) in enumerate(BAD)])
def test_every_check_finds_its_fault_and_only_that(tmp_path, check, line):
    (tmp_path / "a.jsonl").write_text(json.dumps(GOOD) + "\n" + line + "\n", encoding="utf-8")
    _, _, failed = run(tmp_path)
    assert names(failed, 0) == set()
    assert names(failed, 1) == {check}


def test_a_row_tells_every_check_that_it_failed(tmp_path):
    write_rows(tmp_path / "a.jsonl", [{"context": "", "target": "我是 <NAME> [MASK]"}])
    rows, _, failed = run(tmp_path)
    assert names(failed, 0) == {"nothing_blank", "no_placeholders", "no_control_tokens"}
    told = quarantined_row(rows[0], failed[0])
    assert {entry["check"]: (entry["seen"], entry["limit"]) for entry in told["failed"]} == {
        "nothing_blank": (1, 0),
        "no_placeholders": (1, 0),
        "no_control_tokens": (1, 0),
    }


def test_rows_know_their_line_and_offset(tmp_path):
    content = '\ufeff{"a": 1}\r\n\n  {"b": "\u2028"}\n{"c'.encode()
    (tmp_path / "a.jsonl").write_bytes(content)
    rows = list(read_rows(tmp_path))
    assert [row.line for row in rows] == [1, 3, 4]
    for row in rows:
        assert content[row.offset : row.offset + len(row.content)] == row.content
    assert [row.error is None for row in rows] == [True, True, False]


def test_an_array_is_read_element_by_element(tmp_path):
    text = '\ufeff[\n {"context": "问", "target": "答"},\n\n {"x": [1, "]"]}, 3 ]\n'
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    rows = list(read_rows(tmp_path))
    assert [row.value for row in rows] == [{"context": "问", "target": "答"}, {"x": [1, "]"]}, 3]
    assert [row.line for row in rows] == [2, 4, 4]
    content = text.encode()
    assert all(content[row.offset : row.offset + len(row.content)] == row.content for row in rows)


def test_files_of_the_same_stem_are_quarantined_apart(tmp_path):
    for name in ("raw/a.json", "raw/a.jsonl", "raw/deep/a.jsonl"):
        write_rows(tmp_path / name, [{"context": "空的", "target": ""}])
    rows, _, failed = run(tmp_path / "raw")
    write_quarantine(tmp_path / "quarantine", rows, failed)
    kept = [line for path in (tmp_path / "quarantine").rglob("*.jsonl") for line in path.read_text().splitlines()]
    assert sorted(json.loads(line)["file"] for line in kept) == ["a.json", "a.jsonl", "deep/a.jsonl"]


def test_a_row_that_is_not_utf8_keeps_its_bytes(tmp_path):
    (tmp_path / "a.jsonl").write_bytes('{"context": "问", "target": "答"}\n'.encode("gbk"))
    rows, _, failed = run(tmp_path)
    assert "not UTF-8" in rows[0].error
    assert quarantined_row(rows[0], failed[0])["content_base64"]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.binary(max_size=40)
        | st.text(max_size=20).map(str.encode)
        | st.sampled_from([line.encode() for _, line in BAD] + [json.dumps(GOOD).encode(), b"[1e999]", b"NaN", b"\xff"])
        | st.integers(1, 3000).map(lambda depth: b"[" * depth),
        max_size=8,
    ),
    st.sampled_from([b"\n", b"\r\n"]),
)
def test_the_books_close_over_any_bytes(tmp_path, lines, end):
    (tmp_path / "a.jsonl").write_bytes(end.join(lines))
    rows, samples, failed = run(tmp_path)
    content = (tmp_path / "a.jsonl").read_bytes()
    assert all(content[row.offset : row.offset + len(row.content)] == row.content for row in rows)
    good = [sample for index, sample in enumerate(samples) if index not in failed]
    assert all(isinstance(sample, Sample) for sample in good)
    keep_books(rows, split(good, 0.1), failed)
    write_quarantine(tmp_path.parent / f"{tmp_path.name}-quarantine", rows, failed)


def make_samples(questions: list[str]) -> list[Sample]:
    made = [conversation(question, "答") for question in questions]
    return [Sample(sample_id(messages), "a.jsonl", 1, messages) for messages in made]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 500), min_size=60, max_size=200), st.lists(st.integers(501, 900), max_size=50))
def test_old_rows_stay_put_and_the_same_question_stays_together(old, new):
    before = split(make_samples([f"第{number}个问题？" for number in old]), 0.2)
    after = split(make_samples([f"第{number}个问题？" for number in [*new, *old]]), 0.2)
    if len(set(old)) > 30:  # with few groups a side could have been empty, and one group moved over
        assert {s.id for s in before["eval"]} <= {s.id for s in after["eval"]}
        assert {s.id for s in before["train"]} <= {s.id for s in after["train"]}
    assert not {s.messages[0].content for s in after["train"]} & {s.messages[0].content for s in after["eval"]}
    assert len(after["train"]) + len(after["eval"]) == len(old) + len(new)


@pytest.mark.parametrize("share", [0.0001, 0.9999])
def test_neither_side_is_empty_where_there_are_two_questions(share):
    sides = split(make_samples(["一", "二", "三"]), share)
    assert sides["train"]
    assert sides["eval"]


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ((100, 70, 9, 21), "21.0%"),
        ((15, 10, 5, 0), "only 15 good rows"),
        ((40, 40, 0, 0), "same question"),
        ((100, 80, 10, 10), None),
    ],
)
def test_when_the_data_are_blocked(counts, said):
    books = dict(zip(("rows_in", "train", "eval", "quarantined"), counts, strict=True))
    reason = reason_to_block(books | {"quarantined_share": counts[3] / counts[0]}, LIMITS)
    assert reason is None if said is None else said in reason


def test_a_table_of_oddly_named_files_is_printed_as_it_is(capsys):
    books = {"rows_in": 1, "train": 0, "eval": 0, "quarantined": 1}
    print_table([{"check": "unique", "rows": 1, "share": 1.0, "places": ["[/x].jsonl:1"]}], books)
    assert "[/x].jsonl:1" in capsys.readouterr().err


def test_roles_and_repetition():
    assert role_fault(conversation("问", "答", "问", "答")) is None
    assert role_fault(conversation("问", "答", "问")) == "does not end with the assistant"
    assert repetition("好" * 100) > 0.9
    assert repetition("各不相同的字" * 3) == 0.0


def test_let_through_writes_a_receipt_that_verifies(tmp_path):
    from stages import receipt

    write_rows(tmp_path / "raw/a.jsonl", [GOOD])
    samples = make_samples(["一", "二"])
    let_through(tmp_path / "checked", tmp_path / "raw", {"train": samples[:1], "eval": samples[1:]}, suite(LIMITS), {})
    assert receipt.verify(tmp_path / "checked")["read"].keys() == {"a.jsonl"}


# Real data -------------------------------------------------------------------------------------------


def test_self_cognition_as_it_stands_is_blocked_for_its_placeholders(tmp_path):
    (tmp_path / "a.json").write_bytes(shared("datasets/self_cognition.json").read_bytes())
    rows, _, failed = run(tmp_path)
    assert len(rows) == 80
    assert sum("no_placeholders" in names(failed, row) for row in failed) > 60


def test_self_cognition_with_its_placeholders_filled_passes(tmp_path):
    text = shared("datasets/self_cognition.json").read_text(encoding="utf-8")
    text = text.replace("<NAME>", "小智").replace("<AUTHOR>", "wgs")
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    rows, _, failed = run(tmp_path)
    assert {name for row in failed for name in names(failed, row)} <= {"unique"}
    assert len(failed) < 0.1 * len(rows)


@pytest.mark.parametrize(("file", "share"), [("adgen_dev.jsonl", 0.05), ("oaast_sft_zh.json", 0.15)])
def test_real_data_lose_few_rows(tmp_path, file, share):
    (tmp_path / file).write_bytes(shared(f"datasets/{file}").read_bytes())
    rows, _, failed = run(tmp_path)
    assert len(failed) < share * len(rows), {name for row in failed for name in names(failed, row)}
