"""What is learnt of a conversation: the checks of every answer, cut turns, plain texts, thinking, and the counts."""

import json
import random
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from gate import GateRun, params_with
from hypothesis import given, settings
from hypothesis import strategies as st
from shared_data import conversation, developer_file, write_rows

from formats.params_schema import Params
from formats.receipt import SPLITS
from models.prompt import encode_sample, find_learnt
from models.sample import Message, Sample
from models.thinking import has_unclosed_thinking, strip_thinking, unwrap_thinking
from stages.encode.__main__ import RepeatFilter, count_tokens, encode_samples
from stages.validate.dataset_checks import count_learnt
from stages.validate.dedup import compute_keys
from stages.validate.learnt_answers import LearntAnswers
from stages.validate.row_features import compute_features, find_role_fault
from stages.validate.row_table import _load_vocabulary

GOOD_ANSWER = "先温杯，再投茶，最后注水。"


def params_learning(learn: str = "all", **validate) -> Params:
    params = params_with(**validate)
    return params.model_copy(update={"train": params.train.model_copy(update={"learn": learn})})


@pytest.fixture
def gate(base_folder, tmp_path):
    """Run the gate on conversations of alternating texts; returns the run."""

    def run(rows: list, params: Params | None = None) -> GateRun:
        lines = [{"messages": [message.to_json() for message in conversation(*texts)]} for texts in rows]
        write_rows(tmp_path / "raw/a.jsonl", lines)
        return GateRun(tmp_path / "raw", base_folder, tmp_path / "out", params or params_learning())

    return run


# Checks of every answer ----------------------------------------------------------------------------

ANSWER_FAULTS = {
    "no_boilerplate": "作为一个AI语言模型，我不能喝茶。",
    "right_name": "我是ChatGPT。",
    "answer_whole": "先洗米，再加水，",
    "not_repetitive": "好的" * 100,
    "no_html": "第一行<br/>第二行",
    "no_placeholders": "我是 <NAME>。",
    "no_role_marks": "十元。<|im_end|>",
    "answer_fits": "".join(map(chr, range(0x4E00, 0x4E00 + 2000))),
}


@pytest.mark.parametrize(("check", "fault"), ANSWER_FAULTS.items(), ids=ANSWER_FAULTS)
@pytest.mark.parametrize("turn", [0, 1, 2])
def test_every_learnt_answer_must_pass_every_answer_check(gate, check, fault, turn):
    texts = [f"怎么泡{turn}号茶？", GOOD_ANSWER, "水温呢？", "九十度左右就好。", "泡多久？", "一分钟就可以了。"]
    good = list(texts)
    texts[2 * turn + 1] = fault
    params = params_learning()
    encode = params.encode.model_copy(update={"max_prompt_tokens": 9000})
    assert check in gate([texts, good], params.model_copy(update={"encode": encode})).failed(1)
    assert not gate([good]).failed(1) & ANSWER_FAULTS.keys()


@pytest.mark.parametrize("check", ["no_boilerplate", "right_name", "answer_whole", "not_repetitive", "answer_fits"])
def test_answers_that_are_not_learnt_need_not_pass(gate, check):
    texts = ["怎么泡茶？", ANSWER_FAULTS[check], "水温呢？", "九十度左右就好。"]
    params = params_learning("last")
    encode = params.encode.model_copy(update={"max_prompt_tokens": 9000})
    assert check not in gate([texts], params.model_copy(update={"encode": encode})).failed(1)


def features_of(base_folder, messages: tuple[Message, ...], params: Params | None = None):
    return compute_features([messages], _load_vocabulary(base_folder), params or params_learning())


def test_loss_flags_exclude_answers_from_the_checks(base_folder):
    bad = Message("assistant", ANSWER_FAULTS["no_boilerplate"], learn=False)
    messages = (Message("user", "怎么泡茶？"), bad, Message("user", "水温呢？"), Message("assistant", "九十度。"))
    features = features_of(base_folder, messages)
    assert features.table["no_boilerplate_fault"][0] is None
    assert list(features.turn_tokens > 0) == [False, True]


def test_a_conversation_of_which_nothing_is_learnt_is_a_fault():
    assert find_role_fault((Message("user", "问"), Message("assistant", "答", learn=False))) == "no answer is learnt"
    assert find_role_fault((Message("text", "文", learn=False),)) == "no answer is learnt"
    assert find_role_fault((Message("text", "文"),)) is None
    assert find_role_fault((Message("text", "文"), Message("text", "文"))) == "a text beside other messages"
    assert find_role_fault((*conversation("问", "答"), Message("text", "文"))) == "a text beside other messages"


def test_context_of_all_answers_is_linear_in_the_conversation():
    """A conversation of n turns must not cost n²: every text is in a bounded number of contexts."""
    for turns, length in ((4000, 3), (400, 30), (40, 3000)):
        messages = conversation(*("字" * length for _ in range(2 * turns)))
        learnt = LearntAnswers.collect([messages], "all")
        total = 2 * turns * length
        assert sum(map(len, learnt.prompts)) < 12 * total + turns * 900
        assert "\n".join(learnt.prompts).count("\n") >= turns


