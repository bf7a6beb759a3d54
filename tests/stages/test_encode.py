from collections import Counter

import pytest
from shared_data import conversation

from models.errors import UserError
from models.prompt import encode_sample
from models.sample import Message, Sample, make_sample_id
from stages.encode import count, encode, replay, without_evaluated


@pytest.mark.parametrize("texts", [("你好", "我很好。"), ("一", "二", "三", "四")])
def test_rows_hold_the_ids_of_prompt_and_answer(tokenizer, texts):
    messages = conversation(*texts)
    (row,) = encode(tokenizer, [Sample(make_sample_id(messages), "a.jsonl", 1, messages)])
    prompt, answer = encode_sample(tokenizer, messages)
    assert (row["prompt"], row["answer"]) == (prompt, answer)
    assert count([row]) == {"rows": 1, "tokens": len(prompt) + len(answer), "answer_tokens": len(answer)}


# Replay --------------------------------------------------------------------------------------------


def sample(*texts: str, system: str | None = None) -> Sample:
    messages = (*([Message("system", system)] if system else []), *conversation(*texts))
    return Sample(make_sample_id(messages), "a.jsonl", 1, messages)


def numbered(count: int, word: str) -> list[Sample]:
    """Samples that are alike in nothing."""
    return [sample(chr(0x4E00 + 37 * i) * 9 + word, chr(0x5E00 + 41 * i) * 9 + word) for i in range(count)]


TASK = {"train": numbered(30, "练"), "eval": numbered(33, "评")[30:]}


@pytest.mark.parametrize(("share", "replayed"), [(0.0, 0), (0.01, 0), (0.25, 10), (0.5, 30), (0.75, 90)])
def test_so_many_are_replayed_that_they_make_the_share(share, replayed):
    general = numbered(60, "谈")[33:]
    drawn = replay(TASK, general, share, 1)
    assert len(drawn) == replayed
    assert replayed == pytest.approx(share * (30 + replayed), abs=0.5)
    often = Counter(drawn_sample.id for drawn_sample in drawn)
    assert set(often) <= {general_sample.id for general_sample in general}
    if drawn:
        assert max(often.values()) - min(often.get(general_sample.id, 0) for general_sample in general) <= 1


def test_the_same_seed_draws_the_same():
    general = numbered(60, "谈")[33:]
    assert replay(TASK, general, 0.3, 1) == replay(TASK, general, 0.3, 1) != replay(TASK, general, 0.3, 2)


EVALUATED = sample("介绍一下这座城市的历史（简短）。", "这座城市建于唐代，后来成为重要的商埠，今天有三百万人口。")
LEAKS = {
    "the same": EVALUATED,
    "other widths and blanks": sample(
        "介绍一下这座城市的历史(简短)。", "这座城市建于唐代,后来 成为重要的商埠,今天有三百万人口。"
    ),
    "nearly the same": sample(
        "介绍一下这座城市的历史（简短）。", "这座城市建于唐代，后来成为重要的商埠，如今有三百万人口。"
    ),
    "nearly the same question and answer": sample(
        "请介绍一下这座城市的历史（简短）。", "这座城市建于唐代，后来成为重要的商埠，今天有三百万人口！"
    ),
    "another answer": sample("介绍一下这座城市的历史（简短）。", "不知道。"),
    "another answer to other widths": sample("介绍一下 这座城市的历史(简短)。", "没有人知道。"),
    "with a system message": sample("介绍一下这座城市的历史（简短）。", "建于唐代。", system="你是导游。"),
    "as a turn before": sample(
        "介绍一下这座城市的历史（简短）。", "这座城市建于唐代，后来成为重要的商埠。", "那么" * 30, "再说别的" * 30
    ),
}


@pytest.mark.parametrize("leak", LEAKS.values(), ids=LEAKS)
@pytest.mark.parametrize("side", ["task", "general"])
def test_what_resembles_an_evaluation_row_is_not_replayed(leak, side):
    others = numbered(60, "谈")[33:40]
    task = {"train": TASK["train"], "eval": [*TASK["eval"], *([EVALUATED] if side == "task" else [])]}
    drawn = replay(task, [leak, *others], 0.6, 1, [EVALUATED] if side == "general" else [])
    assert {drawn_sample.id for drawn_sample in drawn} == {other.id for other in others}


def test_what_an_evaluated_conversation_goes_on_from_is_not_replayed():
    longer = sample("你好啊朋友", "你好，有什么可以帮你？", "三加四是多少", "是七。" * 20)
    other = sample("你好啊朋友", "今天不想说话。")
    assert without_evaluated([sample("你好啊朋友", "你好，有什么可以帮你？"), other], [longer]) == [other]


def test_what_the_task_trains_on_is_not_replayed_either():
    general = [*TASK["train"][:5], *numbered(60, "谈")[33:]]
    drawn = replay(TASK, general, 0.6, 1)
    assert not {drawn_sample.id for drawn_sample in drawn} & {known.id for known in TASK["train"]}


def test_what_is_merely_similar_is_replayed():
    """The question is nearly the same, and so is half of the answer: a similarity between 0.4 and 0.6."""
    other = sample("介绍一下这座城市的交通（简短）。", "这座城市建于唐代，后来成为重要的商埠，地铁有十二条线路。")
    assert without_evaluated([other], [EVALUATED]) == [other]


def test_a_question_is_the_same_only_where_the_same_was_said_before():
    evaluated = sample("背一首诗" * 5, "白日依山尽", "继续", "黄河入海流")
    other = sample("讲一个故事" * 5, "从前有座山", "继续", "山里有座庙" * 3)
    assert without_evaluated([other], [evaluated]) == [other]


@pytest.mark.parametrize("general", [[], TASK["train"][:3], TASK["eval"], [LEAKS["another answer"]]])
def test_nothing_to_replay_is_one_sentence(general):
    with pytest.raises(UserError, match=r"train\.replay needs general conversations"):
        replay(TASK, general, 0.2, 1, [EVALUATED])
    assert replay(TASK, general, 0.0, 1, [EVALUATED]) == []
