"""The split: all rows of a dialogue are in one split, in any order and layout of the rows."""

import random

import numpy as np
import pytest
from gate import GateRun
from hypothesis import given, settings
from hypothesis import strategies as st
from shared_data import conversation, write_rows

from formats.receipt import SPLITS
from models.sample import Message, make_sample_id
from stages.validate.dedup import compute_keys
from stages.validate.split import EVAL, Split, split_rows

GREETING = ("你好", "您好，请问有什么可以帮您？")
UNRELATED = [conversation(f"别的问题 {number}", "答") for number in range(40)]  # some of them are in each split
SHORT = st.sampled_from(["1件", "好的", "3号楼", "在吗", "不用了", "耳机", "你好"])


def split(rows: list[tuple[Message, ...]], share: float = 0.3, pairs=()) -> Split:
    """Split rows; ``share`` is that of the evaluation rows, and half as many rows are test rows."""
    return split_rows(compute_keys(rows), np.arange(len(rows)), list(pairs), (share, share / 2))


def growing(turns: list[tuple[str, str]], first: int = 1, system: str | None = None) -> list[tuple[Message, ...]]:
    """Return a row for each turn from ``first`` on, with all earlier turns as its history."""
    front = (Message("system", system),) if system else ()
    return [(*front, *conversation(*sum(turns[:count], ()))) for count in range(first, len(turns) + 1)]


@st.composite
def dialogues(draw) -> list[tuple[int, tuple[Message, ...]]]:
    """Draw distinct rows of several dialogues with short turns, in any order, each with the number of its dialogue."""
    greeting = draw(st.sampled_from([[], [GREETING], [GREETING, ("在吗", "在的。")]]))
    rows = []
    for number in range(draw(st.integers(2, 40))):
        asked = draw(st.lists(SHORT, min_size=1, max_size=4))
        turns = [*greeting, *((question, f"{question}，单号{number}。") for question in asked)]
        first = draw(st.integers(1, len(turns)))
        system = draw(st.sampled_from([None, f"您是客服{number % 3}号。"]))
        rows += [(number, row) for row in growing(turns, first, system)]
    order = draw(st.sampled_from([lambda row: 0, lambda row: make_sample_id(row[1]), lambda row: -len(row[1])]))
    return list({row: (number, row) for number, row in sorted(rows, key=order)}.values())


@settings(max_examples=60, deadline=None)
@given(dialogues())
def test_all_rows_of_a_dialogue_are_in_one_split_and_stay_there(rows):
    rows = [*((-1 - number, row) for number, row in enumerate(UNRELATED)), *rows]
    outcome = split([row for _, row in rows])
    splits = {}
    for position, (number, _) in enumerate(rows):
        if position not in outcome.conflicts:
            splits.setdefault(number, set()).add(int(outcome.splits[position]))
    assert all(len(splits_of_dialogue) == 1 for splits_of_dialogue in splits.values())

    old = (len(rows) + len(UNRELATED)) // 2
    before = split([row for _, row in rows[:old]])
    kept = [
        position for position in range(old) if position not in before.conflicts and position not in outcome.conflicts
    ]
    assert (before.splits[kept] == outcome.splits[kept]).all()


@pytest.mark.parametrize(
    "greeting",
    [[GREETING], [GREETING, ("在吗", "在的。")], [("你好", None)], [("你好，我想咨询一下你们的产品", None)]],
)
def test_dialogues_with_the_same_greeting_are_in_both_splits(greeting):
    """None stands for an answer that differs in every dialogue."""
    rows = []
    for number in range(600):
        opening = [(question, answer or f"您好，{number} 号客服为您服务。") for question, answer in greeting]
        rows += growing(
            [*opening, (f"我要第 {number} 号", f"好的，第 {number} 号。"), ("谢谢", f"不客气，{number} 号。")]
        )
    rows = list(dict.fromkeys(rows))
    for ordered in (rows, rows[::-1]):
        outcome = split(ordered)
        assigned = [position for position in range(len(rows)) if position not in outcome.conflicts]
        # The greeting itself, as a row that belongs to both splits, is a conflict.
        assert len(rows) - len(assigned) <= len(greeting)
        assert (
            0.2 < (outcome.splits[assigned] == EVAL).mean() < 0.45
        )  # expected 0.3; at most 100 of the 600 are kept together