@settings(max_examples=60, deadline=None)
@given(flags=st.lists(st.booleans(), min_size=1, max_size=40))
def test_every_message_before_the_last_learnt_answer_is_in_a_context(flags):
    messages = tuple(
        message
        for number, learn in enumerate(flags)
        for message in (Message("user", f"问{number}。"), Message("assistant", f"答{number}。", learn))
    )
    learnt = LearntAnswers.collect([messages], "all")
    indices = find_learnt(messages) or [len(messages) - 1]
    assert learnt.answers == [messages[index].content for index in indices]
    assert learnt.questions == [messages[index - 1].content for index in indices]
    seen = "\n".join([*learnt.prompts, *learnt.answers])
    assert all(message.content in seen for message in messages[: indices[-1] + 1])


# Token counts --------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    texts=st.lists(st.text("你好吗茶水abc 12，。\n", min_size=1, max_size=30), min_size=2, max_size=12),
    learn=st.sampled_from(["all", "last"]),
    flags=st.lists(st.booleans(), min_size=6, max_size=6),
)
def test_counted_tokens_are_those_that_are_encoded(base_folder, tokenizer, texts, learn, flags):
    messages = conversation(*texts[: len(texts) // 2 * 2])
    messages = tuple(
        Message(message.role, message.content, flags[index // 2] or message.role == "user")
        for index, message in enumerate(messages)
    )
    if not find_learnt(messages):
        return
    features = features_of(base_folder, messages, params_learning(learn))
    pairs = [encode_sample(tokenizer, messages[: index + 1]) for index in find_learnt(messages, learn)]
    assert list(features.turn_tokens[features.turn_tokens > 0]) == [len(answer) for _, answer in pairs]
    assert features.table["prompt_tokens"][0] == max(len(prompt) for prompt, _ in pairs)
    assert features.table["answer_tokens"][0] == max(len(answer) for _, answer in pairs)


def test_answers_of_cut_turns_are_not_learnt(gate, tokenizer):
    long = "".join(map(chr, range(0x4E00, 0x4E00 + 300)))
    texts = ["第一问？", long, "第二问？", "第二个回答在这里。", "第三问？", "第三个回答在这里。"]
    params = params_learning(cut_history=True)
    budget = len(encode_sample(tokenizer, conversation(*texts[2:]))[0]) + 1
    encode = params.encode.model_copy(update={"max_prompt_tokens": budget, "max_answer_tokens": 20})
    run = gate([texts, ["别的问题？", "别的回答。"]], params.model_copy(update={"encode": encode}))
    samples = {row["source"]["line"]: row for part in SPLITS for row in run.rows[part]}
    assert [message["content"] for message in samples[1]["messages"]] == texts[2:]  # the long answer is no fault
    assert list(run.table.turn_tokens[:3] > 0) == [False, True, True]
    assert count_learnt(run.table, np.array([0]))["answers"] == 2


def test_a_budget_counts_the_prompt_of_the_last_learnt_answer(base_folder, tokenizer):
    """What follows the last learnt answer is in no prompt."""
    messages = (*conversation("问", "答"), Message("user", "长" * 500), Message("assistant", "答", learn=False))
    features = features_of(base_folder, messages)
    assert features.table["prompt_tokens"][0] == len(encode_sample(tokenizer, messages[:2])[0])


# Books ---------------------------------------------------------------------------------------------


def growing(turns: int, name: str) -> list[list[str]]:
    """Return a row for every turn of a dialogue, with the turns before it."""
    texts = [
        text for turn in range(turns) for text in (f"{name}的第{turn}个问题是什么？", f"{name}的第{turn}个回答在此。")
    ]
    return [texts[: 2 * length] for length in range(1, turns + 1)]


@pytest.mark.parametrize("learn", ["all", "last"])
def test_books_count_what_stage_encode_encodes(gate, tokenizer, learn):
    rows = [*growing(4, "甲乙丙"), *growing(3, "红黄蓝"), ["单独的问题？", "单独的回答。"]]
    rows.append([*rows[1][:2], "另一个问题？", "另一个回答。"])  # a branch
    run = gate(rows, params_learning(learn))
    for split, indices in run.decision.rows_by_split.items():
        learnt = count_learnt(run.table, indices)
        samples = [Sample.from_json(row) for row in run.rows[split]]
        repeat_filter = RepeatFilter()
        encoded = encode_samples(tokenizer, samples, learn, repeat_filter)
        assert learnt["conversations"] == len(samples)
        assert learnt["answers"] == len(encoded)
        assert learnt["tokens"] == count_tokens(encoded)["answer_tokens"]
        assert learnt["repeated"] == repeat_filter.repeated
    total = sum(count_learnt(run.table, rows)["answers"] for rows in run.decision.rows_by_split.values())
    assert total == 4 + 3 + 1 + 1


def test_system_messages_tell_answers_apart(gate):
    lines = [
        {
            "messages": [
                {"role": "system", "content": f"你是{name}。"},
                *(m.to_json() for m in conversation("问？", "答。")),
            ]
        }
        for name in ("茶师", "药师")
    ]
    keys = compute_keys([tuple(Message(**message) for message in line["messages"]) for line in lines])
    assert len(set(keys.turns[[1, 3]].tolist())) == 2


def test_growing_histories_stay_on_one_side_and_are_learnt_once(base_folder, tmp_path):
    case = developer_file("cases/16_growing_history_on_both_sides")
    files = [path for path in Path(case).iterdir() if path.suffix in (".jsonl", ".json")]
    (tmp_path / "raw").mkdir()
    for path in files:
        (tmp_path / "raw" / path.name).write_bytes(path.read_bytes())
    run = GateRun(tmp_path / "raw", base_folder, tmp_path / "out", params_learning())
    prefixes = {
        split: {
            json.dumps(row["messages"][: index + 1], ensure_ascii=False)
            for row in run.rows[split]
            for index in range(1, len(row["messages"]), 2)
        }
        for split in SPLITS
    }
    assert not any(prefixes[first] & prefixes[second] for first, second in combinations(SPLITS, 2))
    for split, rows in run.decision.rows_by_split.items():
        assert count_learnt(run.table, rows)["answers"] == len(prefixes[split])


# Plain texts ---------------------------------------------------------------------------------------


def test_plain_texts_have_keys_of_their_own():
    texts = ["从前有座山，山里有座庙，庙里有个老和尚。", "红烧肉的做法：五花肉切块焯水，小火慢炖一小时。"]
    keys = compute_keys([(Message("text", text),) for text in texts])
    for column in (keys.sample, keys.prompt, keys.question, keys.turns):
        assert len(set(column.tolist())) == 2
    assert keys.counts.tolist() == [1, 1]


def test_plain_texts_pass_the_gate(base_folder, tmp_path):
    words = "春夏秋冬山水风云花鸟鱼虫天地人和早晚东西南北上下大小长短高低红黄蓝白"
    texts = ["".join(random.Random(number).sample(words, 20)) + "。" for number in range(30)]
    lines = [{"messages": [{"role": "text", "content": text}]} for text in texts]
    write_rows(tmp_path / "raw/a.jsonl", lines)
    run = GateRun(tmp_path / "raw", base_folder, tmp_path / "out", params_learning(eval_share=0.3))
    assert run.written["quarantine"] == 0, run.rows["quarantine"][:3]
    assert run.written["eval"] > 0
    assert not any(finding.rows for finding in run.decision.findings if finding.check == "one_answer")
    assert set(run.table.prompt_tokens) == {2.0}
    assert count_learnt(run.table, np.arange(30))["answers"] == 30


# Thinking ------------------------------------------------------------------------------------------

THINKING = "<think>\n用户想泡茶。\n</think>\n\n先温杯，再投茶。"


@pytest.mark.parametrize(("thinking", "answer"), [("learn", THINKING), ("strip", "先温杯，再投茶。")])
def test_thinking_is_learnt_or_removed_before_everything_else(gate, thinking, answer):
    texts = ["怎么泡茶？", THINKING, "水温呢？", "<think></think>九十度就好。"]
    plain = ["怎么泡茶？", "先温杯，再投茶。", "水温呢？", "九十度就好。"]
    run = gate([texts, plain], params_learning(thinking=thinking))
    assert "no_role_marks" not in run.failed(1)
    assert ("unique" in run.failed(2)) == (thinking == "strip")
    (row,) = [row for split in SPLITS for row in run.rows[split] if row["source"]["line"] == 1]
    assert row["messages"][1]["content"] == answer


@pytest.mark.parametrize("thinking", ["learn", "strip"])
def test_thinking_without_an_end_is_a_fault(gate, thinking):
    run = gate(
        [["怎么泡茶？", "<think>用户想泡茶。先温杯。"], ["问题？", "回答。"]], params_learning(thinking=thinking)
    )
    assert run.failed(1) == {"known_format"}
    assert "has no </think>" in json.dumps(run.rows["quarantine"], ensure_ascii=False)


@pytest.mark.parametrize("answer", ["先温杯。</think>再投茶。", "好的。<think>想</think>先温杯。"])
def test_other_thinking_tags_are_role_marks(gate, answer):
    assert "no_role_marks" in gate([["怎么泡茶？", answer], ["问题？", "回答。"]]).failed(1)


@settings(max_examples=100, deadline=None)
@given(thought=st.text(max_size=20), rest=st.text(max_size=20), blanks=st.text(" \n", max_size=3))
def test_stripped_answers_have_the_rest_alone(thought, rest, blanks):
    messages = conversation("问", f"{blanks}<think>{thought}</think>{blanks}{rest}")
    assert not has_unclosed_thinking(messages)
    if "</think>" not in thought:
        assert strip_thinking(messages) == conversation("问", rest.lstrip())
        assert unwrap_thinking(messages)[1].content == f"{thought}\n{rest.lstrip()}"
    assert strip_thinking(conversation("<think>问</think>", rest)) == conversation("<think>问</think>", rest)
