import json
import sys
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shared_data import ROOT, conversation, write_rows

from models.errors import UserError
from models.prompt import encode_prompt, encode_sample, encode_text
from models.sample import Message, Sample, make_sample_id
from stages.encode.__main__ import RepeatFilter, count_tokens, encode_samples, main
from stages.encode.replay import draw_replay_samples, exclude_similar_to_evaluated
from stages.encode.token_view import label_tokens


def make_sample(messages) -> Sample:
    return Sample(make_sample_id(messages), "a.jsonl", 1, tuple(messages))


@pytest.mark.parametrize(("learn", "lengths"), [("all", (2, 4, 6)), ("last", (6,))])
def test_every_learnt_answer_is_a_row_with_the_ids_of_prompt_and_answer(tokenizer, learn, lengths):
    messages = conversation("一", "二", "三", "四", "五", "六")
    whole = make_sample(messages)
    rows = encode_samples(tokenizer, [whole], learn)
    pairs = [encode_sample(tokenizer, messages[:length]) for length in lengths]
    assert [tuple(row["parts"]) for row in rows] == pairs
    ids = [f"{whole.id}:{number}" for number in (1, 2, 3)] if learn == "all" else [whole.id]
    assert [row["id"] for row in rows] == ids
    answer_tokens = sum(len(answer) for _, answer in pairs)
    tokens = answer_tokens + sum(len(prompt) for prompt, _ in pairs)
    assert count_tokens(rows) == {"rows": len(lengths), "tokens": tokens, "answer_tokens": answer_tokens}


def test_prompt_of_an_answer_is_the_one_that_chat_sees(tokenizer):
    messages = (Message("system", "请简短。"), *conversation("一", "二", "三", "四"))
    rows = encode_samples(tokenizer, [make_sample(messages)])
    assert [row["parts"][0] for row in rows] == [
        encode_prompt(tokenizer, messages[:2]),
        encode_prompt(tokenizer, messages[:4]),
    ]


def test_answers_with_a_loss_flag_of_0_are_not_learnt(tokenizer):
    first, second, third = (
        Message("assistant", "二", learn=False),
        Message("assistant", "四"),
        Message("assistant", "六"),
    )
    messages = (Message("user", "一"), first, Message("user", "三"), second, Message("user", "五"), third)
    rows = encode_samples(tokenizer, [make_sample(messages)])
    assert [row["id"].split(":")[1] for row in rows] == ["2", "3"]
    unlearnt_end = (*messages[:5], Message("assistant", "六", learn=False))
    for learn in ("all", "last"):
        (row,) = encode_samples(tokenizer, [make_sample(unlearnt_end)], learn)
        assert tuple(row["parts"]) == encode_sample(tokenizer, messages[:4])
        assert ":" not in row["id"]


def test_a_plain_text_is_the_answer_to_an_empty_prompt(tokenizer):
    text = (Message("text", "夕阳把湖面染成了金色。"),)
    (row,) = encode_samples(tokenizer, [make_sample(text)])
    assert tokenizer.convert_ids_to_tokens(row["parts"][0]) == ["[gMASK]", "<sop>"]
    assert row["parts"][1] == [*encode_text(tokenizer, text[0].content), tokenizer.eop_token_id]