def test_greeting_of_both_splits_conflicts_with_a_row_of_the_other_split():
    rows = [conversation(*GREETING)]
    rows += [conversation(*GREETING, f"第 {number} 个", f"答 {number}") for number in range(60)]
    outcome = split(rows)
    (other,) = outcome.conflicts.values()
    assert list(outcome.conflicts) == [0]
    assert outcome.splits[other] != outcome.splits[0]
    # A few rows that continue the greeting stay with it.
    assert split(rows[:5]).conflicts == {}


def test_all_answers_to_one_question_are_in_one_split():
    rows = [conversation("请介绍一下你自己，好吗？", f"我是第 {number} 个。") for number in range(50)]
    splits = split([*rows, *UNRELATED]).splits
    assert len(set(splits[:50].tolist())) == 1
    assert len(set(splits[50:].tolist())) == 3


def test_all_questions_about_one_document_are_in_one_split():
    document = ("请阅读这份材料：" + "一二三四五六七八九十" * 10, "好的，我读完了。")
    rows = [conversation(*document, f"第 {number} 段说什么？", f"说的是 {number}。") for number in range(60)]
    assert len(set(split([*rows, *UNRELATED]).splits[:60].tolist())) == 1


def test_rows_with_truncated_history_join_the_previous_row():
    """Every row has one earlier turn."""
    for number in range(30):
        turns = [(f"问 {number} {turn}", f"答 {number} {turn}") for turn in range(6)]
        rows = [conversation(*turns[0]), *(conversation(*turns[turn], *turns[turn + 1]) for turn in range(5))]
        assert len(set(split([*rows, *UNRELATED]).splits[:6].tolist())) == 1


def test_row_that_belongs_to_two_splits_is_a_conflict():
    splits = split(UNRELATED).splits
    trained, kept = int(np.argmin(splits)), int(np.argmax(splits))
    rows = [*UNRELATED, (*UNRELATED[trained], *conversation("还有呢？", "没有了。"))]
    assert split(rows, pairs=[(40, trained, 0.9)]).conflicts == {}
    assert split(rows, pairs=[(40, kept, 0.9)]).conflicts == {40: kept}


def test_conflicting_row_does_not_affect_later_rows():
    splits = split(UNRELATED).splits
    first, second = sorted((int(np.argmin(splits)), int(np.argmax(splits))))  # rows of different splits
    alone = [conversation(f"谁 {number}？", "我。") for number in range(30)]
    # By its hash, the row would be in another split than its first near-duplicate.
    row = next(row for row in alone if split([*UNRELATED, row]).splits[40] != splits[first])
    other = next(other for other in alone if split([*UNRELATED, other]).splits[40] == splits[first])
    rows = [*UNRELATED, row, (*row, *conversation("真的？", "真的。")), other]
    pairs = [*((40, earlier, 0.9) for earlier in (first, second)), (42, 40, 0.9)]
    outcome = split(rows, pairs=pairs)
    assert outcome.conflicts == {40: second}
    assert outcome.splits[41] != splits[first]
    assert outcome.splits[42] == splits[first]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_appended_rows_do_not_move_old_rows(data):
    count = data.draw(st.integers(40, 80))
    rows = [conversation(f"问题 {number}", "答") for number in range(count)]
    edge = st.tuples(st.integers(1, count - 1), st.integers(0, count - 2)).filter(lambda pair: pair[0] > pair[1])
    pairs = sorted({(*pair, 0.9) for pair in data.draw(st.lists(edge, max_size=20))})
    old = count - data.draw(st.integers(1, 9))
    before = split(rows[:old], pairs=[pair for pair in pairs if pair[0] < old])
    after = split(rows, pairs=pairs)
    assert (before.splits == after.splits[:old]).all()
    for later, earlier, _ in pairs:
        if later not in after.conflicts and earlier not in after.conflicts:
            assert after.splits[later] == after.splits[earlier]


