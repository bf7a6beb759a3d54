"""No dialogue stands on both sides of the split, however its rows are written down."""

import random

import numpy as np
import pytest
from gate import Outcome
from hypothesis import given, settings
from hypothesis import strategies as st
from shared_data import conversation, write_rows

from models.sample import Message, make_sample_id
from stages.validate.dedup import keys_of
from stages.validate.split import Split, split

GREETING = ("你好", "您好，请问有什么可以帮您？")
APART = [conversation(f"别的问题 {number}", "答") for number in range(40)]  # of which some fall to either side
SHORT = st.sampled_from(["1件", "好的", "3号楼", "在吗", "不用了", "耳机", "你好"])


def divide(rows: list[tuple[Message, ...]], share: float = 0.3, pairs=()) -> Split:
    return split(keys_of(rows), np.arange(len(rows)), list(pairs), share)


def growing(turns: list[tuple[str, str]], first: int = 1, system: str | None = None) -> list[tuple[Message, ...]]:
    """One row for each turn from the ``first`` one on, with all turns before it as its history."""
    front = (Message("system", system),) if system else ()
    return [(*front, *conversation(*sum(turns[:count], ()))) for count in range(first, len(turns) + 1)]


@st.composite
def dialogues(draw) -> list[tuple[int, tuple[Message, ...]]]:
    """Rows of several dialogues with short turns, each with the number of its dialogue, in any order, none twice."""
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
def test_all_rows_of_a_dialogue_are_on_one_side_and_stay_there(rows):
    rows = [*((-1 - number, row) for number, row in enumerate(APART)), *rows]
    outcome = divide([row for _, row in rows])
    sides = {}
    for position, (number, _) in enumerate(rows):
        if position not in outcome.torn:
            sides.setdefault(number, set()).add(bool(outcome.evaluated[position]))
    assert all(len(side) == 1 for side in sides.values())

    old = (len(rows) + len(APART)) // 2
    before = divide([row for _, row in rows[:old]])
    kept = [position for position in range(old) if position not in before.torn and position not in outcome.torn]
    assert (before.evaluated[kept] == outcome.evaluated[kept]).all()


@pytest.mark.parametrize(
    "greeting",
    [[GREETING], [GREETING, ("在吗", "在的。")], [("你好", None)], [("你好，我想咨询一下你们的产品", None)]],
)
def test_dialogues_that_open_with_one_greeting_are_divided(greeting):
    """None as an answer stands for another one in every dialogue."""
    rows = []
    for number in range(600):
        opening = [(question, answer or f"您好，{number} 号客服为您服务。") for question, answer in greeting]
        rows += growing(
            [*opening, (f"我要第 {number} 号", f"好的，第 {number} 号。"), ("谢谢", f"不客气，{number} 号。")]
        )
    rows = list(dict.fromkeys(rows))
    for ordered in (rows, rows[::-1]):
        outcome = divide(ordered)
        going = [position for position in range(len(rows)) if position not in outcome.torn]
        # The greeting itself is set aside, where it is a row that belongs to both sides.
        assert len(rows) - len(going) <= len(greeting)
        assert 0.2 < outcome.evaluated[going].mean() < 0.45  # of 0.3, with 100 of the 600 together at most


def test_a_greeting_of_both_sides_is_set_aside_and_names_a_row_of_the_other_side():
    rows = [conversation(*GREETING)]
    rows += [conversation(*GREETING, f"第 {number} 个", f"答 {number}") for number in range(60)]
    outcome = divide(rows)
    (other,) = outcome.torn.values()
    assert list(outcome.torn) == [0]
    assert outcome.evaluated[other] != outcome.evaluated[0]
    # Few rows that go on from it stay with it.
    assert divide(rows[:5]).torn == {}


def test_one_question_and_its_answers_are_on_one_side():
    rows = [conversation("请介绍一下你自己，好吗？", f"我是第 {number} 个。") for number in range(50)]
    evaluated = divide([*rows, *APART]).evaluated
    assert len(set(evaluated[:50].tolist())) == 1
    assert len(set(evaluated[50:].tolist())) == 2


def test_many_questions_about_one_document_are_on_one_side():
    document = ("请阅读这份材料：" + "一二三四五六七八九十" * 10, "好的，我读完了。")
    rows = [conversation(*document, f"第 {number} 段说什么？", f"说的是 {number}。") for number in range(60)]
    assert len(set(divide([*rows, *APART]).evaluated[:60].tolist())) == 1


def test_rows_whose_history_was_cut_follow_the_row_before():
    """Each row has the turn before its question alone."""
    for number in range(30):
        turns = [(f"问 {number} {turn}", f"答 {number} {turn}") for turn in range(6)]
        rows = [conversation(*turns[0]), *(conversation(*turns[turn], *turns[turn + 1]) for turn in range(5))]
        assert len(set(divide([*rows, *APART]).evaluated[:6].tolist())) == 1


