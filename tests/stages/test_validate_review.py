"""The gate applies the decisions of a review, by the content of the row, and accounts for every row."""

import json

import pytest
from gate import GateRun, params_with
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shared_data import write_rows

from formats.review_decisions import ReviewDecision, hash_content, read_decisions, write_decisions
from models.errors import UserError
from stages.validate.dataset_checks import check_dataset
from stages.validate.notices import review_notices
from stages.validate.rows_for_review import describe_row

PLACEHOLDER = {"context": "你叫什么？", "target": "我是 <NAME>，很高兴认识你。"}
BLANK = {"context": "茶叶怎么存？", "target": " "}
SECRET = {"context": "怎么联系你？", "target": "请打 13812345678 找我。"}
GOOD = [{"context": f"第 {n} 个问题：{n} 的平方是多少？", "target": f"是 {n * n}。"} for n in range(11, 31)]


def content_of(row: dict) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode()


def decide(row: dict, decision: str, **fields) -> ReviewDecision:
    return ReviewDecision(content_sha256=hash_content(content_of(row)), decision=decision, reason="seen", **fields)


def run(folder, tokenizer, rows, decisions=(), **validate):
    write_rows(folder / "raw/rows.jsonl", rows)
    reviews = {decision.content_sha256: decision for decision in decisions}
    return GateRun(folder / "raw", tokenizer, folder / "out", params_with(**validate), reviews)


def accepted(outcome) -> list[str]:
    rows = [row for split in outcome.written if split != "quarantine" for row in outcome.rows[split]]
    return [row["messages"][-1]["content"] for row in rows]


def books(outcome) -> dict:
    return check_dataset(outcome.table, outcome.decision, outcome.checks, None).row_counts


def test_keep_overrides_a_quarantine_but_no_required_check(base_folder, tmp_path):
    rows = [*GOOD, PLACEHOLDER, BLANK]
    before = run(tmp_path / "before", base_folder, rows)
    assert before.written["quarantine"] == 2
    after = run(tmp_path / "after", base_folder, rows, [decide(PLACEHOLDER, "keep"), decide(BLANK, "keep")])
    assert PLACEHOLDER["target"] in accepted(after)
    assert [row["failed"][0]["check"] for row in after.rows["quarantine"]] == ["nothing_blank"]
    counts = {"kept": 1, "dropped": 0, "edited": 0, "overruled": 1, "unmatched": 0}
    assert books(after)["review"] == counts
    assert "review" not in books(before)
    assert "rows.jsonl:22" in review_notices(after.table, after.decision)[1]["en"]


def test_drop_quarantines_under_the_name_review_and_lifts_a_block(base_folder, tmp_path):
    checks = params_with().model_dump(mode="json", by_alias=True)["validate"]["checks"]
    checks["no_placeholders"]["severity"] = "block"
    dropped = [decide(GOOD[3], "drop"), decide(PLACEHOLDER, "drop")]
    outcome = run(tmp_path, base_folder, [*GOOD, PLACEHOLDER], dropped, checks=checks)
    failed = [[(reason["check"], reason["seen"]) for reason in row["failed"]] for row in outcome.rows["quarantine"]]
    assert failed == [[("review", "seen")], [("review", "seen")]]
    result = check_dataset(outcome.table, outcome.decision, outcome.checks, None)
    assert not [reason for reason in result.block_reasons if "no_placeholders" in reason]
    assert result.row_counts["failed"]["review"] == 2