@pytest.mark.parametrize("shares", [(1e-9, 1e-9), (1 - 2e-9, 1e-9), (1e-9, 1 - 2e-9)])
def test_few_rows_of_one_split_move_small_parts_to_the_others(shares):
    dialogue = growing([(f"问 {turn}", f"答 {turn}") for turn in range(9)])
    rows = [*dialogue, conversation("别的问题", "答"), conversation("又一个问题", "答")]
    splits = split_rows(compute_keys(rows), np.arange(len(rows)), [], shares).splits
    assert len(set(splits[:-2].tolist())) == 1
    assert sorted({*splits[[0, -2, -1]].tolist()}) == [0, 1, 2]


def test_splits_have_their_shares():
    splits = split([conversation(f"问题 {number}", "答") for number in range(3000)], 0.2).splits
    assert np.bincount(splits) / len(splits) == pytest.approx([0.7, 0.2, 0.1], abs=0.03)


def test_evaluation_rows_of_two_splits_stay_evaluation_rows():
    """The test rows are taken from the training rows."""
    rows = [conversation(f"问题 {number}", "答") for number in range(300)]
    before, after = (
        split_rows(compute_keys(rows), np.arange(len(rows)), [], (0.2, share)).splits == EVAL for share in (1e-9, 0.1)
    )
    assert (before == after).sum() >= len(rows) - 1


def test_gate_keeps_dialogues_of_several_files_in_one_split(base_folder, tmp_path):
    draw = random.Random(4)
    rows = []
    for number in range(60):
        texts = [f"{draw.choice(['1件', '好的', '3号楼'])}" for _ in range(4)]
        turns = [(text, f"{text}，订单 {number * 7919}。") for text in texts]
        rows += [
            {"prompt": question, "response": answer, "history": [list(turn) for turn in turns[:place]], "conv": number}
            for place, (question, answer) in enumerate(turns)
        ]
    draw.shuffle(rows)
    write_rows(tmp_path / "raw/a.jsonl", rows[::2])
    write_rows(tmp_path / "raw/b.jsonl", rows[1::2])
    run = GateRun(tmp_path / "raw", base_folder, tmp_path / "out")
    splits = {}
    for name in SPLITS:
        for row in run.rows[name]:
            source = row["source"]
            number = rows[2 * (source["line"] - 1) + (source["file"] == "b.jsonl")]["conv"]
            splits.setdefault(number, set()).add(name)
    assert {len(names) for names in splits.values()} == {1}
    assert run.written["eval"] > 4


def test_shared_system_message_makes_no_near_duplicates(base_folder, tmp_path):
    system = "您是一位耐心的客服，回答要简短、礼貌、准确，不谈与商品无关的事，也不许诺做不到的事。" * 3
    rows = [
        {"system": system, "prompt": f"第{chr(0x4E00 + 7 * n)}件多少钱？", "response": f"{n} 元。"} for n in range(60)
    ]
    write_rows(tmp_path / "raw/a.jsonl", rows)
    run = GateRun(tmp_path / "raw", base_folder, tmp_path / "out")
    near = next(finding for finding in run.decision.findings if finding.check == "no_near_duplicate")
    assert len(near.rows) < 30
    assert run.rows["train"][0]["messages"][0] == {"role": "system", "content": system}


def test_rows_with_different_system_messages_have_no_conflicting_answers(base_folder, tmp_path):
    rows = [{"system": f"您是{name}。", "prompt": "你是谁？", "response": f"我是{name}。"} for name in "甲乙丙"]
    write_rows(tmp_path / "raw/a.jsonl", [*rows, {**rows[0], "response": "不告诉您。"}])
    run = GateRun(tmp_path / "raw", base_folder, tmp_path / "out")
    assert [line for line in range(1, 5) if "one_answer" in run.failed(line)] == [4]