def test_a_row_between_a_dialogue_and_its_copy_on_the_other_side_is_set_aside():
    evaluated = divide(APART).evaluated
    trained, kept = int(np.argmin(evaluated)), int(np.argmax(evaluated))
    rows = [*APART, (*APART[trained], *conversation("还有呢？", "没有了。"))]
    assert divide(rows, pairs=[(40, trained, 0.9)]).torn == {}
    assert divide(rows, pairs=[(40, kept, 0.9)]).torn == {40: kept}


def test_what_is_set_aside_decides_nothing_for_the_rows_behind_it():
    evaluated = divide(APART).evaluated
    sides = sorted((int(np.argmin(evaluated)), int(np.argmax(evaluated))))
    alone = [conversation(f"谁 {number}？", "我。") for number in range(30)]
    # A row that would go elsewhere by itself than to the side of the first row that it resembles.
    row = next(row for row in alone if divide([*APART, row]).evaluated[40] != evaluated[sides[0]])
    other = next(other for other in alone if divide([*APART, other]).evaluated[40] == evaluated[sides[0]])
    rows = [*APART, row, (*row, *conversation("真的？", "真的。")), other]
    pairs = [*((40, side, 0.9) for side in sides), (42, 40, 0.9)]
    outcome = divide(rows, pairs=pairs)
    assert outcome.torn == {40: sides[1]}
    assert outcome.evaluated[41] != evaluated[sides[0]]
    assert outcome.evaluated[42] == evaluated[sides[0]]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_old_rows_stay_put_when_new_ones_follow(data):
    count = data.draw(st.integers(40, 80))
    rows = [conversation(f"问题 {number}", "答") for number in range(count)]
    edge = st.tuples(st.integers(1, count - 1), st.integers(0, count - 2)).filter(lambda pair: pair[0] > pair[1])
    pairs = sorted({(*pair, 0.9) for pair in data.draw(st.lists(edge, max_size=20))})
    old = count - data.draw(st.integers(1, 9))
    before = divide(rows[:old], pairs=[pair for pair in pairs if pair[0] < old])
    after = divide(rows, pairs=pairs)
    assert (before.evaluated == after.evaluated[:old]).all()
    for later, earlier, _ in pairs:
        if later not in after.torn and earlier not in after.torn:
            assert after.evaluated[later] == after.evaluated[earlier]


def test_few_rows_of_one_side_let_a_small_part_change_over():
    rows = [*growing([(f"问 {turn}", f"答 {turn}") for turn in range(9)]), conversation("别的问题", "答")]
    for share in (1e-9, 1 - 1e-9):
        evaluated = divide(rows, share).evaluated
        assert evaluated[-1] != evaluated[0]
        assert len(set(evaluated[:-1].tolist())) == 1


def test_dialogues_of_several_files_and_in_any_order_go_through_the_gate_whole(base_folder, tmp_path):
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
    outcome = Outcome(tmp_path / "raw", base_folder, tmp_path / "kept")
    sides = {}
    for side in ("train", "eval"):
        for row in outcome.rows[side]:
            source = row["source"]
            number = rows[2 * (source["line"] - 1) + (source["file"] == "b.jsonl")]["conv"]
            sides.setdefault(number, set()).add(side)
    assert {len(side) for side in sides.values()} == {1}
    assert outcome.written["eval"] > 4


def test_a_system_message_alike_in_all_rows_makes_no_near_duplicates(base_folder, tmp_path):
    system = "您是一位耐心的客服，回答要简短、礼貌、准确，不谈与商品无关的事，也不许诺做不到的事。" * 3
    rows = [
        {"system": system, "prompt": f"第{chr(0x4E00 + 7 * n)}件多少钱？", "response": f"{n} 元。"} for n in range(60)
    ]
    write_rows(tmp_path / "raw/a.jsonl", rows)
    outcome = Outcome(tmp_path / "raw", base_folder, tmp_path / "kept")
    near = next(finding for finding in outcome.decision.findings if finding.check == "no_near_duplicate")
    assert len(near.rows) < 30
    assert outcome.rows["train"][0]["messages"][0] == {"role": "system", "content": system}


def test_rows_that_differ_in_their_system_text_alone_are_no_question_with_two_answers(base_folder, tmp_path):
    rows = [{"system": f"您是{name}。", "prompt": "你是谁？", "response": f"我是{name}。"} for name in "甲乙丙"]
    write_rows(tmp_path / "raw/a.jsonl", [*rows, {**rows[0], "response": "不告诉您。"}])
    outcome = Outcome(tmp_path / "raw", base_folder, tmp_path / "kept")
    assert [line for line in range(1, 5) if "one_answer" in outcome.failed(line)] == [4]
