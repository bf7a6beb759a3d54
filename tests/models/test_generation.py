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


def answers(model, tokenizer, batch_size):
    found = dict(generate_answers(model, tokenizer, CONVERSATIONS, max_new_tokens=8, batch_size=batch_size))
    return [found[index].text for index in range(len(CONVERSATIONS))]


def test_batches_of_any_size_answer_the_same(model, tokenizer):
    alone = answers(model, tokenizer, 1)
    assert alone == answers(model, tokenizer, 2) == answers(model, tokenizer, 3)


def test_the_answer_ends_at_eop(model, tokenizer):
    prompt = torch.tensor([encode_prompt(tokenizer, CONVERSATIONS[0])])
    third = model.generate(prompt, max_new_tokens=3, eos_token_id=None)[0, -1].item()
    model.config.eos_token_id = third
    ((_, answer),) = generate_answers(model, tokenizer, CONVERSATIONS[:1], max_new_tokens=8, batch_size=1)
    assert answer.tokens == 2


@pytest.mark.parametrize("generation", [greedy_config, sampling_config])
@pytest.mark.parametrize("decoder", [None, Decoder()])
def test_the_pieces_of_a_stream_make_its_answer(model, tokenizer, generation, decoder):
    torch.manual_seed(0)
    for messages in CONVERSATIONS * 5:  # of sampling_config ones, some hold ids that are no piece
        stream = AnswerStream(model, tokenizer, messages, generation(model, 24), decoder)
        text = "".join(stream)
        assert text == stream.answer.text
        assert text == restore_chinese_punctuation(text)
        assert stream.answer.seconds > 0


def test_a_stream_hands_its_error_on(model, tokenizer):
    def fail(*args, **kwargs):
        raise RuntimeError("out of memory")

    model.generate = fail
    with pytest.raises(RuntimeError, match="out of memory"):
        list(AnswerStream(model, tokenizer, CONVERSATIONS[0], greedy_config(model, 4)))


@pytest.mark.parametrize("decoder", [None, Decoder()], ids=["generate", "decoder"])
def test_an_answer_that_nobody_reads_on_is_stopped(model, tokenizer, decoder):
    steps = []
    model.register_forward_hook(lambda *_: steps.append(1) or time.sleep(0.01))
    config = greedy_config(model, 400)
    config.eos_token_id = None  # which would end it by itself
    pieces = iter(AnswerStream(model, tokenizer, CONVERSATIONS[0], config, decoder))
    next(pieces)
    pieces.close()
    done = len(steps)
    assert done < 300
    time.sleep(0.1)
    assert len(steps) == done
