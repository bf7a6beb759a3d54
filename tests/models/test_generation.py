import time

import pytest
import torch
from shared_data import conversation

from models.decoding import Decoder
from models.generation import AnswerStream, generate_answers, greedy_config, sampling_config
from models.prompt import encode_prompt
from models.text_normalization import restore_chinese_punctuation

CONVERSATIONS = [
    conversation("你好"),
    conversation("你是谁？", "我是 A。", "3加4等于多少？"),
    conversation("请以“夕阳”造句。"),
]


def answer_texts(model, tokenizer, batch_size) -> list[str]:
    answers = dict(generate_answers(model, tokenizer, CONVERSATIONS, max_new_tokens=8, batch_size=batch_size))
    return [answers[index].text for index in range(len(CONVERSATIONS))]


def test_answers_do_not_depend_on_the_batch_size(model, tokenizer):
    single = answer_texts(model, tokenizer, 1)
    assert single == answer_texts(model, tokenizer, 2) == answer_texts(model, tokenizer, 3)


def test_answer_ends_at_the_end_token(model, tokenizer):
    prompt = torch.tensor([encode_prompt(tokenizer, CONVERSATIONS[0])])
    third = model.generate(prompt, max_new_tokens=3, eos_token_id=None)[0, -1].item()
    model.config.eos_token_id = third
    ((_, answer),) = generate_answers(model, tokenizer, CONVERSATIONS[:1], max_new_tokens=8, batch_size=1)
    assert answer.tokens == 2


def test_full_length_ignores_the_end_token(model, tokenizer):
    prompt = torch.tensor([encode_prompt(tokenizer, CONVERSATIONS[0])])
    model.config.eos_token_id = model.generate(prompt, max_new_tokens=1, eos_token_id=None)[0, -1].item()
    ((_, answer),) = generate_answers(
        model, tokenizer, CONVERSATIONS[:1], max_new_tokens=8, batch_size=1, force_full_length=True
    )
    assert answer.tokens == 8


@pytest.mark.parametrize("build_config", [greedy_config, sampling_config])
@pytest.mark.parametrize("decoder", [None, Decoder()], ids=["generate", "decoder"])
def test_pieces_of_a_stream_add_up_to_its_answer(model, tokenizer, build_config, decoder):
    torch.manual_seed(0)
    for messages in CONVERSATIONS * 5:  # some sampled answers contain ids without a piece
        stream = AnswerStream(model, tokenizer, messages, build_config(model, 24), decoder)
        text = "".join(stream)
        assert text == stream.answer.text
        assert text == restore_chinese_punctuation(text)
        assert stream.answer.seconds > 0


def test_a_stream_raises_the_error_of_its_thread(model, tokenizer):
    def fail(*args, **kwargs):
        raise RuntimeError("out of memory")

    model.generate = fail
    with pytest.raises(RuntimeError, match="out of memory"):
        list(AnswerStream(model, tokenizer, CONVERSATIONS[0], greedy_config(model, 4)))


@pytest.mark.parametrize("decoder", [None, Decoder()], ids=["generate", "decoder"])
def test_closing_a_stream_stops_generation(model, tokenizer, decoder):
    steps = []
    model.register_forward_hook(lambda *_: steps.append(1) or time.sleep(0.01))
    config = greedy_config(model, 400)
    config.eos_token_id = None  # would end the answer earlier
    pieces = iter(AnswerStream(model, tokenizer, CONVERSATIONS[0], config, decoder))
    next(pieces)
    pieces.close()
    num_steps = len(steps)
    assert num_steps < 300
    time.sleep(0.1)
    assert len(steps) == num_steps
