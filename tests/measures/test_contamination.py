import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from measures import contamination
from measures.contamination import Match, comparison_form, find_in_training, questions_of
from models.sample import Message

TRAINING = ["你好", "请问 你是谁？", "绿茶放在冰箱里可以保存多久，需要注意些什么？", "What is GREEN tea?"]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("请问你是谁", Match(1, 1.0)),
        ("what is green tea", Match(3, 1.0)),
        ("你好！", Match(0, 1.0)),
        ("绿茶放在冰箱里可以保存多久？需要注意些什么呢", Match(2, 0.9444)),
        ("红茶要不要放冰箱？", None),
        ("您好，怎么称呼？", None),
        ("？", None),
    ],
)
def test_equal_and_similar_texts_are_found(text, match):
    found = find_in_training(["没有出现过的问题", text], TRAINING)
    assert 0 not in found
    assert found.get(1) == (match and pytest.approx(match, abs=1e-3))


def test_equal_text_is_preferred_to_a_similar_one_across_batches(monkeypatch):
    monkeypatch.setattr(contamination, "_BATCH", 2)
    long = "绿茶放在冰箱里可以保存多久，需要注意些什么？"
    training = [f"{long}吗", "别的", "还有别的", long, long]
    assert find_in_training([long, long], iter(training)) == {0: Match(3, 1.0), 1: Match(3, 1.0)}


def test_without_texts_the_training_rows_are_not_read():
    assert find_in_training([], iter(lambda: pytest.fail("read"), None)) == {}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text("你我他是谁茶叶怎么存？ aB", max_size=12), max_size=8), st.integers(1, 3))
def test_every_training_text_is_found_whatever_the_batches(texts, batch):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contamination, "_BATCH", batch)
        matches = find_in_training(texts, texts)
    forms = [comparison_form(text) for text in texts]
    assert {index: match.position for index, match in matches.items()} == {
        index: forms.index(form) for index, form in enumerate(forms)
    }


def test_all_questions_of_a_conversation_count():
    messages = [Message("system", "一"), Message("user", "二"), Message("assistant", "三"), Message("user", "四")]
    assert questions_of(messages) == ["二", "四"]