def test_edit_replaces_the_content_before_all_checks(base_folder, tmp_path):
    better, worse = PLACEHOLDER | {"target": "我是小茶。"}, {"context": "你好", "target": "我是 {{name}}。"}
    outcome = run(tmp_path, base_folder, [*GOOD, PLACEHOLDER], [decide(PLACEHOLDER, "edit", edited=better)])
    assert "我是小茶。" in accepted(outcome)
    outcome = run(tmp_path, base_folder, [*GOOD, PLACEHOLDER], [decide(PLACEHOLDER, "edit", edited=worse)])
    (row,) = outcome.rows["quarantine"]
    assert (row["content"], row["edited"]) == (content_of(PLACEHOLDER).decode(), worse)
    outcome = run(tmp_path, base_folder, [*GOOD, PLACEHOLDER], [decide(PLACEHOLDER, "keep", edited=worse)])
    assert worse["target"] in accepted(outcome)


def test_a_copy_is_kept_and_a_decision_on_changed_content_is_reported(base_folder, tmp_path):
    decisions = [decide(GOOD[0], "keep"), decide({"context": "gone"}, "drop")]
    outcome = run(tmp_path, base_folder, [*GOOD, GOOD[0]], decisions)
    assert accepted(outcome).count(GOOD[0]["target"]) == 2
    assert books(outcome)["review"] == {"kept": 2, "dropped": 0, "edited": 0, "overruled": 0, "unmatched": 1}
    assert "match no row" in review_notices(outcome.table, outcome.decision)[-1]["en"]


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["keep", "drop", "edit", None]), min_size=23, max_size=23))
def test_every_row_is_written_once_whatever_is_decided(base_folder, tmp_path, choices):
    rows = [*GOOD, PLACEHOLDER, BLANK, SECRET]
    edited = {"edit": {"edited": {"context": "新的问题", "target": "新的回答。"}}}
    decisions = [
        decide(row, choice, **edited.get(choice, {})) for row, choice in zip(rows, choices, strict=True) if choice
    ]
    outcome = run(tmp_path, base_folder, rows, decisions)
    assert sum(outcome.written.values()) == len(rows)
    assert sum(len(outcome.rows[destination]) for destination in outcome.written) == len(rows)


# File ----------------------------------------------------------------------------------------------


def test_decisions_survive_the_file_in_any_order(tmp_path):
    decisions = [decide(row, "drop") for row in GOOD] + [decide(PLACEHOLDER, "edit", edited=GOOD[0])]
    write_decisions(tmp_path / "a", decisions)
    write_decisions(tmp_path / "b", reversed(decisions))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert list(read_decisions(tmp_path / "a").values()) == sorted(decisions, key=lambda d: d.content_sha256)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"decision": "delete"}, "decision"),
        ({"reason": " "}, "reason"),
        ({"content_sha256": "abc"}, "content_sha256"),
        ({"decision": "edit"}, "edited"),
        ({"edited": {}, "decision": "drop"}, "edited"),
        ({"note": 1}, "note"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, change, reason):
    lines = [decide(GOOD[0], "drop").model_dump(exclude_none=True), decide(GOOD[1], "drop").model_dump() | change]
    write_rows(tmp_path / "d.jsonl", lines)
    with pytest.raises(UserError, match=f"line 2, .*{reason}"):
        read_decisions(tmp_path / "d.jsonl")


def test_two_decisions_on_one_row_are_refused(tmp_path):
    write_rows(tmp_path / "d.jsonl", [decide(GOOD[0], name).model_dump(exclude_none=True) for name in ("keep", "drop")])
    with pytest.raises(UserError, match="lines 1 and 2"):
        read_decisions(tmp_path / "d.jsonl")


# Display -------------------------------------------------------------------------------------------


def test_private_data_are_masked_unless_asked_for():
    record = {"file": "a.jsonl", "line": 3, "content": content_of(SECRET).decode(), "failed": []}
    row = describe_row(record, "", params_with(), unmasked=False)
    assert "13812345678" not in json.dumps(row, ensure_ascii=False)
    assert row["is_masked"]
    assert row["content_sha256"] == hash_content(content_of(SECRET))
    row = describe_row(record, "", params_with(), unmasked=True)
    assert "13812345678" in row["messages"][1]["content"]
    assert "13812345678" in row["content"]