@settings(max_examples=30, deadline=None)
@given(turns=st.integers(1, 6), others=st.lists(st.integers(0, 5), max_size=5), data=st.data())
def test_every_turn_of_growing_histories_is_encoded_once(tokenizer, turns, others, data):
    """Rows 1 … n of one dialogue, with branches that leave it after some turns, in any order."""
    texts = [text for turn in range(turns) for text in (f"问{turn}", f"答{turn}")]
    rows = [conversation(*texts[: 2 * length]) for length in range(1, turns + 1)]
    branches = sorted({min(turn, turns) for turn in others})
    rows += [conversation(*texts[: 2 * turn], "另一问", "另一答") for turn in branches]
    repeat_filter = RepeatFilter()
    samples = [make_sample(messages) for messages in data.draw(st.permutations(rows))]
    encoded = encode_samples(tokenizer, samples, "all", repeat_filter)
    pairs = [tuple(map(tuple, row["parts"])) for row in encoded]
    assert len(set(pairs)) == len(pairs) == turns + len(branches)
    assert len(pairs) + repeat_filter.repeated == sum(len(messages) // 2 for messages in rows)
    assert len(encode_samples(tokenizer, samples, "all")) == len(pairs) + repeat_filter.repeated


# Replay --------------------------------------------------------------------------------------------


def sample(*texts: str, system: str | None = None) -> Sample:
    messages = (*([Message("system", system)] if system else []), *conversation(*texts))
    return Sample(make_sample_id(messages), "a.jsonl", 1, messages)


def dissimilar_samples(count: int, word: str) -> list[Sample]:
    """Return samples without common 4-grams."""
    return [sample(chr(0x4E00 + 37 * i) * 9 + word, chr(0x5E00 + 41 * i) * 9 + word) for i in range(count)]


TASK = {
    "train": dissimilar_samples(30, "练"),
    "eval": dissimilar_samples(32, "评")[30:],
    "test": dissimilar_samples(33, "评")[32:],
}


@pytest.mark.parametrize(("share", "replayed"), [(0.0, 0), (0.01, 0), (0.25, 10), (0.5, 30), (0.75, 90)])
def test_replayed_samples_make_up_the_share(share, replayed):
    general = dissimilar_samples(60, "谈")[33:]
    drawn = draw_replay_samples(TASK, general, share, 1)
    assert len(drawn) == replayed
    assert replayed == pytest.approx(share * (30 + replayed), abs=0.5)
    draws = Counter(drawn_sample.id for drawn_sample in drawn)
    assert set(draws) <= {general_sample.id for general_sample in general}
    if drawn:
        assert max(draws.values()) - min(draws.get(general_sample.id, 0) for general_sample in general) <= 1


def test_draw_depends_on_the_seed_only():
    general = dissimilar_samples(60, "谈")[33:]
    assert (
        draw_replay_samples(TASK, general, 0.3, 1)
        == draw_replay_samples(TASK, general, 0.3, 1)
        != draw_replay_samples(TASK, general, 0.3, 2)
    )


EVALUATED = sample("介绍一下这座城市的历史（简短）。", "这座城市建于唐代，后来成为重要的商埠，今天有三百万人口。")
LEAKS = {
    "identical": EVALUATED,
    "other character widths and spaces": sample(
        "介绍一下这座城市的历史(简短)。", "这座城市建于唐代,后来 成为重要的商埠,今天有三百万人口。"
    ),
    "near-duplicate": sample(
        "介绍一下这座城市的历史（简短）。", "这座城市建于唐代，后来成为重要的商埠，如今有三百万人口。"
    ),
    "near-duplicate question and answer": sample(
        "请介绍一下这座城市的历史（简短）。", "这座城市建于唐代，后来成为重要的商埠，今天有三百万人口！"
    ),
    "another answer": sample("介绍一下这座城市的历史（简短）。", "不知道。"),
    "another answer, other character widths": sample("介绍一下 这座城市的历史(简短)。", "没有人知道。"),
    "with a system message": sample("介绍一下这座城市的历史（简短）。", "建于唐代。", system="你是导游。"),
    "as an earlier turn": sample(
        "介绍一下这座城市的历史（简短）。", "这座城市建于唐代，后来成为重要的商埠。", "那么" * 30, "再说别的" * 30
    ),
}


@pytest.mark.parametrize("leak", LEAKS.values(), ids=LEAKS)
@pytest.mark.parametrize("data", ["eval", "test", "general"])
def test_samples_similar_to_held_out_rows_are_not_replayed(leak, data):
    others = dissimilar_samples(60, "谈")[33:40]
    task = {split: [*samples, *([EVALUATED] if data == split else [])] for split, samples in TASK.items()}
    drawn = draw_replay_samples(task, [leak, *others], 0.6, 1, [EVALUATED] if data == "general" else [])
    assert {drawn_sample.id for drawn_sample in drawn} == {other.id for other in others}


def test_start_of_an_evaluated_conversation_is_not_replayed():
    longer = sample("你好啊朋友", "你好，有什么可以帮你？", "三加四是多少", "是七。" * 20)
    other = sample("你好啊朋友", "今天不想说话。")
    assert exclude_similar_to_evaluated([sample("你好啊朋友", "你好，有什么可以帮你？"), other], [longer]) == [other]


def test_conversations_are_replayed_beside_plain_texts():
    document = make_sample((Message("text", "一篇关于城市历史的长文章，说到唐代，也说到今天。"),))
    others = dissimilar_samples(60, "谈")[33:40]
    task = {"train": [document] * 7, "eval": [document], "test": [document]}
    drawn = draw_replay_samples(task, others, 0.5, 1)
    assert {drawn_sample.id for drawn_sample in drawn} == {other.id for other in others}


def test_training_rows_of_the_task_are_not_replayed():
    general = [*TASK["train"][:5], *dissimilar_samples(60, "谈")[33:]]
    drawn = draw_replay_samples(TASK, general, 0.6, 1)
    assert not {drawn_sample.id for drawn_sample in drawn} & {known.id for known in TASK["train"]}


def test_less_similar_sample_is_replayed():
    """The question and half of the answer are nearly equal: a similarity between 0.4 and 0.6."""
    other = sample("介绍一下这座城市的交通（简短）。", "这座城市建于唐代，后来成为重要的商埠，地铁有十二条线路。")
    assert exclude_similar_to_evaluated([other], [EVALUATED]) == [other]


def test_equal_question_with_another_history_is_replayed():
    evaluated = sample("背一首诗" * 5, "白日依山尽", "继续", "黄河入海流")
    other = sample("讲一个故事" * 5, "从前有座山", "继续", "山里有座庙" * 3)
    assert exclude_similar_to_evaluated([other], [evaluated]) == [other]


@pytest.mark.parametrize("general", [[], TASK["train"][:3], TASK["eval"], [LEAKS["another answer"]]])
def test_no_samples_to_replay_is_an_error(general):
    with pytest.raises(UserError, match=r"train\.replay needs general conversations"):
        draw_replay_samples(TASK, general, 0.2, 1, [EVALUATED])
    assert draw_replay_samples(TASK, general, 0.0, 1, [EVALUATED]) == []


# Token view ----------------------------------------------------------------------------------------

ROW = {"context": "你是谁？", "target": "我是小明。"}


def show(monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["stages.encode", "--show", *map(str, arguments)])
    main()


def test_only_the_answer_and_eop_are_trained(tokenizer):
    messages = conversation("你好", "你好！", "你是谁？", "我是小明。")
    tokens = label_tokens(tokenizer, tokenizer.family.encode_rows(tokenizer, messages, "last")[0])
    prompt, answer = encode_sample(tokenizer, messages)
    assert [is_trained for _, is_trained in tokens] == [False] * len(prompt) + [True] * len(answer)
    assert [token for token, _ in tokens[len(prompt) - 2 : len(prompt)]] == ["[gMASK]", "<sop>"]
    assert tokens[-1] == ("<eop>", True)


@pytest.mark.parametrize("has_colours", [True, False])
def test_show_prints_the_tokens_of_one_line(base_folder, tmp_path, monkeypatch, capsys, has_colours):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1") if has_colours else monkeypatch.delenv("FORCE_COLOR", raising=False)
    path = write_rows(tmp_path / "a.jsonl", [{"context": "别的", "target": "别的"}, ROW])
    show(monkeypatch, path, 2, "--tokenizer", base_folder)
    ignored_title, ignored, trained_title, trained = capsys.readouterr().out.splitlines()
    assert ignored_title.startswith("ignored (")
    assert trained_title.startswith("trained (")
    assert "[gMASK]|<sop>" in ignored
    assert "|<eop>" in trained
    assert trained.startswith("\x1b[32m") == ignored.startswith("\x1b[2;31m") == has_colours


def test_show_prints_a_row_for_every_learnt_answer(base_folder, tmp_path, monkeypatch, capsys):
    row = {"prompt": "你是谁？", "response": "我是小明。", "history": [["你好", "<think>想</think>\n你好！"]]}
    path = write_rows(tmp_path / "a.jsonl", [row])
    monkeypatch.setenv("NO_COLOR", "1")
    for learn, thinking, counts in (("all", "learn", (2, 2)), ("last", "learn", (1, 1)), ("all", "strip", (2, 0))):
        params = (ROOT / "params.yaml").read_text(encoding="utf-8")
        params = params.replace("thinking: learn", f"thinking: {thinking}").replace("learn: all", f"learn: {learn}")
        (tmp_path / "params.yaml").write_text(params, encoding="utf-8")
        monkeypatch.chdir(tmp_path)
        show(monkeypatch, path, 1, "--tokenizer", base_folder)
        out = capsys.readouterr().out
        assert (out.count("trained ("), out.count("想")) == counts


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        (json.dumps(ROW), "0", "--show: '0' is not a line number"),
        (json.dumps(ROW), "two", "--show: 'two' is not a line number"),
        (json.dumps(ROW), "3", "has no line 3; its last line is 1"),
        ("[\n" + json.dumps(ROW) + "\n]", "1", "--show needs JSON Lines, one row per line"),
        ("\n" + json.dumps(ROW), "1", "line 1: not a JSON object"),
        (b"\xff\xfe", "1", "line 1: not UTF-8 at byte 1"),
        ('{"a": 1}', "1", "line 1: no known format has these keys: 'a'"),
        (
            json.dumps({"messages": [{"role": "user", "content": "你好"}]}),
            "1",
            "must end with a question and an answer",
        ),
    ],
)
def test_show_explains_a_line_without_a_conversation(tmp_path, monkeypatch, capsys, content, line, message):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SystemExit) as exit_info:
        show(monkeypatch, path, line)
    assert exit_info.value.code == 1
    assert message in capsys.readouterr().err


def test_show_without_a_tokenizer_names_the_command_to_run(tmp_path, monkeypatch, capsys):
    path = write_rows(tmp_path / "a.jsonl", [ROW])
    with pytest.raises(SystemExit):
        show(monkeypatch, path, 1, "--tokenizer", tmp_path)
    assert "run `dvc repro tokenizer`" in capsys.readouterr().err


def test_paths_are_required_without_show(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["stages.encode", "--base", "x"])
    with pytest.raises(SystemExit):
        main()
    assert "required without --show: --checked, --general, --out, --metrics" in capsys.readouterr().err
