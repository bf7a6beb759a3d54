"""Decoding with a preallocated cache gives the tokens of transformers' generate()."""

import pytest
import torch

from models import adapters, decoding
from models.decoding import Decoder
from models.generation import greedy_config, sampling_config

CONTEXTS = [[40, 41, 42, 43, 44], [50, 51], [60, 61, 62]]


@pytest.fixture(params=["base", "lora", "ptuning_v2"])
def any_model(request, model):
    torch.manual_seed(0)
    if request.param == "base":
        return model
    settings = {
        "lora": {"rank": 4, "alpha": 32, "target_modules": ["query_key_value"]},
        "ptuning_v2": {"prefix_tokens": 4},
    }
    adapted = adapters.attach_adapter(model, request.param, **settings[request.param]).eval()
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:  # a new adapter has no effect
                parameter.add_(0.3 * torch.randn_like(parameter))
    return adapted


def make_batch(config) -> dict[str, torch.Tensor]:
    """Return three prompts, padded on the left."""
    longest = max(map(len, CONTEXTS))
    rows = [[config.pad_token_id] * (longest - len(context)) + [*context] for context in CONTEXTS]
    ids = torch.tensor([[*row, config.gmask_token_id, config.bos_token_id] for row in rows])
    return {"input_ids": ids, "attention_mask": (ids != config.pad_token_id).long()}


@pytest.mark.parametrize("build_config", [greedy_config, sampling_config])
@pytest.mark.parametrize("capacity_step", [1, 512])
def test_tokens_equal_those_of_generate(any_model, monkeypatch, build_config, capacity_step):
    monkeypatch.setattr(decoding, "CAPACITY_STEP", capacity_step)
    batch, decoder = make_batch(any_model.config), Decoder()
    generation = build_config(any_model, 20)
    generation.eos_token_id = None
    outputs = []
    for custom in (None, decoder, decoder):
        torch.manual_seed(3)
        with torch.inference_mode():
            outputs.append(any_model.generate(**batch, generation_config=generation, custom_generate=custom).tolist())
    assert outputs[0] == outputs[1] == outputs[2]
    assert len({tuple(row) for row in outputs[0]}) == 3


def test_each_row_ends_at_its_own_end_token(any_model):
    """The end token is one that a row generates before its last tokens."""
    batch, config = make_batch(any_model.config), any_model.config
    generation = greedy_config(any_model, 12)
    generation.eos_token_id = None
    without_end = any_model.generate(**batch, generation_config=generation)
    generation.eos_token_id = int(without_end[0, -6])
    expected = any_model.generate(**batch, generation_config=generation)
    assert (expected == config.pad_token_id)[:, -1].any() or expected.shape[1] < without_end.shape[1]
    output = any_model.generate(**batch, generation_config=generation, custom_generate=Decoder())
    assert output.tolist() == expected.tolist()


def test_an_earlier_longer_prompt_does_not_change_the_output(any_model):
    """The short prompt reuses buffers that the long one filled further."""
    config, decoder = any_model.config, Decoder()
    generation = greedy_config(any_model, 8)
    end = [config.gmask_token_id, config.bos_token_id]
    short = torch.tensor([[50, 51, *end]])
    expected = any_model.generate(short, generation_config=generation)
    for prompt in (torch.tensor([[*range(40, 70), *end]]), short):
        output = any_model.generate(prompt, generation_config=generation, custom_generate=decoder)
    assert output.tolist() == expected.tolist()
