"""Decoding with fixed buffers gives the tokens of transformers' own generate()."""

import pytest
import torch

from models import adapters, decoding
from models.decoding import Decoder
from models.generation import greedy_config, sampling_config

CONTEXTS = [[40, 41, 42, 43, 44], [50, 51], [60, 61, 62]]


@pytest.fixture(params=["bare", "lora", "ptuning_v2"])
def any_model(request, model):
    torch.manual_seed(0)
    if request.param == "bare":
        return model
    how = {"lora": {"rank": 4, "alpha": 32, "target_modules": ["query_key_value"]}, "ptuning_v2": {"prefix_tokens": 4}}
    tuned = adapters.attach(model, request.param, **how[request.param]).eval()
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:  # a fresh adapter changes nothing
                parameter.add_(0.3 * torch.randn_like(parameter))
    return tuned


def prompts_of(config) -> dict[str, torch.Tensor]:
    """Three prompts, padded on the left."""
    longest = max(map(len, CONTEXTS))
    rows = [[config.pad_token_id] * (longest - len(c)) + [*c] for c in CONTEXTS]
    ids = torch.tensor([[*row, config.gmask_token_id, config.bos_token_id] for row in rows])
    return {"input_ids": ids, "attention_mask": (ids != config.pad_token_id).long()}


@pytest.mark.parametrize("how", [greedy_config, sampling_config])
@pytest.mark.parametrize("growth", [1, 512])
def test_its_tokens_are_those_of_generate(any_model, monkeypatch, how, growth):
    monkeypatch.setattr(decoding, "GROWTH", growth)
    batch, decoder = prompts_of(any_model.config), Decoder()
    generation = how(any_model, 20)
    generation.eos_token_id = None
    answers = []
    for custom in (None, decoder, decoder):
        torch.manual_seed(3)
        with torch.inference_mode():
            answers.append(any_model.generate(**batch, generation_config=generation, custom_generate=custom).tolist())
    assert answers[0] == answers[1] == answers[2]
    assert len({tuple(answer) for answer in answers[0]}) == 3


def test_rows_end_where_each_ends(any_model):
    """The end is set to what some row says in its middle."""
    batch, config = prompts_of(any_model.config), any_model.config
    generation = greedy_config(any_model, 12)
    generation.eos_token_id = None
    whole = any_model.generate(**batch, generation_config=generation)
    generation.eos_token_id = int(whole[0, -6])
    expected = any_model.generate(**batch, generation_config=generation)
    assert (expected == config.pad_token_id)[:, -1].any() or expected.shape[1] < whole.shape[1]
    got = any_model.generate(**batch, generation_config=generation, custom_generate=Decoder())
    assert got.tolist() == expected.tolist()


def test_what_was_said_before_leaves_no_trace(any_model):
    """One decoder for a long prompt and then for a short one, whose places the long one filled."""
    config, decoder = any_model.config, Decoder()
    generation = greedy_config(any_model, 8)
    end = [config.gmask_token_id, config.bos_token_id]
    short = torch.tensor([[50, 51, *end]])
    expected = any_model.generate(short, generation_config=generation)
    for prompt in (torch.tensor([[*range(40, 70), *end]]), short):
        got = any_model.generate(prompt, generation_config=generation, custom_generate=decoder)
    assert got.tolist() == expected.tolist()
