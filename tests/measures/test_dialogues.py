"""Rows of one dialogue, in the layouts in which they come."""

from measures.dialogues import MAX_CONTINUATIONS, find_dialogues, mean_by_dialogue


def row(*texts: str, system: str | None = None) -> dict:
    """Return a row of alternating messages, the last one as its reference."""
    messages = [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(texts[:-1])]
    return {
        "messages": [{"role": "system", "content": system}, *messages] if system else messages,
        "reference": texts[-1],
    }


def test_growing_history_is_one_dialogue_in_any_order():
    turns = ["你好", "你好。", "多少钱？", "三元。", "谢谢", "不客气。"]
    rows = [row(*turns), row("别的", "是。"), row(*turns[:2], system="客服"), row(*turns[:4])]
    assert find_dialogues(rows) == [2, 1, 2, 2]
    assert mean_by_dialogue(rows, [1.0, 5.0, 3.0, 2.0]) == [2.0, 5.0]


def test_missing_turns_do_not_divide_a_dialogue():
    turns = [f"句 {number}" for number in range(8)]
    assert find_dialogues([row(*turns[:2]), row(*turns)]) == [0, 0]


def test_answers_to_one_prompt_are_one_dialogue():
    assert find_dialogues([row("谁？", "我。"), row("谁？", "他。"), row("谁？", "  他。")]) == [0, 0, 0]


def test_a_greeting_does_not_join_dialogues():
    rows = [row("你好", "您好。")] + [row("你好", "您好。", f"要 {n}", "好。") for n in range(MAX_CONTINUATIONS + 1)]
    assert find_dialogues(rows) == list(range(len(rows)))
    assert find_dialogues(rows[:-1]) == [0] * (len(rows) - 1)


def test_rows_without_messages_and_equal_rows_stand_alone():
    """The check ``unique`` removes copies, so equal rows are no rows of a conversation."""
    assert find_dialogues([{"loss": 1.0}, {"loss": 1.0}, row("问", "答"), row("问", "答")]) == [0, 1, 2, 3]
